"""The evidence for AMAD: a teacher of eight heads, students of two and of three heads, equal steps.

Every run is a packaged recipe, ``amad-blip-vqa`` or ``amad-vl-t5``, with another objective beside the same KD on what
is written. A seed sets the order of the data and the start of what is not copied, for all systems alike, so
differences are paired. Systems:

- ``kd``: nothing but KD on what is written;
- ``one_to_one``, ``head_mean``, ``squeezing``: maps of the last layers, heads paired by number, averaged, merged;
- ``minilm``: MiniLM relations of queries, keys and values of the last self-attentions, in place of maps;
- ``amad-<variant>-<tau>``: kl, mse and token_kl, tau 1 and 0.1;
- ``one_to_one/shuffled``, ``amad-kl-1/shuffled``: the teacher's heads in another order, which AMAD must not notice (but
  for the order in which floating-point numbers are added, which training makes larger).

With ``--recipe amad-scenes`` the teacher is the CoCa and the question whether AMAD and OPTIMA add up:

- ``kd``, ``amad-kl-1``: as above, the maps of the last layer of every module at once;
- ``optima``: hidden states and policy of the recipe ``optima-scenes`` in place of maps;
- ``amad+policy``: maps, of the module that the same policy plays;
- ``amad+optima``: of that module both, hidden states and maps.

Every second term has an automatic weight, so all are as large as KD over the first 50 steps; those of ``minilm``, which
are six, share the size of KD at the start. Run from the repository
root, as often as needed (finished runs are skipped)::

    OMP_NUM_THREADS=1 python benchmarks/amad_students.py --seeds 0-4 --shard 0/2 &
    OMP_NUM_THREADS=1 python benchmarks/amad_students.py --recipe amad-vl-t5 &
    OMP_NUM_THREADS=1 python benchmarks/amad_students.py --recipe amad-scenes --heads 2 --steps 400 &
    python benchmarks/amad_students.py --summary

A row per run goes to ``benchmarks/results/amad_students_runs.csv``: KL to the teacher in nats per token of new scenes
after a third, two thirds and all of the steps (``kl_33``, ``kl_67``, ``kl``), and the task scores at the end.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from _record import RESULTS, append_rows, origin, read_rows, summary_of, write_rows
from _summary import summarise

TASKS = ("vqa", "caption", "translation")
COCA_TASKS = ("caption", "vqa", "entailment", "nlvr2")
MAPS = {"one_to_one": "one_to_one_heads", "head_mean": "head_mean", "squeezing": "squeezing_heads"}
AMAD = tuple(f"amad-{variant}-{tau}" for variant in ("kl", "mse", "token_kl") for tau in ("1", "0.1"))
SYSTEMS = ("kd", "amad-kl-1", "one_to_one", "head_mean", "amad-mse-1", "minilm", "squeezing", *AMAD[1:2], *AMAD[3:])
SHUFFLED = ("one_to_one/shuffled", "amad-kl-1/shuffled")
TOGETHER = ("kd", "amad-kl-1", "optima", "amad+policy", "amad+optima")
AGAINST = ("kd", "one_to_one", "head_mean", "amad-kl-1", "optima")
SHARED = ("recipe", "setting", "teacher", "heads", "steps", "batch_size")
MEASURES = ("kl_33", "kl_67", "kl", *(f"score_{task}" for task in dict.fromkeys(TASKS + COCA_TASKS)), "cpu_seconds")


@dataclass(frozen=True)
class Setting:
    """What the recipes differ in.

    Attributes:
        tasks: What is measured.
        heads: Paths of the fields of the student's configuration that hold the number of heads.
        relations: (student, teacher) modules that make queries, keys and values of the last self-attentions.
        systems: What is compared.
    """

    tasks: tuple[str, ...]
    heads: tuple[tuple[str, ...], ...]
    relations: tuple[tuple[str, str], ...] = ()
    systems: tuple[str, ...] = (*SYSTEMS, *SHUFFLED)


SETTINGS = {
    "amad-vl-t5": Setting(
        TASKS,
        (("num_heads",),),
        tuple(
            (f"{block}.layer.0.SelfAttention.{kind}",) * 2
            for block in ("visual.block.1", "encoder.block.2")
            for kind in "qkv"
        ),
    ),
    # The picture's queries, keys and values leave one layer together: relations take those of the question alone.
    "amad-blip-vqa": Setting(
        ("vqa",),
        (("vision_config", "num_attention_heads"), ("text_config", "num_attention_heads")),
        tuple(
            tuple(f"text_encoder.encoder.layer.{n}.attention.self.{kind}" for n in (0, 1))
            for kind in ("query", "key", "value")
        ),
    ),
    "amad-blip-caption": Setting(
        ("caption",), (("vision_config", "num_attention_heads"), ("text_config", "num_attention_heads"))
    ),
    "amad-scenes": Setting(COCA_TASKS, (("image_heads",), ("text_heads",), ("pooler_heads",)), systems=TOGETHER),
}


def plain(name: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return a recipe as plain data, its objectives without the fields that are not given."""
    from potstill.recipe import load_recipe

    recipe = load_recipe(name, overrides).model_dump()
    recipe["objectives"] = [{k: v for k, v in o.items() if v is not None} for o in recipe["objectives"]]
    return recipe


