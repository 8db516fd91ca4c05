"""Does aligning attention maps help a student with fewer heads? Key-value recall, the card's experiment on AMAD.

Ten tokens, each the sum of a key embedding (24 keys, no key twice) and a value embedding (12 values), and one token
that names a key: which value went with it? Attention has to find the token, so a map is worth knowing. The teacher has
2 layers, width 64 and 8 heads and is always right; the student 2 layers, width 24 and 2 or 3 heads (3 does not divide
8). L = L_KD + α L_map: L_KD is KL(teacher || student) on the answer, no label is seen; L_map compares the last layer's
maps; α = mean L_KD / mean L_map over the steps so far, frozen after 50. Adam 1e-3, batches of 64 new puzzles. All
systems of a seed share teacher, student at the start and puzzles, so differences are paired. From the repository root::

    OMP_NUM_THREADS=1 python benchmarks/amad_recall.py
    OMP_NUM_THREADS=1 python benchmarks/amad_recall.py --shuffled
    python benchmarks/amad_recall.py --summary

Everybody gets there in the end: compare curves. ``--shuffled`` runs pairs in float64 that differ in the order of the
teacher's heads alone: AMAD must give the same student, one-to-one another. A row per run goes to
``benchmarks/results/amad_recall_runs.csv``, the summary to ``amad_recall.csv``. Runs that are there are skipped.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _record import RESULTS, append_rows, origin, read_rows, summary_of, write_rows
from torch import Tensor, nn

from potstill.evaluate.statistics import mean_interval, paired_interval
from potstill.losses import amad_loss, head_mean, kd_kl, minilm_relation, one_to_one_heads, squeezing_heads

PAIRS, KEYS, VALUES = 10, 24, 12
BATCH, RATE, ALPHA_STEPS = 64, 1e-3, 50
TEACHER, STUDENT_WIDTH = {"width": 64, "heads": 8}, 24
MARKS = (160, 250, 400)
TEACHERS = 3
TESTS = 4096


@dataclass
class Looked:
    """What the last layer of a model did: its maps and what they are made of."""

    maps: Tensor  # (B, H, T, T)
    written: Tensor  # (B, H, T, D): values times the output projection, head by head
    qkv: tuple[Tensor, Tensor, Tensor]  # each (B, T, D), before the split into heads

    def ordered(self, heads: Tensor | None) -> Looked:
        """Return the same with the heads in another order."""
        if heads is None:
            return self
        H = self.maps.shape[1]
        qkv = tuple(x.unflatten(-1, (H, -1))[..., heads, :].flatten(-2) for x in self.qkv)
        return Looked(self.maps[:, heads], self.written[:, heads], qkv)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> tuple[Tensor, Looked]:
        qkv = self.qkv(x).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in qkv)  # (B, H, T, d)
        maps = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        written = v @ self.out.weight.T.unflatten(0, (self.heads, -1))
        return (maps @ written).sum(1) + self.out.bias, Looked(maps, written, qkv)


class Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attention = Attention(width, heads)
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> tuple[Tensor, Looked]:
        moved, looked = self.attention(self.before(x))
        x = x + moved
        return x + self.mlp(self.between(x)), looked


class Recall(nn.Module):
    """A transformer without positions: a set of pairs and a question in, logits of the value out."""

    def __init__(self, width: int, heads: int, layers: int = 2):
        super().__init__()
        self.key, self.value = nn.Embedding(KEYS, width), nn.Embedding(VALUES + 1, width)  # the last one asks
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.answer = nn.LayerNorm(width), nn.Linear(width, VALUES)

    def forward(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Looked]:
        x = self.key(keys) + self.value(values)
        for block in self.blocks:
            x, looked = block(x)
        return self.answer(self.norm(x[:, -1])), looked


def puzzles(count: int, draws: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return keys and values ``(count, 11)``, the question last, and the right answers."""
    keys = torch.rand(count, KEYS, generator=draws).argsort(1)[:, :PAIRS]
    values = torch.randint(VALUES, (count, PAIRS), generator=draws)
    asked = torch.randint(PAIRS, (count, 1), generator=draws)
    ask = torch.full((count, 1), VALUES)
    return torch.cat([keys, keys.gather(1, asked)], 1), torch.cat([values, ask], 1), values.gather(1, asked)[:, 0]


