"""Hybrid Distill, vlm-ood and KD³ by recipes and by pipelines, a few steps each on tiny models and pictures."""

import json

import pytest
import torch

import potstill
from picture_models import pictures, resnet, vit
from potstill.errors import InputError, RecipeError
from potstill.models.load import load_model
from potstill.run import plan
from potstill.systems.hybrid_distill import HybridDistillPipeline
from potstill.systems.web_distill import WebDistillPipeline

TRAIN = {"steps": 4, "batch_size": 6, "threads": 1, "log_every": 1, "checkpoint_every": 2, "warmup_steps": 0}
EVALUATE = {"samples": 8, "shown": 0, "attention": False}
NEW = {"family": "resnet", "architecture": "ResNetForImageClassification"}
RESNET = {"builder": "new", **NEW}
FIELDS = {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "layer_type": "basic", "num_labels": 4}


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers")
    for name, model in {"cl": vit(16, 4, seed=1), "mim": vit(8, 3, seed=2)}.items():
        model.save_pretrained(folder / name)
    return {name: str(folder / name) for name in ("cl", "mim")}


def hybrid(teachers, **changes):
    return {
        "version": 1,
        "teachers": {name: {"model": path} for name, path in teachers.items()},
        "student": {"builder": "pretrained", "model": teachers["mim"]},
        "objectives": [
            {"loss": "hybrid_feature", "teacher": "cl"},
            {"loss": "hybrid_relation", "teacher": "mim", "relation_heads": 4},
        ],
        "train": TRAIN,
        "evaluate": EVALUATE,
        **changes,
    }


def vlm(teachers, **changes):
    student = {"builder": "shared_classifier", "of": {**RESNET, "fields": FIELDS}, "directions": True}
    objective = {
        **{"loss": "vlm_ood", "name": "space", "on": "classifier.1.projector@output", "labels": "labels"},
        **{"teacher_on": "classifier@input", "text": "classifier.weight", "k": 3},
    }
    return {
        **{"version": 1, "teacher": {"model": teachers["cl"]}, "student": student, "objectives": [objective]},
        **{"train": TRAIN, "evaluate": EVALUATE},
        **changes,
    }


def web(teachers, **changes):
    return {
        **{"version": 1, "teacher": {"model": teachers["cl"]}, "train": TRAIN, "evaluate": EVALUATE},
        "student": {"builder": "shared_classifier", "of": {**RESNET, "fields": FIELDS}, "projector": "conv"},
        "objectives": [{"loss": "web_distill", "on": "logits"}],
        "selection": {"name": "web_instances", "keep_ratio": 0.5},
        **changes,
    }


def history(folder):
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("recipe", [hybrid, vlm, web])
def test_a_recipe_trains_and_exports_a_plain_student(recipe, teachers, tmp_path):
    run = potstill.distill(recipe(teachers), tmp_path / "run", source=pictures())
    steps = [event for event in history(run.folder) if event["event"] == "step"]
    assert [event["step"] for event in steps] == [1, 2, 3, 4]
    assert all(term["value"] >= 0 for event in steps for term in event["terms"].values())
    loaded = load_model(run.folder / "student").eval()
    plain = vit(8, 3) if recipe is hybrid else resnet()
    assert set(loaded.state_dict()) == set(plain.state_dict())
    assert not any(module._forward_pre_hooks for module in run.student.modules())


@pytest.mark.parametrize("recipe", [hybrid, vlm, web])
def test_a_stopped_run_resumed_equals_a_straight_one(recipe, teachers, tmp_path):
    """At step 2 of 4; an epoch of the selected images has two steps, and the style of images is drawn at random."""
    straight = potstill.distill(recipe(teachers), tmp_path / "straight", source=pictures())
    given = recipe(teachers, evaluate=EVALUATE)
    stopped = tmp_path / "stopped"

    def stop(event):
        if event["event"] == "step" and event.get("step", 0) >= 3:
            raise KeyboardInterrupt

    with pytest.raises(potstill.errors.Interrupted):
        potstill.distill(given, stopped, source=pictures(), progress=stop)
    resumed = potstill.distill(given, stopped, source=pictures(), resume=True)
    ends = weights(straight.student), weights(resumed.student)
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


