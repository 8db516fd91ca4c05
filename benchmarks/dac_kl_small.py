"""DAC-KL, spans and SCRG against plain KL, from a small Llama of bytes to a smaller one, at equal steps.

The teacher (4 layers, width 128) learns the packaged texts first and is kept in --work. Students (1 layer, width 64)
learn from windows of 96 bytes under cross-entropy plus one of: forward KL; KL on the upper half of the classes; KL on a
learned band; that with spans; and the first and last of these with a quarter of the rows written by the student, as
they are or with the worst byte replaced. The slower methods write as they train: hours on two cores.

    python benchmarks/dac_kl_small.py
    python benchmarks/dac_kl_small.py --summary

Appends to ``benchmarks/results/dac_kl_small_runs.csv`` a row per method and seed, passing over those that are there:
cross-entropy on held-out windows, and the teacher's cross-entropy on what the student writes behind held-out prompts,
both in nats a byte; and the probability the student gives to bytes outside the smallest set that has 95 % of the
teacher's, which a band leaves alone. ``--summary`` replaces ``dac_kl_small.csv``: means, intervals and paired
differences to KL.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from _record import RESULTS, append_rows, origin, read_rows, summary_of, write_rows
from _small_texts import END, IGNORED, PAD, Windows, arguments, batches, collate, llama, nll, teacher
from _summary import summarise

from potstill.data.generation import CorrectingSampler, OnPolicySampler, pad_left, write_tokens
from potstill.data.spans import phrase_spans
from potstill.data.texts import PACK, TextDataset, read_pack
from potstill.losses import kd_kl
from potstill.objectives import DacKLObjective, LabelObjective, OutputObjective, SpanCorrelationObjective, Where
from potstill.train import DistillationTrainer

WINDOW, PROMPT = 96, 16
TOKENS = {"on": "logits", "labels": "labels", "shift": True}
SHARED = ("steps", "batch_size", "teacher_steps", "held_out")


def kl():
    return [OutputObjective("kl", kd_kl, "logits", where=Where(labels="labels"), shift=True)]


def band(**levels):
    return [DacKLObjective("band", **TOKENS, **levels)]


def spans():
    return [SpanCorrelationObjective("spans", **TOKENS)]


def rollouts(corrections: int, seed: int) -> OnPolicySampler:
    options = {"per": "row", "eos_token_id": END, "pad_token_id": PAD, "seed": seed, "remade": {"span_ids": marked}}
    if corrections:
        return CorrectingSampler(corrections, 0.25, WINDOW - PROMPT, **options)
    return OnPolicySampler(0.25, WINDOW - PROMPT, **options)


# Method -> its objectives beside cross-entropy, and how often a rollout is corrected (None = there are no rollouts).
METHODS = {
    "kl": (kl, None),
    "dac-hard": (lambda: band(lower=0.5, upper=1.0), None),
    "dac-learned": (band, None),
    "dac-learned+span": (lambda: [*band(), *spans()], None),
    "kl+rollouts": (kl, 0),
    "kl+scrg": (kl, 1),
    "dac-learned+span+scrg": (lambda: [*band(), *spans()], 1),
}


def marked(batch) -> torch.Tensor:
    """Return the phrases of a batch of bytes; bytes beyond ASCII stand for letters."""
    found = torch.full(batch["input_ids"].shape, -1)
    for row, ids, labels in zip(found, batch["input_ids"], batch["labels"]):
        kept = (labels != IGNORED).nonzero()[:, 0]
        text = "".join(chr(i) if i < 128 else "ä" if i < 256 else "\n" for i in ids[kept].tolist())
        for number, (start, end) in enumerate(phrase_spans(text)):
            row[kept[start:end]] = number
    return found


def with_spans(samples):
    batch = collate(samples)
    return {**batch, "span_ids": marked(batch)}


def trained(method: str, seed: int, model, data: Windows, folder: str, options: argparse.Namespace):
    objectives, corrections = METHODS[method]
    uses_spans = any(isinstance(o, SpanCorrelationObjective) for o in objectives())
    text = LabelObjective("text", "logits", "labels" if corrections is None else "data_labels", shift=True)
    trainer = DistillationTrainer(
        llama(1, 64, seed, WINDOW),
        [text, *objectives()],
        teacher=model,
        args=arguments(folder, options.steps, options.batch_size, seed),
        train_dataset=data,
        data_collator=with_spans if uses_spans or corrections is not None else collate,
        rollouts=None if corrections is None else rollouts(corrections, seed),
    )
    trainer.train()
    parts = trainer.model.parts
    notes = parts["band"].means.read() if "band" in parts else {}
    return trainer.model.student, notes


@torch.no_grad()
def rollout_nll(student, model, data: Windows) -> float:
    """Return the teacher's mean cross-entropy on what the student writes behind the prompts, drawn at temperature 1."""
    draws, total, count = torch.Generator().manual_seed(7), 0.0, 0
    for batch in batches(data, 64):
        ids, mask = pad_left(list(batch["input_ids"][:, :PROMPT]), PAD)
        written = write_tokens(
            student, ids, mask, max_new_tokens=WINDOW - PROMPT, eos_token_id=END, pad_token_id=PAD, generator=draws
        )
        logits = model(torch.cat([ids, written.tokens], 1)).logits[:, PROMPT - 1 : -1]
        losses = F.cross_entropy(logits.transpose(1, 2), written.tokens, reduction="none")
        total += losses[written.mask].sum().item()
        count += int(written.mask.sum())
    return total / count


