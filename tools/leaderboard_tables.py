"""The tables of the page "Which method?", from the leaderboard's files."""

from __future__ import annotations

from tables import RESULTS, percent, read, table

TASKS = {
    "kd-digits": "Reading digits",
    "kd-emoji-cnn": "Naming emoji",
    "web-digits": "Digits as from the web: three in ten are none",
    "web-emoji": "Emoji as from the web: three in ten show something else",
    "parity-digits": "Even or odd: a teacher of two classes",
    "bought-digits": "Which soft labels to buy: digits, a weak teacher",
    "bought-emoji": "Which soft labels to buy: emoji in a style unknown to the teacher",
    "novel-digits": "New classes of digits",
    "novel-emoji": "New classes of emoji",
    "two-teachers-digits": "Two teachers of digits",
    "two-teachers-emoji": "Two teachers of emoji",
    "vit-digits": "Digits for a small ViT, two ViTs as teachers",
    "vit-emoji": "Emoji for a small ViT, two ViTs as teachers",
}
SPLITS = {
    "score.heldout_style": "style never seen",
    "score.heldout_vendor": "style never seen",
    "score.novel": "new classes",
}
PAGES = {
    **dict.fromkeys(
        ("kd_kl", "dkd", "dist_loss", "reverse_kl", "generalized_jsd", "tv_distance", "hinton"), "losses/baselines.md"
    ),
    "pld": "losses/pld.md",
    "sinkd": "losses/sinkd.md",
    "hinton+sinkd": "losses/sinkd.md",
    "kdpp-nd": "losses/kdpp.md",
    "lelp": "losses/lelp.md",
    "vlm-ood": "losses/vlm-ood.md",
    "kd3": "data/web-images.md",
    "hinton+trg": "losses/trg.md",
    "hinton+mi-alpha": "losses/mi-alpha.md",
    **dict.fromkeys(("meal-v2", "meal-v2-shrink-2", "mean-of-teachers"), "losses/meal-v2.md"),
    **dict.fromkeys(("hybrid-both", "hybrid-feature", "hybrid-relation"), "losses/hybrid-distill.md"),
    "kd3-balanced": "data/web-images.md",
    **dict.fromkeys(("crkd-ncd", "discovery"), "losses/class-relation.md"),
    **{
        f"buy-{name}": "data/active-selection.md"
        for name in ("random", "margin", "entropy", "robust_active", "robust_told")
    },
}


def _mean(row: dict[str, str] | None) -> str:
    if not row or not row["mean"]:
        return "–"
    return percent(row["mean"], row["ci95"])


def _difference(row: dict[str, str]) -> str:
    """Return the paired difference in points, bold where the corrected test finds it."""
    if not row["difference"]:
        return "–"
    text = f"{100 * float(row['difference']):+.1f}" + (
        f" ± {100 * float(row['difference_ci95']):.1f}" if row["difference_ci95"] else ""
    )
    return f"**{text}**" if row["p_holm"] and float(row["p_holm"]) < 0.05 else text


def _link(method: str) -> str:
    return f"[`{method}`]({PAGES[method]})" if method in PAGES else f"`{method}`"


def leaderboard() -> str:
    """One table for every task and budget, the best mean rank first."""
    if not (RESULTS / "leaderboard.csv").is_file():
        return "Not measured yet."
    rows = read("leaderboard.csv")
    cost = {r["method"]: r for r in read("method_cost.csv")} if (RESULTS / "method_cost.csv").is_file() else {}
    parts = []
    order = {task: i for i, task in enumerate(TASKS)}
    found = dict.fromkeys((r["recipe"], r["budget"]) for r in rows)
    for recipe, budget in sorted(found, key=lambda at: order.get(at[0], len(order))):
        here = [r for r in rows if (r["recipe"], r["budget"]) == (recipe, budget)]
        of = {(r["method"], r["measure"]): r for r in here}
        scores = sorted((r for r in here if r["measure"] == "score"), key=lambda r: float(r["rank"] or "inf"))
        splits = [m for m in SPLITS if any((r["method"], m) in of for r in scores)]
        timed = any(r["method"] in cost for r in scores) and recipe.startswith("kd-")
        head = ["method", "score, %", f"minus `{scores[0]['against']}`", "mean rank"]
        head += [f"{SPLITS[m]}, %" for m in splits] + (["cost of a step"] if timed else [])
        body = []
        for r in scores:
            line = [_link(r["method"]), _mean(r), _difference(r), f"{float(r['rank']):.1f}" if r["rank"] else "–"]
            line += [_mean(of.get((r["method"], m))) for m in splits]
            if timed:
                line.append(f"{float(cost[r['method']]['time_ratio']):.2f}" if r["method"] in cost else "–")
            body.append(line)
        steps = budget.removeprefix("steps-")
        seeds = max(int(r["seeds"]) for r in scores)
        title = f"### {TASKS.get(recipe, recipe)}\n\n`{recipe}`, {steps} steps, {seeds} seeds."
        parts.append(f"{title}\n\n{table(head, body)}")
    return "\n\n".join(parts)


def hit_rate() -> str:
    """How often the recommender is right about a task it has not seen."""
    if not (RESULTS / "auto_distiller.csv").is_file():
        return "Not measured yet."
    body = [
        [
            r["n"],
            r["tasks"],
            *(f"{100 * float(r[key]):.0f} %" for key in ("hit", "average_hit", "blind_hit")),
            *(f"{100 * float(r[key]):.1f}" for key in ("regret", "average_regret")),
        ]
        for r in read("auto_distiller.csv")
        if r["task"] == "mean"
    ]
    head = ["suggestions", "tasks", "best among them", "best on average elsewhere", "blind"]
    return table([*head, "points lost", "by the average"], body)
