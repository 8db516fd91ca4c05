"""Does a student with a vocabulary of its own learn from a teacher that reads other tokens?

Students of a small BPE learn the texts at equal steps from: the labels alone; ULD, which compares sorted probabilities
position by position (Boizard et al., arXiv 2402.12030); ALM; and ULD or ALM beside the labels, weighed by GradMag. Told
are bits per byte of held-out texts and the KL of "this chunk, or another" to the teacher. From the repository root::

    OMP_NUM_THREADS=1 python benchmarks/alm_small.py --seeds 0-2
    python benchmarks/alm_small.py --teacher smollm2-135m-instruct --teacher-dtype bf16 --teacher-chat \\
        --teacher-max-tokens 160 --batch-size 8 --steps 300 --samples 100 --vocabulary bytes --systems labels,labels+alm
    python benchmarks/alm_small.py --summary

SmolLM2 is there after "potstill fetch smollm2-135m-instruct". Without ``--teacher`` a teacher of 4 layers is trained
first, by the recipe ``teach-texts``, and kept in ``--folder``. A row per run goes to
``benchmarks/results/alm_small_runs.csv``, and runs that are there are skipped; means, intervals and paired differences
to ``alm_small.csv``.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from _record import RESULTS, append_rows, origin, read_rows, summary_of, write_rows
from _summary import summarise

SYSTEMS = ("labels", "uld", "alm", "labels+uld", "labels+alm")
MEASURES = ("bits_per_byte", "chunk_kl", "chunk_gap")
SHARED = ("domains", "teacher", "teacher_bits_per_byte", "vocabulary", "steps", "batch_size", "learning_rate")
TEXT = {"loss": "cross_entropy", "name": "text", "on": "logits", "labels": "labels", "shift": True}


def uld_sum(student: Any, teacher: Any) -> Any:
    """Return the distance of sorted probabilities, position by position as far as both go, summed.

    Args:
        student: Logits of the student at the tokens it is to learn, ``[N, V_s]``.
        teacher: Those of the teacher, ``[M, V_t]``; the smaller vocabulary is filled up with zeros.
    """
    import torch.nn.functional as F

    n, V = min(len(student), len(teacher)), max(student.shape[-1], teacher.shape[-1])
    p, q = (
        F.pad(x[:n].float().softmax(-1).sort(-1, descending=True).values, (0, V - x.shape[-1]))
        for x in (teacher.detach(), student)
    )
    return (p - q).abs().sum()


def register_uld() -> None:
    """Make ``loss: uld`` known to recipes of this process."""
    import torch

    from potstill.objectives import OBJECTIVES, Objective

    @OBJECTIVES.register("uld")
    class ULDObjective(Objective):
        """ULD over the tokens to be learnt, which it pairs by number."""

        crosses_tokenizers = True
        student_outputs = teacher_outputs = ("logits",)

        def __init__(self, name: str = "uld", *, weight: float = 1.0):
            super().__init__(name, weight=weight)

        def count(self, batch):
            lengths = [(batch[key][:, 1:] != -100).sum(1) for key in ("labels", "teacher_labels")]
            return torch.minimum(*lengths).sum(dtype=torch.float64)

        def total(self, seen, part):
            rows = []
            sides = ((seen.student, "labels"), (seen.teacher, "teacher_labels"))
            for signal, key in sides:
                chosen = seen.batch[key][:, 1:] != -100
                rows.append([x[m] for x, m in zip(signal.outputs["logits"][:, :-1], chosen)])
            return sum(uld_sum(s, t) for s, t in zip(*rows))


def teacher_of(options: argparse.Namespace) -> str:
    """Return the teacher to use, trained if none is named and none is kept."""
    if options.teacher is not None:
        return options.teacher
    from potstill import distill

    kept = options.folder / f"teacher-{options.teacher_steps}"
    if not (kept / "student" / "config.json").is_file():
        shutil.rmtree(kept, ignore_errors=True)
        overrides = [f"train.steps={options.teacher_steps}", "evaluate.samples=64", "evaluate.shown=0"]
        distill("teach-texts", kept, overrides=overrides)
    return str(kept / "student")


def recipe_of(system: str, seed: int, teacher: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the recipe of one run."""
    terms = {"labels": TEXT, "uld": {"loss": "uld"}, "alm": {"loss": "alm"}}
    balance = {"weight": "gradmag"} if "+" in system else {}
    fields = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4}
    fields |= {"num_key_value_heads": 2, "max_position_embeddings": 320, "tie_word_embeddings": True}
    return {
        "version": 1,
        "name": f"alm-small-{system}",
        "seed": seed,
        "teacher": {"model": teacher, "dtype": options.teacher_dtype},
        "student": {
            "builder": "new",
            "family": "llama",
            "architecture": "LlamaForCausalLM",
            "fields": {**fields, "initializer_range": 0.06},
        },
        "data": {
            "source": "texts",
            "tokenizer": options.vocabulary,
            "teacher_tokenizer": "teacher",
            "max_tokens": 320 if options.vocabulary == "bytes" else 224,
            "teacher_max_tokens": options.teacher_max_tokens,
            "teacher_chat": options.teacher_chat,
            "written": 0,
            "domains": options.domains and options.domains.split(","),
        },
        "objectives": [terms[name] | balance for name in system.split("+")],
        "train": {
            "steps": options.steps,
            "batch_size": options.batch_size,
            "learning_rate": options.learning_rate,
            "weight_decay": 0.05,
            "schedule": "cosine",
            "warmup_steps": min(50, options.steps // 5),
            "checkpoint_every": options.steps,
        },
        "evaluate": {"split": "test", "samples": options.samples, "batch_size": 16, "shown": 0, "attention": False},
    }


def run(options: argparse.Namespace) -> None:
    from potstill import distill

    register_uld()
    teacher, where = teacher_of(options), origin()
    name = options.teacher or f"teach-texts, {options.teacher_steps} steps"
    budget = {
        "domains": options.domains or "all",
        "teacher": name,
        "vocabulary": options.vocabulary,
        "steps": options.steps,
    }
    budget |= {"batch_size": options.batch_size, "learning_rate": options.learning_rate}
    first, _, last = options.seeds.partition("-")
    for seed in range(int(first), int(last or first) + 1):
        for system in options.systems.split(","):
            own = {k: str(v) for k, v in {**budget, "system": system, "seed": seed}.items()}
            if any(own.items() <= row.items() for row in read_rows(options.out)):
                continue
            folder = options.folder / "run"
            shutil.rmtree(folder, ignore_errors=True)
            done = distill(recipe_of(system, seed, teacher, options), folder)
            found = done.metrics["models"]["student"]["fidelity"]["main"]
            row = {**budget, "teacher_bits_per_byte": f"{found['teacher_bits_per_byte']:.4f}"}
            row |= {"system": system, "seed": seed} | {m: f"{found[m]:.5f}" for m in MEASURES}
            append_rows(options.out, [row | where])
            print(f"seed {seed} {system:<11}", *(f"{m} {row[m]}" for m in MEASURES), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", help="packaged name or folder of a model with another tokenizer")
    parser.add_argument("--teacher-dtype", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--teacher-chat", action="store_true", help="the teacher's prompts in its chat template")
    parser.add_argument("--teacher-max-tokens", type=int, default=320)
    parser.add_argument("--teacher-steps", type=int, default=1500)
    parser.add_argument("--vocabulary", default="bpe-512", help="of the student")
    parser.add_argument("--domains", help="of the texts; all if left out")
    parser.add_argument("--systems", default=",".join(SYSTEMS))
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--seeds", default="0-2")
    parser.add_argument("--folder", type=Path, default=Path("runs/alm_small"))
    parser.add_argument("--out", type=Path, default=RESULTS / "alm_small_runs.csv")
    parser.add_argument("--summary", action="store_true")
    options = parser.parse_args()
    if not options.summary:
        run(options)
    rows = summarise(
        read_rows(options.out), shared=SHARED, systems=SYSTEMS, measures=MEASURES, against=("labels", "labels+uld")
    )
    for row in rows:
        print(*(f"{k} {row[k]}" for k in ("system", "measure", "seeds", "mean", "ci95", "minus_labels")))
    write_rows(summary_of(options.out), rows)


if __name__ == "__main__":
    main()
