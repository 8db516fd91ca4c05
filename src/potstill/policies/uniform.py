"""Any arm, by lot."""

from __future__ import annotations

from potstill.policies.base import POLICIES, Policy


@POLICIES.register("uniform")
class UniformPolicy(Policy):
    """Draws each round's arm with equal chances, whatever the rewards.

    The comparison that shows whether choosing helps at all. Takes the options of ``Policy``; gamma, noise_std and
    min_count shape only the posterior it reports, warmup_rounds has no effect.
    """

    name = "uniform"

    def _choose(self) -> int:
        return self._generator.below(self.n_arms)
