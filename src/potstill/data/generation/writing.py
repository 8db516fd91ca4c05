"""Token by token: a causal language model writes on behind prompts, alone or mixed with its teacher."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from potstill.errors import InputError, ShapeError


@dataclass
class Written:
    """What was written behind a batch of prompts.

    Attributes:
        tokens: Token ids, ``[B, T]``; the pad id behind the end of a row.
        mask: True up to the first end token, which counts, ``[B, T]``.
        log_probs: Log-probability of every token under the distribution it was drawn from, in nats, ``[B, T]``; 0 at
            positions that do not count.
    """

    tokens: Tensor
    mask: Tensor
    log_probs: Tensor


@torch.no_grad()
def write_tokens(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    max_new_tokens: int | Tensor,
    eos_token_id: int | Sequence[int] | None,
    pad_token_id: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
    teacher: nn.Module | None = None,
    alpha: float = 0.0,
) -> Written:
    """Sample completions from ``model``, or from alpha · teacher + (1 - alpha) · model.

    Unlike ``model.generate`` it draws from a generator of its own, so that training can be resumed exactly, can mix two
    models, and tells how likely every token was where it was drawn. For beams, or for text that nobody trains on, use
    ``model.generate``. The models run in eval mode, without a graph, with cached keys.

    Args:
        model: A causal language model of transformers: takes ``past_key_values``, returns ``logits``.
        input_ids: Prompts, padded on the left, ``[B, L]``.
        attention_mask: 1 at tokens of the prompts, ``[B, L]``.
        max_new_tokens: Most tokens to write per row: one number, or one for each row, ``[B]``.
        eos_token_id: The token, or tokens, that end a text; None = every row gets ``max_new_tokens``.
        pad_token_id: Stands behind the end of a row.
        temperature: Both models' logits are divided by it; 0 = take the most likely token.
        top_k: Draw from the k most likely tokens only; 0 = all.
        top_p: Draw from the fewest most likely tokens that have this share together.
        generator: Drawn from, on the device of the prompts; None = torch's global one.
        teacher: Mixed in with the share ``alpha``. If it has more or fewer output rows than the model, only ids that
            both have can be drawn.
        alpha: Share of the teacher in every distribution, in [0, 1].

    Returns:
        Tokens, mask and log-probabilities; T is the length of the longest row.

    Raises:
        InputError: A setting out of range, a prompt without tokens or padded on the right, or a prompt and completion
            longer than the model's positions.
        ShapeError: Ids and mask do not fit.

    Source:
        Teacher-mixed sampling: Gu et al., "MiniLLM", ICLR 2024, section 2.2.
    """
    rooms = torch.as_tensor(max_new_tokens, device=input_ids.device).expand(len(input_ids))
    _check(input_ids, attention_mask, int(rooms.min()) if len(rooms) else 1, temperature, top_k, top_p, alpha, teacher)
    ends = [] if eos_token_id is None else [eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id)
    writers = [_Writer(model, attention_mask, rooms)]
    if teacher is not None and alpha > 0:
        writers.append(_Writer(teacher, attention_mask, rooms))
    B, device = len(input_ids), input_ids.device
    end_ids = torch.tensor(ends, dtype=torch.long, device=device)
    is_open = torch.ones(B, dtype=torch.bool, device=device)
    tokens, kept, chances = [], [], []
    new = input_ids
    with evaluating(model, teacher):
        for t in range(int(rooms.max())):
            log_p = _mixed([writer.write(new, is_open) for writer in writers], alpha, temperature)
            log_p = _narrowed(log_p, top_k, top_p)
            drawn = (
                log_p.argmax(-1) if temperature == 0 else torch.multinomial(log_p.exp(), 1, generator=generator)[:, 0]
            )
            chance = log_p.gather(-1, drawn[:, None])[:, 0]
            drawn = drawn.masked_fill(~is_open, pad_token_id)
            tokens.append(drawn)
            kept.append(is_open)
            chances.append(chance.masked_fill(~is_open, 0))
            is_open = is_open & ~torch.isin(drawn, end_ids) & (t + 1 < rooms)
            if not is_open.any():
                break
            new = drawn[:, None]
    return Written(torch.stack(tokens, 1), torch.stack(kept, 1), torch.stack(chances, 1))


def pad_left(rows: Sequence[Tensor], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Return token rows of different lengths as ``[B, L]``, padded on the left, and their attention mask."""
    longest = max(len(row) for row in rows)
    ids = rows[0].new_full((len(rows), longest), pad_token_id)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, longest - len(row) :] = row
        mask[i, longest - len(row) :] = 1
    return ids, mask


