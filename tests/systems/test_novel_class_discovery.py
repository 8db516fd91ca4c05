"""NCDPipeline: its recipe is the packaged one, and tiny runs go through both stages, stop and resume."""

import doctest
import json
from dataclasses import replace

import pytest
import torch
from tiny_views import ENCODER, KNOWN, NOVEL, blobs

import potstill.systems.novel_class_discovery as module
from potstill.errors import InputError
from potstill.models.load import load_model
from potstill.recipe import load_recipe
from potstill.run import plan
from potstill.systems.novel_class_discovery import NCDPipeline

TINY = NCDPipeline(
    known=KNOWN, novel=NOVEL, encoder=ENCODER, projector_width=16, cluster_width=8, steps=(2, 3), batch_size=12
)
FAST = ("train.log_every=1", "train.threads=1", "evaluate.shown=0", "evaluate.samples=20", "train.warmup_steps=0")


def weights(run):
    return load_model(run / "student").state_dict()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return TINY.run(tmp_path_factory.mktemp("ncd") / "run", source=blobs(), overrides=FAST)


def test_the_packaged_recipe_is_that_of_the_pipeline():
    assert load_recipe("crkd-ncd-digits").model_dump() == NCDPipeline().recipe().model_dump()


def test_it_fits_the_digits_it_is_made_for():
    known, discovery = plan(NCDPipeline().recipe(), ["train.threads=1", "train.batch_size=16"])
    assert known["untrained"]
    assert discovery["untrained"] == []
    assert discovery["objectives"][0]["loss"] == "crkd_ncd"


def test_both_stages_are_trained_and_the_student_is_exported_with_its_heads(finished):
    lines = [json.loads(line) for line in (finished.folder / "history.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line.get("event") == "step"]
    assert [line["stage"] for line in steps] == ["known"] * 2 + ["discovery"] * 3
    assert set(steps[0]["terms"]) == {"cosine_cross_entropy"}
    assert set(steps[-1]["terms"]) == {"crkd_ncd"}
    student = load_model(finished.folder / "student")
    assert type(student).__name__ == "NovelClassModel"
    assert student.head.num_novel == NOVEL


def test_the_first_stage_leaves_the_heads_of_new_classes_alone_and_the_second_trains_them(finished):
    saved = json.loads((finished.folder / "plan.json").read_text())
    untrained = [set(stage.get("untrained", ())) for stage in saved["stages"]]
    assert any(name.startswith("head.projectors") for name in untrained[0])
    assert not untrained[1]


def test_the_pipeline_scores_known_and_new_classes(finished):
    scores = TINY.scores(finished.student, blobs(), samples=30)
    assert set(scores) == {"known", "novel", "all", "novel_alone", "novel_alone_mean"}
    assert all(0 <= share <= 1 for share in scores.values())


def test_a_run_stopped_in_the_second_stage_goes_on_exactly(finished, tmp_path):
    class StopError(Exception):
        pass

    def stop(event):
        if event["event"] == "step" and event.get("stage", "discovery") == "discovery" and event["step"] == 2:
            raise StopError

    options = [*FAST, "train.checkpoint_every=1"]
    with pytest.raises(StopError):
        TINY.run(tmp_path / "run", source=blobs(), overrides=options, progress=stop)
    run = TINY.run(tmp_path / "run", source=blobs(), resume=True, overrides=options)
    straight = weights(finished.folder)
    for name, value in weights(run.folder).items():
        assert torch.equal(value, straight[name]), name


def test_it_runs_without_distillation_and_with_accumulation(tmp_path):
    pipeline, options = replace(TINY, kd_weight=0.0, steps=(1, 1)), [*FAST, "train.accumulation=2"]
    run = pipeline.run(tmp_path / "run", source=blobs(), overrides=options)
    steps = [json.loads(line) for line in (run.folder / "history.jsonl").read_text().splitlines()]
    assert [step["terms"].keys() for step in steps] == [{"cosine_cross_entropy"}, {"crkd_ncd"}]
    assert 0 < steps[1]["terms"]["crkd_ncd"]["value"] < 50
    assert run.student.best_head in (0, 1)


def test_steps_are_of_two_stages():
    with pytest.raises(InputError, match="two stages"):
        NCDPipeline(steps=(3,))


def test_the_example_in_the_docstring_runs():
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
