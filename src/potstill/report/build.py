"""From run folders to one HTML file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from potstill.errors import InputError
from potstill.report.attention import attention_views, has_figures
from potstill.report.charts import NARROW, WIDE, swatch
from potstill.report.compare import collect_models, comparison, costs, details, score_chart
from potstill.report.figures import arm_names, loss_panels, policy_view
from potstill.report.load import Run, load_runs
from potstill.report.maps import cka_groups, cka_models, layer_maps
from potstill.report.positions import position_panels
from potstill.report.samples import MARKS, collect_samples
from potstill.report.summary import cards, lead
from potstill.report.text import NONE
from potstill.report.writing import render, write_whole

COLOURS = 7


def build_report(runs: str | Path | Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Write one self-contained HTML page about one or several runs.

    The page opens offline, loads nothing, runs no script and prints. Several runs stand side by side in the same
    tables and charts; a teacher they share is shown once. What a run does not have (yet) is left out with a sentence.

    Args:
        runs: A run folder, or several in the order of their columns.
        out: The file to write, or a folder in which to write ``report.html``. Default: ``report.html`` in the run
            folder; with several runs, beside the first one.

    Returns:
        Path of the file written. It appears whole or not at all.

    Raises:
        InputError: if a folder is not a run, is given twice, or ``out`` cannot be written.
        IntegrityError: if a file of a run is damaged; says which and what to do.

    Example:
        >>> from potstill.report import build_report
        >>> build_report(["runs/optima", "runs/kd"], "comparison.html")  # doctest: +SKIP
        PosixPath('comparison.html')
    """
    paths = [Path(runs)] if isinstance(runs, (str, Path)) else [Path(run) for run in runs]
    if not paths:
        raise InputError("no run folder given", where="runs", expected="at least one run folder")
    target = _target(paths, None if out is None else Path(out))
    html = render("report.html", _page(load_runs(paths)))
    write_whole(target, html)
    return target


def _page(runs: list[Run]) -> dict[str, Any]:
    run_styles = {run.label: f"r{number % COLOURS}" for number, run in enumerate(runs)}
    modules = [module.name for run in runs if run.plan for module in run.plan.modules]
    arms = [arm for run in runs for arm in arm_names(run)]
    arm_styles = {name: f"a{number % COLOURS}" for number, name in enumerate(dict.fromkeys(modules + arms))}
    models = collect_models(runs, run_styles)
    panels, loss_notes = loss_panels(runs, run_styles, arm_styles)
    samples, more_samples = collect_samples(runs, run_styles)
    return {
        "title": " and ".join(run.label for run in runs) if len(runs) < 3 else f"{len(runs)} runs",
        "runs": [
            {"label": run.label, "style": run_styles[run.label], "notes": notes(run), "recipe": run.recipe}
            for run in runs
        ],
        "swatches": {style: swatch(style) for style in run_styles.values()},
        "lead": lead(runs),
        "cards": cards(models),
        "models": models,
        "comparison": comparison(models),
        "details": details(models),
        "scores": score_chart(models, WIDE),
        "scores_narrow": score_chart(models, NARROW),
        "loss_panels": panels,
        "loss_notes": loss_notes,
        "position_panels": position_panels(models),
        "policies": [policy_view(run, arm_styles) for run in runs],
        "cka": cka_groups(models, arm_styles),
        "cka_models": cka_models(models),
        "attention": attention_views(runs, run_styles),
        "costs": costs(models),
        "samples": samples,
        "more_samples": more_samples,
        "marks": MARKS,
        "maps": layer_maps(runs, arm_styles),
        "environment": _environment(runs),
    }


def notes(run: Run) -> list[str]:
    """Return plain sentences about what is missing or odd in a run."""
    found = []
    steps = run.plan.steps if run.plan else None
    if run.history is None or not (run.history.steps or run.history.rounds):
        found.append("No training step has been logged, so there are no curves.")
    elif steps and run.history.last_step < steps:
        found.append(
            f"This run stands at step {run.history.last_step:,} of {steps:,}: it is still going or was interrupted "
            "(--resume goes on from its last checkpoint)."
        )
    if run.history and run.history.is_torn:
        found.append("The last line of history.jsonl is incomplete (the run was stopped while writing) and left out.")
    if run.history and run.history.resumed_at:
        found.append("This run was resumed from a checkpoint; steps that were done again are shown once.")
    if run.history and run.history.skipped:
        found.append(
            f"{run.history.skipped:,} optimiser steps were skipped because a term or gradient was not finite; "
            "history.jsonl names them."
        )
    if run.metrics is None:
        found.append("There are no scores yet: metrics.json is written when the run ends.")
    elif not any(model.role == "student" for model in run.metrics.models.values()):
        found.append("metrics.json holds no student yet.")
    if run.attention is not None and not has_figures(run.attention):
        found += run.attention.notes
    if run.plan is None:
        found.append("There is no plan.json, so names, layer maps and planned steps are not known.")
    return found


def _environment(runs: list[Run]) -> list[tuple[str, list[str]]]:
    """Return (key, value of each run), keys in order of appearance."""
    known = [run.environment or {} for run in runs]
    if not any(known):
        return []
    return [
        (key, [_value(env.get(key)) for env in known]) for key in dict.fromkeys(key for env in known for key in env)
    ]


def _value(value: Any) -> str:
    if value is None:
        return NONE
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _target(paths: list[Path], out: Path | None) -> Path:
    if out is None:
        folder = paths[0].resolve()
        return (folder if len(paths) == 1 else folder.parent) / "report.html"
    return out / "report.html" if out.is_dir() else out
