"""What the experiments on the emoji scenes share: one run of the packaged recipe, and what is measured after it."""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from potstill.evaluate import evaluate_tasks, fidelity
from potstill.evaluate.tasks import main_score
from potstill.models.load import find_model, load_model
from potstill.recipe import Recipe, load_recipe
from potstill.run import prepare
from potstill.run.build import build_source

TASKS = ("caption", "vqa", "entailment", "nlvr2")
# Fields younger than the first rows: at these values nothing changes.
LATER = (("deterministic", False), ("on_nonfinite", "stop"), ("shard", False))
MODULES = ("image_encoder", "text_decoder", "multimodal_decoder")


def base_recipe(options: argparse.Namespace) -> dict[str, Any]:
    """Return the recipe with the settings that all systems share, as plain data."""
    recipe = load_recipe(options.recipe, options.set).model_dump()
    recipe["teacher"]["model"] = options.teacher
    recipe["train"].update(steps=options.steps, threads=1, log_every=options.steps, checkpoint_every=options.steps)
    for key in ("batch_size", "learning_rate"):
        if getattr(options, key) is not None:
            recipe["train"][key] = getattr(options, key)
    recipe["policy"].update(round_steps=options.round_steps)
    hidden_of(recipe)["weight"] = options.hidden_weight
    return recipe


def hidden_of(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe's entry about hidden states."""
    return next(o for o in recipe["objectives"] if o["loss"] == "hidden")


def setting_of(recipe: Mapping[str, Any], options: argparse.Namespace) -> str:
    """Return a short hash of everything the systems share: only rows with equal settings may be compared."""
    weights = b"".join(path.read_bytes() for path in sorted(find_model(options.teacher).glob("*.safetensors")))
    shared = {k: v for k, v in recipe.items() if k not in ("teacher", "name")}
    shared["train"] = {k: v for k, v in recipe["train"].items() if (k, v) not in LATER}
    shared["measured"] = [options.samples, options.heldout]
    text = json.dumps(shared, sort_keys=True, default=str)
    return hashlib.sha256(text.encode() + hashlib.sha256(weights).digest()).hexdigest()[:10]


def budget_of(recipe: Mapping[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Return the columns that say in words what the setting's hash stands for."""
    return {
        "setting": setting_of(recipe, options),
        "steps": options.steps,
        "batch_size": recipe["train"]["batch_size"],
        "learning_rate": recipe["train"]["learning_rate"],
        "round_steps": options.round_steps,
        "hidden_weight": options.hidden_weight,
        "student": " ".join(f"{k}={v}" for k, v in recipe["student"].items()).replace("builder=", ""),
    }


class Bench:
    """Runs recipes that differ in policy or seed, and measures every student on the same held-out samples.

    Attributes:
        rounds: The history's events of the last run's rounds.
        module: The last run's DistillModule.
    """

    def __init__(self, options: argparse.Namespace):
        torch.set_num_threads(1)
        self.teacher = load_model(options.teacher)
        self.samples, self.heldout = options.samples, options.heldout
        self.rounds: list[dict[str, Any]] = []
        self.module: torch.nn.Module | None = None

    def run(self, recipe: Mapping[str, Any]) -> dict[str, Any]:
        """Train once and return the measures of the student, the arms' shares and the seconds."""
        recipe = load_recipe(dict(recipe))
        with tempfile.TemporaryDirectory() as folder:
            built = prepare(recipe, Path(folder), teacher=self.teacher)
            wall, processor = time.perf_counter(), time.process_time()
            built.trainer.train()
            # On a shared machine the processor's seconds are the ones to compare.
            spent = {
                "train_seconds": round(time.perf_counter() - wall, 1),
                "cpu_seconds": round(time.process_time() - processor, 1),
            }
        built.trainer.teacher.close()
        self.rounds = [e for e in built.trainer.history.events if e["event"] == "round"]
        self.module = built.trainer.model
        arms = [e["arm"] for e in self.rounds]
        policy = built.trainer.policy
        warmup = policy.warmup_rounds * policy.n_arms if policy is not None and policy.learns else 0
        shares = {f"share_{m}": _share(arms, m) for m in MODULES}
        shares |= {f"late_share_{m}": _share(arms[warmup:], m) for m in MODULES}
        return {**self.measure(built.student, recipe), "rounds": len(arms), **shares, **spent}

    def measure(self, student: torch.nn.Module, recipe: Recipe) -> dict[str, Any]:
        """Return L_pred (the sum over tasks of KL(teacher || student), nats) and the task scores.

        The samples do not depend on the run's seed: all students answer the same questions.
        """
        source = build_source(recipe.model_copy(update={"seed": 0}))
        dataset = source.split(recipe.evaluate.split, max(self.heldout, self.samples))
        near = fidelity(student, self.teacher, dataset, source.collator, max_samples=self.heldout)
        scores = evaluate_tasks(student, dataset, source.collator, max_samples=self.samples)
        row: dict[str, Any] = {"L_pred": round(sum(near[t]["kl"] for t in TASKS), 6)}
        row |= {f"kl_{t}": round(near[t]["kl"], 6) for t in TASKS}
        return row | {f"score_{t}": round(main_score(scores[t]), 4) for t in TASKS}


def _share(arms: list[str], module: str) -> str | float:
    # An arm of several modules counts for each of them.
    return round(sum(module in arm.split("+") for arm in arms) / len(arms), 4) if arms else ""


def add_options(
    parser: argparse.ArgumentParser, *, steps: int, round_steps: int, hidden_weight: float, out: Path
) -> None:
    """Add the options that every experiment on the scenes takes."""
    parser.add_argument("--seeds", default="0-4", help="first-last or a list with commas")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--batch-size", type=int, help="the recipe's if left out")
    parser.add_argument("--learning-rate", type=float, help="the recipe's if left out")
    parser.add_argument("--round-steps", type=int, default=round_steps, help="P")
    parser.add_argument("--hidden-weight", type=float, default=hidden_weight, help="α3")
    parser.add_argument("--teacher", default="coca-scenes", help="packaged name or folder")
    parser.add_argument("--samples", type=int, default=1000, help="test samples for the task scores")
    parser.add_argument("--heldout", type=int, default=2000, help="test samples for L_pred")
    parser.add_argument("--recipe", default="optima-scenes", help="packaged name or file: student, data and objectives")
    parser.add_argument(
        "--set", action="append", default=[], metavar="a.b=c", help="override of the recipe: student.layers=2"
    )
    parser.add_argument("--out", type=Path, default=out)
    parser.add_argument("--summary", action="store_true", help="only sum up the rows of --out")
    parser.add_argument("--shard", default="0/1", help="this process does every n-th run: i/n")


def seeds_of(text: str) -> list[int]:
    first, dash, last = text.partition("-")
    return list(range(int(first), int(last) + 1)) if dash else [int(s) for s in text.split(",")]


def shard_of(jobs: list, text: str) -> list:
    index, count = map(int, text.split("/"))
    return jobs[index::count]


def untrained_teacher() -> torch.nn.Module:
    """Return a model of the shipped teacher's form with a random start: enough where only time is measured."""
    from potstill.run.build import build_student

    recipe = load_recipe("teach-scenes")
    model = build_student(recipe, None, build_source(recipe))
    return model.eval()
