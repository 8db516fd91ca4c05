"""What the queries and keys of an attention map are: words, places of a picture, or both; and numbers on such maps."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from potstill.errors import ShapeError

MOST_EXTRA = 8  # tokens before the patches: CLS, a distillation token, registers
VISUAL = re.compile(r"(^|[._])(visual|vision|image|vit|pixel)")


@dataclass(frozen=True)
class Axis:
    """Tokens along one axis of a map: ``text`` words, then ``extra`` tokens, then the patches of ``side`` x ``side``.

    Attributes:
        text: Number of words.
        extra: Number of tokens between words and patches, such as CLS.
        side: Rows, and columns, of the patch grid; 0 = there is none.
    """

    text: int = 0
    extra: int = 0
    side: int = 0

    @property
    def kind(self) -> str:
        """ "words", "picture", "words and picture", or "other" where nothing is known."""
        known = ["words"] * bool(self.text) + ["picture"] * bool(self.side)
        return " and ".join(known) or "other"

    @property
    def patches(self) -> slice:
        """Where the patches stand."""
        start = self.text + self.extra
        return slice(start, start + self.side**2)


def axis_of(length: int, text: int | None, side: int | None, *, is_visual: bool = False) -> Axis:
    """Say what the tokens along an axis are, by their number.

    Args:
        length: Number of tokens.
        text: Number of words of the stream they could be; None = none.
        side: Side of the patch grid of the model's pictures; None = not known, then any square number will do.
        is_visual: The attention belongs to an image encoder: no words.
    """
    text = 0 if is_visual or text is None else text
    if text and length == text:
        return Axis(text=text)
    rest = length - text
    if text and rest > 0:
        for extra in (0, 1):
            if (found := _side(rest - extra, side)) is not None:
                return Axis(text, extra, found)
    for extra in range(MOST_EXTRA + 1 if side is not None else 2):
        if (found := _side(length - extra, side)) is not None:
            return Axis(0, extra, found)
    return Axis()


def _side(number: int, side: int | None) -> int | None:
    if side is not None:
        return side if number == side**2 else None
    root = math.isqrt(max(number, 0))
    return root if root >= 2 and root**2 == number else None


def grid_side(model: nn.Module) -> int | None:
    """Return how many patches a picture has in a row, as far as the model's configuration says."""
    config = getattr(model, "config", None)
    for part in (config, *(getattr(config, name, None) for name in ("vision_config", "encoder"))):
        tokens = getattr(part, "image_tokens", None)
        if isinstance(tokens, int) and tokens > 0:
            return math.isqrt(tokens)
        size, patch = getattr(part, "image_size", None), getattr(part, "patch_size", None)
        if isinstance(size, int) and isinstance(patch, int) and patch > 0:
            return size // patch
    return None


def places(axis: Axis, device: torch.device | str = "cpu") -> Tensor:
    """Return where the tokens of an axis stand: patches ``[side², 2]`` in row and column, words ``[T, 1]`` in turn."""
    if axis.kind == "picture":
        steps = torch.arange(axis.side, dtype=torch.float32, device=device)
        return torch.cartesian_prod(steps, steps)
    return torch.arange(axis.text, dtype=torch.float32, device=device)[:, None]


def attention_distance(attn: Tensor, positions: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return how far, on average, the tokens of a self-attention look.

    Args:
        attn: Attention probabilities, ``(B, H, T, T)``.
        positions: Where the tokens stand, ``(T, D)``; the distance is Euclidean, in the unit of these.
        mask: True at tokens that count, as queries and as keys, ``(B, T)``; None = all. Rows are divided by what is
            left of their sum.

    Returns:
        Σ_k a_qk |x_q - x_k|, mean over the queries that count, ``(B, H)``; NaN for a sample without one.

    Raises:
        ShapeError: the shapes do not fit.

    Source:
        Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, figure 7; for words we count tokens.

    Example:
        >>> import torch
        >>> attention_distance(torch.full((1, 1, 2, 2), 0.5), torch.tensor([[0.0], [3.0]]))
        tensor([[1.5000]])
    """
    B, _, Q, K = attn.shape
    if Q != K or len(positions) != Q or (mask is not None and mask.shape != (B, Q)):
        raise ShapeError(
            "map, positions and mask do not fit",
            where="attention_distance",
            expected="(B, H, T, T), (T, D) and (B, T)",
            got=f"{list(attn.shape)}, {list(positions.shape)} and {None if mask is None else list(mask.shape)}",
        )
    if mask is not None:
        attn = attn.masked_fill(~mask[:, None, None, :], 0)
    total = attn.sum(-1)  # (B, H, T)
    rows = (attn * torch.cdist(positions, positions).to(attn)).sum(-1) / total
    counts = total > 0
    if mask is not None:
        counts &= mask[:, None]
    return rows.masked_fill(~counts, 0).sum(-1) / counts.sum(-1)


def head_similarity(student: Tensor, teacher: Tensor, query_mask: Tensor | None = None) -> Tensor:
    """Return the cosine of every teacher head's map with every student head's, as AMAD weighs heads.

    Args:
        student: ``(B, Hs, Q, K)``.
        teacher: ``(B, Ht, Q, K)``.
        query_mask: True at query rows that count, ``(B, Q)``; None = all.

    Returns:
        ``(B, Ht, Hs)``, 0 to 1; 0 for a sample without a query that counts.

    Raises:
        ShapeError: B, Q or K differ.
    """
    # Inside, because losses may be absent where only scores are wanted.
    from potstill.losses._attention import Maps, unit

    maps = Maps(student, teacher, query_mask, None, "head_similarity")
    return unit(maps.teacher.flatten(2)) @ unit(maps.student.flatten(2)).transpose(1, 2)


def vocabulary_sizes(model: nn.Module) -> set[Any]:
    """Return the sizes of the vocabularies that a model's configuration and those inside it name."""
    config = getattr(model, "config", None)
    parts = [config, *vars(config).values()] if config is not None else []
    return {getattr(part, "vocab_size", None) for part in parts} - {None}
