"""The mask of a module's tokens, found in a batch."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from potstill.errors import InputError, ShapeError

IGNORED_LABEL = -100


def token_mask(batch: Mapping[str, torch.Tensor], key: str | None, tokens: int | None = None) -> torch.Tensor | None:
    """Return which tokens of a module count in this batch.

    Args:
        batch: The batch as the model gets it.
        key: Where the mask is: a key of the batch, or several with ``|`` between, the first that the batch has is
            used. A key that ends in ``labels`` counts the positions whose label is not -100. ``+36`` behind a key: the
            model puts 36 tokens of its own behind those of the batch, which all count. None: there is none.
        tokens: Number of tokens T of the states to be masked. States with one token more than the mask are those of a
            model that appended a token of its own (CoCa's CLS in the text decoder), which counts. None: not checked.

    Returns:
        Bool tensor (B, T), True = counts; None if every token counts.

    Raises:
        InputError: if the batch has none of the keys.
        ShapeError: if mask and states differ otherwise.
    """
    if key is None:
        return None
    for name in key.split("|"):
        name, _, own = name.partition("+")
        if batch.get(name) is not None:
            found = batch[name]
            mask = found != IGNORED_LABEL if name.endswith("labels") else found.bool()
            if own:
                mask = torch.cat([mask, mask.new_ones(len(mask), int(own))], dim=1)
            return mask if tokens is None else _fitted(mask, name, tokens)
    raise InputError(
        "the batch lacks the mask of a module's tokens",
        expected=" or ".join(key.split("|")),
        got=f"keys {', '.join(sorted(batch))}",
        hint="Let the collator return it, or set the module's mask to null if every token counts.",
    )


def _fitted(mask: torch.Tensor, name: str, tokens: int) -> torch.Tensor:
    if mask.shape[1] == tokens:
        return mask
    if mask.shape[1] + 1 == tokens:
        return torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
    raise ShapeError(
        f'the mask "{name}" does not fit the hidden states',
        expected=f"{tokens} tokens",
        got=f"shape {tuple(mask.shape)}",
    )
