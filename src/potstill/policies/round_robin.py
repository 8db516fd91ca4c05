"""All arms in turn."""

from __future__ import annotations

from potstill.policies.base import POLICIES, Policy


@POLICIES.register("round_robin")
class RoundRobinPolicy(Policy):
    """Plays arm 0, 1, .. K-1, 0, .. whatever the rewards: an even budget without the luck of the draw.

    Takes the options of ``Policy``; gamma, noise_std and min_count shape only the posterior it reports, seed and
    warmup_rounds have no effect.
    """

    name = "round_robin"

    def _choose(self) -> int:
        return self.round % self.n_arms
