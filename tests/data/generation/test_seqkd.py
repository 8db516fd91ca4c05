"""A teacher writes texts into a file: what stands in it, going on after a stop, and learning from it."""

import json

import pytest
import torch

from potstill.data.generation import SeqKDGenerator, read_completions, write_tokens
from potstill.data.texts import TextCollator, TextDataset
from potstill.data.texts_source import build_texts
from potstill.errors import InputError, IntegrityError, RecipeError
from potstill.run import generate
from potstill.teachers import fingerprint
from text_models import byte_tokenizer, llama, save_pair


@pytest.fixture(scope="module")
def collator():
    return TextCollator(byte_tokenizer(), 128)


@pytest.fixture(scope="module")
def data():
    return TextDataset("train", 7, domains=["facts"])


def writer(collator, seed=0, **options):
    return SeqKDGenerator(llama(seed=seed), collator, max_new_tokens=6, **options)


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_file_says_who_wrote_what_and_how(collator, data, tmp_path):
    path = writer(collator, beams=1).generate(data, tmp_path / "texts.jsonl", batch_size=3)
    header, *rows = lines(path)
    assert header["teacher"] == fingerprint(llama())
    assert header["decoding"] == {"max_new_tokens": 6, "kind": "beam", "beams": 1, "batch_size": 3}
    assert [row["id"] for row in rows] == [row["id"] for row in data.rows]
    for row in rows:
        assert row["ended"] == (row["ids"][-1] == collator.end)
        assert collator.end not in row["ids"][:-1]
        assert row["text"] == collator.tokenizer.decode(row["ids"], skip_special_tokens=True)
    assert not (tmp_path / "texts.jsonl.part").exists()


@pytest.mark.parametrize("beams", [1, 5])
def test_the_texts_are_those_the_teacher_writes_for_each_prompt_alone(collator, data, tmp_path, beams):
    """Compared with transformers' own search on a single row, without padding."""
    path = writer(collator, beams=beams).generate(data, tmp_path / "texts.jsonl", batch_size=4)
    teacher = llama()
    for row in lines(path)[1:]:
        ids = torch.tensor(collator.prompt_ids([row["prompt"]]))
        given = {"num_beams": beams, "do_sample": False, "max_new_tokens": 6, "eos_token_id": 1, "pad_token_id": 0}
        alone = teacher.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **given)[0, ids.shape[1] :]
        assert row["ids"] == alone.tolist()


