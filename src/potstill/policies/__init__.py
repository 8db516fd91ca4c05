"""Policies: which module to distil next.

A policy plays one arm (a set of modules) a round, hears how much the loss fell, and chooses the next arm. It knows no
model, no data and no process group: the trainer asks it on one rank and broadcasts the answer. ``optima`` is the
method, the others are what it has to be compared with; all have one interface (``potstill.policies.base.Policy``).
``DomainMixturePolicy`` is of another kind: it says from which domains the next samples come.

Names are imported when first used, and none of the policies needs torch to choose an arm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from potstill._lazy import lazy_names

if TYPE_CHECKING:
    from potstill.policies.all_modules import AllModulesPolicy
    from potstill.policies.arms import arm_name, make_arms
    from potstill.policies.base import POLICIES, Policy
    from potstill.policies.domain_mixture import DomainMixturePolicy
    from potstill.policies.domain_weights import init_domain_weights, update_domain_weights
    from potstill.policies.fixed import FixedArmPolicy
    from potstill.policies.greedy import GreedyPolicy
    from potstill.policies.optima import OptimaPolicy
    from potstill.policies.posterior import Posterior, discounted_posterior
    from potstill.policies.reward import loss_decrement_reward
    from potstill.policies.round_robin import RoundRobinPolicy
    from potstill.policies.thompson import ThompsonPolicy
    from potstill.policies.uniform import UniformPolicy

__all__ = [
    "POLICIES",
    "AllModulesPolicy",
    "DomainMixturePolicy",
    "FixedArmPolicy",
    "GreedyPolicy",
    "OptimaPolicy",
    "Policy",
    "Posterior",
    "RoundRobinPolicy",
    "ThompsonPolicy",
    "UniformPolicy",
    "arm_name",
    "discounted_posterior",
    "init_domain_weights",
    "loss_decrement_reward",
    "make_arms",
    "update_domain_weights",
]

_HOMES = {
    "POLICIES": "base",
    "AllModulesPolicy": "all_modules",
    "DomainMixturePolicy": "domain_mixture",
    "FixedArmPolicy": "fixed",
    "GreedyPolicy": "greedy",
    "OptimaPolicy": "optima",
    "Policy": "base",
    "Posterior": "posterior",
    "RoundRobinPolicy": "round_robin",
    "ThompsonPolicy": "thompson",
    "UniformPolicy": "uniform",
    "arm_name": "arms",
    "discounted_posterior": "posterior",
    "init_domain_weights": "domain_weights",
    "loss_decrement_reward": "reward",
    "make_arms": "arms",
    "update_domain_weights": "domain_weights",
}

__getattr__, __dir__ = lazy_names(__name__, globals(), _HOMES, ("POLICIES",))