@pytest.mark.parametrize("recipe", [hybrid, vlm, web])
def test_accumulated_steps_run_and_differ_only_where_rows_are_coupled(recipe, teachers, tmp_path):
    whole = {**TRAIN, "steps": 1, "batch_size": 4, "optimizer": "sgd", "max_grad_norm": 0.0, "checkpoint_every": 1}
    ends = []
    for name, split in (("whole", {}), ("split", {"batch_size": 2, "accumulation": 2})):
        given = recipe(teachers, train={**whole, **split})
        ends.append(potstill.distill(given, tmp_path / name, source=pictures()).student)
    gap = max((a - b).abs().max().item() for a, b in zip(*(model.state_dict().values() for model in ends)))
    assert gap < 1e-6 if recipe is hybrid else gap > 1e-6


def test_selected_images_alone_are_trained_on_and_told(teachers, tmp_path):
    run = potstill.distill(web(teachers), tmp_path / "run", source=pictures())
    rows = [event for event in history(run.folder) if event["event"] == "selection"]
    assert [row["epoch"] for row in rows] == [0, 1]
    for row in rows:
        assert row["chosen"] == 12
        assert 0.25 <= row["lowest_score"] <= row["highest_score"]
        assert row["mean_score"] <= row["highest_score"]


def test_a_threshold_that_nothing_reaches_names_the_highest_score(teachers, tmp_path):
    given = web(teachers, selection={"name": "web_instances", "threshold": 1.0})
    with pytest.raises(InputError, match=r"at most 0\.\d+, the highest score; got 1.0"):
        potstill.distill(given, tmp_path / "run", source=pictures())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either keep_ratio or threshold"),
        ({"keep_ratio": 0.5, "threshold": 0.5}, "either keep_ratio or threshold"),
        ({"keep_ratio": 1.5}, "keep_ratio"),
        ({"threshold": 2.0}, "threshold"),
        ({"keep_ratio": 0.5, "warmup_epochs": -1}, "warmup_epochs"),
        ({"keep_ratio": 0.5, "epoch_samples": 0}, "epoch_samples"),
    ],
)
def test_wrong_settings_of_the_selection_are_refused(teachers, options, message):
    with pytest.raises(InputError, match=message):
        plan(web(teachers, selection={"name": "web_instances", **options}), source=pictures())


def test_a_wrong_field_is_placed_in_the_recipe(teachers):
    bad = hybrid(teachers)
    bad["objectives"][1]["layer"] = 9
    with pytest.raises(RecipeError, match=r"objectives\[1\]\.layer"):
        plan(bad, source=pictures())
    bad = vlm(teachers)
    bad["objectives"][0]["text"] = "classifier.wait"
    with pytest.raises(RecipeError, match=r"objectives\[0\]\.text"):
        plan(bad, source=pictures())
    with pytest.raises(RecipeError, match=r"objectives\[0\]\.features"):
        plan(web(teachers, student={**RESNET, "fields": FIELDS}), source=pictures())


@pytest.mark.parametrize("resting", ["alpha", "beta"])
def test_the_pipeline_runs_no_teacher_whose_weight_is_zero(resting):
    cl, mim = vit(16, 4, seed=1), vit(8, 3, seed=2)
    passes = {"alpha": 0, "beta": 0}
    for name, model in (("alpha", cl), ("beta", mim)):
        model.register_forward_hook(lambda *args, name=name: passes.__setitem__(name, passes[name] + 1))
    pipeline = HybridDistillPipeline(vit(8, 3), cl, mim, [0, 1], [0.75, 0.5], 1, **{resting: 0.0})
    built = pipeline.prepare(pictures(), "unused", train=TRAIN)
    before = dict(passes)
    built.trainer.training_step(built.trainer.model, built.trainer._prepare_inputs(pictures().example()))
    assert passes[resting] == before[resting]
    assert sum(passes.values()) > sum(before.values())
    built.close()


def test_the_hybrid_pipeline_trains_a_student_and_leaves_it_plain():
    student = vit(8, 3)
    before = weights(student)
    trained = HybridDistillPipeline(student, vit(16, 4, seed=1), vit(8, 3, seed=2)).train(pictures(), train=TRAIN)
    assert set(trained.state_dict()) == set(before)
    assert any(not torch.equal(value, before[name]) for name, value in trained.state_dict().items())
    assert trained(pixel_values=pictures().example()["pixel_values"]).logits.shape == (2, 4)


