"""What the features of the emoji teachers hold: which drawing it is, and what a hidden patch looks like.

Two linear readings of frozen tokens. ``names``: the class token of new pictures is given the class whose mean direction
over 4,000 training pictures is nearest. ``patches``: half of the patches are hidden, and a ridge regression from the
tokens of hidden patches to their mean colours, fitted on 400 pictures, is asked about 400 new ones (R²). Takes minutes.

    OMP_NUM_THREADS=1 python benchmarks/feature_teachers.py

Replaces ``benchmarks/results/feature_teachers.csv``.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from _record import RESULTS, origin, write_rows
from torch import Tensor, nn

from potstill.data.emoji_source import build_emoji
from potstill.data.sources import DataSource
from potstill.models.load import load_model
from potstill.objectives import MaskedImageObjective
from potstill.taps import Taps

MODELS = ("emoji-vit", "emoji-contrastive", "emoji-mim")
BATCH = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--samples", type=int, default=1000, help="pictures that are named")
    options = parser.parse_args()
    source, rows, made = build_emoji(), [], origin()
    for name in options.models:
        model = load_model(name).eval()
        found = {"names": names(model, source, options.samples), "patches": patches(model, source)}
        found = {key: round(value, 4) for key, value in found.items()}
        rows.append({"model": name, "samples": options.samples, **found, **made})
        print(" ".join(f"{k} {v}" for k, v in rows[-1].items()), flush=True)
    write_rows(RESULTS / "feature_teachers.csv", rows)


@torch.no_grad()
def names(model: nn.Module, source: DataSource, samples: int, known: int = 4000) -> float:
    """Return the share of new pictures whose class is the nearest, told by the means of so many known ones."""

    def features(split: str, n: int) -> tuple[Tensor, Tensor]:
        data, seen, classes = source.split(split), [], []
        for start in range(0, n, BATCH):
            batch = source.collator([data[i] for i in range(start, start + BATCH)])
            seen.append(model.vit(batch["pixel_values"]).last_hidden_state[:, 0])
            classes.append(batch["labels"])
        return torch.cat(seen), torch.cat(classes)

    train, labels = features("train", known)
    test, truth = features("test", samples)
    centre = train.mean(0)
    means = torch.zeros(int(labels.max()) + 1, train.shape[1]).index_add_(0, labels, F.normalize(train - centre, dim=1))
    nearest = (F.normalize(test - centre, dim=1) @ F.normalize(means, dim=1).T).argmax(1)
    return (nearest == truth).float().mean().item()


@torch.no_grad()
def patches(model: nn.Module, source: DataSource, samples: int = 400) -> float:
    """Return the share of the variance of hidden patches' colours that their tokens explain, on new pictures."""
    objective = MaskedImageObjective("patches", "vit.layernorm")
    objective.meet(model, {})
    torch.manual_seed(0)
    data, tokens, colours = source.split("test"), [], []
    with Taps(model, [objective.tap]) as taps:
        for start in range(0, 2 * samples, BATCH):
            x = source.collator([data[i] for i in range(start, start + BATCH)])["pixel_values"]
            taps.open()
            with objective.around(model) as hidden:
                model(pixel_values=x)
            tokens.append(taps.close()[objective.tap][:, 1:][hidden.mask])
            colours.append(F.avg_pool2d(x, objective.patch).flatten(2).transpose(1, 2)[hidden.mask])
    half = len(tokens) // 2
    (fit, new), (target, truth) = ((torch.cat(x[:half]), torch.cat(x[half:])) for x in (tokens, colours))
    centre, mean = fit.mean(0), target.mean(0)
    x = fit - centre
    weights = torch.linalg.solve(x.T @ x + len(x) * 1e-3 * torch.eye(x.shape[1]), x.T @ (target - mean))
    rest = truth - mean - (new - centre) @ weights
    return 1 - (rest.square().sum() / (truth - mean).square().sum()).item()


if __name__ == "__main__":
    main()
