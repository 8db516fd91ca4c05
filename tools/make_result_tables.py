"""Write the tables of measured results in the documents from the files under benchmarks/results/.

    python tools/make_result_tables.py            # rewrites what stands between the markers
    python tools/make_result_tables.py --check    # says which documents are out of date

A marker is ``<!-- name -->`` … ``<!-- /name -->``; the prose around it is written by hand and stays.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from leaderboard_tables import hit_rate, leaderboard
from tables import RESULTS, percent, read, table
from text_tables import alm_small, dac_kl_small, ddk_small, fused_losses, teacher_cache, text_methods

ROOT = Path(__file__).resolve().parent.parent
TASKS = ("caption", "vqa", "entailment", "nlvr2")


def teacher_scores() -> str:
    rows = read("teacher_scores.csv")
    of = {(r["split"], r["task"], r["kind"]): r for r in rows}
    splits = list(dict.fromkeys(r["split"] for r in rows))
    body = []
    for split in splits:
        found = [of.get((split, task, "all")) for task in TASKS]
        body.append([f"`{split}`", *(percent(r["score"], r["stderr"]) if r else "–" for r in found)])
    kinds = [r for r in rows if r["split"] == "test" and r["kind"] != "all"]
    by_task = {t: ", ".join(f"{r['kind']} {percent(r['score'])}" for r in kinds if r["task"] == t) for t in TASKS}
    parts = "\n".join(f"- `{task}`: {text}" for task, text in by_task.items() if text)
    n = sum(int(of[splits[0], task, "all"]["samples"]) for task in TASKS)
    return (
        f"Per cent ± standard error, {n:,} samples a split; captions: share of the things named with the right place "
        f"(`python benchmarks/teacher_scores.py`).\n\n{table(['split', *TASKS], body)}\n\nOn `test` by kind:\n\n{parts}"
    )


def picture_teachers(name: str, recipe: str) -> Callable[[], str]:
    def make() -> str:
        if not (RESULTS / name).is_file():
            return "Not measured yet."
        rows = read(name)
        of = {(r["model"], r["split"], r["kind"]): r for r in rows}
        body = []
        for model, split in dict.fromkeys((r["model"], r["split"]) for r in rows):
            first, top5, ece = (of[model, split, kind] for kind in ("all", "top5_accuracy", "ece"))
            cells = [percent(first["score"], first["stderr"]), percent(top5["score"]), percent(ece["score"])]
            body.append([f"`{model}`", f"`{split}`", *cells])
        models, splits = (" ".join(dict.fromkeys(r[key] for r in rows)) for key in ("model", "split"))
        command = (
            f"python benchmarks/teacher_scores.py --model {models} --recipe {recipe} --splits {splits} --out {name}"
        )
        head = ["teacher", "split", "accuracy", "among the first five", "calibration error"]
        return (
            f"Per cent ± standard error, {int(rows[0]['samples']):,} samples a split:\n\n{table(head, body)}\n\n"
            f"```bash\n{command}\n```"
        )

    return make


def feature_teachers() -> str:
    rows = read("feature_teachers.csv")
    body = [[f"`{r['model']}`", percent(r["names"]), f"{float(r['patches']):.2f}"] for r in rows]
    head = [
        "teacher",
        f"{int(rows[0]['samples']):,} pictures, class by the nearest mean, %",
        "colours of hidden patches, R²",
    ]
    return table(head, body)


def bought_labels() -> str:
    rows = read("bought_labels.csv")
    tasks = list(dict.fromkeys(r["task"] for r in rows))
    of = {(r["method"], r["task"]): r for r in rows}
    body = []
    for method in dict.fromkeys(r["method"] for r in sorted(rows, key=lambda r: float(r["wrong"]))):
        found = [of.get((method, task)) for task in tasks]
        cells = [percent(r["wrong"], r["wrong_ci95"]) if r else "–" for r in found]
        body.append([f"`{method}`", *cells])
    return table(["wrong labels, %", *(f"`{task}`" for task in tasks)], body)


def blind_baselines() -> str:
    rows = [r for r in read("blind_baselines.csv") if r["kind"] == "all" and r["scenes"] == "1-4 objects"]
    names = list(dict.fromkeys(r["baseline"] for r in rows))
    of = {(r["baseline"], r["task"]): r for r in rows}
    chance = {"entailment": "33.3", "nlvr2": "50.0"}
    body = [["chance", *(chance.get(task, "–") for task in TASKS[1:])]]
    for name in names:
        body.append([name, *(percent(of[name, t]["accuracy"], of[name, t]["stderr"]) for t in TASKS[1:])])
    return "Accuracy on `test`, per cent ± standard error.\n\n" + table(["shown", *TASKS[1:]], body)


def optima_results() -> str:
    path = RESULTS / "optima_scenes.md"
    return path.read_text(encoding="utf-8").strip() if path.is_file() else "Not measured yet."


def demo() -> str:
    if not (RESULTS / "demo_scores.csv").is_file():
        return "Not measured yet."
    rows = read("demo_scores.csv")
    names = {"optima-scenes": "OPTIMA student", "kd-scenes": "KD student"}
    lines = {
        "parameters": lambda r: f"{int(r['parameters']) / 1e6:.2f} M",
        "time per sample": lambda r: f"{float(r['ms_per_sample']):.1f} ms",
        **{t: lambda r, t=t: percent(r[t], r[f"{t}_stderr"]) for t in TASKS},
        **{
            f"agrees with the teacher on {t}": lambda r, t=t: percent(a) if (a := r[f"{t}_agreement"]) else "–"
            for t in TASKS
        },
    }
    return table(
        ["", *(names.get(r["model"], r["model"]) for r in rows)], [[k, *map(f, rows)] for k, f in lines.items()]
    )


def optima_in_short() -> str:
    path = RESULTS / "optima_scenes.csv"
    rows = [r for r in read(path.name) if r["measure"] == "L_pred"] if path.is_file() else []
    if not rows:
        return "Not measured yet."
    shown = {
        "none": "plain KD, no hidden states", "optima": "OPTIMA", "uniform": "a module at random", "all": "all modules"
    }  # fmt: skip
    widest = max(rows, key=lambda r: int(r["seeds"]))["setting"]
    of = {r["system"]: r for r in rows if r["setting"] == widest}
    body = []
    for system, words in shown.items():
        if system not in of:
            continue
        r = of[system]
        gap = f"{r['minus_none']} ± {r['minus_none_ci95']}" if r["minus_none"] else "–"
        body.append([words, r["seeds"], f"{r['mean']} ± {r['ci95']}", gap])
    return table(["system", "seeds", "L_pred", "minus plain KD, paired"], body)


def loss_numerics() -> str:
    rows = read("loss_numerics.csv")
    kinds = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}

    def worst(loss: str, column: str, **where: str) -> str:
        found = [r for r in rows if r["loss"] == loss and all(r[k] == v for k, v in where.items())]
        return f"{max(float(r[column]) for r in found):.0e}"

    body = []
    for loss in dict.fromkeys(r["loss"] for r in rows):
        values = [worst(loss, "value_relative", dtype="float32", inputs=kind) for kind in ("apart", "close", "huge")]
        smooth = {} if loss != "tv_distance" else {"inputs": "apart"}
        grads = [worst(loss, "gradient_relative", dtype=kind, **smooth) for kind in kinds.values()]
        body.append([loss if " " in loss else f"`{loss}`", *values, *grads])
    head = ["relative error", "value fp32, apart", "close", "±1e4", *(f"gradient {kind}" for kind in kinds)]
    return table(head, body) + "\n\nGradients of norm above 1e-4, all inputs and both temperatures together."


def reward_noise() -> str:
    rows = read("reward_noise.csv")
    body = [
        [
            f"`{r['yardstick']}`",
            r["arm"],
            f"{100 * float(r['effect']):+.2f} ± {100 * float(r['stderr']):.2f}",
            f"{100 * float(r['noise_sd']):.1f}",
            r["plays_to_tell_from_best"] or "best",
        ]
        for r in rows
    ]
    head = ["yardstick", "arm", "effect on the reward, %", "noise, sd, %", "plays to tell it from the best"]
    seeds, rounds = rows[0]["seeds"], rows[0]["rounds"]
    return f"Effects ± standard error; {rounds} rounds of {seeds} seeds.\n\n" + table(head, body)


def mechanism() -> str:
    rows = [r for r in read("optima_mechanism.csv") if r["measure"] == "late_share_image_encoder"]
    body = [
        [
            r["hidden_weight"],
            "drawn at random" if r["system"] == "uniform" else f"OPTIMA, `{r['system']}`",
            r["seeds"],
            percent(r["mean"], r["ci95"]),
            r["below_even_share"],
        ]
        for r in rows
    ]
    head = ["hidden weight", "arm", "seeds", "rounds on the finished module, % ± 95 %", "clearly below a third"]
    return table(head, body)


AMAD_SYSTEMS = {
    "kd": "KD only",
    "one_to_one": "`one_to_one_heads`",
    "head_mean": "`head_mean`",
    "squeezing": "`squeezing_heads`",
    "minilm": "`minilm_relation`",
    **{
        f"amad-{variant}-{tau}": f"`amad_loss`, {variant}, tau {tau}"
        for variant in ("kl", "mse", "token_kl")
        for tau in ("1", "0.1")
    },
}


def amad_recall() -> str:
    if not (RESULTS / "amad_recall.csv").is_file():
        return "Not measured yet."
    rows = read("amad_recall.csv")
    words = {system.replace("-", "_").replace("squeezing", "shd"): text for system, text in AMAD_SYSTEMS.items()}
    parts = []
    for heads in dict.fromkeys(r["heads"] for r in rows):
        found = [r for r in rows if r["heads"] == heads and r["dtype"] == "float32"]
        marks = list(dict.fromkeys(r["measure"] for r in found))
        of = {(r["system"], r["measure"]): r for r in found}
        body = [
            [
                words[system],
                *(percent(of[system, mark]["mean"], of[system, mark]["ci95"]) for mark in marks),
                *(_gain(of[system, mark]) for mark in marks[:2]),
            ]
            for system in words
            if (system, marks[0]) in of
        ]
        steps = [mark.removeprefix("accuracy_") for mark in marks]
        head = ["system", *(f"{n} steps" for n in steps), *(f"minus KD only, {n}" for n in steps[:2])]
        parts.append(f"Student of {heads} heads, {found[0]['seeds']} students:\n\n{table(head, body)}")
    return "\n\n".join(parts)


def _of_students(recipe: str, words: dict[str, str], tasks: dict[str, str], against: tuple[str, ...]) -> str:
    path = RESULTS / "amad_students.csv"
    rows = [r for r in read(path.name) if r["recipe"] == recipe] if path.is_file() else []
    if not rows:
        return "Not measured yet."
    parts = []
    for heads in sorted({r["heads"] for r in rows}):
        found = [r for r in rows if r["heads"] == heads]
        of = {(r["system"], r["measure"]): r for r in found}
        steps = int(found[0]["steps"])
        body = []
        for system, text in words.items():
            if (system, "kl") not in of:
                continue
            curve = [of[system, m] for m in ("kl_33", "kl_67", "kl")]
            end = curve[-1]
            body.append(
                [
                    text,
                    end["seeds"],
                    *(f"{float(r['mean']):.3f}" for r in curve[:2]),
                    f"{float(end['mean']):.3f} ± {float(end['ci95']):.3f}",
                    *(_difference(end, other) for other in against),
                    *(percent(r["mean"], r["ci95"]) for t in tasks if (r := of[system, f"score_{t}"])),
                ]
            )
        head = ["system", "seeds", *(f"KL, {steps * n // 100} steps" for n in (33, 67)), f"KL, {steps} steps"]
        head += [f"minus {words[other]}" for other in against] + list(tasks.values())
        parts.append(f"Student of {heads} heads:\n\n{table(head, body)}")
    return "\n\n".join(parts)


def _difference(row: dict[str, str], other: str) -> str:
    """Return the paired difference of the KL to another system, bold where its interval excludes 0."""
    if not row[f"minus_{other}"]:
        return ""
    text = f"{float(row[f'minus_{other}']):+.3f} ± {float(row[f'minus_{other}_ci95']):.3f}"
    return f"**{text}**" if row[f"minus_{other}_clear"] == "yes" else text


def amad_blip() -> str:
    return _of_students("amad-blip-vqa", AMAD_SYSTEMS, {"vqa": "questions, %"}, ("kd", "one_to_one", "head_mean"))


def amad_vl_t5() -> str:
    tasks = {"vqa": "questions, %", "caption": "captions, %", "translation": "translations, %"}
    return _of_students("amad-vl-t5", AMAD_SYSTEMS, tasks, ("kd", "one_to_one", "head_mean"))


def amad_and_optima() -> str:
    words = {"kd": "KD only", "amad-kl-1": "AMAD", "optima": "OPTIMA", "amad+policy": "AMAD, one module a round",
             "amad+optima": "AMAD and OPTIMA"}  # fmt: skip
    tasks = {"caption": "captions, %", "vqa": "questions, %", "entailment": "entailment, %", "nlvr2": "nlvr2, %"}
    return _of_students("amad-scenes", words, tasks, ("kd", "amad-kl-1", "optima"))


def _gain(row: dict[str, str]) -> str:
    """Return the paired difference to plain distillation, bold where its interval excludes 0."""
    if not row["minus_kd"]:
        return ""
    gain, half = 100 * float(row["minus_kd"]), 100 * float(row["minus_kd_ci95"])
    text = f"{gain:+.1f} ± {half:.1f}"
    return f"**{text}**" if abs(gain) > half else text


TABLES: dict[str, tuple[str, Callable[[], str]]] = {
    "teacher scores": ("docs/models/coca.md", teacher_scores),
    "blind baselines": ("docs/data/scenes.md", blind_baselines),
    "loss numerics": ("docs/numerics.md", loss_numerics),
    "demo": ("README.md", demo),
    "optima in short": ("README.md", optima_in_short),
    "optima on the scenes": ("docs/policies/optima.md", optima_results),
    "reward noise": ("docs/policies/optima.md", reward_noise),
    "amad recall": ("docs/losses/attention.md", amad_recall),
    "amad on blip": ("docs/losses/attention.md", amad_blip),
    "amad on vl-t5": ("docs/losses/attention.md", amad_vl_t5),
    "amad and optima": ("docs/losses/attention.md", amad_and_optima),
    "emoji teachers": ("docs/data/emoji.md", picture_teachers("emoji_teacher_scores.csv", "kd-emoji")),
    "digit teachers": ("docs/data/digits.md", picture_teachers("digits_teacher_scores.csv", "kd-digits")),
    "feature teachers": ("docs/losses/hybrid-distill.md", feature_teachers),
    "bought labels": ("docs/data/active-selection.md", bought_labels),
    "mechanism": ("docs/policies/optima.md", mechanism),
    "leaderboard": ("docs/which-method.md", leaderboard),
    "hit rate": ("docs/which-method.md", hit_rate),
    "fused losses": ("docs/losses/large-vocabularies.md", fused_losses),
    "teacher cache": ("docs/cache.md", teacher_cache),
    "alm small": ("docs/losses/alm.md", alm_small),
    "dac-kl small": ("docs/losses/dac-kl.md", dac_kl_small),
    "ddk small": ("docs/policies/ddk.md", ddk_small),
    "text methods": ("docs/language-models/which-way.md", text_methods),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    stale = []
    options = parser.parse_args()
    for name, (document, make) in TABLES.items():
        path = ROOT / document
        text = path.read_text(encoding="utf-8")
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        before, found, rest = text.partition(start)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            sys.exit(f'{document}: no marker "{name}"')
        new = f"{before}{start}{make()}\n{end}{after}"
        if new != text:
            stale.append(document)
            if not options.check:
                path.write_text(new, encoding="utf-8")
    print("\n".join(stale) or "up to date")
    if options.check and stale:
        sys.exit(1)


if __name__ == "__main__":
    main()
