"""How far every loss in half precision and float32 lies from float64 on the same rounded inputs.

The cases and regimes are those of the tests (``tests/losses/loss_cases.py``); the tests hold the bounds, this script
writes down how much of them is used: the worst of ``--seeds`` draws.

    OMP_NUM_THREADS=1 python benchmarks/loss_numerics.py

Replaces ``benchmarks/results/loss_numerics.csv``. Takes seconds.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from _record import RESULTS, origin, write_rows

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "losses"))
from loss_cases import CASES, REGIMES, Case, errors

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def plain_kl(student: torch.Tensor, teacher: torch.Tensor, *, mask: None = None) -> torch.Tensor:
    """What the divergences of the package do not do: sum terms of both signs."""
    log_p, log_q = (x.to(torch.promote_types(x.dtype, torch.float32)).log_softmax(-1) for x in (teacher, student))
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=RESULTS / "loss_numerics.csv")
    options = parser.parse_args()
    torch.set_num_threads(1)
    where, rows = origin(), []
    for case in [*CASES, Case("plain sum of p log(p/q)", plain_kl)]:
        for temperature in ("", 0.05) if case.compares_logits else ("",):
            more = {"temperature": temperature} if temperature else {}
            for regime, draw in REGIMES.items():
                for dtype in DTYPES:
                    found = [
                        errors(case, *(x.to(dtype) for x in draw(case, 6, seed)), **more)
                        for seed in range(options.seeds)
                    ]
                    worst = {
                        "value_error": max(e.value for e in found),
                        "value_relative": max(
                            (e.value / e.exact_value for e in found if e.exact_value > 1e-12), default=0.0
                        ),
                        "gradient_error": max(e.gradient for e in found),
                        # Below the floor of the bound no digit is promised: fully saturated rows, say.
                        "gradient_relative": max(
                            (e.gradient / e.exact_gradient for e in found if e.exact_gradient > 1e-4), default=0.0
                        ),
                    }
                    rows.append(
                        {
                            "loss": case.name,
                            "temperature": temperature,
                            "inputs": regime,
                            "dtype": str(dtype).removeprefix("torch."),
                            "seeds": options.seeds,
                            **{k: f"{v:.1e}" for k, v in worst.items()},
                            **where,
                        }
                    )
    write_rows(options.out, rows)
    print(f"{len(rows)} rows in {options.out}")


if __name__ == "__main__":
    main()
