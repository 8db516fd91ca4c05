"""Bandit worlds: how well each policy finds, and re-finds, the arm that pays, where the truth is known.

Two kinds of world, no model and no data:

- *means*: each arm pays its own mean plus normal noise of sd 1. The means switch, swing or stay. Counted is the regret:
  what always playing the best arm of the moment would have brought more, over 1000 rounds.
- *diminishing*: three modules hold a removable loss of 4, 2 and 1; a play removes 0.4 % of what its module still holds
  and pays that, plus normal noise of sd 0.004. Counted is the loss that rests after 1000 rounds.

The stationary world of means is also cut short at 30 to 300 rounds, with warm-ups of several lengths. In one seed every
policy meets the same noise. Run from the repository root, with Potstill installed::

    python benchmarks/bandit_worlds.py

It prints a table and writes ``benchmarks/results/bandit_worlds.csv``; half a minute on one core.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from _record import RESULTS, origin, write_rows

from potstill.policies import POLICIES, FixedArmPolicy, Policy

ROUNDS = 1000
REMOVABLE, SHARE, NOISE = (4.0, 2.0, 1.0), 0.004, 0.004
MEANS_POLICIES = ("optima", "thompson", "greedy", "uniform", "round_robin")
DIMINISHING_POLICIES = (*MEANS_POLICIES, "clairvoyant", "fixed 0", "fixed 1", "fixed 2")


def switching(n_arms: int) -> np.ndarray:
    """One arm pays 0.5, the others 0; which one moves on every 250 rounds. Returns means (rounds, arms)."""
    means = np.zeros((ROUNDS, n_arms))
    rounds = np.arange(ROUNDS)
    means[rounds, rounds // 250 % n_arms] = 0.5
    return means


def sinusoidal(n_arms: int) -> np.ndarray:
    """Every arm's mean swings by 0.5 with a period of 600 rounds, the arms spread evenly over the period."""
    phase = np.arange(ROUNDS)[:, None] / 600 + np.arange(n_arms) / n_arms
    return 0.5 * np.sin(2 * np.pi * phase)


def stationary(n_arms: int) -> np.ndarray:
    """Arm 0 always pays 0.5, the others 0."""
    means = np.zeros((ROUNDS, n_arms))
    means[:, 0] = 0.5
    return means


MEANS = {
    "switching, K=3": switching(3),
    "sinusoidal, K=3": sinusoidal(3),
    "switching, K=7": switching(7),
    "sinusoidal, K=7": sinusoidal(7),
    "stationary, K=3": stationary(3),
}


def regret(policy: Policy, means: np.ndarray, seed: int) -> float:
    """Let a fresh policy play a world of means once; return its regret."""
    noise = np.random.default_rng([seed, 7]).standard_normal(means.shape)
    rewards = (means + noise).tolist()
    for row in rewards:
        arm = policy.select()
        policy.update(arm, row[arm])
    played = [arm for _, arm, _ in policy.history]
    return float((means.max(axis=1) - means[np.arange(len(means)), played]).sum())


def rest_loss(choose: Policy | Callable[[list[float]], int], seed: int) -> float:
    """Let a fresh policy (or a rule that sees what each module holds) remove loss; return what rests."""
    noise = (NOISE * np.random.default_rng([seed, 8]).standard_normal(ROUNDS)).tolist()
    rest = list(REMOVABLE)
    for disturbance in noise:
        arm = choose.select() if isinstance(choose, Policy) else choose(rest)
        removed = SHARE * rest[arm]
        rest[arm] -= removed
        if isinstance(choose, Policy):
            choose.update(arm, removed + disturbance)
    return sum(rest)


def clairvoyant(rest: list[float]) -> int:
    """Play the module that holds most: the best possible rule here, which no policy can follow."""
    return rest.index(max(rest))


@dataclass
class Result:
    world: str
    policy: str
    measure: str
    values: list[float]

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    @property
    def standard_error(self) -> float:
        return float(np.std(self.values, ddof=1) / math.sqrt(len(self.values)))

    @property
    def ci95(self) -> float:
        return 1.96 * self.standard_error


def run_means(world: str, policy: str, seeds: int) -> Result:
    means = MEANS[world]
    values = [regret(POLICIES.get(policy)(means.shape[1], seed=seed), means, seed) for seed in range(seeds)]
    return Result(world, policy, "regret", values)


def run_short(rounds: int, warmup_rounds: int, policy: str, seeds: int) -> Result:
    """The stationary world cut short: how many rounds a policy needs before it beats drawing lots."""
    means = stationary(3)[:rounds]
    policies = [POLICIES.get(policy)(3, seed=seed, warmup_rounds=warmup_rounds) for seed in range(seeds)]
    values = [regret(fresh, means, seed) for seed, fresh in enumerate(policies)]
    label = policy if policy == "uniform" else f"{policy}, T0={warmup_rounds}"
    return Result(f"stationary, K=3, {rounds} rounds", label, "regret", values)


def run_diminishing(policy: str, seeds: int) -> Result:
    def fresh(seed: int) -> Policy | Callable[[list[float]], int]:
        if policy == "clairvoyant":
            return clairvoyant
        if policy.startswith("fixed "):
            return FixedArmPolicy(len(REMOVABLE), arm=int(policy.removeprefix("fixed ")))
        return POLICIES.get(policy)(len(REMOVABLE), seed=seed)

    return Result("diminishing, K=3", policy, "rest loss", [rest_loss(fresh(seed), seed) for seed in range(seeds)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS / "bandit_worlds.csv")
    parser.add_argument("--means-seeds", type=int, default=60)
    parser.add_argument("--diminishing-seeds", type=int, default=40)
    parser.add_argument("--short-seeds", type=int, default=400)
    options = parser.parse_args()

    where = origin()
    results = [run_means(world, policy, options.means_seeds) for world in MEANS for policy in MEANS_POLICIES]
    results += [run_diminishing(policy, options.diminishing_seeds) for policy in DIMINISHING_POLICIES]
    results += [
        run_short(rounds, warmup_rounds, policy, options.short_seeds)
        for rounds in (30, 60, 150, 300)
        for policy, warmup_rounds in (("optima", 1), ("optima", 3), ("optima", 10), ("uniform", 10))
    ]
    rows = []
    for result in results:
        digits = 1 if result.measure == "regret" else 4
        rows.append(
            {
                "world": result.world,
                "policy": result.policy,
                "measure": result.measure,
                "mean": f"{result.mean:.{digits}f}",
                "ci95": f"{result.ci95:.{digits}f}",
                "seeds": len(result.values),
            }
        )
        world, policy, measure, mean, ci95, seeds = rows[-1].values()
        print(f"{world:<27} {policy:<13} {measure:<10} {mean:>8} ± {ci95:<7} {seeds} seeds")
    write_rows(options.out, [row | where for row in rows])


if __name__ == "__main__":
    main()