def shuffle_heads(objectives: Sequence[Any], seed: int) -> None:
    """Show the losses of attention maps the teacher's heads in another order."""
    for objective in objectives:
        if objective.loss_name in (*MAPS.values(), "amad_loss"):
            objective.loss = partial(_with_shuffled, objective.loss, 4000 + seed)


def _with_shuffled(loss: Any, seed: int, student: Any, teacher: Any, **options: Any) -> Any:
    import torch

    order = torch.randperm(teacher.shape[1], generator=torch.Generator().manual_seed(seed))
    return loss(student, teacher[:, order], **options)


def recipe_of(base: dict[str, Any], system: str, heads: int, seed: int) -> dict[str, Any]:
    """Return the recipe of one cell."""
    recipe = copy.deepcopy(base)
    setting = SETTINGS[recipe["name"]]
    recipe["seed"] = seed
    for path in setting.heads:
        place = recipe["student"]["overrides"]
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = heads
    *kd, attention = recipe["objectives"]
    system = system.partition("/")[0]
    if system in ("optima", "amad+policy", "amad+optima"):
        optima = plain("optima-scenes")
        recipe["policy"] = optima["policy"]
        hidden = optima["objectives"][-1:] if "optima" in system else []
        maps = [attention] if "amad" in system else []
        recipe["objectives"] = [*kd, *hidden, *maps]
    elif system == "kd":
        recipe["objectives"] = kd
    elif system == "minilm":
        # Relation heads have to divide both widths of queries.
        recipe["objectives"] = [
            *kd,
            *(
                {"loss": "minilm_relation", "name": f"relation_{i}", "on": f"{ours}@output", "R": 16, "weight": 1.0}
                | {"teacher_on": f"{theirs}@output"}
                for i, (ours, theirs) in enumerate(setting.relations)
            ),
        ]
    elif system in MAPS:
        recipe["objectives"] = [*kd, {k: v for k, v in attention.items() if k not in ("variant", "tau")}]
        recipe["objectives"][-1]["loss"] = MAPS[system]
    else:
        _, variant, tau = system.split("-")
        attention.update(variant=variant, tau=float(tau))
    return recipe


class Bench:
    """Trains students of one teacher and measures them on the same samples."""

    def __init__(self, options: argparse.Namespace):
        import torch

        from potstill.models.load import load_model

        torch.set_num_threads(1)
        self.teacher, self.options = load_model(options.teacher, where="--teacher"), options

    def _weigh(self, recipe: dict[str, Any]) -> None:
        """Make relation terms together as large as KD at the start."""
        from potstill.recipe import load_recipe
        from potstill.run import prepare

        relations = [o for o in recipe["objectives"] if o["loss"] == "minilm_relation"]
        if relations:
            with tempfile.TemporaryDirectory() as folder:
                built = prepare(load_recipe(recipe), Path(folder), teacher=self.teacher)
            built.close()
            for objective in relations:
                start = built.trainer.start
                objective["weight"] = start[recipe["objectives"][0]["name"]] / start[objective["name"]] / len(relations)

    def run(self, recipe: dict[str, Any], *, is_shuffled: bool = False) -> dict[str, Any]:
        """Train once; measure KL on the way and scores at the end."""
        from transformers import TrainerCallback

        from potstill.evaluate import evaluate_tasks, fidelity
        from potstill.evaluate.tasks import main_score
        from potstill.recipe import load_recipe
        from potstill.run import prepare

        self._weigh(recipe)
        loaded = load_recipe(recipe)
        tasks = SETTINGS[recipe["name"]].tasks
        steps, found, paused = recipe["train"]["steps"], {}, [0.0]
        with tempfile.TemporaryDirectory() as folder:
            built = prepare(loaded, Path(folder), teacher=self.teacher)
            if is_shuffled:
                shuffle_heads(built.trainer.model.objectives, loaded.seed)
            dataset = built.source.split("validation", self.options.heldout)

            def near() -> float:
                began = time.process_time()
                compared = fidelity(built.student, self.teacher, dataset, built.source.collator, tasks=tasks)
                paused[0] += time.process_time() - began
                total = sum(entry["samples"] for entry in compared.values())
                return round(sum(entry["kl"] * entry["samples"] for entry in compared.values()) / total, 6)

            class Curve(TrainerCallback):
                def on_step_end(self, args, state, control, **kwargs):
                    for share in (33, 67):
                        if state.global_step == steps * share // 100:
                            found[f"kl_{share}"] = near()

            built.trainer.add_callback(Curve())
            began = time.process_time()
            built.trainer.train()
            seconds = time.process_time() - began - paused[0]
            found["kl"] = near()
            test = built.source.split("test", self.options.samples)
            scores = evaluate_tasks(built.student, test, built.source.collator, tasks=tasks)
        built.close()
        return found | {f"score_{t}": round(main_score(scores[t]), 4) for t in tasks} | {"cpu_seconds": round(seconds)}


