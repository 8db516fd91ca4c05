"""How alike the heads of the shipped teachers are, in the layers that the AMAD recipes read.

    OMP_NUM_THREADS=1 python benchmarks/head_similarity.py

Replaces ``benchmarks/results/head_similarity.csv``: a row per recipe and tapped map, on 64 training samples: the mean
cosine of two heads' maps, the mean KL of a head to the mean of heads in nats per query, the mean entropy of a head.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from _record import RESULTS, origin, write_rows

from potstill.recipe import load_recipe
from potstill.run.prepare import prepare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--recipes", nargs="+", default=["amad-blip-vqa", "amad-blip-caption", "amad-vl-t5", "amad-scenes"]
    )
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--out", type=Path, default=RESULTS / "head_similarity.csv")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows, where = [], origin()
    for name in options.recipes:
        with tempfile.TemporaryDirectory() as folder:
            built = prepare(load_recipe(name, ["train.threads=1"]), Path(folder))
            trainer = built.trainer
            signal = trainer.teacher.signal(trainer._prepare_inputs(trainer._collate(range(options.samples))))
            built.close()
        for tap, maps in signal.tapped.items():
            if tap.endswith("attention"):
                row = {"recipe": name, "tap": tap, "heads": maps.shape[1], **measures(maps.float())}
                rows.append({**row, **where})
                print(" ".join(f"{k} {v}" for k, v in row.items()))
    write_rows(options.out, rows)


def measures(maps: torch.Tensor) -> dict[str, float]:
    """Return what the file holds about maps ``(B, H, Q, K)``."""
    heads = maps.shape[1]
    flat = F.normalize(maps.flatten(2), dim=-1)
    cosines = (flat @ flat.transpose(1, 2)).sum((1, 2)).sub(heads).div(heads * (heads - 1))
    logs, middle = maps.clamp_min(1e-9).log(), maps.mean(1, keepdim=True).clamp_min(1e-9).log()
    return {
        "cosine": round(cosines.mean().item(), 3),
        "kl_to_mean": round((maps * (logs - middle)).sum(-1).mean().item(), 3),
        "entropy": round(-(maps * logs).sum(-1).mean().item(), 3),
    }


if __name__ == "__main__":
    main()
