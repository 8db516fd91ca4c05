"""LELP, MI-α and MEAL V2 by recipe, on pictures of a few pixels: train, export, measure, resume."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import ViTConfig, ViTForImageClassification

from potstill.data.files_source import source_from_datasets
from potstill.errors import RecipeError
from potstill.models.load import load_model
from potstill.run import distill, plan

VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16, "patch_size": 4}
SMALLER = {**VIT, "hidden_size": 8, "num_hidden_layers": 1}
CLASSES = 2
NEW = {"builder": "new", "family": "vit", "architecture": "ViTForImageClassification", "fields": SMALLER, "seed": 3}


class Pictures(torch.utils.data.Dataset):
    """A bright left or right half, with noise."""

    def __init__(self, size, seed):
        self.size, self.seed = size, seed

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        draws = torch.Generator().manual_seed(self.seed * 1000 + index)
        pixels = torch.randn(3, 8, 8, generator=draws)
        pixels[..., 4 * (index % 2) : 4 * (index % 2) + 4] += 2
        return {"pixel_values": pixels, "labels": torch.tensor(index % CLASSES), "sample_id": torch.tensor(index)}


def collate(rows):
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


@pytest.fixture(scope="module")
def source():
    fields = {"image_size": 8, "num_channels": 3, "num_labels": CLASSES}
    return source_from_datasets({"train": Pictures(48, 0), "test": Pictures(16, 1)}, collate, model_fields=fields)


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """Two teachers that have seen the labels, as folders."""
    folders = []
    batch = collate([Pictures(48, 0)[i] for i in range(48)])
    for seed in range(2):
        torch.manual_seed(seed)
        model = ViTForImageClassification(ViTConfig(image_size=8, num_channels=3, num_labels=CLASSES, **VIT))
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(15):
            logits = model(pixel_values=batch["pixel_values"]).logits
            torch.nn.functional.cross_entropy(logits, batch["labels"]).backward()
            optimizer.step()
            optimizer.zero_grad()
        folders.append(tmp_path_factory.mktemp("teacher") / str(seed))
        model.eval().save_pretrained(folders[-1])
    return [str(folder) for folder in folders]


def recipe(objectives, *, steps=3, **more):
    return {
        "version": 1,
        "student": NEW,
        "objectives": objectives,
        "train": {"steps": steps, "batch_size": 8, "log_every": 1, "checkpoint_every": 2, "threads": 1},
        "evaluate": {"samples": 16, "shown": 2},
        **more,
    }


def lelp(teachers, **options):
    return recipe(
        [{"loss": "lelp", "teacher_on": "classifier@input", **options}],
        teacher={"model": teachers[0]},
        student={"builder": "wide_head", "of": NEW, "subclasses": 3},
    )


def mi_alpha(teachers, **options):
    pairs = [["vit.layernorm", "vit.layernorm"]]
    return recipe(
        [
            {"loss": "kd_kl", "on": "logits"},
            {"loss": "mi_alpha", "pairs": pairs, "hidden": 8, "out": 4, "learning_rate": 1e-3, **options},
        ],
        teacher={"model": teachers[0]},
    )


def meal_v2(teachers, **options):
    both = {"on": "logits", "teachers": ["a", "b"]}
    labels = {"loss": "cross_entropy", "on": "logits", "labels": "labels"}
    discriminator = {"loss": "meal_v2_discriminator", "name": "discriminator", "shrink": 1, "learning_rate": 1e-4}
    return recipe(
        [{"loss": "meal_v2_similarity", "name": "similarity", **both}, {**discriminator, **both, **options}],
        teachers={"a": {"model": teachers[0]}, "b": {"model": teachers[1]}},
        stages=[
            {"name": "labels", "teachers": {}, "objectives": [labels]},
            {"name": "ensemble"},
        ],
    )


@pytest.mark.parametrize("make", [lelp, mi_alpha, meal_v2])
def test_a_run_trains_exports_the_student_alone_and_measures_it(make, teachers, source, tmp_path):
    run = distill(make(teachers), tmp_path / "run", source=source)
    student = load_model(run.folder / "student")
    pixels = torch.stack([Pictures(16, 1)[i]["pixel_values"] for i in range(16)])
    logits = student(pixel_values=pixels).logits
    assert logits.shape == (16, CLASSES)
    right = (logits.argmax(1) == torch.arange(16) % CLASSES).float().mean().item()
    scores = run.metrics["models"]["student"]["tasks"]
    assert next(iter(scores.values()))["accuracy"] == pytest.approx(right)
    names = load_file(run.folder / "student" / "model.safetensors")
    assert not any("critic" in name or "discriminator" in name or "null_projector" in name for name in names)


@pytest.mark.parametrize("make", [lelp, mi_alpha])
def test_an_interrupted_run_goes_on_to_the_same_end(make, teachers, source, tmp_path):
    class CrashError(Exception):
        pass

    def crash(event):
        if event["event"] == "step" and event["step"] == 3:
            raise CrashError

    given = {**make(teachers), "train": {**make(teachers)["train"], "steps": 4}}
    distill(given, tmp_path / "straight", source=source)
    with pytest.raises(CrashError):
        distill(given, tmp_path / "broken", source=source, progress=crash)
    distill(given, tmp_path / "broken", source=source, resume=True)
    one, other = (load_file(tmp_path / name / "student" / "model.safetensors") for name in ("straight", "broken"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_plans_name_parts_and_teachers(teachers, source):
    (made,) = plan(lelp(teachers), source=source)
    assert made["objectives"][0]["loss"] == "lelp"
    (made,) = plan(mi_alpha(teachers), source=source)
    assert made["parts"][0]["parameters"] > 0
    _, made = plan(meal_v2(teachers), source=source)
    assert [row["teachers"] for row in made["objectives"]] == [["a", "b"]] * 2


def test_options_that_no_objective_has_are_refused_before_a_model_is_loaded(source):
    nowhere = ["nowhere", "nowhere"]
    with pytest.raises(RecipeError, match=r"objectives\[0\].betta.*beta"):
        plan(lelp(nowhere, betta=1.0), source=source)
    with pytest.raises(RecipeError, match=r"objectives\[1\].warm_up.*warmup"):
        plan(mi_alpha(nowhere, warm_up=0.1), source=source)
    with pytest.raises(RecipeError, match=r"objectives\[1\].strenght.*strength"):
        plan(meal_v2(nowhere, strenght=1), source=source)
