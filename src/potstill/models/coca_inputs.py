"""Checks of what is passed to ``CocaModel.forward``: shapes, masks, and which keys a batch may have."""

from __future__ import annotations

from torch import Tensor

from potstill.errors import InputError, ShapeError, suggest
from potstill.models.coca_config import CocaConfig

BATCH_KEYS_NOT_READ = frozenset({"sample_id", "concept_map"})
"""Keys a batch may carry for others (caches, segmentation taps); the model accepts and ignores exactly these."""

_INPUTS = ("pixel_values", "image_mask", "input_ids", "attention_mask", "caption_labels")


def check_labels(config: CocaConfig, labels: dict[str, Tensor]) -> None:
    """Refuse keys that are neither labels of a task head nor known to be for others.

    Raises:
        InputError: An unknown key, or labels in use for a task without a head. Labels without a head are harmless
            while no row uses them, because a mixed batch names all tasks.
    """
    tasks = config.task_labels
    for key, value in labels.items():
        if key in BATCH_KEYS_NOT_READ or value is None:
            continue
        task = key.removesuffix("_labels")
        if task == key:
            known = {*_INPUTS, *BATCH_KEYS_NOT_READ, *(f"{task}_labels" for task in tasks)}
            raise InputError(f'unknown input "{key}"', where="CocaModel", hint=suggest(key, known))
        if task not in tasks and bool((value != -100).any()):
            raise InputError(f'no head for task "{task}"', where=f"CocaModel.{key}", hint=suggest(task, tasks))


def check_images(config: CocaConfig, pixels: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return pictures as ``[B, I, C, H, W]`` and the mask ``[B, I]``, or None if all are present.

    Raises:
        ShapeError: Wrong number of dimensions, slots, channels or pixels, or a row without its first picture.
    """
    pixels = pixels[:, None] if pixels.ndim == 4 else pixels
    size = (config.num_channels, config.image_size, config.image_size)
    if pixels.ndim != 5 or tuple(pixels.shape[2:]) != size or not 1 <= pixels.shape[1] <= config.max_images:
        expected = f"(B, I, {size[0]}, {size[1]}, {size[2]}) with I ≤ {config.max_images} (max_images)"
        raise _wrong_shape("pixel_values", pixels, expected)
    if mask is None:
        return pixels, None
    if mask.shape != pixels.shape[:2]:
        raise _wrong_shape("image_mask", mask, f"{tuple(pixels.shape[:2])} like pixel_values")
    mask = mask.bool()
    if bool(mask.all()):
        return pixels, None
    if not bool(mask[:, 0].all()):
        raise ShapeError("a row has no picture in its first slot", where="image_mask")
    return pixels, mask


def check_text(input_ids: Tensor, attention_mask: Tensor | None, memory: Tensor | None, past: int = 0) -> None:
    """Refuse tokens that are not ``[B, T]`` or do not fit the mask or the rows of pictures (``ShapeError``)."""
    if input_ids.ndim != 2:
        raise _wrong_shape("input_ids", input_ids, "(B, T)")
    B, T = input_ids.shape
    if attention_mask is not None and attention_mask.shape != (B, past + T):
        expected = f"{(B, past + T)}, like input_ids" + (f" with {past} tokens in the cache" if past else "")
        raise _wrong_shape("attention_mask", attention_mask, expected)
    if memory is not None and len(memory) != B:
        raise _wrong_shape("input_ids", input_ids, f"{len(memory)} rows, one for each row of pictures")


def check_targets(name: str, labels: Tensor, logits: Tensor | None) -> None:
    """Refuse labels whose shape is not that of the logits without the last axis, or that have no logits."""
    if logits is None:
        raise ShapeError("labels need pictures and text", where=name, expected="pixel_values and input_ids")
    if labels.shape != logits.shape[:-1]:
        raise _wrong_shape(name, labels, f"{tuple(logits.shape[:-1])}")


def _wrong_shape(where: str, tensor: Tensor, expected: str) -> ShapeError:
    return ShapeError("wrong shape", where=where, expected=expected, got=tuple(tensor.shape))
