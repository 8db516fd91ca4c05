"""SCRG: what the student writes, its worst token replaced by the teacher's, and written on from there."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from potstill.data.generation.on_policy import OnPolicySampler
from potstill.data.generation.writing import Written, evaluating, pad_left, write_tokens
from potstill.errors import InputError
from potstill.losses import scrg_select


@torch.no_grad()
def scrg_regenerate(
    student: nn.Module,
    teacher: nn.Module,
    prompts: Tensor,
    attention_mask: Tensor | None = None,
    *,
    max_new_tokens: int,
    eos_token_id: int | Sequence[int] | None,
    pad_token_id: int,
    n_corrections: int = 1,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
    written: Written | None = None,
) -> Written:
    """Have the student write behind prompts, and correct its worst token as often as asked.

    Each time both models read what stands there, ``potstill.losses.scrg_select`` names one token of every response, the
    teacher's token takes its place, and the student writes on behind it. A response the teacher would have written
    itself is left alone. For students whose own text is still poor; it costs a reading by both models and another
    writing for every correction, and one correction does most of what three do.

    Args:
        student: A causal language model of transformers.
        teacher: Another, of the same vocabulary.
        prompts: Token ids, padded on the left, ``[B, L]``.
        attention_mask: 1 at tokens of the prompts, ``[B, L]``; None = all.
        max_new_tokens: Most tokens of a response, corrected or not.
        eos_token_id: The token, or tokens, that end a response; None = none does.
        pad_token_id: Stands behind the end of a row.
        n_corrections: How often, 0 or more.
        temperature: Of the sampling; as ``top_k`` and ``top_p``, see ``write_tokens``. Which token is replaced is
            decided at temperature 1.
        top_k: Draw from the k most likely tokens only; 0 = all.
        top_p: Draw from the fewest most likely tokens that have this share together.
        generator: Drawn from, on the device of the prompts; None = torch's global one.
        written: Responses to begin with; None = the student writes them.

    Returns:
        Tokens, mask and log-probabilities, as ``write_tokens`` returns them. A token put in by the teacher was not
        drawn: its log-probability is 0.

    Raises:
        InputError: n_corrections below 0; or as ``write_tokens``.
        ShapeError: Vocabularies differ; or as ``write_tokens``.

    Source:
        Liu et al., "Multi-Granularity Semantic Revision for Large Language Model Distillation", arXiv 2407.10068, SCRG.
    """
    if isinstance(n_corrections, bool) or not isinstance(n_corrections, int) or n_corrections < 0:
        raise InputError("does not fit", where="n_corrections", expected="0 or more", got=n_corrections)
    mask = torch.ones_like(prompts) if attention_mask is None else attention_mask
    ends = [] if eos_token_id is None else [eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id)
    settings = {
        "eos_token_id": eos_token_id,
        "pad_token_id": pad_token_id,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "generator": generator,
    }
    if written is None:
        written = write_tokens(student, prompts, mask, max_new_tokens=max_new_tokens, **settings)
    rows = [prompt[kept.bool()] for prompt, kept in zip(prompts, mask)]
    answers = [(row[kept], chance[kept]) for row, kept, chance in zip(written.tokens, written.mask, written.log_probs)]
    for _ in range(n_corrections):
        position, replacement = scrg_select(*_read(student, teacher, prompts, mask, answers, pad_token_id))
        wrong = (position >= 0).nonzero()[:, 0].tolist()
        if not wrong:
            break
        for i in wrong:
            tokens, chances = (x[: int(position[i])] for x in answers[i])
            answers[i] = torch.cat([tokens, replacement[i : i + 1]]), torch.cat([chances, chances.new_zeros(1)])
        is_open = [i for i in wrong if len(answers[i][0]) < max_new_tokens and int(answers[i][0][-1]) not in ends]
        if not is_open:
            continue
        ids, kept = pad_left([torch.cat([rows[i], answers[i][0]]) for i in is_open], pad_token_id)
        rooms = torch.tensor([max_new_tokens - len(answers[i][0]) for i in is_open], device=ids.device)
        more = write_tokens(student, ids, kept, max_new_tokens=rooms, **settings)
        for i, tokens, counts, chances in zip(is_open, more.tokens, more.mask, more.log_probs):
            before = answers[i]
            answers[i] = torch.cat([before[0], tokens[counts]]), torch.cat([before[1], chances[counts]])
    return _together(answers, pad_token_id)


def _read(
    student: nn.Module,
    teacher: nn.Module,
    prompts: Tensor,
    mask: Tensor,
    answers: Sequence[tuple[Tensor, Tensor]],
    pad_token_id: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return what both models say of every token of the responses, these tokens, and where they are."""
    written = _together(answers, pad_token_id)
    T = written.tokens.shape[1]
    whole = {
        "input_ids": torch.cat([prompts, written.tokens], 1),
        "attention_mask": torch.cat([mask.long(), written.mask.long()], 1),
    }
    # On the left are pads, so a token's position is not its column.
    positions = (whole["attention_mask"].cumsum(1) - 1).clamp_min(0)
    logits = []
    for model in (student, teacher):
        takes = inspect.signature(model.forward).parameters
        more = {"position_ids": positions} if "position_ids" in takes else {}
        more |= {"logits_to_keep": T + 1} if "logits_to_keep" in takes else {}
        with evaluating(model):
            logits.append(model(**whole, **more, use_cache=False).logits[:, -T - 1 : -1])
    return *logits, written.tokens, written.mask


def _together(answers: Sequence[tuple[Tensor, Tensor]], pad_token_id: int) -> Written:
    """Return responses of different lengths as one batch, padded on the right."""
    T = max(len(tokens) for tokens, _ in answers)
    first, chance = answers[0]
    tokens = first.new_full((len(answers), T), pad_token_id)
    kept = torch.zeros(len(answers), T, dtype=torch.bool, device=first.device)
    log_probs = chance.new_zeros(len(answers), T)
    for i, (row, chances) in enumerate(answers):
        tokens[i, : len(row)], log_probs[i, : len(row)], kept[i, : len(row)] = row, chances, True
    return Written(tokens, kept, log_probs)


class CorrectingSampler(OnPolicySampler):
    """Has the student write on-policy text whose worst tokens the teacher has replaced: SCRG.

    Args:
        corrections: Tokens of each response that are replaced, one after the other.
        options: Those of ``OnPolicySampler``, without ``alpha``: the student writes alone.

    Raises:
        InputError: As ``OnPolicySampler``; or a share of the teacher in the writing.
    """

    def __init__(self, corrections: int, *args: Any, **options: Any):
        super().__init__(*args, **options)
        if self.alpha > 0:
            raise InputError(
                "the teacher corrects what the student writes alone",
                where="rollout.alpha",
                expected="0",
                got=self.alpha,
            )
        self.corrections = corrections

    @property
    def needs_teacher(self) -> bool:
        """True: it corrects."""
        return True

    def write(self, ids: Tensor, mask: Tensor, student: nn.Module, teacher: nn.Module | None) -> Written:
        """Write behind prompts that are padded on the left, and correct what was written."""
        written = super().write(ids, mask, student, None)
        writing = {key: value for key, value in self.writing.items() if key != "alpha"}
        options = {"n_corrections": self.corrections, "generator": self._generator(ids.device), **writing}
        return scrg_regenerate(student, teacher, ids, mask, written=written, **options)