class _Writer:
    """One model, its cached keys, and where its rows stand."""

    def __init__(self, model: nn.Module, attention_mask: Tensor, rooms: Tensor):
        self.model, self.mask, self.past = model, attention_mask.long(), None
        takes = inspect.signature(model.forward).parameters
        self.takes_positions = "position_ids" in takes
        self.keeps_last = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
        if "past_key_values" not in takes or getattr(model.config, "is_encoder_decoder", False):
            raise InputError(
                f"{type(model).__name__} cannot write on behind a prompt",
                where="write_tokens",
                expected="a causal language model that takes past_key_values",
            )
        longest = int((self.mask.sum(1) + rooms).argmax())
        check_room(model, int(self.mask[longest].sum()), int(rooms[longest]))

    def write(self, tokens: Tensor, is_open: Tensor) -> Tensor:
        """Take in the prompts, then one token after another; return the logits of the next, ``[B, V]``.

        A row that is not open goes no further: its position could be beyond the model's last.
        """
        if self.past is not None:
            self.mask = torch.cat([self.mask, is_open[:, None].long()], 1)
        given = {"input_ids": tokens, "attention_mask": self.mask, "use_cache": True, **self.keeps_last}
        if self.past is not None:
            given["past_key_values"] = self.past
        if self.takes_positions:  # on the left are pads, so a token's position is not its column
            given["position_ids"] = (self.mask.cumsum(1) - 1).clamp_min(0)[:, -tokens.shape[1] :]
        output = self.model(**given)
        self.past = output.past_key_values
        return output.logits[:, -1].float()


def check_room(model: nn.Module, longest: int, room: int) -> None:
    """Refuse a prompt of ``longest`` tokens if ``room`` more do not fit the model's positions."""
    config = model.config.get_text_config()
    most = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or math.inf
    if longest + room > most:
        raise InputError(
            f"the longest prompt has {longest} tokens and {room} more are to be written",
            where="max_new_tokens",
            expected=f"at most {most} together, the positions of {type(model).__name__}",
            hint="Write fewer tokens or shorten the prompts.",
        )


def _mixed(logits: list[Tensor], alpha: float, temperature: float) -> Tensor:
    """Return log-probabilities of the next token, ``[B, V]``."""
    if len(logits) == 2:
        shared = min(x.shape[-1] for x in logits)
        logits = [x[:, :shared] for x in logits]
    parts = [torch.log_softmax(x / temperature if temperature else x, -1) for x in logits]
    if len(parts) == 1:
        return parts[0]
    student, teacher = parts
    if alpha == 1:
        return teacher
    return torch.logaddexp(student + math.log1p(-alpha), teacher + math.log(alpha))


def _narrowed(log_p: Tensor, top_k: int, top_p: float) -> Tensor:
    """Leave the most likely tokens and renormalise."""
    if top_k == 0 and top_p == 1:
        return log_p
    ordered, ids = log_p.sort(-1, descending=True)
    drop = torch.zeros_like(ordered, dtype=torch.bool)
    if top_k:
        drop[:, top_k:] = True
    if top_p < 1:
        before = ordered.exp().cumsum(-1) - ordered.exp()
        drop |= before >= top_p
    drop[:, 0] = False
    return log_p.masked_fill(torch.zeros_like(drop).scatter(-1, ids, drop), -math.inf).log_softmax(-1)


@contextmanager
def evaluating(*models: nn.Module | None) -> Iterator[None]:
    """Run in eval mode, and leave every module in the mode it was in."""
    training = [m for model in models if model is not None for m in model.modules() if m.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _check(
    input_ids: Tensor,
    attention_mask: Tensor,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    alpha: float,
    teacher: nn.Module | None,
) -> None:
    where = "write_tokens"
    if input_ids.ndim != 2 or input_ids.shape != attention_mask.shape or not len(input_ids):
        raise ShapeError(
            "prompts do not fit",
            where=where,
            expected="input_ids and attention_mask [B, L]",
            got=f"{list(input_ids.shape)} and {list(attention_mask.shape)}",
        )
    check_sampling(max_new_tokens, temperature, top_k, top_p, alpha, where)
    if alpha > 0 and teacher is None:
        raise InputError("alpha mixes in a teacher, but there is none", where=where)
    if not attention_mask[:, -1].all():
        raise InputError(
            "a prompt is empty or padded on the right",
            where=where,
            expected="prompts padded on the left, each with a token",
            hint='Set the tokenizer\'s padding_side to "left".',
        )


def check_sampling(max_new_tokens: int, temperature: float, top_k: int, top_p: float, alpha: float, where: str) -> None:
    """Refuse settings that no distribution has."""
    rows = (
        ("max_new_tokens", max_new_tokens, max_new_tokens >= 1, "1 or more"),
        ("temperature", temperature, 0 <= temperature < math.inf, "a finite number, 0 or more"),
        ("top_k", top_k, top_k >= 0, "0 (all) or more"),
        ("top_p", top_p, 0 < top_p <= 1, "a number in (0, 1]"),
        ("alpha", alpha, 0 <= alpha <= 1, "a number in [0, 1]"),
    )
    for name, value, fits, expected in rows:
        if not fits:
            raise InputError("does not fit", where=f"{where}.{name}", expected=expected, got=value)
