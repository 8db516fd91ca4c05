"""Taps on the layers that are tapped against ``output_hidden_states=True``. Goal: time and peak memory at most 1.

On a BERT and a ViT of transformers, 12 layers, with random weights; four layers are tapped, as for a student of four
layers. Two kinds of pass: ``teacher`` (no gradient) and ``student`` (with the backward pass of a loss on the captured
states, where autograd keeps every layer's states anyway: no memory can be saved). Peak memory is the largest sum of
live allocations above what was live before, from the profiler's memory events: exact, and blind to what the allocator
keeps for later.

    OMP_NUM_THREADS=1 python benchmarks/hidden_capture.py

Appends to ``benchmarks/results/hidden_capture.csv``.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from _record import RESULTS, append_rows, origin
from _timing import interleave, ratio
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformers import BertConfig, BertModel, ViTConfig, ViTModel

from potstill.taps import Taps

TAPPED = (3, 6, 9, 12)  # counted from 1, as in hidden_states
LAYERS = 12


def shape(width: int) -> dict[str, int]:
    heads = width // 64
    return {
        "hidden_size": width,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
    }


def bert(width: int, rows: int) -> tuple[nn.Module, dict[str, Tensor], str]:
    model = BertModel(BertConfig(**shape(width), vocab_size=1000), add_pooling_layer=False)
    return model, {"input_ids": torch.randint(1000, (rows, 128))}, "encoder.layer"


def vit(width: int, rows: int) -> tuple[nn.Module, dict[str, Tensor], str]:
    model = ViTModel(ViTConfig(**shape(width), image_size=160), add_pooling_layer=False)
    return model, {"pixel_values": torch.randn(rows, 3, 160, 160)}, "layers"


def passes(model: nn.Module, inputs: dict[str, Tensor], blocks: str, kind: str) -> tuple[Callable, Callable]:
    """Return the pass with taps and the pass with ``output_hidden_states``; both return the same captured states."""
    taps = Taps(model, [f"{blocks}.{n - 1}" for n in TAPPED])

    def with_taps() -> list[Tensor]:
        taps.open()
        model(**inputs)
        return list(taps.close().values())

    def with_output() -> list[Tensor]:
        states = model(**inputs, output_hidden_states=True).hidden_states
        return [states[n] for n in TAPPED]

    def finish(capture: Callable[[], list[Tensor]]) -> Callable[[], list[Tensor]]:
        def work() -> list[Tensor]:
            with torch.set_grad_enabled(kind != "teacher"):
                states = capture()
            if kind == "student":
                sum(state.square().mean() for state in states).backward()
                model.zero_grad(set_to_none=True)
                return [state.detach() for state in states]
            return states

        return work

    return finish(with_taps), finish(with_output)


def peak_bytes(work: Callable[[], object]) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    if not peak:
        raise SystemExit("the profiler of this torch reports no memory events")
    return peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=30)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--rows", type=int, default=2, help="of a batch")
    parser.add_argument("--out", type=Path, default=RESULTS / "hidden_capture.csv")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    where = origin()
    for name, make in (("BERT", bert), ("ViT", vit)):
        model, inputs, blocks = make(options.width, options.rows)
        model.eval()
        for kind in ("teacher", "student"):
            works = passes(model, inputs, blocks, kind)
            for ours, theirs in zip(works[0](), works[1]()):
                torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
            clocks = interleave(works, options.repetitions)
            peaks = [peak_bytes(work) for work in works]
            row = {
                "model": name,
                "pass": kind,
                "tapped": f"{len(TAPPED)} of {LAYERS}",
                "width": options.width,
                "rows": options.rows,
                "repetitions": options.repetitions,
                **{f"wall_{k}": v for k, v in ratio(clocks[0].wall, clocks[1].wall).items()},
                **{f"cpu_{k}": v for k, v in ratio(clocks[0].processor, clocks[1].processor).items()},
                "taps_ms": round(1e3 * statistics.median(clocks[0].processor), 2),
                "output_hidden_states_ms": round(1e3 * statistics.median(clocks[1].processor), 2),
                "memory_ratio": round(peaks[0] / peaks[1], 4),
                "taps_mib": round(peaks[0] / 2**20, 2),
                "output_hidden_states_mib": round(peaks[1] / 2**20, 2),
            }
            append_rows(options.out, [row | where])
            print(" ".join(f"{k} {v}" for k, v in row.items()), flush=True)


if __name__ == "__main__":
    main()
