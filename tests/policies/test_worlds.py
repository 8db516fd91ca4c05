"""Checks 7 and 8 of the method's card: the simulated worlds, against the numbers the card gives."""

import math
import sys
from functools import cache
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import bandit_worlds as worlds

CARD_REGRET = {
    "switching, K=3": {"optima": 174, "thompson": 263, "greedy": 272, "uniform": 333},
    "sinusoidal, K=3": {"optima": 175, "thompson": 368, "greedy": 434, "uniform": 414},
    "switching, K=7": {"optima": 335, "thompson": 346, "greedy": 390, "uniform": 428},
    "sinusoidal, K=7": {"optima": 296, "thompson": 410, "greedy": 462, "uniform": 485},
    "stationary, K=3": {"optima": 133, "thompson": 32, "greedy": 40, "uniform": 334},
}


@cache
def regret(world, policy):
    return worlds.run_means(world, policy, seeds=60)


@cache
def rest_loss(policy):
    return worlds.run_diminishing(policy, seeds=40)


@pytest.mark.parametrize(("world", "policy"), [(world, policy) for world, row in CARD_REGRET.items() for policy in row])
def test_regret_agrees_with_the_card(world, policy):
    card, ours = CARD_REGRET[world][policy], regret(world, policy)
    # The card gives its standard errors only as "at most 7, but 14 for greedy on the stationary world".
    tolerance = 2.5 * math.hypot(14 if (world, policy) == ("stationary, K=3", "greedy") else 7, ours.standard_error)
    if policy == "greedy":
        # The card leaves the phase of the sinusoids and the order of the arms open. Greedy, which locks itself in
        # early, differs by up to 18 between phases (200 seeds each); the others do by less than 10.
        tolerance = max(tolerance, 0.1 * card)
    assert abs(ours.mean - card) < tolerance


@pytest.mark.parametrize("world", ["switching, K=3", "sinusoidal, K=3"])
@pytest.mark.parametrize("rival", ["thompson", "greedy", "uniform"])
def test_optima_loses_less_than_three_quarters_of_each_rival_when_the_best_arm_changes(world, rival):
    assert regret(world, "optima").mean < 0.75 * regret(world, rival).mean


def test_optima_loses_less_than_half_of_uniform_when_nothing_changes():
    assert regret("stationary, K=3", "optima").mean < 0.5 * regret("stationary, K=3", "uniform").mean


@pytest.mark.parametrize(
    ("policy", "card", "tolerance"),
    [
        ("optima", 1.582, 0.006),
        ("clairvoyant", 1.577, 0.0006),
        ("round_robin", 1.839, 0.0006),
        ("thompson", 1.873, 0.04),
        ("greedy", 1.931, 0.1),
        ("fixed 0", 3.07, 0.006),
        ("fixed 2", 6.02, 0.006),
    ],
)
def test_the_loss_that_rests_agrees_with_the_card(policy, card, tolerance):
    assert rest_loss(policy).mean == pytest.approx(card, abs=tolerance)


@pytest.mark.parametrize("rival", ["round_robin", "thompson", "greedy", "fixed 0", "fixed 1", "fixed 2"])
def test_optima_leaves_less_loss_than_every_rival_and_hardly_more_than_the_clairvoyant(rival):
    assert rest_loss("optima").mean < rest_loss(rival).mean - 0.2
    assert rest_loss("optima").mean < 1.01 * rest_loss("clairvoyant").mean
