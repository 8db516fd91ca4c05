"""What a model costs: parameters, bytes, operations, time, memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from potstill.errors import InputError
from potstill.evaluate.batches import device_of, measuring, to_device
from potstill.taps.inputs import model_inputs

ENOUGH = 2.0
"""Seconds: a pass that takes longer needs no warming up, and passes that together do need no other."""


def cost(
    model: nn.Module, batch: Mapping[str, Any], repeats: int = 10, *, inputs: Iterable[str] | None = None
) -> dict[str, Any]:
    """Measure one forward pass over a batch.

    Args:
        model: The model, on the device to measure.
        batch: What the collator made. Time and operations depend on its size, text length and number of pictures:
            compare models on the same batch only.
        repeats: Most timed passes, after two that are not timed. Fewer, and at least one, once two seconds are spent.
        inputs: Batch keys the model takes; None = those its ``forward`` names.

    Returns:
        ``parameters``; ``bytes`` of the weights as they would be saved, in their own dtype; ``flops_per_sample``
        (matrix products, convolutions and attention; a multiply-add counts as two; attention counts in full, masks
        save nothing); ``ms_per_sample`` (median pass divided by rows); ``peak_memory_bytes`` of the timed passes with
        the weights (None without CUDA).
    """
    if repeats < 1:
        raise InputError("does not fit", where="repeats", expected="at least 1", got=repeats)
    device = device_of(model)
    given = model_inputs(model, inputs)(to_device(batch, device))
    rows = _rows(given)
    is_cuda = device.type == "cuda"
    with measuring(model):

        def timed() -> float:
            start = time.perf_counter()
            model(**given)
            if is_cuda:
                torch.cuda.synchronize(device)
            return time.perf_counter() - start

        # The fused CPU kernel of attention is unknown to torch's counter (2.13); the plain one is counted.
        with _without_gradients(model), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            first = timed()
        if first < ENOUGH:
            timed()
            timed()
        if is_cuda:
            torch.cuda.reset_peak_memory_stats(device)
        seconds: list[float] = []
        while not seconds or (len(seconds) < repeats and sum(seconds) < ENOUGH):
            seconds.append(timed())
    parameters, num_bytes = weight_size(model)
    return {
        "parameters": parameters,
        "bytes": num_bytes,
        "flops_per_sample": counter.get_total_flops() // rows,
        "ms_per_sample": statistics.median(seconds) * 1000 / rows,
        "peak_memory_bytes": torch.cuda.max_memory_allocated(device) if is_cuda else None,
    }


def weight_size(model: nn.Module) -> tuple[int, int]:
    """Return the number of parameters and the bytes of parameters and saved buffers; tied weights count once."""
    parameters = sum(p.numel() for p in model.parameters())
    saved = {}
    for tensor in model.state_dict(keep_vars=True).values():
        if isinstance(tensor, torch.Tensor):
            # Tied weights are one storage seen twice; a whole-tensor view has the same address and length.
            saved[(tensor.device, tensor.data_ptr(), tensor.numel()) if tensor.numel() else id(tensor)] = tensor
    return parameters, sum(t.numel() * t.element_size() for t in saved.values())


@contextmanager
def _without_gradients(model: nn.Module) -> Iterator[None]:
    """Let no parameter ask for a gradient meanwhile.

    The counter of torch 2.13 fails in inference mode on a module whose input is a parameter, such as learned queries.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _rows(inputs: Mapping[str, Any]) -> int:
    sizes = {len(v) for v in inputs.values() if isinstance(v, torch.Tensor) and v.ndim}
    if len(sizes) != 1:
        raise InputError(
            "cannot tell the number of rows", where="batch", expected="tensors of one length", got=sorted(sizes)
        )
    return sizes.pop()
