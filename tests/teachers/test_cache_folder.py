"""A cache on disk: whole or refused, gone on with after a stop at any byte, read in any order."""

import contextlib
import errno
import json
import multiprocessing
import pickle
import random
import time
from pathlib import Path

import pytest
import torch
from cache_cases import FIELDS, ROWS, batch_of, build, content, header, shown

from potstill.errors import InputError, IntegrityError, RecipeError
from potstill.teachers.cache import CachedCollator, CachedTeacher, CacheReader, CacheWriter, NumberedDataset, shards
from potstill.teachers.cache import folder as folders

ALL = list(range(len(FIELDS)))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache") / "whole"
    return build(folder)


def read(reader, rows):
    batch = batch_of(rows)
    return reader.read(rows, ALL, lambda field: field.kept(batch))


def test_rows_come_back_in_any_order_padded_as_the_batch_is(whole):
    order = list(range(ROWS))
    random.Random(0).shuffle(order)
    for start in range(0, ROWS, 5):
        rows = order[start : start + 5]
        batch = batch_of(rows)
        found = dict(zip((f.name for f in FIELDS), read(whole, rows)))
        live = shown(rows, batch["labels"].shape[1])
        at = FIELDS[0].kept(batch)
        log_p = live["logits"].log_softmax(-1)
        assert found["logits"]["ids"][at].equal(log_p.topk(5).indices[at].int())
        torch.testing.assert_close(found["logits"]["log_probs"][at], log_p.topk(5).values[at], rtol=0, atol=0.005)
        assert (found["drawn_logits"]["counts"].sum(-1)[at] == 6).all()
        torch.testing.assert_close(found["pooled"]["values"], live["pooled"], rtol=4e-3, atol=1e-6)
        real = batch["attention_mask"].bool()
        torch.testing.assert_close(found["blocks.1"]["values"][real], live["blocks.1"][real], rtol=0, atol=0.02)
        maps, wanted = found["blocks.1@attention"]["values"], live["blocks.1@attention"]
        queries = real[:, None, :, None].expand_as(maps)
        torch.testing.assert_close(maps[queries], wanted[queries], rtol=1e-3, atol=1e-4)


class Rows(torch.utils.data.Dataset):
    """Samples that are their own numbers."""

    def __len__(self):
        return ROWS

    def __getitem__(self, index):
        return index


@pytest.mark.parametrize("workers", [0, 2])
def test_data_workers_read_it(whole, workers):
    teacher = CachedTeacher(whole, outputs=["pooled"], taps=["blocks.1"])
    collator = CachedCollator(batch_of, {"teacher": (whole, teacher.wanted)})
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1)).tolist()
    loader = torch.utils.data.DataLoader(
        NumberedDataset(Rows()), batch_size=4, sampler=order, collate_fn=collator, num_workers=workers
    )
    seen = []
    for batch in loader:
        signal = teacher.signal(batch)
        rows = batch["cache_row"].tolist()
        seen += rows
        torch.testing.assert_close(signal.outputs["pooled"], shown(rows, 1)["pooled"], rtol=4e-3, atol=1e-6)
        assert signal.tapped["blocks.1"].shape == (len(rows), batch["labels"].shape[1], 8)
        assert teacher.signal(batch, taps=[]).tapped == {}
    assert seen == order


def test_a_pickled_reader_maps_its_files_again(whole):
    read(whole, [0])
    copy = pickle.loads(pickle.dumps(whole))
    assert copy._shards == {}
    assert read(copy, [20])[3]["values"].equal(read(whole, [20])[3]["values"])


