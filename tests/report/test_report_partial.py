import errno
import json
import os

import pytest
from fake_run import change, dump, write_fake_run
from html_reader import assert_safe, read

from potstill.errors import InputError, IntegrityError
from potstill.report import build_report
from potstill.report.load import FILES


@pytest.mark.parametrize("name", FILES)
def test_any_single_file_may_be_missing(run, name):
    (run / name).unlink()
    page = read(build_report(run))
    assert_safe(page)
    assert not page.open


@pytest.mark.parametrize("name", FILES)
def test_any_single_file_may_be_the_only_one(run, name):
    for other in FILES:
        if other != name:
            (run / other).unlink()
    page = read(build_report(run))
    assert_safe(page)
    assert page.headings[:2] == [1, 2]


def test_missing_pieces_are_said_in_plain_words(run):
    for name in ("metrics.json", "history.jsonl", "samples.json", "environment.json"):
        (run / name).unlink()
    text = read(build_report(run)).text
    for sentence in (
        "There are no scores yet",
        "No training step has been logged",
        "No samples were kept.",
        "The environment was not recorded.",
        "CKA was not measured.",
        "No round of the policy optima has ended yet.",
    ):
        assert sentence in text, sentence


def test_a_run_still_going_says_where_it_stands(run):
    lines = (run / "history.jsonl").read_text().splitlines(keepends=True)
    (run / "history.jsonl").write_text("".join(line for line in lines if json.loads(line)["step"] <= 240))
    (run / "metrics.json").unlink()
    assert "stands at step 240 of 600" in read(build_report(run)).text


def test_a_run_without_a_teacher_shows_scores_alone(tmp_path):
    run = write_fake_run(tmp_path / "teach", "teach", has_policy=False, has_teacher=False)
    text = read(build_report(run)).text
    assert "trained on labels alone, without a teacher" in text
    assert "points" not in text.split("Small figures")[0]


def test_null_sections_are_left_out(run):
    def edit(metrics):
        metrics["models"]["student"].update(fidelity=None, cka=None, cost=None)

    change(run / "metrics.json", edit)
    text = read(build_report(run)).text
    assert "CKA was not measured." in text
    assert "Fidelity to the teacher" not in text


def test_a_torn_last_line_is_dropped_and_said(run):
    history = run / "history.jsonl"
    history.write_bytes(history.read_bytes()[:-40])
    assert "last line of history.jsonl is incomplete" in read(build_report(run)).text


def test_values_that_are_not_finite_leave_gaps_and_a_remark(run):
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    for number, event in enumerate(lines):
        if event["event"] == "step" and number % 9 == 0:
            event["terms"]["vqa"]["value"] = (float("nan"), float("inf"), None, 1e300)[number % 4]
            event["loss"] = float("-inf")
        elif event["event"] == "round" and event["round"] % 5 == 0:
            event["reward"] = float("nan")
            event["posterior"]["image_encoder"] = {"mean": float("nan"), "std": float("inf")}
    (run / "history.jsonl").write_text("".join(json.dumps(event) + "\n" for event in lines))
    change(run / "metrics.json", lambda m: m["models"]["student"]["cost"].update(ms_per_sample=float("nan")))
    change(run / "metrics.json", lambda m: m["models"]["student"]["tasks"]["vqa"].update(accuracy=float("inf")))
    page = read(build_report(run))
    assert "values are NaN or infinite and left out" in page.text
    numbers = [v for tag, n, v in page.attributes if tag in ("path", "circle", "rect", "text") and n not in ("class",)]
    assert not [value for value in numbers if "nan" in value.lower() or "inf" in value.lower()]


def test_a_run_of_only_nan_still_gives_a_page(run):
    event = {
        "event": "step",
        "step": 1,
        "arm": None,
        "loss": None,
        "terms": {"vqa": {"value": float("nan"), "weight": 1}},
    }
    (run / "history.jsonl").write_text(json.dumps(event) + "\n")
    assert "1 of 1 values are NaN or infinite" in read(build_report(run)).text


@pytest.mark.parametrize("name", ["plan.json", "metrics.json", "environment.json", "samples.json", "attention.json"])
@pytest.mark.parametrize("content", [b"{", b"", b"[1]", b"\xff\xfe{}", b'"text"', b"[" * 100_000], ids=repr)
def test_a_damaged_json_file_is_named_with_what_to_do(run, name, content):
    (run / name).write_bytes(content)
    with pytest.raises(IntegrityError) as caught:
        build_report(run)
    assert name in str(caught.value)
    assert "Restore" in str(caught.value)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    "content", [b"a: [1", b"- just\n- a list", b"\xff\xfe", b"", b"a: !!python/name:os.system"], ids=repr
)
def test_a_damaged_recipe_is_named(run, content):
    (run / "recipe.yaml").write_bytes(content)
    with pytest.raises(IntegrityError, match=r"recipe\.yaml"):
        build_report(run)


def test_a_wrong_type_inside_is_named_by_its_place(run):
    change(run / "metrics.json", lambda m: m["models"]["student"]["tasks"]["vqa"].update(accuracy="high"))
    with pytest.raises(IntegrityError, match=r"models\.student\.tasks\.vqa\.accuracy.*'high'"):
        build_report(run)


def test_a_file_of_another_version_is_refused(run):
    change(run / "plan.json", lambda plan: plan.update(version=2))
    with pytest.raises(IntegrityError, match=r"plan\.json.*version"):
        build_report(run)


def test_unknown_keys_are_ignored(run):
    change(run / "plan.json", lambda plan: plan.update(new_in_a_later_release={"a": 1}))
    dump(run / "unrelated.json", {})
    build_report(run)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["a folder", "a pipe", "a link to nothing", "a link to itself", "a link outside"])
def test_what_is_no_file_of_the_run_is_named(run, tmp_path, name, kind):
    """A link could put any file of the reader's on a page that is passed on; a pipe would be waited for without end."""
    path = run / name
    path.rename(tmp_path / "outside")
    if kind == "a folder":
        path.mkdir()
    elif kind == "a pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"outside": tmp_path / "outside", "nothing": "nowhere", "itself": name}[kind.split()[-1]])
    with pytest.raises(IntegrityError, match=rf"{name}: is (no file|a link that leads out of the run folder)"):
        build_report(run)


def test_a_link_inside_the_run_is_followed(run):
    (run / "plan.json").rename(run / "the-plan.json")
    (run / "plan.json").symlink_to("the-plan.json")
    build_report(run)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_page_that_cannot_be_written_leaves_the_old_one(run, monkeypatch, number):
    build_report(run).write_text("old")

    def refuse(source, target):
        raise OSError(number, os.strerror(number), str(target))

    monkeypatch.setattr("potstill.report.writing.os.replace", refuse)
    with pytest.raises(InputError, match=f"report.html: the report cannot be written.*{os.strerror(number)}"):
        build_report(run)
    assert (run / "report.html").read_text() == "old"
    assert not list(run.glob(".report*"))


def test_the_draft_of_a_page_is_not_written_through_a_link(run, tmp_path):
    (tmp_path / "mine").write_text("precious")
    (run / f".report.html.{os.getpid()}.tmp").symlink_to(tmp_path / "mine")
    build_report(run)
    assert (tmp_path / "mine").read_text() == "precious"
