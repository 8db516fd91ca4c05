"""Selections, two views, several teachers and shared classifiers under two ranks, by whole recipes."""

import pytest
import rank_recipes
import torch
from launching import launch

from picture_models import vit


def put_teachers(folder):
    vit(16, 2, seed=1, classes=12, side=16).save_pretrained(folder / "teachers" / "contrastive")
    vit(16, 2, seed=2, classes=12, side=16).save_pretrained(folder / "teachers" / "masked_image")


@pytest.mark.slow
def test_recipes_on_two_ranks_end_as_one_process_that_accumulates(tmp_path):
    two, one = tmp_path / "two", tmp_path / "one"
    put_teachers(two)
    put_teachers(one)
    first, second = launch("rank_recipes.py", two)
    for name, weights in first.items():
        for key, value in weights.items():
            torch.testing.assert_close(second[name][key], value, msg=f"{name}: {key} differs between ranks")
        if name == "kd3-emoji":
            continue  # every rank mixes styles by draws of its own
        alone = rank_recipes.trained(name, one, "train.accumulation=2")
        for key, value in weights.items():
            if "running_" in key or "num_batches" in key:
                continue  # those of the first rank's rows
            torch.testing.assert_close(
                value, alone[key], rtol=1e-3, atol=1e-4, msg=lambda text, at=f"{name}: {key}": f"{at}: {text}"
            )
