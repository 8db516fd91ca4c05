"""Which half of SmolLM2's layers is nearest to the whole before any training: divergence and likelihood on texts.

The choices have 15 of 30 layers: every second one, or the first k and the last 15 - k. Measured on texts of the
validation split (the choice must not see the test split), at the tokens of the text. Says nothing about what is left of
the difference after training.

    potstill fetch smollm2-135m-instruct
    OMP_NUM_THREADS=1 python benchmarks/depth_map_smollm2.py

Replaces ``benchmarks/results/depth_map_smollm2.csv``. Takes some minutes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from _record import RESULTS, origin, write_rows

from potstill.data.texts_source import build_texts
from potstill.losses import kd_kl
from potstill.models.load import load_model
from potstill.students import build_student

MODEL = "smollm2-135m-instruct"
LAYERS, KEPT = 30, 15
CHOICES = {
    "every second, up to the last": list(range(1, LAYERS, 2)),
    "every second, from the first": list(range(0, LAYERS, 2)),
    **{f"first {k}, last {KEPT - k}": [*range(k), *range(KEPT + k, LAYERS)] for k in (4, 5, 6, 7, 8, 10)},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=24)
    parser.add_argument("--max-tokens", type=int, default=160)
    parser.add_argument("--out", type=Path, default=RESULTS / "depth_map_smollm2.csv")
    options = parser.parse_args()
    where, rows = origin(), []
    teacher = load_model(MODEL)
    source = build_texts(tokenizer=MODEL, max_tokens=options.max_tokens, chat=True)
    data = source.split("validation", options.texts)
    batch = source.collator([data[i] for i in range(len(data))])
    labels = batch["labels"][:, 1:]
    counts = labels != -100

    def answers(model: torch.nn.Module) -> torch.Tensor:
        with torch.no_grad():
            return model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1][counts]

    wanted = answers(teacher)
    choices = {"all": list(range(LAYERS)), **CHOICES}
    for name, layers in choices.items():
        student, _ = build_student("depth", teacher, {"layers": {"text_decoder": layers}})
        found = answers(student.eval())
        rows.append(
            {
                "layers": name,
                "kept": len(layers),
                "kl": round(float(kd_kl(found, wanted)), 3),
                "nll": round(float(F.cross_entropy(found, labels[counts])), 3),
                "agreement": round(float((found.argmax(-1) == wanted.argmax(-1)).float().mean()), 4),
                "texts": len(data),
                "tokens": len(wanted),
                **where,
            }
        )
        print(rows[-1], flush=True)
    write_rows(options.out, rows)


if __name__ == "__main__":
    main()
