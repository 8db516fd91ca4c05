"""What a divergence over a large vocabulary costs: time and extra peak memory of several ways to compute it.

A step is value and gradients (hidden states and head of the student) from hidden states and heads of student and
teacher. Every way runs in a process of its own, which sees the same numbers; values and norms of the gradients have to
agree. Extra peak memory is the high-water mark of the resident set over what it was before the first step, gradients
included. Goals at 4,096 tokens and 49,152 words, width 576: at most 0.12 times the memory of full logits and 0.8 times
the time; less of both than each peer.

    OMP_NUM_THREADS=1 python benchmarks/fused_losses.py

The peers are optional: TRL and Liger-Kernel take part if they can be imported, for which unpacked wheels on PYTHONPATH
are enough. Rows of a run share "run". Appends to ``benchmarks/results/fused_losses.csv``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _record import RESULTS, append_rows, origin
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from potstill.losses import generalized_jsd, kd_kl, reverse_kl
from potstill.losses.fused import LazyLogits, fused_loss

LOSSES = {"kd_kl": (kd_kl, 0.0), "reverse_kl": (reverse_kl, 1.0), "generalized_jsd": (generalized_jsd, 0.5)}
CHUNK = 256  # rows of a checkpointed chunk
Inputs = tuple[Tensor, Tensor, Tensor, Tensor]


def full(loss: Callable, beta: float, inputs: Inputs) -> Tensor:
    hidden, weight, hidden_t, weight_t = inputs
    with torch.no_grad():
        teacher = hidden_t @ weight_t.T
    return loss(hidden @ weight.T, teacher)


def checkpointed(loss: Callable, beta: float, inputs: Inputs) -> Tensor:
    hidden, weight, hidden_t, weight_t = inputs

    def of_chunk(h: Tensor, w: Tensor, h_t: Tensor, w_t: Tensor) -> Tensor:
        with torch.no_grad():
            teacher = h_t @ w_t.T
        return loss(h @ w.T, teacher, reduction="sum")

    pairs = zip(hidden.split(CHUNK), hidden_t.split(CHUNK))
    return sum(checkpoint(of_chunk, h, weight, h_t, weight_t, use_reentrant=False) for h, h_t in pairs) / len(hidden)


def fused(loss: Callable, beta: float, inputs: Inputs) -> Tensor:
    hidden, weight, hidden_t, weight_t = inputs
    return fused_loss(LazyLogits(hidden, weight), LazyLogits(hidden_t, weight_t), loss)


def trl(loss: Callable, beta: float, inputs: Inputs) -> Tensor:
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    hidden, weight, hidden_t, weight_t = inputs
    mask = torch.ones(1, len(hidden))
    return _chunked_divergence_loss(hidden[None], hidden_t[None], weight, weight_t, mask, beta)[0]


def liger(loss: Callable, beta: float, inputs: Inputs, compiled: bool = False) -> Tensor:
    from liger_kernel.chunked_loss.jsd_loss import LigerFusedLinearJSDFunction

    hidden, weight, hidden_t, weight_t = inputs
    labels = torch.zeros(len(hidden), dtype=torch.long)
    # Labels, biases, weights of hard and soft loss, beta, ignored label, temperature, compiled.
    options = (labels, None, None, 0.0, 1.0, beta, -100, 1.0, compiled)
    return LigerFusedLinearJSDFunction.apply(hidden, weight, hidden_t, weight_t, *options)


def liger_compiled(loss: Callable, beta: float, inputs: Inputs) -> Tensor:
    return liger(loss, beta, inputs, compiled=True)


WAYS = {w.__name__: w for w in (full, fused, checkpointed, trl, liger, liger_compiled)}


def resident(high_water: bool) -> int:
    """Return bytes of memory of this process: now, or at most since ``forget_peak``."""
    field = "VmHWM:" if high_water else "VmRSS:"
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return 1024 * int(line.split()[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def work(options: argparse.Namespace) -> dict[str, Any]:
    """Do one way's steps in this process."""
    torch.set_num_threads(options.threads)
    draws = torch.Generator().manual_seed(0)
    dtype = getattr(torch, options.dtype)
    T, V = options.tokens, options.vocabulary

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draws).to(dtype)

    inputs = (
        normal(T, options.width).requires_grad_(),
        (normal(V, options.width) / math.sqrt(options.width)).requires_grad_(),
        normal(T, options.teacher_width),
        normal(V, options.teacher_width) / math.sqrt(options.teacher_width) * 2,
    )
    loss, beta = LOSSES[options.loss]
    step = WAYS[options.way]

    def once(inputs: Inputs) -> tuple[float, list[float]]:
        inputs[0].grad = inputs[1].grad = None
        value = step(loss, beta, inputs)
        value.backward()
        return value.item(), [x.grad.float().norm().item() for x in inputs[:2]]

    # Imports and first-time buffers belong to nobody's step.
    few = tuple(x[:8].detach().requires_grad_(x.requires_grad) if i % 2 == 0 else x for i, x in enumerate(inputs))
    once(few)
    inputs[1].grad = None
    before = resident(high_water=False)
    forget_peak()
    value, norms = once(inputs)
    extra = resident(high_water=True) - before
    wall, processor = [], []
    for _ in range(options.repetitions):
        started = time.perf_counter(), time.process_time()
        once(inputs)
        wall.append(time.perf_counter() - started[0])
        processor.append(time.process_time() - started[1])
    return {"value": value, "norms": norms, "extra": extra, "wall": wall, "processor": processor}


