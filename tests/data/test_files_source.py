import json
import shutil

import pytest
import torch
from PIL import Image

import potstill.data.files_source  # noqa: F401 - registers "files"
from potstill.data.files_source import source_from_datasets
from potstill.data.scenes import build_tokenizer
from potstill.data.sources import DATA
from potstill.errors import InputError

datasets = pytest.importorskip("datasets", reason="the extra potstill[datasets] is not installed")

TEXTS = ["a dog top left", "an apple bottom right", "is there a panda?"]


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory):
    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("cache")
    yield
    datasets.config.HF_DATASETS_CACHE = before


@pytest.fixture(scope="module")
def text_processor(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def pair_processor(tmp_path_factory):
    from transformers import CLIPImageProcessorPil, CLIPProcessor

    folder = tmp_path_factory.mktemp("processor")
    pictures = CLIPImageProcessorPil(size={"height": 16, "width": 16}, do_center_crop=False)
    CLIPProcessor(image_processor=pictures, tokenizer=build_tokenizer()).save_pretrained(folder)
    return str(folder)


def rows(number=60):
    return [{"caption": TEXTS[i % 3], "kind": ["yes", "no"][i % 2]} for i in range(number)]


def write(path, kind):
    table = datasets.Dataset.from_list(rows())
    if kind == "folder":
        table.save_to_disk(str(path))
    elif kind == "parquet":
        table.to_parquet(str(path))
    elif kind == "csv":
        table.to_csv(str(path))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    return str(path)


@pytest.mark.parametrize("name", ["mine.parquet", "mine.jsonl", "mine.csv", "folder"])
def test_a_table_goes_in_from_every_format(tmp_path, text_processor, name):
    path = write(tmp_path / name, name.rpartition(".")[2])
    source = DATA.get("files")(path=path, processor=text_processor, columns={"text": "caption", "label": "kind"})
    train = source.split("train")
    batch = source.collator([train[i] for i in range(4)])
    assert batch["input_ids"].shape[0] == 4
    assert batch["labels"].tolist() == [["no", "yes"].index(train.table[i]["kind"]) for i in range(4)]
    assert source.model_fields["num_labels"] == 2
    assert source.describe()["columns"] == {"text": "caption", "label": "kind"}


def test_one_table_is_cut_into_three_parts_that_do_not_move(tmp_path, text_processor):
    path = write(tmp_path / "mine.jsonl", "jsonl")
    build = DATA.get("files")
    sizes = []
    for seed in (0, 1):
        source = build(path=path, processor=text_processor, columns={"text": "caption"}, seed=seed)
        sizes.append([len(source.split(name)) for name in ("train", "validation", "test")])
    assert sizes[0] == sizes[1]
    assert sum(sizes[0]) == 60
    assert sizes[0][0] > sizes[0][1] > 0


def test_the_splits_of_a_saved_folder_are_kept(tmp_path, text_processor):
    table = datasets.Dataset.from_list(rows(10))
    datasets.DatasetDict({"train": table, "dev": table.select(range(4))}).save_to_disk(str(tmp_path / "both"))
    source = DATA.get("files")(path=str(tmp_path / "both"), processor=text_processor, columns={"text": "caption"})
    assert len(source.split("dev")) == 4
    assert len(source.split("dev", 2)) == 2
    with pytest.raises(InputError, match="unknown split"):
        source.split("test")


def test_pictures_come_from_paths_and_from_image_columns(tmp_path, pair_processor):
    for i in range(4):
        Image.new("RGB", (20, 20), (60 * i, 0, 0)).save(tmp_path / f"{i}.png")
    listed = [{"file": f"{i}.png", "caption": TEXTS[0]} for i in range(4)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in listed * 5))
    columns = {"image": "file", "text": "caption"}
    source = DATA.get("files")(
        path=str(tmp_path / "mine.jsonl"), processor=pair_processor, columns=columns, predict="text"
    )
    train = source.split("train")
    batch = source.collator([train[0], train[1]])
    assert batch["pixel_values"].shape == (2, 3, 16, 16)
    assert torch.equal(batch["labels"] != -100, batch["attention_mask"] == 1)

    table = datasets.Dataset.from_dict({"file": [str(tmp_path / "1.png")] * 2, "caption": TEXTS[:2]})
    table.cast_column("file", datasets.Image()).save_to_disk(str(tmp_path / "saved"))
    again = DATA.get("files")(path=str(tmp_path / "saved"), processor=pair_processor, columns=columns)
    for split in ("train", "validation", "test"):
        for sample in again.split(split):
            assert sample["image"].getpixel((3, 3)) == (60, 0, 0)


