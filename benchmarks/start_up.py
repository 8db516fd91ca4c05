"""How long ``import potstill`` and ``potstill --help`` take. Goals: 0.15 s without torch, and 0.6 s.

Each in a process of its own, in turn with a bare ``python -c pass``: the import is timed inside, ``--help`` from start
to end of the process. Processor seconds stand beside wall-clock ones, as the machine may be shared.

    python benchmarks/start_up.py

Appends to ``benchmarks/results/start_up.csv``.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from _record import RESULTS, append_rows, origin

IMPORT = (
    "import sys, time; w, p = time.perf_counter(), time.process_time(); import potstill; "
    "print(time.perf_counter() - w, time.process_time() - p, 'torch' in sys.modules)"
)
GOALS = {"import potstill": 0.15, "potstill --help": 0.6}


def whole(arguments: list[str]) -> tuple[float, float, str]:
    """Run a command of this Python; return its wall-clock seconds, processor seconds and output."""
    before, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    output = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True).stdout
    wall, after = time.perf_counter() - wall, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, output


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=21)
    parser.add_argument("--out", type=Path, default=RESULTS / "start_up.csv")
    options = parser.parse_args()
    seconds: dict[str, list[tuple[float, float]]] = {"import potstill": [], "potstill --help": [], "python -c pass": []}
    with_torch = False
    for turn in range(options.repetitions + 1):
        wall, processor, has_torch = whole(["-c", IMPORT])[2].split()
        with_torch |= has_torch == "True"
        help_wall, help_processor, text = whole(["-m", "potstill", "--help"])
        if "distill" not in text:
            raise SystemExit(f"that is not the help text: {text[:200]}")
        if turn:  # the first fills the disk cache and writes the byte code
            seconds["import potstill"].append((float(wall), float(processor)))
            seconds["potstill --help"].append((help_wall, help_processor))
            seconds["python -c pass"].append(whole(["-c", "pass"])[:2])
    where = origin()
    for what, pairs in seconds.items():
        wall, processor = zip(*pairs)
        row = {
            "what": what,
            "goal": GOALS.get(what, ""),
            "wall_seconds": round(statistics.median(wall), 3),
            "wall_best": round(min(wall), 3),
            "cpu_seconds": round(statistics.median(processor), 3),
            "imports_torch": {True: "yes", False: "no"}[with_torch] if what == "import potstill" else "",
            "repetitions": len(pairs),
        }
        append_rows(options.out, [row | where])
        print(" ".join(f"{k} {v}" for k, v in row.items()))


if __name__ == "__main__":
    main()
