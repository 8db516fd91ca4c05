"""The rounds of a policy: play an arm for some steps, measure on the probe set, reward, choose again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from potstill.errors import IntegrityError
from potstill.train.arguments import DistillationArguments
from potstill.train.module import DistillModule
from potstill.train.probe import Probe, check_probe, reward_of, yardstick_value


class Rounds:
    """Turns optimiser steps into a policy's rounds; every rank computes the same.

    Args:
        policy: What chooses the arm.
        module: The unwrapped module.
        args: ``round_steps``, the yardstick of the reward, weights.
        draw_probe: Draws the probe set, the same at every call.
        sum_over_ranks: Sums a tensor over all ranks.
        agree: Gives every rank the first one's choice.
    """

    def __init__(
        self,
        policy: Any,
        module: DistillModule,
        args: DistillationArguments,
        *,
        draw_probe: Callable[[], Probe],
        sum_over_ranks: Callable[[Any], Any],
        agree: Callable[[int], int],
    ):
        self.policy, self.module, self.args = policy, module, args
        self._draw_probe, self._sum, self._agree = draw_probe, sum_over_ranks, agree
        self._probe: Probe | None = None
        self._values: dict[str, float] = {}  # terms on the probe set when the round began
        self._arm: int | None = None
        self._started = 0
        self.number = 0

    @property
    def arm(self) -> str | None:
        """The arm being played, its modules joined with "+"."""
        return None if self._arm is None else self.policy.arm_names[self._arm]

    @property
    def weights(self) -> dict[str, float] | None:
        """Module -> factor of its objectives in this round; None before the first."""
        if self._arm is None:
            return None
        arm, names = self.policy.arms[self._arm], self.module.modules_named
        scale = len(names) / len(arm) if self.args.equal_hidden_weight else 1.0
        return {name: scale if name in arm else 0.0 for name in names}

    def before_step(self, step: int) -> dict[str, Any] | None:
        """Start the first round, or turn to the next where one ends; return the event of the round that ended."""
        event = None
        if self._arm is None:
            self._values = self._measure(step)
        elif step % self.args.round_steps == 0 and step != self._started:
            event = self._reward(step)
        else:
            return None
        self.number += 1
        self._started = step
        self._arm = self._agree(self.policy.select())
        return event

    def close(self, step: int) -> dict[str, Any] | None:
        """Reward the last round, complete or not, at the end of training."""
        if self._arm is None or step == self._started:
            return None
        event = self._reward(step)
        self._arm = None
        return event

    def _measure(self, step: int) -> dict[str, float]:
        if self._probe is None:
            self._probe = self._draw_probe()
        values = self._probe.measure(self.module, self._sum)
        check_probe(values, self.module, step)
        return values

    def _reward(self, step: int) -> dict[str, Any]:
        args, after = self.args, self._measure(step)
        reward = reward_of(self._values, after, self.module, args.reward, mode=args.reward_mode, clip=args.reward_clip)
        self.policy.update(self._arm, reward)
        self._values = after
        return {
            "event": "round",
            "step": step,
            "round": self.number,
            "arm": self.arm,
            "reward": reward,
            "reference": yardstick_value(after, self.module, "reference"),
            "probe": after,
            "posterior": self.policy.posterior_by_arm(),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to go on in mid-round."""
        return {
            "policy": self.policy.state_dict(),
            "arm": self._arm,
            "number": self.number,
            "started": self._started,
            "values": self._values,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken."""
        if not isinstance(state, dict) or state.keys() != self.state_dict().keys():
            raise IntegrityError("holds no state of a policy's rounds", where="policy")
        self.policy.load_state_dict(state["policy"])
        self._arm, self.number = state["arm"], state["number"]
        self._started, self._values = state["started"], state["values"]