def run(options: argparse.Namespace) -> None:
    from _scenes import seeds_of, shard_of

    from potstill.models.load import find_model

    base = plain(options.recipe, options.set)
    options.teacher = options.teacher or base["teacher"]["model"]
    base["teacher"]["model"] = options.teacher
    base["train"].update(steps=options.steps, threads=1, log_every=options.steps, checkpoint_every=options.steps)
    weights = b"".join(path.read_bytes() for path in sorted(find_model(options.teacher).glob("*.safetensors")))
    shared = {k: v for k, v in base.items() if k not in ("teacher", "name")}
    text = json.dumps([shared, options.heldout, options.samples], sort_keys=True, default=str)
    budget = {
        "recipe": options.recipe,
        "setting": hashlib.sha256(text.encode()).hexdigest()[:10],
        "teacher": hashlib.sha256(weights).hexdigest()[:10],
        "steps": options.steps,
        "batch_size": base["train"]["batch_size"],
    }
    known = SETTINGS[options.recipe].systems
    systems = options.systems.split(",") if options.systems else known
    for system in systems:
        if system not in known:
            raise SystemExit(f'unknown system "{system}"; there are {", ".join(known)}')
    cells = [(s, h, n) for n in seeds_of(options.seeds) for h in options.heads for s in systems]
    bench, where = Bench(options), origin()
    for system, heads, seed in shard_of(cells, options.shard):
        same = [r for r in read_rows(options.out) if all(str(budget[k]) == r[k] for k in budget)]
        if (system, str(heads), str(seed)) in {(r["system"], r["heads"], r["seed"]) for r in same}:
            continue
        row = {**budget, "heads": heads, "system": system, "seed": seed}
        row |= bench.run(recipe_of(base, system, heads, seed), is_shuffled=system.endswith("/shuffled"))
        append_rows(options.out, [{**row, **{m: row.get(m, "") for m in MEASURES}} | where])
        print(" ".join(f"{k} {row[k]}" for k in ("system", "heads", "seed", *MEASURES) if k in row), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="amad-blip-vqa", choices=list(SETTINGS))
    parser.add_argument("--teacher", help="packaged name or folder; the recipe's if left out")
    parser.add_argument("--seeds", default="0-4", help="first-last or a list with commas")
    parser.add_argument("--heads", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--systems", help="with commas; all of them if left out")
    parser.add_argument("--heldout", type=int, default=500, help="validation samples for the KL")
    parser.add_argument("--samples", type=int, default=500, help="test samples for the scores")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="override of the recipe")
    parser.add_argument("--shard", default="0/1", help="this process does every n-th run: i/n")
    parser.add_argument("--out", type=Path, default=RESULTS / "amad_students_runs.csv")
    parser.add_argument("--summary", action="store_true", help="only sum up the rows of --out")
    options = parser.parse_args()
    if options.summary:
        rows = summarise(
            read_rows(options.out),
            shared=SHARED,
            systems=[*SYSTEMS, *SHUFFLED, *TOGETHER],
            measures=MEASURES,
            against=AGAINST,
        )
        write_rows(summary_of(options.out), rows)
    else:
        run(options)


if __name__ == "__main__":
    main()