def test_the_number_of_training_rows_can_be_limited(tmp_path, text_processor):
    path = write(tmp_path / "mine.jsonl", "jsonl")
    source = DATA.get("files")(path=path, processor=text_processor, columns={"text": "caption"}, size=5)
    assert len(source.split("train")) == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "nowhere.csv"}, "no such file"),
        ({"columns": {"text": "captoin"}}, 'Did you mean "caption"'),
        ({"columns": {"txt": "caption"}}, 'Did you mean "text"'),
        ({"columns": {"label": "kind"}}, "nothing to look at"),
        ({"predict": "label", "columns": {"text": "caption"}}, 'mapped to "label"'),
        ({"predict": "image"}, "unknown target"),
        ({"processor": "no/such/folder"}, "no processor"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, text_processor, change, message):
    path = write(tmp_path / "mine.jsonl", "jsonl")
    options = {"path": path, "processor": text_processor, "columns": {"text": "caption", "label": "kind"}}
    with pytest.raises(InputError, match=message):
        DATA.get("files")(**{**options, **change})


def test_a_file_of_an_unknown_or_broken_format_is_refused(tmp_path, text_processor):
    (tmp_path / "mine.xlsx").write_text("x")
    (tmp_path / "mine.parquet").write_text("not parquet")
    (tmp_path / "empty").mkdir()
    for name, message in (("mine.xlsx", "unknown format"), ("mine.parquet", "cannot be read"), ("empty", "cannot be")):
        with pytest.raises(InputError, match=message):
            DATA.get("files")(path=str(tmp_path / name), processor=text_processor, columns={"text": "caption"})


def test_a_row_with_a_bad_label_or_picture_is_named(tmp_path, text_processor, pair_processor):
    path = write(tmp_path / "mine.jsonl", "jsonl")
    source = DATA.get("files")(
        path=path, processor=text_processor, columns={"text": "caption", "label": "kind"}, labels=["yes", "maybe"]
    )
    with pytest.raises(InputError, match=r"row \d+, column kind.*unknown label"):
        list(source.split("train"))
    pictures = DATA.get("files")(path=path, processor=pair_processor, columns={"image": "caption", "text": "caption"})
    with pytest.raises(InputError, match=r"row 0, column caption.*picture"):
        pictures.split("train")[0]


def test_columns_the_processor_does_not_read_are_refused(tmp_path, text_processor):
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps({"file": "x.png"}) + "\n" for _ in range(30)))
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    source = DATA.get("files")(path=str(tmp_path / "mine.jsonl"), processor=text_processor, columns={"image": "file"})
    with pytest.raises(InputError, match="does not take these columns"):
        source.collator([source.split("train")[0]])


def test_any_map_style_dataset_goes_in_with_its_collator():
    class Squares(torch.utils.data.Dataset):
        def __len__(self):
            return 6

        def __getitem__(self, i):
            return {"x": torch.tensor([float(i)]), "labels": torch.tensor(i * i)}

    source = source_from_datasets({"train": Squares(), "test": Squares()}, torch.utils.data.default_collate)
    assert len(source.split("test", 3)) == 3
    assert source.collator([source.split("train")[i] for i in range(3)])["labels"].tolist() == [0, 1, 4]
    with pytest.raises(InputError, match="train"):
        source_from_datasets({"test": Squares()}, torch.utils.data.default_collate)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"{}", b"\xff\xfe"])
def test_a_damaged_processor_is_refused(tmp_path, text_processor, content):
    broken = shutil.copytree(text_processor, tmp_path / "broken")
    (broken / "tokenizer.json").write_bytes(content)
    path = write(tmp_path / "mine.jsonl", "jsonl")
    with pytest.raises(InputError, match="processor: no processor could be loaded"):
        DATA.get("files")(path=path, processor=str(broken), columns={"text": "caption"})


@pytest.mark.parametrize("path", ["x" * 5000, "./nowhere", "~/nowhere.csv"])
def test_a_table_that_is_not_there_is_refused(text_processor, path):
    with pytest.raises(InputError, match="path: there is no such file or folder"):
        DATA.get("files")(path=path, processor=text_processor, columns={"text": "caption"})
