"""One tapped attention map of eight layers against plain SDPA and against eager attention that returns all maps.

A step is a forward and a backward pass of a BERT of transformers, 8 layers, with random weights; tapped and eager, the
loss holds some rows of the map of the last layer too. Goals: at most 1.15 times the time of plain SDPA and at most 0.7
times that of eager; at 1,024 tokens at most 0.75 times its peak memory. ``teacher`` rows are forward passes without a
gradient.

    OMP_NUM_THREADS=1 python benchmarks/attention_capture.py

Appends to ``benchmarks/results/attention_capture.csv``.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from _record import RESULTS, append_rows, origin
from _timing import interleave, peak_bytes, ratio
from torch import Tensor
from transformers import BertConfig, BertModel

from potstill.taps import Taps

LAYERS = 8
TAP = f"encoder.layer.{LAYERS - 1}@attention"
ROWS = {256: 4, 1024: 1}


def build(width: int, tokens: int, implementation: str) -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=width, num_hidden_layers=LAYERS, num_attention_heads=width // 32, intermediate_size=4 * width,
        vocab_size=1000, max_position_embeddings=tokens, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        attn_implementation=implementation,
    )  # fmt: skip
    return BertModel(config, add_pooling_layer=False)


def ways(width: int, tokens: int, kind: str) -> dict[str, Callable[[], Tensor | None]]:
    """Return the three steps by name; those with a map return it."""
    batch = {"input_ids": torch.randint(1000, (ROWS[tokens], tokens))}
    plain, tapped, eager = (build(width, tokens, name) for name in ("sdpa", "sdpa", "eager"))
    taps = Taps(tapped, [TAP])

    def of_plain() -> tuple[Tensor, None]:
        return plain(**batch).last_hidden_state, None

    def of_tapped() -> tuple[Tensor, Tensor]:
        taps.open()
        states = tapped(**batch).last_hidden_state
        return states, taps.close()[TAP]

    def of_eager() -> tuple[Tensor, Tensor]:
        output = eager(**batch, output_attentions=True)
        return output.last_hidden_state, output.attentions[-1]

    def step(model: BertModel, forward: Callable) -> Callable[[], Tensor | None]:
        def work() -> Tensor | None:
            with torch.set_grad_enabled(kind == "student"):
                states, attention = forward()
                if kind == "student":
                    extra = 0.0 if attention is None else attention[:, :, ::64].sum()
                    (states.square().mean() + extra).backward()
                    model.zero_grad(set_to_none=True)
            return None if attention is None else attention.detach()

        return work

    return {"plain": step(plain, of_plain), "tapped": step(tapped, of_tapped), "eager": step(eager, of_eager)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--out", type=Path, default=RESULTS / "attention_capture.csv")
    options = parser.parse_args()
    torch.set_num_threads(1)
    where = origin()
    for tokens in ROWS:
        for kind in ("student", "teacher"):
            works = ways(options.width, tokens, kind)
            torch.testing.assert_close(works["tapped"](), works["eager"](), rtol=0, atol=1e-5)
            clocks = dict(zip(works, interleave(list(works.values()), options.repetitions)))
            peaks = {name: peak_bytes(work) for name, work in works.items()}
            row = {
                "pass": kind,
                "tokens": tokens,
                "rows": ROWS[tokens],
                "width": options.width,
                "tapped": f"1 of {LAYERS}",
                "repetitions": options.repetitions,
            }
            for other in ("plain", "eager"):
                found = ratio(clocks["tapped"].processor, clocks[other].processor)
                row |= {f"time_to_{other}_{k}": v for k, v in found.items()}
                row[f"memory_to_{other}"] = round(peaks["tapped"] / peaks[other], 4)
            for name, clock in clocks.items():
                row[f"{name}_ms"] = round(1e3 * statistics.median(clock.processor), 2)
                row[f"{name}_mib"] = round(peaks[name] / 2**20, 2)
            append_rows(options.out, [row | where])
            print(" ".join(f"{k} {v}" for k, v in row.items()), flush=True)


if __name__ == "__main__":
    main()
