"""Every command once on a tiny untrained CoCa, with what a user sees."""

import json
import shutil
import subprocess
import sys

import pytest

from potstill._version import __version__
from potstill.recipe import load_recipe

OPTIMA = ("policy.round_steps=2", "policy.probe_batches=1", "policy.warmup_rounds=1")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, coca_teacher):
    from potstill.run import distill

    overrides = [
        *(
            f"teacher.model={coca_teacher}",
            "data.concepts=12",
            "student={builder: depth, layers: 1}",
            "train.batch_size=8",
            "train.steps=4",
        ),
        *("train.checkpoint_every=2", "train.warmup_steps=0", "train.threads=1", "evaluate.samples=8"),
        *("evaluate.shown=1", *OPTIMA),
    ]
    return distill("optima-scenes", tmp_path_factory.mktemp("cli") / "run", overrides=overrides).folder


def test_version_and_help_answer_without_loading_torch(potstill):
    assert potstill("--version").out.strip() == __version__
    assert "distill" in potstill().err  # no command: the help
    code = "import sys, potstill.cli.app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    "command", [(), ("demo",), ("plan",), ("distill",), ("evaluate",), ("inspect",), ("inspect", "model"),
                ("inspect", "pair"), ("inspect", "data"), ("report",), ("config",), ("config", "show"), ("methods",),
                ("fetch",), ("generate",)]
)  # fmt: skip
def test_every_command_has_help(potstill, command):
    got = potstill(*command, "--help")
    assert got.code == 0
    assert "Usage:" in got.out


def test_plan_shows_layers_objectives_and_arms_and_writes_nothing(potstill, sets, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    got = potstill("plan", "optima-scenes", *sets())
    assert got.code == 0
    assert "image_encoder.blocks.0" in got.out
    assert "policy: optima over image_encoder, text_decoder, multimodal_decoder" in got.out
    assert got.err == ""
    assert not list(tmp_path.iterdir())


def test_a_plan_of_all_modules_has_the_one_arm_that_is_played(potstill, sets):
    got = potstill("plan", "optima-scenes", "--json", *sets("policy={name: all, round_steps: 2}"))
    assert json.loads(got.out)[0]["policy"]["arms"] == ["image_encoder+text_decoder+multimodal_decoder"]


def test_distill_leaves_student_and_report_and_draws_only_its_own_bar(potstill, sets, tmp_path):
    got = potstill("distill", "optima-scenes", "--out", tmp_path / "run", *sets(*OPTIMA))
    assert got.code == 0
    assert "4/4" in got.out
    assert "Loading weights" not in got.out + got.err
    assert "Writing model" not in got.out + got.err
    assert got.err == ""
    assert f"Student: {tmp_path / 'run' / 'student'}" in got.out
    assert (tmp_path / "run" / "report.html").is_file()
    again = potstill("distill", "optima-scenes", "--out", tmp_path / "run", "--resume", *sets(*OPTIMA))
    assert again.code == 0
    assert "training was finished before; measuring again" in again.out


def test_evaluate_prints_a_table_or_json(potstill, run_folder, coca_teacher):
    common = ("--set", "data.concepts=12", "--samples", 8, "--teacher", coca_teacher)
    got = potstill("evaluate", run_folder / "student", *common)
    assert got.code == 0
    assert "agrees on vqa" in got.out
    entry = json.loads(potstill("evaluate", run_folder / "student", *common, "--json").out)
    assert set(entry["tasks"]) == {"caption", "vqa", "entailment", "nlvr2"}
    assert entry["fidelity"]["vqa"]["agreement"] is not None


def test_inspect_lists_paths_pairs_and_samples(potstill, run_folder, coca_teacher, tmp_path):
    got = potstill("inspect", "model", coca_teacher)
    assert got.code == 0
    assert "image_encoder" in got.out
    assert potstill("inspect", coca_teacher).out == got.out
    got = potstill("inspect", "pair", run_folder / "student", coca_teacher)
    assert got.code == 0
    assert "multimodal_decoder" in got.out
    got = potstill("inspect", "data", "--task", "vqa", "--n", 4, "--out", tmp_path / "sheet.png")
    assert got.code == 0
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")


def test_inspect_shows_output_shapes_on_the_data_of_a_recipe(potstill, coca_teacher, tmp_path):
    recipe = tmp_path / "small.yaml"
    recipe.write_text(potstill("config", "show", "kd-scenes", "--set", "data.concepts=12").out)
    assert "× 36 × 16" in potstill("inspect", coca_teacher, "--recipe", recipe).out


def test_report_is_written_again_for_one_run_and_for_two(potstill, run_folder, tmp_path):
    (run_folder / "report.html").unlink()
    assert potstill("report", run_folder).out.strip() == str(run_folder / "report.html")
    shutil.copytree(run_folder, tmp_path / "other")
    got = potstill("report", run_folder, tmp_path / "other", "--out", tmp_path / "both.html")
    assert got.code == 0
    assert "other" in (tmp_path / "both.html").read_text()


def test_config_shows_a_recipe_that_reads_back_the_same(potstill, tmp_path):
    got = potstill("config", "show", "optima-scenes", "--set", "train.steps=7")
    (tmp_path / "shown.yaml").write_text(got.out)
    assert load_recipe(tmp_path / "shown.yaml") == load_recipe("optima-scenes", ["train.steps=7"])
    assert {"optima-scenes", "kd-scenes", "teach-scenes"} <= set(potstill("config", "list").out.split())
    assert json.loads(potstill("config", "schema").out)["properties"]["train"]


def test_methods_lists_every_system_as_table_and_json(potstill):
    assert "optima" in potstill("methods").out
    rows = json.loads(potstill("methods", "--json").out)
    assert {"name", "kind", "paper", "api", "recipe", "evidence"} <= set(rows[0])


def test_demo_distils_twice_and_compares(potstill, tiny_run, tmp_path, monkeypatch):
    """Its two recipes, cut down to the tiny teacher."""
    import potstill.run as runs

    whole = runs.distill
    small = tiny_run("train.steps=20", "train.checkpoint_every=20", "evaluate.samples=8", "evaluate.shown=1")

    def distill(name, out, *, overrides, progress):
        assert overrides == ["train.steps=20"]
        return whole(name, out, overrides=[*small, *(OPTIMA if name == "optima-scenes" else ())], progress=progress)

    monkeypatch.setattr(runs, "distill", distill)
    got = potstill("demo", "--out", tmp_path / "demo", "--steps", 20)
    assert got.code == 0
    table = got.out[got.out.rindex("parameters") - 400 :]
    assert all(name in table for name in ("teacher", "optima-scenes", "kd-scenes"))
    assert (tmp_path / "demo" / "report.html").is_file()
    refused = potstill("demo", "--out", tmp_path / "demo")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "not empty" in refused.err
