"""The shipped teachers of emoji names and digits: small, whole, and as good as the tables say."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from potstill.data.digits_source import build_digits
from potstill.data.emoji_source import build_emoji
from potstill.evaluate import evaluate_tasks
from potstill.models.load import load_model, packaged_models
from potstill.objectives import MaskedImageObjective
from potstill.run.check import check_fit
from potstill.taps import Taps

TEACHERS = {
    "emoji-vit": (build_emoji, 0.95),
    "emoji-cnn": (build_emoji, 0.95),
    "digits-cnn": (build_digits, 0.95),
    "digits-parity": (partial(build_digits, target="binary"), 0.93),
    "digits-weak": (build_digits, 0.5),
}


@pytest.mark.parametrize("name", TEACHERS)
def test_a_shipped_teacher_names_what_it_is_shown(name):
    build, least = TEACHERS[name]
    source, model = build(), load_model(name)
    check_fit(model, "teacher", source)
    scores = evaluate_tasks(model, source.split("test", 400), source.collator)["main"]
    assert scores["accuracy"] > least
    assert model.config.id2label == source.model_fields["id2label"]


def test_the_contrastive_teacher_tells_drawings_apart_without_having_seen_a_name():
    source, model = build_emoji(concepts=40), load_model("emoji-contrastive")
    check_fit(model, "teacher", build_emoji())

    @torch.no_grad()
    def features(split, n):
        data = source.split(split, n)
        rows = source.collator([data[i] for i in range(n)])
        return model.vit(rows["pixel_values"]).last_hidden_state[:, 0], rows["labels"]

    known, labels = features("train", 400)
    new, truth = features("test", 200)
    means = torch.stack([known[labels == c].mean(0) for c in range(40)]) - known.mean(0)
    nearest = torch.cosine_similarity((new - known.mean(0))[:, None], means[None], dim=-1).argmax(1)
    assert (nearest == truth).float().mean() > 0.4


def test_the_masked_image_teacher_knows_the_colours_of_patches_it_does_not_see():
    source, model, tokens, colours = build_emoji(), load_model("emoji-mim"), [], []
    objective, data = MaskedImageObjective("patches", "vit.layernorm"), source.split("test")
    objective.meet(model, {})
    torch.manual_seed(0)
    with Taps(model, ["vit.layernorm"]) as taps, torch.no_grad():
        for half in (range(100), range(100, 200)):
            pixels = source.collator([data[i] for i in half])["pixel_values"]
            taps.open()
            with objective.around(model) as hidden:
                model(pixel_values=pixels)
            tokens.append(taps.close()["vit.layernorm"][:, 1:][hidden.mask])
            colours.append(F.avg_pool2d(pixels, 4).flatten(2).transpose(1, 2)[hidden.mask])
    (fit, new), (target, truth) = tokens, colours
    x = fit - fit.mean(0)
    weights = torch.linalg.solve(x.T @ x + len(x) * 1e-3 * torch.eye(x.shape[1]), x.T @ (target - target.mean(0)))
    rest = truth - target.mean(0) - (new - fit.mean(0)) @ weights
    assert rest.square().sum() < 0.25 * (truth - target.mean(0)).square().sum()


@pytest.mark.parametrize("name", [*TEACHERS, "emoji-contrastive", "emoji-mim"])
def test_a_shipped_teacher_is_small_and_comes_back_in_single_precision(name):
    folder = packaged_models()[name]
    assert (folder / "model.safetensors").stat().st_size < 2.5e6
    tensors = load_model(name).state_dict().values()
    assert {value.dtype for value in tensors if value.is_floating_point()} == {torch.float32}