def test_a_finished_cache_verifies_and_tells_its_size(whole):
    assert whole.verify() == []
    info = whole.info()
    assert info["rows"] == ROWS
    assert info["files"] == 3
    assert info["bytes"] == sum(p.stat().st_size for p in whole.folder.glob("*.safetensors"))
    logits = info["fields"][0]
    assert logits["positions"] == sum(row % 4 for row in range(ROWS))
    # 5 ids of 6 bits in whole groups of 8 for each row; 2 bytes for each log-probability and tail.
    packed = sum(-(-(row % 4) * 5 // 8) * 6 for row in range(ROWS))
    assert logits["bytes"] == packed + logits["positions"] * 12


def test_any_flipped_bit_is_found_by_verify(whole, tmp_path):
    names = [p.name for p in sorted(whole.folder.glob("*.safetensors"))]
    draws = random.Random(0)
    for name in names:
        data = (whole.folder / name).read_bytes()
        for at in [8 * 3, *(draws.randrange(8 * len(data)) for _ in range(40))]:
            if data[at // 8] == 0x20 and at // 8 < 1200:
                continue  # a blank in the head means nothing
            broken = bytearray(data)
            broken[at // 8] ^= 1 << at % 8
            folder = tmp_path / "broken"
            folder.mkdir(exist_ok=True)
            for path in whole.folder.iterdir():
                (folder / path.name).write_bytes(path.read_bytes())
            (folder / name).write_bytes(bytes(broken))
            found = CacheReader(folder).verify()
            assert [Path(error.where).name for error in found] == [name], at


def test_reading_a_row_finds_a_flipped_bit_of_it(whole, tmp_path):
    for path in whole.folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    target = tmp_path / "rows-000001.safetensors"
    data = bytearray(target.read_bytes())
    head = int.from_bytes(data[:8], "little")
    row = json.loads(data[8 : 8 + head])["3.values"]["data_offsets"]
    data[8 + head + row[0] + 2 * 12] ^= 1  # of the third row
    target.write_bytes(bytes(data))
    reader = CacheReader(tmp_path)
    read(reader, [8, 9])
    with pytest.raises(IntegrityError, match='"pooled" of row 10 is not what was written'):
        read(reader, [10])
    # Who does not ask for that field does not pay for its check.
    reader.read([10], [0], lambda field: field.kept(batch_of([10])))


def test_a_file_that_is_missing_cut_short_or_of_another_cache_is_named(whole, tmp_path):
    for path in whole.folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    target = tmp_path / "rows-000002.safetensors"
    data = target.read_bytes()
    for size in (0, 5, 100, len(data) - 1):
        target.write_bytes(data[:size])
        with pytest.raises(IntegrityError, match="rows-000002"):
            read(CacheReader(tmp_path), [20])
    target.unlink()
    with pytest.raises(IntegrityError, match="missing"):
        read(CacheReader(tmp_path), [20])
    target.write_bytes((tmp_path / "rows-000001.safetensors").read_bytes())
    with pytest.raises(IntegrityError, match="is another"):
        read(CacheReader(tmp_path), [20])


def test_another_file_of_the_same_form_is_no_part_of_this_cache(whole, tmp_path):
    other = build(tmp_path / "other", settings={"shard_rows": 8, "batch_size": 4, "seed": 1})
    name = "rows-000000.safetensors"
    (other.folder / name).write_bytes((whole.folder / name).read_bytes())
    with pytest.raises(IntegrityError, match="for another cache"):
        read(CacheReader(other.folder), [0])


@pytest.mark.parametrize("stop", [0, 1, 2, 3])
def test_a_build_goes_on_after_any_file_and_ends_with_the_same_bytes(whole, tmp_path, stop):
    build(tmp_path, stop_before=stop)
    with pytest.raises(IntegrityError, match="is not finished"):
        CacheReader(tmp_path)
    build(tmp_path)
    assert content(tmp_path) == content(whole.folder)


def test_a_build_goes_on_after_a_stop_at_any_byte(whole, tmp_path):
    """What a killed process leaves: whole files, one beside its name, or (a disk that lied) one cut short."""
    draws = random.Random(0)
    names = [f"rows-{i:06d}.safetensors" for i in range(3)]
    for turn in range(30):
        folder = tmp_path / str(turn)
        folder.mkdir()
        (folder / "header.json").write_bytes((whole.folder / "header.json").read_bytes())
        for name in names[: draws.randrange(3)]:
            (folder / name).write_bytes((whole.folder / name).read_bytes())
        victim = draws.choice(names)
        data = (whole.folder / victim).read_bytes()
        cut = data[: draws.randrange(len(data))]
        (folder / (victim + draws.choice(["", ".tmp"]))).write_bytes(cut)
        (folder / "manifest.json.tmp").write_bytes(b'{"header"')
        build(folder)
        assert content(folder) == content(whole.folder)


def build_slowly(folder, pipe):
    plain = shards.save

    def slow(*args, **kwargs):
        pipe.send("writing")
        time.sleep(0.02)
        return plain(*args, **kwargs)

    shards.save = slow
    build(folder)


def test_a_killed_process_leaves_nothing_that_is_taken_for_whole(whole, tmp_path):
    """A real kill, at moments that differ."""
    context = multiprocessing.get_context("fork")
    for turn, writes in enumerate((1, 2, 1, 3, 1)):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=build_slowly, args=(tmp_path, theirs))
        process.start()
        theirs.close()
        with contextlib.suppress(EOFError):  # it was done before
            for _ in range(writes):
                ours.recv()
        time.sleep(0.01 * turn)
        process.kill()
        process.join()
    build(tmp_path)
    assert content(tmp_path) == content(whole.folder)


def test_a_full_disk_is_said_and_the_build_goes_on_later(whole, tmp_path, monkeypatch):
    def full(tensors, metadata):
        if json.loads(metadata[shards.FACTS])["first"] == "8":
            raise OSError(errno.ENOSPC, "No space left on device")
        return plain(tensors, metadata=metadata)

    plain = shards.save
    monkeypatch.setattr(shards, "save", full)
    with pytest.raises(IntegrityError, match=r"the disk is full.*goes on where it stopped"):
        build(tmp_path)
    assert not list(tmp_path.glob("*.tmp"))
    monkeypatch.setattr(shards, "save", plain)
    build(tmp_path)
    assert content(tmp_path) == content(whole.folder)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"teacher": {**header()["teacher"], "weights": "x" * 64}}, "teacher.weights"),
        ({"teacher": {**header()["teacher"], "config": "other"}}, "teacher.config"),
        ({"teacher": {**header()["teacher"], "dtype": "bf16"}}, "teacher.dtype"),
        ({"data": {"rows": ROWS, "fingerprint": "e"}}, "data.fingerprint"),
        ({"data": {"rows": ROWS + 1, "fingerprint": "d"}}, "data.rows"),
        ({"settings": {"shard_rows": 8, "batch_size": 4, "seed": 5}}, "settings.seed"),
        ({"fields": [FIELDS[0].as_row()]}, "fields"),
    ],
)
def test_another_cache_is_not_gone_on_with(tmp_path, changes, field):
    build(tmp_path, stop_before=1)
    with pytest.raises(IntegrityError, match=f'built with another "{field}"'):
        build(tmp_path, **changes)
    build(tmp_path)


