"""OPTIMA: discounted Thompson sampling over modules."""

from __future__ import annotations

from potstill.policies.base import POLICIES, Policy


@POLICIES.register("optima")
class OptimaPolicy(Policy):
    """Plays what has recently paid off, and what it has not looked at for a while.

    Each arm is first played ``warmup_rounds`` times in turn. From then on one number is drawn from the posterior of
    each arm's mean reward, and the largest wins (the lowest index among equals). An old play counts less with every
    round, so the std of an arm that is not played grows until it is tried again: that is how the policy notices that
    another module has become the one worth distilling. One arm is legal and always played.

    Needs rounds to learn: at least some 20 for each arm, and a memory ``1 / (1 - gamma)`` of at least 5 for each arm.

    Args:
        arms: Module names, or tuples of module names, or a number K for the nameless arms "0" .. "K-1".
        gamma: Weight of a play kept from one round to the next, in (0, 1]; 0.98 remembers about 50 rounds.
        warmup_rounds: Plays of each arm, in turn, before the first choice.
        noise_std: Standard deviation of one reward, or "auto" = estimated from the rewards, which makes the choices
            independent of the reward's scale.
        seed: Seed of the policy's own random numbers, 0 or more; the global ones are never touched.
        min_count: Floor of the discounted count in the posterior's std.

    Raises:
        InputError: no arm, an empty or duplicate arm, or an option outside its range.

    Source:
        arXiv 2310.04550, NeurIPS 2023: loss decrement as reward, one arm for each module, gamma 0.98, 10 warm-up
        rounds. Warm-up counted for each arm, the "auto" noise and the floor of the count are Potstill's choice (no
        official code exists).

    Example:
        >>> policy = OptimaPolicy(["image_encoder", "text_decoder"], warmup_rounds=1)
        >>> for reward in (0.1, 0.3):
        ...     policy.update(policy.select(), reward)
        >>> policy.history
        [(1, 0, 0.1), (2, 1, 0.3)]
    """

    name = "optima"
    learns = True

    def _choose(self) -> int:
        if self.round < self.warmup_rounds * self.n_arms:
            return self.round % self.n_arms
        mean, std, _ = self._normal_of_means()
        drawn = [m + s * z for m, s, z in zip(mean, std, self._generator.normal(self.n_arms))]
        return drawn.index(max(drawn))
