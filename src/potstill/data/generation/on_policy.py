"""On-policy batches: prompts of the data with completions that the student has just written, and a replay buffer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from potstill.data.generation.writing import Written, check_sampling, pad_left, write_tokens
from potstill.errors import InputError, IntegrityError

IGNORE_INDEX = -100
TEXT_KEYS = ("input_ids", "attention_mask", "labels")


def as_if_written(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return a batch of the data with the keys of ``OnPolicySampler.batch``, each completion both data and written.

    For probing shapes and terms without having the student write. The log-probabilities are 0: every token counts as
    certain where it was drawn.
    """
    if "labels" not in batch:
        raise InputError('the batch has no "labels"', where="rollout", hint="Use a data source of texts.")
    labels = batch["labels"]
    return {
        **batch,
        "data_labels": labels,
        "rollout_labels": labels,
        "rollout_log_probs": torch.zeros(labels.shape, device=labels.device),
    }


@dataclass
class _Row:
    """One text: its tokens, how many of them are the prompt, and what its batch held of it beside them."""

    tokens: Tensor
    prompt: int
    labels: Tensor | None = None  # of a row of the data
    log_probs: Tensor | None = None  # of a row that was written: of its tokens behind the prompt
    extras: dict[str, Tensor] = field(default_factory=dict)