MapLoss = Callable[[Looked, Looked], Tensor]


def _amad(s: Looked, t: Looked, **options: Any) -> Tensor:
    return amad_loss(s.maps, t.maps, **options)


SYSTEMS: dict[str, MapLoss | None] = {
    "kd": None,
    "one_to_one": lambda s, t: one_to_one_heads(s.maps, t.maps),
    "head_mean": lambda s, t: head_mean(s.maps, t.maps),
    "shd": lambda s, t: squeezing_heads(s.maps, t.maps, teacher_values=t.written),
    # 8 relation heads divide both widths; MiniLMv2 has the mean over queries, keys and values.
    "minilm": lambda s, t: sum(minilm_relation(a, b, 8) for a, b in zip(s.qkv, t.qkv)) / 3,
    **{
        f"amad_{variant}_{tau:g}": partial(_amad, variant=variant, tau=tau)
        for variant in ("kl", "mse", "token_kl")
        for tau in (1.0, 0.1)
    },
}


@torch.no_grad()
def accuracy(model: Recall) -> float:
    keys, values, right = puzzles(TESTS, torch.Generator().manual_seed(99))
    return (model(keys, values)[0].argmax(-1) == right).double().mean().item()


def trained_teacher(number: int, steps: int) -> Recall:
    torch.manual_seed(number)
    model, draws = Recall(**TEACHER), torch.Generator().manual_seed(1000 + number)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    for _ in range(steps):
        keys, values, right = puzzles(BATCH, draws)
        optimizer.zero_grad()
        F.cross_entropy(model(keys, values)[0], right).backward()
        optimizer.step()
    return model.requires_grad_(False)


def distil(
    teacher: Recall, system: str, heads: int, seed: int, marks: tuple[int, ...], order: Tensor | None = None
) -> dict[str, Any]:
    """Train one student; return its accuracy at each mark, α and the map loss of the first and last step."""
    torch.manual_seed(2000 + seed)
    student = Recall(STUDENT_WIDTH, heads).to(next(teacher.parameters()).dtype)
    draws = torch.Generator().manual_seed(3000 + seed)
    optimizer = torch.optim.Adam(student.parameters(), lr=RATE)
    map_loss, sums, alpha, row = SYSTEMS[system], [0.0, 0.0], 0.0, {}
    for step in range(1, max(marks) + 1):
        keys, values, _ = puzzles(BATCH, draws)
        target, seen = teacher(keys, values)
        guess, looked = student(keys, values)
        loss = kd_kl(guess, target)
        if map_loss is not None:
            extra = map_loss(looked, seen.ordered(order))
            if step <= ALPHA_STEPS:
                sums = [sums[0] + loss.item(), sums[1] + extra.item()]
                alpha = sums[0] / sums[1]
            row.setdefault("map_loss_first", f"{extra.item():.9f}")
            row["map_loss_last"] = f"{extra.item():.6f}"
            loss = loss + alpha * extra
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step in marks:
            row[f"accuracy_{step}"] = f"{accuracy(student):.4f}"
    return {"map_loss_first": "", "map_loss_last": "", **row, "alpha": f"{alpha:.4g}"}


