"""The folder of a comparison: what is run, what is skipped, what is gone on with, what is refused."""

import csv
import fcntl
import json
import threading

import pytest

from potstill.errors import InputError, IntegrityError
from potstill.systems.compare import compare
from potstill.systems.compare.budget import parse_budgets

pytestmark = pytest.mark.usefixtures("fake_runs")


def calls(folder):
    """How often each cell was begun, by its path under ``runs``."""
    found = sorted((folder / "runs").rglob("calls"))
    return {str(p.parent.relative_to(folder / "runs")): len(p.read_text().splitlines()) for p in found}


def rows_of(path):
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def ask(toy, tmp_path):
    """``ask(methods=[...], ...)`` compares on the toy recipe in one folder, with small defaults."""

    def run(*, methods=("kd_kl", "dkd"), recipes=None, **changes):
        given = {"budget": "steps=4", "seeds": 2, "jobs": 2, "out": tmp_path / "out", **changes}
        return compare(recipes or [toy()], list(methods), **given)

    return run


def test_every_cell_is_a_run_folder_and_a_row(ask, tmp_path):
    done = ask(budget="steps=2,4")
    cells = {f"toy/{m}/steps-{n}/seed-{s}" for m in ("kd_kl", "dkd") for n in (2, 4) for s in (0, 1)}
    assert set(calls(done.folder)) == cells
    rows = rows_of(done.folder / "runs.csv")
    assert {f"{r['recipe']}/{r['method']}/{r['budget']}/seed-{r['seed']}" for r in rows} == cells
    row = next(r for r in rows if (r["method"], r["budget"], r["seed"]) == ("dkd", "steps-4", "1"))
    assert float(row["score"]) == pytest.approx(0.5 + 0.13 + 0.01 + 0.0004)
    assert float(row["teacher_score"]) == 0.9
    assert float(row["heldout_style.main.accuracy"]) == float(row["score.heldout_style"]) == float(row["score"])
    assert float(row["test.main.accuracy"]) == float(row["score"])
    assert float(row["teacher.test.main.accuracy"]) == 0.9
    assert float(row["kl"]) == pytest.approx(1 - float(row["score"]))
    assert (row["steps"], row["seconds"], row["parameters"]) == ("4", "2.0", "8000")
    assert (row["machine"], row["date"], row["commit"]) == ("toy, 2 cores", "2026-11-22", "abc")
    assert not done.failures


def test_all_methods_get_the_same_seeds_steps_and_one_thread(ask, tmp_path):
    ask(overrides=["data.pool=32"])
    for method in ("kd_kl", "dkd"):
        text = (tmp_path / "out" / "recipes" / "toy" / method / "steps-4.yaml").read_text()
        assert "steps: 4\n" in text
        assert "threads: 1\n" in text
        assert "pool: 32\n" in text
        for seed in (0, 1):
            (call,) = (tmp_path / f"out/runs/toy/{method}/steps-4/seed-{seed}/calls").read_text().splitlines()
            assert f"--set seed={seed}" in call


def test_a_second_call_runs_nothing_again_and_adds_what_is_new(ask, toy):
    first = ask()
    again = ask()
    assert set(calls(first.folder).values()) == {1}
    assert again.rows == first.rows
    more = ask(methods=["labels"], seeds=3)
    counts = calls(more.folder)
    assert set(counts.values()) == {1}
    assert len(counts) == 9  # three methods, three seeds: old methods get the new seed too
    other = ask(methods=["labels"], recipes=[toy("other")], seeds=3)
    assert len(other.rows) == 12


def test_an_interrupted_comparison_goes_on(ask, tmp_path):
    begun = []

    def stop(event):
        if event["event"] == "begun":
            begun.append(event["job"])
            if len(begun) == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(jobs=1, progress=stop)
    finished = [p.parent for p in (tmp_path / "out" / "runs").rglob("metrics.json")]
    assert len(finished) >= 1
    begun_one = tmp_path / "out" / "runs" / "toy" / "dkd" / "steps-4" / "seed-1"
    begun_one.mkdir(parents=True)
    (begun_one / "recipe.yaml").write_text("what a killed run leaves")
    before = {folder: (folder / "metrics.json").stat().st_mtime_ns for folder in finished}
    done = ask(jobs=1)
    assert len(done.rows) == 4
    assert {folder: (folder / "metrics.json").stat().st_mtime_ns for folder in finished} == before
    resumed = {p.parent for p in (tmp_path / "out" / "runs").rglob("calls") if "--resume" in p.read_text()}
    assert begun_one in resumed
    assert not resumed & set(finished)


def test_two_cells_run_side_by_side(ask, tmp_path):
    """The stand-in waits while "hold" is there: it goes only once both have begun."""
    told = []

    def tell(event):
        if event["event"] == "plan":
            (tmp_path / "out" / "runs").mkdir()
            (tmp_path / "out" / "runs" / "hold").touch()
        if event["event"] in ("begun", "done"):
            told.append(event["event"])
            if told == ["begun", "begun"]:
                (tmp_path / "out" / "runs" / "hold").unlink()

    ask(seeds=1, jobs=2, progress=tell)
    assert told == ["begun", "begun", "done", "done"]


