import json
import shutil

import pytest
from fake_run import change, write_fake_run
from html_reader import assert_safe, read

from potstill.errors import InputError
from potstill.report import build_report


def test_report_lands_in_the_run_folder_by_default(run):
    assert build_report(run) == run / "report.html"
    assert (run / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_report_of_several_runs_lands_beside_the_first(run, other_run):
    assert build_report([run, other_run]) == run.parent / "report.html"


def test_out_may_be_a_file_in_a_new_folder_or_a_folder(run, tmp_path):
    assert build_report(run, tmp_path / "new" / "page.html") == tmp_path / "new" / "page.html"
    assert build_report(str(run), str(tmp_path)) == tmp_path / "report.html"
    assert not list(tmp_path.rglob("*.tmp"))


def test_page_says_what_was_distilled_into_what(run):
    text = read(build_report(run)).text
    assert "builtin:scenes-teacher (CocaModel, 3.91 M parameters) was distilled into a CocaModel of 1.20 M" in text
    assert "3.2×" in text  # 3,912,448 / 1,204,224 parameters
    assert "3.0×" in text  # 4.31 ms / 1.42 ms


def test_page_shows_scores_and_differences_to_the_teacher(run):
    def edit(metrics):
        metrics["models"]["teacher"]["tasks"]["vqa"] = {"accuracy": 0.972, "stderr": 0.005, "samples": 1000}
        metrics["models"]["student"]["tasks"]["vqa"] = {"accuracy": 0.931, "stderr": 0.008, "samples": 1000}
        metrics["models"]["student"]["fidelity"]["vqa"] = {"agreement": 0.913, "kl": 0.1234, "ece": 0.027}

    change(run / "metrics.json", edit)
    text = read(build_report(run)).text
    for shown in ("97.2 %", "93.1 %", "−4.1 points · s.e. 0.8", "91.3 %", "KL 0.12 nats · ECE 2.7 %"):
        assert shown in text
    assert "93.1 % of 97.2 %96 %" in text  # 0.931 / 0.972 = 0.958 of the teacher's score kept


def test_caption_score_is_the_share_of_objects_named(run):
    change(
        run / "metrics.json",
        lambda m: m["models"]["student"]["tasks"].update(caption={"objects": 0.8125, "exact": 0.4}),
    )
    text = read(build_report(run)).text
    assert "81.2 %" in text
    assert "captionobjects" in text.replace(" ", "")


def test_a_task_of_ones_own_shows_its_first_number(run):
    def edit(metrics):
        for model in metrics["models"].values():
            model["tasks"]["ranking"] = {"mean_rank": 3.25, "samples": 40}

    change(run / "metrics.json", edit)
    text = read(build_report(run)).text
    assert "mean_rank" in text
    assert "3.25" in text


def test_every_section_is_there(run):
    page = read(build_report(run))
    for shown in (
        "Loss terms over time",
        "What the policy played",
        "Similarity of matched layers",
        "Layer map and objectives",
        "hidden.multimodal_decoder",
        "MFLOPs",
        "what is in the top right corner?",
        "✓ right",
        "✗ wrong",
        "Environment",
        "transformers",
        "batch_size: 64",
        "64 × 36 × 160",
        "projector.text_decoder (30.7 k parameters)",
    ):
        assert shown in page.text, shown
    assert sum(name == "src" for _, name, _ in page.attributes) == 12  # ten samples, two of them of two pictures


def test_policy_shares_add_up_to_the_rounds_of_the_history(run):
    rounds = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines() if '"round"' in line]
    played = sum(event["arm"] == "image_encoder" for event in rounds)
    page = read(build_report(run))
    assert f"played {len(rounds)} rounds over 3 arms" in page.text
    assert any(f"image_encoder: {played} rounds" in label for label in page.labels)


def test_several_runs_share_one_table_and_one_teacher(run, other_run, tmp_path):
    page = read(build_report([run, other_run], tmp_path / "both.html"))
    assert "was distilled into 2 students" in page.text
    assert page.text.count("scenes-optima") > 5
    assert page.text.count("scenes-kd") > 5
    heads = [label for label in page.labels if label.startswith("Score per task.")]
    assert heads[0].count("teacher ") == 4  # four tasks, the teacher once in each
    assert "This run had no policy" in page.text


def test_runs_with_different_teachers_show_both(run, other_run):
    change(other_run / "metrics.json", lambda m: m["models"]["teacher"]["tasks"]["vqa"].update(accuracy=0.5))
    text = read(build_report([run, other_run])).text
    assert "teacher of scenes-optima" in text
    assert "teacher of scenes-kd" in text


def test_runs_of_the_same_name_are_told_apart_by_folder(run, tmp_path):
    twin = write_fake_run(tmp_path / "again", "scenes-optima", seed=3)
    page = read(build_report([run, twin]))
    assert page.text.count("again") > 3


