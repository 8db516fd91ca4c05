"""PLD, SinKD, TRG and KD++ by their packaged recipes, made tiny: from an untrained teacher, some steps each."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification

from potstill.run import distill

TINY = [
    *("data.concepts=12", "data.image_size=16", "train.batch_size=8", "train.checkpoint_every=1", "train.steps=2"),
    *("train.warmup_steps=0", "train.threads=1", "train.log_every=1", "evaluate.samples=8", "evaluate.shown=0"),
    *("evaluate.splits=[]", "train.survey_samples=96"),
    "student.fields={embedding_size: 8, hidden_sizes: [8, 16], depths: [1, 1], layer_type: basic}",
]
# On 16 pixels the maps of both stages are small: 4 x 4 behind the first.
CHANGES = {
    "pld-emoji": [],
    "sinkd-emoji": [],
    "trg-emoji": ["objectives[2].tap=resnet.encoder.stages.0", "objectives[2].k=3", "objectives[2].r=2"],
    "kdpp-emoji": ["data.pool=96"],
}


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """Untrained teachers of 12 names, as wide as nothing else here."""
    folder = tmp_path_factory.mktemp("teachers")
    common = {"num_labels": 12, "num_channels": 3}
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vit = ViTForImageClassification(ViTConfig(image_size=16, patch_size=4, **sizes, **common))
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 24], "depths": [1, 1], "layer_type": "basic"}
    cnn = ResNetForImageClassification(ResNetConfig(**sizes, **common))
    for name, model in (("vit", vit), ("cnn", cnn)):
        model.save_pretrained(folder / name)
    return {name: folder / ("cnn" if name == "kdpp-emoji" else "vit") for name in CHANGES}


def start(name, folder, teachers, *more, **options):
    given = [*TINY, *CHANGES[name], f"teacher.model={teachers[name]}", *more]
    return distill(name, folder, overrides=given, **options)


@pytest.fixture(scope="module")
def runs(teachers, tmp_path_factory):
    """Each recipe once, two steps."""
    folder = tmp_path_factory.mktemp("runs")
    return {name: start(name, folder / name, teachers) for name in CHANGES}


def terms(run):
    events = [json.loads(line) for line in (run.folder / "history.jsonl").read_text().splitlines()]
    return [event["terms"] for event in events if event["event"] == "step"]


@pytest.mark.parametrize(
    ("name", "logged"),
    [
        ("pld-emoji", {"logits"}),
        ("sinkd-emoji", {"names", "logits", "sinkd"}),
        ("trg-emoji", {"names", "logits", "trg"}),
        ("kdpp-emoji", {"kdpp"}),
    ],
)
def test_a_packaged_recipe_trains_and_is_measured(runs, name, logged):
    steps = terms(runs[name])
    assert len(steps) == 2
    for step in steps:
        assert set(step) == logged
        assert all(torch.isfinite(torch.tensor(term["value"])) for term in step.values())
        assert all(term["value"] > 0 for term in step.values())
    assert runs[name].metrics["models"]["student"]["tasks"]


def test_parts_are_trained_and_kept_out_of_the_student(runs):
    found = {name: json.loads((runs[name].folder / "plan.json").read_text())["parts"] for name in CHANGES}
    names = {name: [part["name"] for part in parts] for name, parts in found.items()}
    assert names == {"pld-emoji": [], "sinkd-emoji": [], "trg-emoji": ["trg"], "kdpp-emoji": ["kdpp"]}
    assert found["trg-emoji"][0]["parameters"] == 8 * 24
    assert found["kdpp-emoji"][0]["parameters"] == 2 * 16 + 16 * 24 + 24
    for name, run in runs.items():
        weights = load_file(run.folder / "student" / "model.safetensors")
        assert not [key for key in weights if "means" in key or "projector" in key], name


def test_class_means_of_the_survey_are_in_the_checkpoint(runs):
    (newest,) = (runs["kdpp-emoji"].folder / "checkpoints").glob("checkpoint-2")
    saved = load_file(newest / "parts.safetensors")
    (means,) = (value for key, value in saved.items() if key.endswith("means"))
    assert means.shape == (12, 24)
    assert (means.norm(dim=1) > 0).all()


class CrashError(Exception):
    pass


def crash_after(step):
    def progress(event):
        if event["event"] == "step" and event["step"] == step:
            raise CrashError

    return progress


@pytest.mark.parametrize("name", ["trg-emoji", "kdpp-emoji"])
def test_an_interrupted_run_goes_on_exactly(teachers, tmp_path, name):
    straight = start(name, tmp_path / "straight", teachers, "train.steps=4")
    with pytest.raises(CrashError):
        start(name, tmp_path / "run", teachers, "train.steps=4", progress=crash_after(3))
    distill(tmp_path / "run" / "recipe.yaml", tmp_path / "run", resume=True)
    for file in ("student/model.safetensors", "checkpoints/checkpoint-4/parts.safetensors"):
        one, other = (load_file(folder / file) for folder in (straight.folder, tmp_path / "run"))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), file


def test_a_tap_that_is_no_feature_is_refused_with_its_place(teachers, tmp_path):
    with pytest.raises(ValueError, match=r"objectives\[0\].*no penultimate feature"):
        start("kdpp-emoji", tmp_path / "run", teachers, "objectives[0].tap=resnet.encoder.stages.0")