def test_a_failing_cell_is_told_in_one_line_and_stops_no_other(ask):
    told = []
    done = ask(methods=["reverse_kl", "kd_kl"], progress=told.append)
    assert set(done.failures) == {f"toy, reverse_kl, steps-4, seed {s}" for s in (0, 1)}
    assert set(done.failures.values()) == {"objectives[0]: does not fit. Try another."}
    assert [row["method"] for row in done.rows] == ["kd_kl", "kd_kl"]
    assert sum(event["event"] == "failed" for event in told) == 2
    assert "does not fit" in done.page.read_text()


def test_a_cell_at_which_a_process_is_still_at_work_is_waited_for(ask, tmp_path):
    folder = tmp_path / "out" / "runs" / "toy" / "kd_kl" / "steps-4" / "seed-0"
    ask(methods=["dkd"], seeds=1)
    folder.mkdir(parents=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        timer = threading.Timer(0.5, lambda: fcntl.flock(lock, fcntl.LOCK_UN))
        timer.start()
        done = ask(methods=["kd_kl"], seeds=1)
        timer.join()
    assert not done.failures
    assert len(done.rows) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": "steps=0"}, "--budget: out of range"),
        ({"budget": "epochs=3"}, "--budget: does not fit"),
        ({"budget": "steps=4,4"}, "names an amount twice"),
        ({"budget": "steps=2.5"}, "--budget: does not fit"),
        ({"budget": "minutes=inf"}, "--budget: out of range"),
        ({"seeds": 0}, "--seeds: out of range"),
        ({"jobs": 0}, "--jobs: out of range"),
        ({"methods": ["kd_kl", "kd_kl"]}, '--methods: "kd_kl" is named twice'),
        ({"methods": []}, "--methods: nothing to compare"),
        ({"methods": ["kd_lk"]}, 'unknown method "kd_lk".*Did you mean "kd_kl"'),
        ({"against": "dk"}, '--against: "dk" is not compared.*Did you mean "dkd"'),
        ({"recipes": ["no-such"]}, 'there is no recipe "no-such"'),
        ({"overrides": ["train.stepz=4"]}, "toy.train.stepz: there is no such field"),
        ({"overrides": ["train.warmup_steps=9"]}, "only warm up"),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(ask, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        ask(**changes)
    assert not (tmp_path / "out").exists()


def test_another_recipe_under_the_same_name_is_refused_with_what_differs(ask):
    ask()
    with pytest.raises(InputError, match=r"kd_kl on toy: train.batch_size: differs.*expected 8; got 16"):
        ask(overrides=["train.batch_size=16"])
    with pytest.raises(InputError, match=r"train.log_every: differs"):
        ask(overrides=["train.log_every=7"])
    with pytest.raises(InputError, match=r"--trials: differs.*expected 0; got 2"):
        ask(trials=2)


def test_a_folder_of_something_else_is_left_alone(ask, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="something else"):
        ask()
    (tmp_path / "out" / "thesis.txt").unlink()
    (tmp_path / "out" / "compare.json").write_text('{"version": 2}')
    with pytest.raises(IntegrityError, match="no comparison of this version"):
        ask()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        ask(out=tmp_path / "file")


def test_two_comparisons_do_not_share_a_folder(ask, tmp_path):
    ask(seeds=1)
    with (tmp_path / "out" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another comparison is running"):
            ask(seeds=1)


def test_a_damaged_run_is_told_and_the_others_are_summed_up(ask, tmp_path):
    done = ask()
    (tmp_path / "out" / "runs" / "toy" / "dkd" / "steps-4" / "seed-0" / "metrics.json").write_text('{"models": {}}')
    done = ask()
    assert list(done.failures) == ["toy, dkd, steps-4, seed 0"]
    assert len(done.rows) == 3


def test_minutes_become_steps_by_a_measured_step(ask, tmp_path, digit_teacher, toy):
    now = iter(range(10_000))
    path = toy(teacher=digit_teacher)
    done = ask(recipes=[path], budget="minutes=0.25", seeds=1, clock=lambda: 0.5 * next(now))
    state = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert state["timing"] == {"toy": {"kd_kl": 0.5, "dkd": 0.5}}
    assert state["steps"] == {"toy": {m: {"minutes-0.25": 30} for m in ("kd_kl", "dkd")}}
    assert {(row["steps"], row["seconds_per_step"]) for row in done.rows} == {(30, 0.5)}

    def not_again():
        raise AssertionError("a step was measured again")

    assert ask(recipes=[path], budget="minutes=0.25", seeds=2, clock=not_again).rows[-1]["steps"] == 30


def test_a_method_whose_step_cannot_be_measured_stops_no_other(ask, digit_teacher, toy):
    bad = toy("bad", objectives=[{"loss": "kd_kl", "on": "logitz"}])
    now = iter(range(10_000))
    path = toy(teacher=digit_teacher)
    methods = [str(bad), "labels"]
    done = ask(recipes=[path], methods=methods, budget="minutes=0.1", seeds=1, clock=lambda: float(next(now)))
    assert list(done.failures) == ["toy, bad"]
    assert "logitz" in done.failures["toy, bad"]
    assert [row["method"] for row in done.rows] == ["labels"]


def test_budgets_have_names_that_folders_can_have():
    assert [b.name for b in parse_budgets("steps=400,800")] == ["steps-400", "steps-800"]
    assert [b.name for b in parse_budgets("minutes=0.5,2")] == ["minutes-0.5", "minutes-2"]