def run(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    where, marks = origin(), tuple(int(mark) for mark in options.marks.split(","))
    systems = options.systems.split(",")
    if set(systems) - set(SYSTEMS):
        raise SystemExit(f"--systems: there are {', '.join(SYSTEMS)}")
    teachers = [trained_teacher(number, options.teacher_steps) for number in range(TEACHERS)]
    if options.shuffled:
        systems = [s for s in systems if s in ("one_to_one", "shd") or s.startswith("amad")]
        teachers = [teacher.double() for teacher in teachers]
    scores = [accuracy(teacher) for teacher in teachers]
    print("teachers", *(f"{score:.4f}" for score in scores), flush=True)
    orders = ("given", "shuffled") if options.shuffled else ("given",)
    todo = [
        (seed, int(heads), system, order)
        for seed in range(options.seeds)
        for heads in options.heads.split(",")
        for system in systems
        for order in orders
    ]
    budget = {"steps": max(marks), "teacher_steps": options.teacher_steps}
    dtype = "float64" if options.shuffled else "float32"
    for seed, heads, system, order in todo:
        key = (system, str(heads), str(seed), order, dtype)
        if key in {tuple(r[k] for k in ("system", "heads", "seed", "order", "dtype")) for r in read_rows(options.out)}:
            continue
        started, number = time.perf_counter(), seed % TEACHERS
        moved = torch.randperm(TEACHER["heads"], generator=torch.Generator().manual_seed(4000 + seed))
        row = distil(teachers[number], system, heads, seed, marks, moved if order == "shuffled" else None)
        row = {"system": system, "heads": heads, "seed": seed, "order": order, "dtype": dtype, **row,
               "teacher": number, "teacher_accuracy": f"{scores[number]:.4f}",
               "seconds": f"{time.perf_counter() - started:.1f}"}  # fmt: skip
        append_rows(options.out, [row | budget | where])
        print(", ".join(f"{k} {v}" for k, v in row.items()), flush=True)


def summarise(runs: list[dict[str, str]]) -> list[dict[str, Any]]:
    measures = [k for k in runs[0] if k.startswith("accuracy_")]
    groups: dict[tuple[str, str, str, str], dict[str, dict[str, str]]] = defaultdict(dict)
    for r in runs:
        groups[r["heads"], r["dtype"], r["order"], r["system"]][r["seed"]] = r
    order, rows = list(SYSTEMS), []
    for key, mine in sorted(groups.items(), key=lambda item: (item[0][:3], order.index(item[0][3]))):
        for measure in measures:
            row: dict[str, Any] = dict(zip(("heads", "dtype", "order", "system"), key)) | {"measure": measure}
            values = [float(r[measure]) for r in mine.values()]
            if len(values) < 2:
                continue
            interval = mean_interval(values)
            row |= {"seeds": len(values), "mean": f"{interval.mean:.4f}", "ci95": f"{interval.half_width:.4f}"}
            for name, rival in (("kd", (*key[:3], "kd")), ("one_to_one", (*key[:3], "one_to_one")),
                                ("given_order", (*key[:2], "given", key[3]))):  # fmt: skip
                row |= _difference(name, mine, groups.get(rival, {}) if rival != key else {}, measure)
            rows.append(row | {k: next(iter(mine.values()))[k] for k in origin()})
    return rows


def _difference(
    name: str, mine: dict[str, dict[str, str]], other: dict[str, dict[str, str]], measure: str
) -> dict[str, Any]:
    """Return the mean difference to a rival over the seeds both have run, its interval and the largest of them."""
    seeds = sorted(set(mine) & set(other))
    columns = [f"minus_{name}", f"minus_{name}_ci95", f"seeds_above_{name}", f"most_from_{name}"]
    if len(seeds) < 2:
        return dict.fromkeys(columns, "")
    a, b = ([float(runs[seed][measure]) for seed in seeds] for runs in (mine, other))
    interval = paired_interval(a, b)
    above, most = sum(x > y for x, y in zip(a, b)), max(abs(x - y) for x, y in zip(a, b))
    values = f"{interval.mean:+.4f}", f"{interval.half_width:.4f}", f"{above}/{len(seeds)}", f"{most:.4f}"
    return dict(zip(columns, values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=12, help="students; they share three teachers")
    parser.add_argument("--heads", default="2,3", help="of the student, with commas")
    parser.add_argument("--systems", default=",".join(SYSTEMS), help="with commas")
    parser.add_argument("--marks", default=",".join(map(str, MARKS)), help="steps after which accuracy is measured")
    parser.add_argument("--teacher-steps", type=int, default=1500)
    parser.add_argument("--shuffled", action="store_true", help="pairs with the teacher's heads in another order")
    parser.add_argument("--summary", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS / "amad_recall_runs.csv")
    options = parser.parse_args()
    if not options.summary:
        return run(options)
    rows = summarise(read_rows(options.out))
    write_rows(summary_of(options.out), rows)
    for row in rows:
        print(f"{row['heads']} heads {row['dtype']} {row['order']:8} {row['system']:18} {row['measure']:13} "
              f"{row['mean']} ± {row['ci95']}  minus kd {row['minus_kd']} ± {row['minus_kd_ci95']}  minus one-to-one "
              f"{row['minus_one_to_one']} ± {row['minus_one_to_one_ci95']}")  # fmt: skip


if __name__ == "__main__":
    main()
