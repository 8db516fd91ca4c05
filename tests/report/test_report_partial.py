import json

import pytest
from fake_run import change, dump, write_fake_run
from html_reader import assert_safe, read

from potstill.errors import IntegrityError
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


@pytest.mark.parametrize("name", ["plan.json", "metrics.json", "environment.json", "samples.json"])
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
