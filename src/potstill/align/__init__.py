"""Bringing student and teacher to one form: layer maps, projectors, masks, vocabularies, chunks of two tokenizers."""

from potstill.losses import SpecialToken, align_chunks, boundary_mask, token_bytes

__all__ = ["SpecialToken", "align_chunks", "boundary_mask", "token_bytes"]