def test_the_web_pipeline_keeps_the_teachers_classifier_and_merges_it():
    teacher = vit(16, 4, seed=1)
    pipeline = WebDistillPipeline(resnet(), teacher, keep_ratio=0.5)
    shared = pipeline.student.classifier[1]
    trained = pipeline.train(pictures(), train=TRAIN)
    assert torch.equal(shared.weight, teacher.classifier.weight)
    assert set(trained.state_dict()) == set(resnet().state_dict())


def test_the_web_pipeline_without_its_parts_is_plain_distillation():
    def trained(objective, selection, student):
        pipeline = WebDistillPipeline(student, vit(16, 4, seed=1), keep_ratio=1.0)
        pipeline.objective, pipeline.selection = objective, selection
        return pipeline.train(pictures(), train=TRAIN)

    plain = {"loss": "kd_kl", "on": "logits", "temperature": 4.0}
    bare = {"loss": "web_distill", "on": "logits", "alignment": 0.0, "contrast": 0.0}
    selection = {"name": "web_instances", "keep_ratio": 1.0}
    torch.manual_seed(0)
    first = trained(plain, selection, resnet())
    torch.manual_seed(0)
    second = trained(bare, selection, resnet())
    for name, value in first.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], value)


def test_a_pipeline_is_told_once_how_much_to_keep():
    with pytest.raises(InputError, match="threshold"):
        WebDistillPipeline(resnet(), vit(), keep_ratio=0.5, threshold=0.5)


SMALL = [
    *("train.batch_size=8", "train.steps=3", "train.warmup_steps=0", "train.threads=1", "train.log_every=1"),
    *("train.checkpoint_every=3", "evaluate.samples=12", "evaluate.shown=0", "evaluate.attention=false"),
    *("data.concepts=12", "data.image_size=16"),
]
CNN = "student.of.fields={embedding_size: 4, hidden_sizes: [4, 8], depths: [1, 1], layer_type: basic}"
VIT = [
    f"student.fields.{field}={value}"
    for field, value in (("hidden_size", 8), ("intermediate_size", 8), ("num_hidden_layers", 2))
]


@pytest.fixture(scope="module")
def emoji_teacher(tmp_path_factory):
    """An untrained ViT of the class and names that the recipes expect of theirs."""
    folder = tmp_path_factory.mktemp("emoji") / "vit"
    vit(16, 2, seed=1, classes=12, side=16).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def patches_teacher(tmp_path_factory):
    """The folder of a student of teach-emoji-mim, made tiny."""
    folder = tmp_path_factory.mktemp("mim") / "run"
    small = [*SMALL, *VIT, "student.fields.num_attention_heads=2", "student.fields.patch_size=2"]
    run = potstill.distill("teach-emoji-mim", folder, overrides=small)
    assert not any("patches" in name for name in run.student.state_dict())
    assert [row["step"] for row in history(folder) if row["event"] == "step"] == [1, 2, 3]
    return str(folder / "student")


def test_the_hybrid_recipe_pretrains_on_part_of_the_patches_and_then_learns_names(
    emoji_teacher, patches_teacher, tmp_path
):
    small = [*SMALL, *VIT, "student.fields.patch_size=2", "stages[1].train.steps=2"]
    models = [f"teachers.contrastive.model={emoji_teacher}", f"teachers.masked_image.model={patches_teacher}"]
    run = potstill.distill("hybrid-distill-emoji", tmp_path / "run", overrides=[*small, *models])
    terms = {row["stage"]: set(row["terms"]) for row in history(run.folder) if row["event"] == "step"}
    assert terms == {"pretrain": {"features", "relations"}, "names": {"name"}}
    assert run.metrics["models"]["student"]["tasks"]


@pytest.mark.parametrize("name", ["vlm-ood-emoji", "kd3-emoji"])
def test_the_other_recipes_run(name, emoji_teacher, tmp_path):
    more = ["data.pool=48"] if name == "kd3-emoji" else []
    overrides = [*SMALL, CNN, f"teacher.model={emoji_teacher}", *more]
    run = potstill.distill(name, tmp_path / "run", overrides=overrides)
    tasks = run.metrics["models"]["student"]["tasks"]
    assert set(run.metrics["models"]["student"]["splits"]) == {"heldout_vendor"}
    assert all(0 <= scores["accuracy"] <= 1 for scores in tasks.values())
    assert "classifier.1.weight" in load_model(run.folder / "student").state_dict()
