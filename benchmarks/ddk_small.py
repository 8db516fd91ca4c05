"""DDK against fixed mixtures, from a small Llama of bytes to a smaller one, at equal steps and batches.

Four domains of unequal size and difficulty: descriptions of programs (400 kB) and of words (200 kB) out of the packaged
texts, sums of three-digit numbers (80 kB) and letters of a random chain (40 kB), both made by a fixed seed. The teacher
(4 layers, width 128) learns equal shares of them first, from 400 kB of each (or all there is), and is kept in --work:
of the 40 kB that students see it would only learn the letters by heart. Students (2 layers, width 64) learn with
the loss of DDK from: domains by size, domains in equal shares, DDK, and DDK without its floor (alpha = 1). An interval
is a twentieth of the run, so the first twentieth of all but the first comes by size, too.

    python benchmarks/ddk_small.py
    python benchmarks/ddk_small.py --summary

Appends to ``benchmarks/results/ddk_small_runs.csv`` a row per mixture and seed, passing over those that are there: the
ratio of perplexities of student and teacher on test windows, by domain, worst and mean. ``--summary`` replaces
``ddk_small.csv``: means, intervals and paired differences to both fixed mixtures.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path

import torch
from _record import RESULTS, append_rows, origin, read_rows, summary_of, write_rows
from _small_texts import Windows, arguments, collate, llama, nll, teacher
from _summary import summarise

from potstill.data.selection import DDKSelection
from potstill.data.texts import PACK, TextDataset, read_pack
from potstill.objectives import DDKObjective
from potstill.train import DistillationTrainer

WINDOW = 64
DOMAINS = {"programs": 400_000, "words": 200_000, "sums": 80_000, "letters": 40_000}  # bytes to train on
HELD_OUT = 8_192  # bytes of each domain, for the selection and again for the test
INTERVALS = 20
# Mixture -> alpha of the selection; None = all windows alike, so domains by their size.
MIXTURES = {"by-size": None, "equal": 0.0, "ddk": 0.5, "ddk-no-floor": 1.0}
SHARED = ("steps", "batch_size", "teacher_steps", "scale")
MEASURES = ("worst_ratio", "mean_ratio", *(f"ratio_{name}" for name in DOMAINS))


def written(domain: str, size: int) -> str:
    """Return ``size`` bytes of a domain, always the same; of the packaged texts no more than there are."""
    if domain in ("programs", "words"):
        pack, split = read_pack(PACK), "train"
        names = ["words"] if domain == "words" else ["numerics", "learning", "algebra"]
        return "\n".join(row["text"] for row in TextDataset(split, None, 0, domains=names, pack=pack).rows)[:size]
    draws, lines, length = torch.Generator().manual_seed(len(domain)), [], 0
    if domain == "sums":
        while length < size:
            a, b = torch.randint(100, 1000, (2,), generator=draws).tolist()
            lines.append(f"{a}+{b}={a + b}")
            length += len(lines[-1]) + 1
        return "\n".join(lines)
    chain = torch.rand(64, 4, generator=draws).pow(4)  # the next letter by the last three
    state, letters = 0, []
    for _ in range(size):
        letter = int(torch.multinomial(chain[state], 1, generator=draws))
        letters.append("ACGT"[letter])
        state = (4 * state + letter) % 64
    return "".join(letters)


def data(scale: float) -> list[Windows]:
    """Return windows to train on, held-out ones, test ones, and the teacher's, cut from each domain."""
    held, most = max(2 * WINDOW, int(HELD_OUT * scale)), int(max(DOMAINS.values()) * scale)
    parts: list[list[str]] = [[], [], [], []]
    for name, size in DOMAINS.items():
        text, end = written(name, 2 * held + most), 2 * held + int(size * scale)
        if len(text) < end:
            raise SystemExit(f"the packaged texts have no {end} bytes of {name}: choose a smaller --scale")
        for part, bounds in zip(parts, ((2 * held, end), (0, held), (held, 2 * held), (2 * held, None))):
            part.append(text[slice(*bounds)])
    return [Windows(part, WINDOW, 0) for part in parts]


def even(windows: Windows) -> Windows:
    """Return the windows with those of small domains repeated."""
    most = max(windows.domains.count(d) for d in range(len(DOMAINS)))
    whole = Windows([], WINDOW, 0)
    for d in range(len(DOMAINS)):
        rows = [row for row, domain in zip(windows.rows, windows.domains) if domain == d]
        whole.rows += [rows[i % len(rows)] for i in range(most)]
        whole.domains += [d] * most
    return whole


def trained(mixture: str, seed: int, model, train: Windows, held: Windows, folder: str, options: argparse.Namespace):
    alpha = MIXTURES[mixture]
    selection = None
    if alpha is not None:
        selection = DDKSelection(
            interval=max(1, options.steps // INTERVALS), alpha=alpha, samples=64, domains=list(DOMAINS), seed=seed
        )
    trainer = DistillationTrainer(
        llama(2, 64, seed, WINDOW),
        [DDKObjective("text", "logits", "labels")],
        teacher=model,
        args=arguments(folder, options.steps, options.batch_size, seed),
        train_dataset=train,
        heldout_dataset=held,
        data_collator=collate,
        selection=selection,
    )
    trainer.train()
    return trainer.model.student


def ratios(student, model, test: Windows) -> list[float]:
    """Return the ratio of perplexities on every domain."""
    rows = [[i for i, d in enumerate(test.domains) if d == n] for n in range(len(DOMAINS))]
    return [math.exp(nll(student, test, row) - nll(model, test, row)) for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--teacher-steps", type=int, default=4000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--scale", type=float, default=1.0, help="size of all domains")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--mixtures", nargs="+", choices=MIXTURES, default=list(MIXTURES))
    parser.add_argument("--work", type=Path, default=Path("runs/ddk_small"), help="where the teacher is kept")
    parser.add_argument("--summary", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS / "ddk_small_runs.csv")
    options = parser.parse_args()
    done = read_rows(options.out)
    if options.summary:
        rivals = ["by-size", "equal"]
        rows = summarise(done, shared=SHARED, systems=list(MIXTURES), measures=MEASURES, against=rivals)
        write_rows(summary_of(options.out), rows)
        return
    where = origin()
    train, held, test, seen = data(options.scale)
    model = teacher(
        options.work / f"teacher-{options.teacher_steps}-{options.scale:g}.pt", even(seen), layers=4, width=128,
        window=WINDOW, steps=options.teacher_steps, batch_size=options.batch_size,
    )  # fmt: skip
    setting = {k: getattr(options, k) for k in SHARED}
    for seed in options.seeds:
        for mixture in options.mixtures:
            key = {**setting, "system": mixture, "seed": seed}
            if any(all(row[k] == str(v) for k, v in key.items()) for row in done):
                continue
            with tempfile.TemporaryDirectory() as folder:
                found = ratios(trained(mixture, seed, model, train, held, folder, options), model, test)
            row = {
                **key,
                "worst_ratio": f"{max(found):.4f}",
                "mean_ratio": f"{sum(found) / len(found):.4f}",
                **{f"ratio_{name}": f"{ratio:.4f}" for name, ratio in zip(DOMAINS, found)},
            }
            append_rows(options.out, [{**row, **where}])
            print(" ".join(f"{k} {v}" for k, v in row.items()), flush=True)


if __name__ == "__main__":
    main()
