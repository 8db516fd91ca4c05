"""The mask of a module's tokens, found in a batch."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from potstill.errors import InputError

IGNORED_LABEL = -100


def token_mask(batch: Mapping[str, torch.Tensor], key: str | None) -> torch.Tensor | None:
    """Return which tokens of a module count in this batch.

    Args:
        batch: The batch as the model gets it.
        key: Where the mask is: a key of the batch, or several with ``|`` between, the first that the batch has is
            used. A key that ends in ``labels`` counts the positions whose label is not -100. None: there is none.

    Returns:
        Bool tensor, True = counts, with the shape of what was found, (B, T) for text; None if every token counts.

    Raises:
        InputError: if the batch has none of the keys.
    """
    if key is None:
        return None
    for name in key.split("|"):
        if batch.get(name) is not None:
            found = batch[name]
            return found != IGNORED_LABEL if name.endswith("labels") else found.bool()
    raise InputError(
        "the batch lacks the mask of a module's tokens",
        expected=" or ".join(key.split("|")),
        got=f"keys {', '.join(sorted(batch))}",
        hint="Let the collator return it, or set the module's mask to null if every token counts.",
    )