class OnPolicySampler:
    """Replaces completions of the data by ones the student writes now, before they are trained on.

    A student that only ever sees the data's text is not taught to recover from its own mistakes. Of every batch, or of
    every row, a draw u < ``lmbda`` decides whether the student writes; what it wrote then counts like text of the data:
    the loss of your choice compares both models on it, without a gradient through the sampling. Not worth its cost (3
    to 10 steps of plain distillation) for answers of a few tokens, or with a student that writes nothing sensible yet:
    train it on data first.

    In a loop of your own::

        sampler = OnPolicySampler(0.5, 128, eos_token_id=2, pad_token_id=0)
        for batch in loader:
            batch = sampler.batch(batch, student, teacher)

    The batch it returns has these keys beside those of the data, each ``[B, L]``:

    - ``rollout_labels``: labels of rows the student wrote, -100 elsewhere; the end token counts, what follows does not.
    - ``data_labels``: labels of rows of the data, -100 elsewhere.
    - ``rollout_log_probs``: log-probability of every written token where it was drawn, in nats, 0 elsewhere.

    Args:
        lmbda: Share of batches (or rows) the student writes, in [0, 1]; 1 = purely on-policy.
        max_new_tokens: Most tokens to write.
        eos_token_id: The token, or tokens, that end a text; None = rows always get ``max_new_tokens``.
        pad_token_id: Fills the batch; never counts.
        temperature: Of the sampling. Usual: 0.9 to 1.
        top_k: Draw from the k most likely tokens only; 0 = all.
        top_p: Draw from the fewest most likely tokens with this share together.
        alpha: Share of the teacher in the distribution that is drawn from (MiniLLM: 0.2); 0 = the student alone.
        per: What one draw of u decides: "batch" (GKD) or "row" (every batch then holds both kinds).
        buffer: Rows of written text that are kept to be used again; 0 = none.
        reuse: Chance that rows come from the buffer, once it has enough, and are not written anew.
        remade: Keys of the batch that go with its tokens (which of them form a phrase, say), and how each is made from
            a batch: they are made anew when the student has written.
        seed: Of all draws; give every process its own.

    Raises:
        InputError: A setting out of range; a prompt without tokens, or too long.

    Source:
        Agarwal et al., "On-Policy Distillation of Language Models" (GKD), ICLR 2024, algorithm 1. The replay buffer is
        that of DistiLLM (Ko et al., ICML 2024), without its schedule.
    """

    def __init__(
        self,
        lmbda: float = 0.5,
        max_new_tokens: int = 128,
        *,
        eos_token_id: int | Sequence[int] | None = None,
        pad_token_id: int = 0,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        alpha: float = 0.0,
        per: Literal["batch", "row"] = "batch",
        buffer: int = 0,
        reuse: float = 0.0,
        remade: Mapping[str, Callable[[Mapping[str, Any]], Tensor]] | None = None,
        seed: int = 0,
    ):
        where = "rollout"
        for name, value in (("lmbda", lmbda), ("reuse", reuse)):
            if not 0 <= value <= 1:
                raise InputError("does not fit", where=f"{where}.{name}", expected="a number in [0, 1]", got=value)
        check_sampling(max_new_tokens, temperature, top_k, top_p, alpha, where)
        if not temperature > 0:
            raise InputError("nothing is drawn", where=f"{where}.temperature", expected="above 0", got=temperature)
        if per not in ("batch", "row"):
            raise InputError("does not fit", where=f"{where}.per", expected='"batch" or "row"', got=per)
        if buffer < 0 or (reuse and not buffer):
            raise InputError(
                "rows cannot come from a buffer that keeps none",
                where=f"{where}.buffer",
                expected="1 or more, as rollout.reuse is above 0" if reuse else "0 or more",
                got=buffer,
            )
        self.lmbda, self.per, self.reuse, self.size, self.alpha = lmbda, per, reuse, buffer, alpha
        self.max_new_tokens, self.pad_token_id, self.remade = max_new_tokens, pad_token_id, dict(remade or {})
        self.writing = {
            "max_new_tokens": max_new_tokens,
            "eos_token_id": eos_token_id,
            "pad_token_id": pad_token_id,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "alpha": alpha,
        }
        self.seed = seed
        self.rows: list[_Row] = []
        self._choices = torch.Generator().manual_seed(seed)
        self._draws: torch.Generator | None = None  # made on the student's device, where it is drawn from
        self._kind: str | None = None

    def batch(self, batch: Mapping[str, Any], student: nn.Module, teacher: nn.Module | None = None) -> dict[str, Any]:
        """Return the batch with some completions written by the student, padded on the right.

        Args:
            batch: ``input_ids``, ``attention_mask`` and ``labels`` ``[B, L]`` (-100 at prompt and padding), and any
                keys with one entry a row.
            student: A causal language model.
            teacher: Needed with ``alpha`` above 0.

        Raises:
            InputError: A key of the batch goes with the tokens and would be wrong for others.
        """
        device = next(student.parameters()).device
        given = {k: v for k, v in batch.items() if k not in self.remade}
        rows = self._rows_of({k: v.to(device) if isinstance(v, Tensor) else v for k, v in given.items()})
        draws = torch.rand(len(rows) if self.per == "row" else 1, generator=self._choices).expand(len(rows))
        chosen = [i for i, u in enumerate(draws.tolist()) if u < self.lmbda]
        if chosen:
            fresh = self._again(len(chosen)) or self._written([rows[i] for i in chosen], student, teacher)
            for i, row in zip(chosen, fresh):
                rows[i] = row
        found = self._together(rows, frozenset(chosen), device)
        return {**found, **{key: make(found) for key, make in self.remade.items()}}

    @property
    def needs_teacher(self) -> bool:
        """True if the teacher takes part in the writing."""
        return self.alpha > 0

    def write(self, ids: Tensor, mask: Tensor, student: nn.Module, teacher: nn.Module | None) -> Written:
        """Write behind prompts that are padded on the left; a subclass may revise what was written."""
        return write_tokens(student, ids, mask, generator=self._generator(ids.device), teacher=teacher, **self.writing)

    def state_dict(self) -> dict[str, Any]:
        """Return the generators and the buffer, as tensors and plain data."""
        return {
            "choices": self._choices.get_state(),
            "draws": None if self._draws is None else self._draws.get_state(),
            "kind": self._kind,
            "rows": [
                {"tokens": r.tokens.cpu(), "prompt": r.prompt, "log_probs": r.log_probs.cpu(),
                 "extras": {k: v.cpu() for k, v in r.extras.items()}}
                for r in self.rows
            ],
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what ``state_dict`` returned."""
        self._choices.set_state(state["choices"])
        self._draws, self._kind = None, state["kind"]
        if state["draws"] is not None:
            try:
                self._draws = torch.Generator(self._kind)
                self._draws.set_state(state["draws"])
            except RuntimeError as error:
                raise IntegrityError(
                    f"the draws were made on a {self._kind} device, which is not here", where="rollout"
                ) from error
        self.rows = [
            _Row(r["tokens"], r["prompt"], log_probs=r["log_probs"], extras=dict(r["extras"])) for r in state["rows"]
        ]

    def _generator(self, device: torch.device) -> torch.Generator:
        if self._draws is None:
            self._kind = device.type
            self._draws = torch.Generator(device.type).manual_seed(self.seed)
        elif self._kind != device.type:
            raise IntegrityError(f"drew on a {self._kind} device before, now on {device.type}", where="rollout")
        return self._draws

    def _rows_of(self, batch: Mapping[str, Any]) -> list[_Row]:
        for key in TEXT_KEYS:
            if key not in batch:
                raise InputError(f'the batch has no "{key}"', where="rollout", hint="Use a data source of texts.")
        ids, mask, labels = (batch[k] for k in TEXT_KEYS)
        B = len(ids)
        extras = {k: v for k, v in batch.items() if k not in TEXT_KEYS and isinstance(v, Tensor)}
        for key, value in extras.items():
            if value.ndim != 1 or len(value) != B:
                raise InputError(
                    f'"{key}" belongs to the tokens of the data, and the student writes others',
                    where="rollout",
                    expected="input_ids, attention_mask, labels and keys with one entry a row",
                    got=f"{key} {list(value.shape)}",
                    hint="Leave out what makes this key, or the rollouts.",
                )
        rows = []
        for i in range(B):
            tokens, wanted = ids[i][mask[i].bool()], labels[i][mask[i].bool()]
            learned = (wanted != IGNORE_INDEX).nonzero()[:, 0]
            # Nothing precedes the first token: it is the least prompt there can be.
            prompt = max(int(learned[0]) if len(learned) else len(tokens), 1)
            if len(tokens) == 0:
                raise InputError("a text has no token", where="rollout")
            rows.append(_Row(tokens, prompt, labels=wanted, extras={k: v[i] for k, v in extras.items()}))
        return rows

    def _again(self, count: int) -> list[_Row]:
        """Return rows of the buffer, or none if they are to be written anew."""
        if not self.reuse or len(self.rows) < count or torch.rand((), generator=self._choices).item() >= self.reuse:
            return []
        return [self.rows[i] for i in torch.randperm(len(self.rows), generator=self._choices)[:count].tolist()]

    def _written(self, rows: Sequence[_Row], student: nn.Module, teacher: nn.Module | None) -> list[_Row]:
        ids, mask = pad_left([row.tokens[: row.prompt] for row in rows], self.pad_token_id)
        written = self.write(ids, mask, student, teacher)
        fresh = []
        for i, row in enumerate(rows):
            kept = written.mask[i]
            tokens = torch.cat([row.tokens[: row.prompt], written.tokens[i][kept]])
            fresh.append(_Row(tokens, row.prompt, log_probs=written.log_probs[i][kept], extras=row.extras))
        if self.size:
            self.rows = [*self.rows, *fresh][-self.size :]
        return fresh

    def _together(self, rows: Sequence[_Row], written: frozenset[int], device: torch.device) -> dict[str, Any]:
        L = max(len(row.tokens) for row in rows)
        ids = torch.full((len(rows), L), self.pad_token_id, dtype=torch.long, device=device)
        mask = torch.zeros_like(ids)
        data, own = (torch.full_like(ids, IGNORE_INDEX) for _ in range(2))
        log_probs = torch.zeros(len(rows), L, device=device)
        for i, row in enumerate(rows):
            n = len(row.tokens)
            ids[i, :n], mask[i, :n] = row.tokens.to(device), 1
            if i in written:
                own[i, row.prompt : n] = row.tokens[row.prompt :].to(device)
                log_probs[i, row.prompt : n] = row.log_probs.to(device)
            else:
                data[i, :n] = row.labels
        extras = {k: torch.stack([row.extras[k].to(device) for row in rows]) for k in rows[0].extras}
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "labels": torch.where(own == IGNORE_INDEX, data, own),
            "data_labels": data,
            "rollout_labels": own,
            "rollout_log_probs": log_probs,
            **extras,
        }