def ask(options: argparse.Namespace, way: str) -> dict[str, Any] | None:
    """Do one way's steps in a process of its own; None if a peer is not there."""
    command = [sys.executable, __file__, "--way", way]
    for name in ("loss", "tokens", "vocabulary", "width", "teacher_width", "dtype", "threads", "repetitions"):
        command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    if done.returncode:
        if "ModuleNotFoundError" in done.stderr or (way == "liger_compiled" and "ompile" in done.stderr):
            return None
        raise SystemExit(f"{way}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--vocabulary", type=int, default=49152)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--teacher-width", type=int, default=576)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--loss", choices=LOSSES, default="kd_kl")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2, help="processes of each way, in turn")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS / "fused_losses.csv")
    options = parser.parse_args()
    if options.way:
        print(json.dumps(work(options)))
        return
    torch.set_num_threads(options.threads)
    where, run = origin(), f"{time.time():.0f}"
    seen: dict[str, list[dict[str, Any]]] = {way: [] for way in dict.fromkeys(("full", *options.ways))}
    for _ in range(options.rounds):
        for way in seen:
            found = ask(options, way)
            if found is not None:
                seen[way].append(found)
    rows = []
    of_full = summary(seen["full"])
    rough = 1e-3 if options.dtype == "float32" else 0.05
    for way, found in seen.items():
        if not found:
            print(f"{way}: not installed, or it needs a compiler")
            continue
        for key in ("value", "norms"):
            torch.testing.assert_close(
                torch.tensor(found[0][key]), torch.tensor(seen["full"][0][key]), rtol=rough, atol=0, msg=f"{way}: {key}"
            )
        own = summary(found)
        rows.append(
            {
                "run": run,
                "way": way,
                "loss": options.loss,
                "tokens": options.tokens,
                "vocabulary": options.vocabulary,
                "width": options.width,
                "teacher_width": options.teacher_width,
                "dtype": options.dtype,
                "repetitions": options.repetitions * options.rounds,
                "cpu_seconds": round(own["processor"], 3),
                "wall_seconds": round(own["wall"], 3),
                "extra_mib": round(own["extra"] / 2**20, 1),
                "cpu_to_full": round(own["processor"] / of_full["processor"], 4),
                "memory_to_full": round(own["extra"] / of_full["extra"], 4),
            }
            | where
        )
        print(" ".join(f"{k} {v}" for k, v in rows[-1].items() if k not in where), flush=True)
    append_rows(options.out, rows)


def summary(found: list[dict[str, Any]]) -> dict[str, float]:
    times = {key: statistics.median(s for one in found for s in one[key]) for key in ("processor", "wall")}
    return times | {"extra": max(one["extra"] for one in found)}


if __name__ == "__main__":
    main()