@torch.no_grad()
def outside(student, model, data: Windows) -> float:
    """Return the student's mean probability outside the fewest bytes that have 95 % of the teacher's."""
    total, count = 0.0, 0
    for batch in batches(data, 64):
        ids, counted = batch["input_ids"], batch["labels"][:, 1:] != IGNORED
        of_teacher, of_student = (m(ids).logits[:, :-1][counted].softmax(-1) for m in (model, student))
        most, order = of_teacher.sort(-1, descending=True)
        left_out = most.cumsum(-1) - most >= 0.95
        total += of_student.gather(-1, order)[left_out].sum().item()
        count += len(most)
    return total / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--teacher-steps", type=int, default=3000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--held-out", type=int, default=512, help="windows measured")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--work", type=Path, default=Path("runs/dac_kl_small"), help="where the teacher is kept")
    parser.add_argument("--summary", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS / "dac_kl_small_runs.csv")
    options = parser.parse_args()
    done = read_rows(options.out)
    if options.summary:
        measures = ("nll", "rollout_nll", "outside", "coverage", "kept")
        rows = summarise(done, shared=SHARED, systems=list(METHODS), measures=measures, against=["kl"])
        write_rows(summary_of(options.out), rows)
        return
    where, pack = origin(), read_pack(PACK)
    train, held = (
        Windows(["\n".join(row["text"] for row in TextDataset(split, None, 0, pack=pack).rows)], WINDOW, PROMPT)
        for split in ("train", "validation")
    )
    held.rows, held.domains = held.rows[: options.held_out], held.domains[: options.held_out]
    model = teacher(
        options.work / f"teacher-{options.teacher_steps}.pt", train, layers=4, width=128, window=WINDOW,
        steps=options.teacher_steps, batch_size=options.batch_size,
    )  # fmt: skip
    setting = {k: getattr(options, k) for k in SHARED}
    for seed in options.seeds:
        for method in options.methods:
            key = {**setting, "system": method, "seed": seed}
            if any(all(row[k] == str(v) for k, v in key.items()) for row in done):
                continue
            with tempfile.TemporaryDirectory() as folder:
                student, notes = trained(method, seed, model, train, folder, options)
            row = {
                **key,
                "teacher_nll": f"{nll(model, held):.4f}",
                "nll": f"{nll(student, held):.4f}",
                "rollout_nll": f"{rollout_nll(student.eval(), model, held):.4f}",
                "outside": f"{outside(student, model, held):.4f}",
                **{name: f"{notes[name]:.4f}" if notes else "" for name in ("coverage", "kept")},
            }
            append_rows(options.out, [{**row, **where}])
            print(" ".join(f"{k} {v}" for k, v in row.items()), flush=True)


if __name__ == "__main__":
    main()