def test_draws_depend_on_the_seed_and_the_batch_alone(collator, data, tmp_path):
    drawn = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.rand(3)  # the global generator has no say
        made = SeqKDGenerator(llama(), collator, max_new_tokens=6, temperature=1.0, seed=seed)
        drawn.append(lines(made.generate(data, tmp_path / name, batch_size=4))[1:])
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("options", [{"beams": 3}, {"temperature": 1.0}])
def test_a_file_that_was_torn_anywhere_ends_as_if_it_had_not_been(collator, data, tmp_path, options):
    whole = writer(collator, **options).generate(data, tmp_path / "whole.jsonl", batch_size=2).read_bytes()
    for cut in (1, 100, len(whole) // 2, len(whole) - 1, len(whole)):
        path = tmp_path / f"{cut}.jsonl"
        path.with_name(path.name + ".part").write_bytes(whole[:cut])
        writer(collator, **options).generate(data, path, batch_size=2)
        assert path.read_bytes() == whole


def test_a_file_that_is_whole_is_not_written_again(collator, data, tmp_path, monkeypatch):
    path = writer(collator, beams=1).generate(data, tmp_path / "texts.jsonl")
    monkeypatch.setattr(SeqKDGenerator, "_rows", None)
    assert writer(collator, beams=1).generate(data, path) == path


@pytest.mark.parametrize(
    ("field", "change"),
    [("teacher", {"seed": 1}), ("decoding", {"beams": 2}), ("decoding", {"temperature": 1.0})],
)
@pytest.mark.parametrize("is_whole", [True, False])
def test_another_teacher_or_decoding_is_refused_by_name(collator, data, tmp_path, field, change, is_whole):
    path = writer(collator, beams=1).generate(data, tmp_path / "texts.jsonl")
    if not is_whole:
        path.rename(path.with_name(path.name + ".part"))
    with pytest.raises(IntegrityError, match=f"another {field}"):
        writer(collator, **{"beams": 1, **change}).generate(data, path)


def test_other_prompts_are_refused(collator, data, tmp_path):
    path = writer(collator, beams=1).generate(data, tmp_path / "texts.jsonl")
    with pytest.raises(IntegrityError, match="another prompts"):
        writer(collator, beams=1).generate(TextDataset("train", 7, domains=["words"]), path)


@pytest.mark.parametrize(
    "options", [{"beams": 0}, {"temperature": 0.0}, {"top_k": 3}, {"temperature": 1.0, "top_p": 0.0}]
)
def test_settings_out_of_range_are_refused(collator, options):
    with pytest.raises(InputError, match="generate"):
        writer(collator, **options)


def test_a_text_that_does_not_fit_behind_its_prompt_is_refused(collator, data, tmp_path):
    made = SeqKDGenerator(llama(positions=32), collator, max_new_tokens=20)
    with pytest.raises(InputError, match="longer than the teacher's context"):
        made.generate(data, tmp_path / "texts.jsonl")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A teacher on disk and the file of what it drew for all facts, by the recipe."""
    folder = tmp_path_factory.mktemp("seqkd")
    teacher = save_pair(folder / "teacher", width=32)
    recipe = {
        "version": 1,
        "teacher": {"model": teacher},
        "data": {"source": "texts", "domains": ["facts"], "max_tokens": 128, "completions": "none.jsonl"},
        "objectives": [{"loss": "cross_entropy", "on": "logits", "labels": "labels", "shift": True}],
    }
    out = folder / "texts.jsonl"
    assert generate(recipe, out, samples=40, batch_size=20, temperature=1.0, max_new_tokens=12) == out
    return teacher, out, recipe


def test_the_source_reads_the_texts_back_and_leaves_other_splits_alone(made):
    teacher, out, _ = made
    source = build_texts(tokenizer=teacher, domains=["facts"], max_tokens=128, completions=str(out))
    written, train = read_completions(out), source.split("train")
    assert 30 < len(train) <= 40
    for i in range(len(train)):
        assert train[i]["text"] == written[train[i]["id"]]["text"]
        labels = source.collator([train[i]])["labels"][0]
        ends = int(labels[-1]) == source.collator.end
        assert ends == written[train[i]["id"]]["ended"]
    assert source.split("test")[0]["text"] == TextDataset("test", 1, domains=["facts"])[0]["text"]


def test_texts_for_other_prompts_are_not_learnt(made, tmp_path):
    teacher, out, _ = made
    path = tmp_path / "other.jsonl"
    path.write_text(out.read_text().replace("capital", "Capital"))
    with pytest.raises(IntegrityError, match="other prompts"):
        build_texts(tokenizer=teacher, domains=["facts"], max_tokens=128, completions=str(path))


def test_a_file_that_is_missing_torn_or_foreign_is_refused(made, tmp_path):
    teacher, out, _ = made
    path = tmp_path / "texts.jsonl"
    with pytest.raises(InputError, match="no such file of texts") as caught:
        build_texts(tokenizer=teacher, completions=str(path))
    assert "potstill generate" in caught.value.hint
    path.with_name(path.name + ".part").write_text("")
    with pytest.raises(InputError, match="not whole yet"):
        read_completions(path)
    text = out.read_text().splitlines(keepends=True)
    for content, message in (
        ("".join(text[:-1]), "rows are missing"),
        ("".join(text)[:-20], "is damaged"),
        ("{}\n", "no file of texts"),
        ("[1]\n", "no file of texts"),
    ):
        path.write_text(content)
        with pytest.raises(IntegrityError, match=message):
            read_completions(path)


def test_a_recipe_without_prompts_or_teacher_cannot_be_written_for(made, tmp_path):
    _, _, recipe = made
    with pytest.raises(RecipeError, match="no teacher"):
        generate({**recipe, "teacher": None}, tmp_path / "x.jsonl")
    with pytest.raises(RecipeError, match="no prompt"):
        generate({**recipe, "data": {"source": "digits"}}, tmp_path / "x.jsonl")


def test_written_tokens_and_greedy_search_agree(collator, data):
    """The two ways to the most likely text: our loop and transformers'."""
    teacher, asked = llama(), collator.prompts(data.rows[:3])
    done = write_tokens(teacher, **asked, max_new_tokens=6, eos_token_id=1, pad_token_id=0, temperature=0.0)
    other = teacher.generate(**asked, max_new_tokens=6, do_sample=False, eos_token_id=1, pad_token_id=0)
    assert torch.equal(done.tokens, other[:, asked["input_ids"].shape[1] :][:, : done.tokens.shape[1]])
