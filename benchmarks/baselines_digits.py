"""Acceptance experiment of the classic losses: small student, few labels, the digits of scikit-learn.

A teacher MLP (64-256-256-10) learns from 1000 labels; a student MLP (64-12-10) has 200 others, input noise and the
teacher's outputs on its noisy inputs; 597 samples are the test. The teacher has seen more labels than the student, so
a gain here is knowledge of labels as much as of their relations. Ten seeds, each shared by all methods (same split,
student, batches and noise), so differences are paired. Every method runs at three learning rates, because the gain
depends on them: a soft target at T = 4 asks for larger logits and hence more training.

    OMP_NUM_THREADS=1 python benchmarks/baselines_digits.py

writes ``benchmarks/results/baselines_digits.csv``. One learning rate takes some two minutes on one free CPU core.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from _record import RESULTS, origin, write_rows
from sklearn.datasets import load_digits
from torch import Tensor, nn

from potstill.losses import dist_loss, dkd, generalized_jsd, kd_kl, reverse_kl

TEACHER_LABELS, STUDENT_LABELS = 1000, 200
BATCH, NOISE = 64, 0.1
TEACHER_RATE, STUDENT_RATES = 1e-3, (1e-3, 3e-3, 1e-2)
T_CRITICAL_9 = 2.2621572  # two-sided 95 % point of Student's t with 9 degrees of freedom

Objective = Callable[[Tensor, Tensor, Tensor], Tensor]

METHODS: dict[str, tuple[str, Objective]] = {
    "ce": ("CE", lambda s, t, y: F.cross_entropy(s, y)),
    "kd_t4": (
        "0.1 CE + 0.9 kd_kl(T=4)",
        lambda s, t, y: 0.1 * F.cross_entropy(s, y) + 0.9 * kd_kl(s, t, temperature=4),
    ),
    "dkd": (
        "CE + dkd(alpha=1, beta=8, T=4)",
        lambda s, t, y: F.cross_entropy(s, y) + dkd(s, t, y, alpha=1, beta=8, temperature=4),
    ),
    "kl_t1": (
        "0.1 CE + 0.9 kd_kl(T=1)",
        lambda s, t, y: 0.1 * F.cross_entropy(s, y) + 0.9 * kd_kl(s, t),
    ),
    "dist": (
        "CE + dist_loss(beta=2, gamma=2, T=1)",
        lambda s, t, y: F.cross_entropy(s, y) + dist_loss(s, t, beta=2, gamma=2),
    ),
    "reverse_kl": (
        "0.1 CE + 0.9 reverse_kl(T=1)",
        lambda s, t, y: 0.1 * F.cross_entropy(s, y) + 0.9 * reverse_kl(s, t),
    ),
    "jsd": (
        "0.1 CE + 0.9 generalized_jsd(beta=0.5, T=1)",
        lambda s, t, y: 0.1 * F.cross_entropy(s, y) + 0.9 * generalized_jsd(s, t, beta=0.5),
    ),
}


def mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return 100 * (model(x).argmax(-1) == y).double().mean().item()


def train(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
    *,
    steps: int,
    seed: int,
    rate: float,
    noise: float,
) -> None:
    """Train by Adam on random batches; ``loss(logits, inputs as seen, labels)``."""
    draws = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for _ in range(steps):
        rows = torch.randint(len(x), (BATCH,), generator=draws)
        inputs = x[rows] + noise * torch.randn(BATCH, x.shape[1], generator=draws)
        optimizer.zero_grad()
        loss(model(inputs), inputs, y[rows]).backward()
        optimizer.step()


def one_seed(seed: int, steps: int) -> dict[tuple[str, float], float]:
    """Return the test accuracy in percent of the teacher, and of the student by method and learning rate."""
    digits = load_digits()
    x = torch.tensor(digits.data, dtype=torch.float32) / 16
    y = torch.tensor(digits.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    pool, few, test = order.split([TEACHER_LABELS, STUDENT_LABELS, len(x) - TEACHER_LABELS - STUDENT_LABELS])
    torch.manual_seed(1000 + seed)
    teacher = mlp(64, 256, 256, 10)
    hard = METHODS["ce"][1]
    train(
        teacher,
        x[pool],
        y[pool],
        lambda out, _, labels: hard(out, out, labels),
        steps=steps,
        seed=seed,
        rate=TEACHER_RATE,
        noise=0.0,
    )
    scores = {("teacher", TEACHER_RATE): accuracy(teacher, x[test], y[test])}
    for rate, (name, (_, objective)) in itertools.product(STUDENT_RATES, METHODS.items()):
        torch.manual_seed(2000 + seed)
        student = mlp(64, 12, 10)

        def loss(out: Tensor, inputs: Tensor, labels: Tensor, objective: Objective = objective) -> Tensor:
            with torch.no_grad():
                target = teacher(inputs)
            return objective(out, target, labels)

        train(student, x[few], y[few], loss, steps=steps, seed=3000 + seed, rate=rate, noise=NOISE)
        scores[name, rate] = accuracy(student, x[test], y[test])
    return scores


def summary(runs: list[dict[tuple[str, float], float]]) -> list[dict[str, object]]:
    rows = []
    for name, rate in runs[0]:
        values = torch.tensor([run[name, rate] for run in runs], dtype=torch.float64)
        row: dict[str, object] = {
            "learning_rate": rate,
            "method": name,
            "objective": METHODS[name][0] if name in METHODS else "CE, 1000 labels, no noise",
            "accuracy_mean": f"{values.mean():.2f}",
            "accuracy_std": f"{values.std():.2f}",
        }
        if name not in ("teacher", "ce"):
            gains = values - torch.tensor([run["ce", rate] for run in runs], dtype=torch.float64)
            half = T_CRITICAL_9 * gains.std().item() / len(runs) ** 0.5
            row |= {
                "gain_over_ce": f"{gains.mean():+.2f}",
                "gain_low95": f"{gains.mean() - half:+.2f}",
                "gain_high95": f"{gains.mean() + half:+.2f}",
                "seeds_better": int((gains > 0).sum()),
            }
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--out", type=Path, default=RESULTS / "baselines_digits.csv")
    args = parser.parse_args()
    torch.set_num_threads(1)
    started, where = time.perf_counter(), origin()
    runs = []
    for seed in range(10):
        runs.append(one_seed(seed, args.steps))
        print(seed, " ".join(f"{name}@{rate:g} {value:.2f}" for (name, rate), value in runs[-1].items()), flush=True)
    budget = {"seeds": len(runs), "steps": args.steps, "seconds": f"{time.perf_counter() - started:.0f}"}
    rows = summary(runs)
    write_rows(args.out, [row | budget | where for row in rows])
    for row in rows:
        print(", ".join(f"{key} {row[key]}" for key in row))


if __name__ == "__main__":
    main()