def test_another_version_or_tokenizer_is_not_gone_on_with(tmp_path, monkeypatch):
    build(tmp_path, stop_before=1)
    monkeypatch.setattr("potstill.teachers.cache.header.__version__", "99")
    with pytest.raises(IntegrityError, match='built with another "potstill"'):
        build(tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr("potstill.teachers.cache.header.processor_hash", lambda processor: "other")
    with pytest.raises(IntegrityError, match='built with another "tokenizer"'):
        build(tmp_path)


def test_a_cache_of_another_format_is_refused(tmp_path):
    build(tmp_path)
    path = tmp_path / "manifest.json"
    content = json.loads(path.read_text())
    content["header"]["format"] = 99
    path.write_text(json.dumps(content))
    with pytest.raises(IntegrityError, match=r"another format.*got 99"):
        CacheReader(tmp_path)


def test_a_header_that_was_changed_is_refused(tmp_path):
    build(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace('"d"', '"e"'))
    with pytest.raises(IntegrityError, match="the header is not what was written"):
        CacheReader(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"header": {"hash": 1, "fields": []}}', "[" * 100_000])
def test_a_manifest_that_is_none_is_refused(tmp_path, text):
    build(tmp_path)
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(IntegrityError):
        CacheReader(tmp_path)


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"holds no cache; got thesis\.tex"):
        build(tmp_path)
    with pytest.raises(RecipeError, match="there is no cache"):
        CacheReader(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        build(tmp_path / "file")


def test_two_processes_do_not_build_one_cache(tmp_path):
    with (
        CacheWriter(tmp_path, header()).open(),
        pytest.raises(InputError, match="another process"),
        CacheWriter(tmp_path, header()).open(),
    ):
        pass


def test_a_sample_of_another_length_is_another_sample(whole):
    longer = batch_of([3])
    with pytest.raises(IntegrityError, match=r'sample 1 is another.*"attention_mask" counts other positions'):
        whole.read([1], [2], lambda field: field.kept(longer))
    with pytest.raises(IntegrityError, match="no such sample"):
        read(whole, [ROWS])


def test_what_is_not_kept_is_refused_by_name(whole):
    with pytest.raises(RecipeError, match=r'does not hold "blocks\.2".*Did you mean "blocks\.1"'):
        CachedTeacher(whole, taps=["blocks.2"])


def test_a_batch_of_another_collator_is_refused(whole):
    with pytest.raises(InputError, match="Let a CachedCollator make it"):
        CachedTeacher(whole, outputs=["pooled"]).signal(batch_of([0]))


def test_the_names_of_the_package_are_complete():
    import potstill.teachers.cache as package

    assert package.__all__ == sorted(package.__all__)
    assert folders.CacheReader is package.CacheReader