def test_best_is_marked_only_beyond_twice_the_standard_error(run, other_run):
    def score(folder, value, stderr):
        def edit(metrics):
            for task, scores in metrics["models"]["student"]["tasks"].items():
                scores.update({"objects" if task == "caption" else "accuracy": value, "stderr": stderr})

        change(folder / "metrics.json", edit)

    score(run, 0.90, 0.01)
    score(other_run, 0.88, 0.01)  # the difference has a standard error of 1.4 points
    assert "90.0 %best" not in read(build_report([run, other_run])).text
    score(other_run, 0.86, 0.01)
    assert "90.0 %best" in read(build_report([run, other_run])).text


def test_samples_of_several_runs_are_joined_per_question(run, other_run):
    page = read(build_report([run, other_run]))
    assert sum(name == "src" for _, name, _ in page.attributes) == 12
    assert page.text.count("what is in the top right corner?") == 3  # as in one run alone
    assert page.text.count("✓ right") + page.text.count("✗ wrong") + page.text.count("≠ other words") == 30


def test_page_loads_nothing_runs_nothing_and_is_well_formed(run, other_run):
    page = read(build_report([run, other_run]))
    assert_safe(page)
    assert not page.open
    assert len(page.ids) == len(set(page.ids))
    assert any("default-src 'none'" in value for _, _, value in page.attributes)


def test_headings_are_in_order_and_pictures_have_words(run, other_run):
    page = read(build_report([run, other_run]))
    assert page.headings[0] == 1
    assert page.headings.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(page.headings, page.headings[1:], strict=False))
    drawings = [value for tag, name, value in page.attributes if tag == "svg" and name == "role"]
    hidden = [value for tag, name, value in page.attributes if tag == "svg" and name == "aria-hidden"]
    spoken = [value for tag, name, value in page.attributes if tag == "svg" and name == "aria-label"]
    assert len(drawings) == len(spoken)
    assert all(spoken)
    assert len(drawings) + len(hidden) == page.tags.count("svg")
    assert page.tags.count("img") == sum(tag == "img" and name == "alt" and bool(v) for tag, name, v in page.attributes)


def test_same_run_gives_the_same_bytes(run, tmp_path):
    first = build_report(run, tmp_path / "a.html").read_bytes()
    assert build_report(run, tmp_path / "b.html").read_bytes() == first


def test_page_without_samples_stays_below_a_megabyte_after_100_000_lines(run):
    (run / "samples.json").unlink()
    change(run / "plan.json", lambda plan: plan.update(steps=99_000))
    with (run / "history.jsonl").open("w") as history:
        for step in range(1, 99_001):
            terms = f'{{"vqa":{{"value":{1 + 9 / step},"weight":1}},"nlvr2":{{"value":{step % 97},"weight":1}}}}'
            history.write(f'{{"event":"step","step":{step},"arm":"text_decoder","loss":{9 / step},"terms":{terms}}}\n')
            if step % 20 == 0:
                arm = ("image_encoder", "text_decoder", "multimodal_decoder")[step // 20 % 3]
                reward, posterior = 0.001 * (step % 7), f'{{"{arm}":{{"mean":{1 / step},"std":0.001,"count":9}}}}'
                history.write(
                    f'{{"event":"round","step":{step},"round":{step // 20},"arm":"{arm}","reward":{reward},'
                    f'"reference":{3 / step},"posterior":{posterior},"next_arm":"{arm}"}}\n'
                )
    page = build_report(run)
    assert "played 4,950 rounds" in read(page).text
    assert page.stat().st_size < 1_000_000


def test_no_run_is_an_input_error():
    with pytest.raises(InputError, match="no run folder given"):
        build_report([])


def test_same_folder_twice_is_an_input_error(run):
    with pytest.raises(InputError, match="twice"):
        build_report([run, run / "." / ""])


def test_a_folder_that_is_no_run_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="not a run folder"):
        build_report(tmp_path)
    with pytest.raises(InputError, match="nothing there"):
        build_report(tmp_path / "missing")


def test_a_page_that_cannot_be_written_is_an_input_error_and_leaves_nothing(run, tmp_path):
    blocker = tmp_path / "blocker"
    blocker.write_text("a file, not a folder")
    with pytest.raises(InputError, match="cannot be written"):
        build_report(run, blocker / "report.html")
    assert blocker.read_text() == "a file, not a folder"


def test_a_failed_build_leaves_the_old_page_alone(run):
    page = build_report(run)
    before = page.read_bytes()
    (run / "metrics.json").write_text("{")
    with pytest.raises(Exception, match=r"metrics\.json"):
        build_report(run)
    assert page.read_bytes() == before


def test_page_builds_from_a_copy_of_the_folder_elsewhere(run, tmp_path):
    moved = shutil.copytree(run, tmp_path / "moved")
    assert str(tmp_path) not in build_report(moved).read_text(encoding="utf-8")
