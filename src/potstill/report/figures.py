"""Figures drawn from the history: loss terms of all runs side by side, and what the policy of one run did."""

from __future__ import annotations

import math
from dataclasses import dataclass

from markupsafe import Markup

from potstill.report.charts import NARROW, Lane, Line, bar, describe, line_chart, posterior_chart, strip_chart
from potstill.report.history import Round
from potstill.report.load import Run
from potstill.report.svg import thin
from potstill.report.text import NONE, percent, short, significant

MOST_PANELS, MOST_DOTS, MOST_SPANS, BINS = 24, 250, 1200, 240


@dataclass
class Panel:
    """A small chart with its title, a remark beside the title, and a name for its colour (or none)."""

    title: str
    note: str
    chart: Markup
    style: str | None = None


@dataclass
class ArmRow:
    """How often an arm was played and what came of it."""

    name: str
    style: str
    rounds: str
    share: str
    bar: Markup
    reward: str
    posterior: str


@dataclass
class PolicyView:
    """Everything the page shows about the policy of one run; ``sentence`` alone if there is nothing to draw."""

    label: str
    sentence: str
    arms: list[ArmRow]
    strip: Markup | None = None
    strip_narrow: Markup | None = None
    panels: list[Panel] | None = None
    reference: Markup | None = None


def last_step(run: Run) -> int:
    """Return where the step axis of a run ends: its planned length, or further if it went further."""
    planned = run.plan.steps if run.plan and run.plan.steps else 0
    return max(planned, run.history.last_step if run.history else 0)


def loss_panels(runs: list[Run], styles: dict[str, str], arm_styles: dict[str, str]) -> tuple[list[Panel], list[str]]:
    """Return a panel for the total and one for each loss term, and sentences about what is not in them."""
    trained = [run for run in runs if run.history and run.history.steps]
    end = max((last_step(run) for run in trained), default=0)
    planned = [objective.name for run in runs if run.plan for objective in run.plan.objectives]
    seen = [name for run in trained for name in run.history.term_names]
    names = [name for name in dict.fromkeys(planned + seen) if name in set(seen)]
    modules = {objective.name: objective.module for run in runs if run.plan for objective in run.plan.objectives}
    panels, notes = [], []
    for name in [None, *names[: MOST_PANELS - 1]]:
        title, lines, spoken = name or "total loss", [], []
        for run in trained:
            steps = run.history.steps
            values = [step.loss if name is None else step.terms.get(name, (math.nan, 0.0))[0] for step in steps]
            present = [step.terms.get(name) is not None if name else True for step in steps]
            if not any(present) or (name is None and all(math.isnan(value) for value in values)):
                continue
            bad = sum(is_there and not math.isfinite(value) for value, is_there in zip(values, present))
            if bad:
                notes.append(
                    f"{title} of {run.label}: {bad} of {sum(present)} values are NaN or infinite and left out."
                )
            lines.append(Line(run.label, styles[run.label], thin([step.step for step in steps], values)))
            spoken.append(describe(run.label, values))
        if lines:
            chart = line_chart(lines, f"{title} by step. {'; '.join(spoken)}.", last_x=end)
            note = _weight_note(trained, name) if name else "weighted sum"
            panels.append(Panel(title, note, chart, arm_styles.get(modules.get(name) or "")))
    if len(names) > MOST_PANELS - 1:
        notes.append(f"{len(names) - MOST_PANELS + 1} more terms are in history.jsonl and not drawn.")
    return panels, notes


def policy_view(run: Run, arm_styles: dict[str, str]) -> PolicyView:
    """Return the story of one run's policy: strip, shares, posterior of every arm, reference loss."""
    rounds = run.history.rounds if run.history else []
    name = run.plan.policy.name if run.plan and run.plan.policy else None
    if not rounds:
        if run.plan is not None and run.plan.policy is None:
            sentence = "This run had no policy: every objective counted at every step."
        else:
            sentence = f"No round of the policy {name or ''} has ended yet.".replace("  ", " ")
        return PolicyView(run.label, sentence, [])
    arms = arm_names(run)
    end = last_step(run)
    played = {arm: [r for r in rounds if r.arm == arm] for arm in arms}
    most = max(arms, key=lambda arm: len(played[arm]))
    share = percent(len(played[most]) / len(rounds))
    counted = f"{len(rounds):,} rounds over {len(arms)} {'arm' if len(arms) == 1 else 'arms'}"
    sentence = f"The policy {name or '(unnamed)'} played {counted}; most often {most}, in {share} of them."
    lanes = [Lane(arm, arm_styles[arm], _spans(rounds, arm)) for arm in arms]
    spoken = "Which arm was played when. " + "; ".join(f"{arm}: {len(played[arm])} rounds" for arm in arms) + "."
    view = PolicyView(
        run.label,
        sentence,
        [_arm_row(arm, arm_styles[arm], played[arm], rounds) for arm in arms],
        strip_chart(lanes, spoken, last_x=end),
        strip_chart(lanes, spoken, last_x=end, width=NARROW),
        _posterior_panels(rounds, arms, arm_styles, end),
    )
    references = [r.reference for r in rounds]
    if any(math.isfinite(value) for value in references):
        line = Line("reference loss", "ink", thin([r.step for r in rounds], references))
        spoken = f"Reference loss on the probe set by step. {describe('reference loss', references)}."
        view.reference = line_chart([line], spoken, last_x=end, width=NARROW)
    return view


def arm_names(run: Run) -> list[str]:
    """Return the arms of a run: as planned, then any other that the history names."""
    planned = run.plan.policy.arms if run.plan and run.plan.policy else []
    rounds = run.history.rounds if run.history else []
    estimated = [arm for r in rounds for arm in r.posterior]
    return list(dict.fromkeys([*planned, *(r.arm for r in rounds), *estimated]))


def _weight_note(runs: list[Run], name: str) -> str:
    weights: list[float] = []
    for run in runs:
        known = [step.terms[name][1] for step in run.history.steps if name in step.terms]
        counted = [weight for weight in known if math.isfinite(weight) and weight != 0]
        if counted and counted[-1] not in weights:
            weights.append(counted[-1])
    return "weight " + " / ".join(short(weight) for weight in weights) if weights else ""


def _spans(rounds: list[Round], arm: str) -> list[tuple[float, float, float]]:
    """Return (first, last, strength) of every stretch of an arm; very many rounds become bins with their share."""
    starts = [0, *(r.step for r in rounds[:-1])]
    spans: list[tuple[float, float, float]] = []
    if len(rounds) <= MOST_SPANS:
        for start, r in zip(starts, rounds):
            if r.arm == arm:
                first = spans.pop()[0] if spans and spans[-1][1] == start else start
                spans.append((first, r.step, 1.0))
        return spans
    size = math.ceil(len(rounds) / BINS)
    for number in range(0, len(rounds), size):
        part = rounds[number : number + size]
        share = sum(r.arm == arm for r in part) / len(part)
        if share:
            spans.append((starts[number], part[-1].step, max(0.2, round(5 * share) / 5)))
    return spans


def _arm_row(arm: str, style: str, played: list[Round], rounds: list[Round]) -> ArmRow:
    share = len(played) / len(rounds)
    rewards = [r.reward for r in played if math.isfinite(r.reward)]
    mean = significant(math.fsum(rewards) / len(rewards)) if rewards else NONE
    last = rounds[-1].posterior.get(arm)
    posterior = f"{significant(last[0])} ± {significant(last[1])}" if last else NONE
    return ArmRow(arm, style, f"{len(played):,}", percent(share), bar(share, style), mean, posterior)


def _posterior_panels(rounds: list[Round], arms: list[str], styles: dict[str, str], end: int) -> list[Panel]:
    spread = _reward_range(rounds)
    panels = []
    for arm in arms:
        points = [(r.step, *r.posterior.get(arm, (math.nan, math.nan))) for r in rounds]
        rewards = [(r.step, r.reward) for r in rounds if r.arm == arm]
        shown = rewards[:: math.ceil(len(rewards) / MOST_DOTS)] if rewards else []
        spoken = describe(f"posterior mean of {arm}", [mean for _, mean, _ in points])
        label = f"{spoken}; {describe('its rewards', [reward for _, reward in rewards])}."
        chart = posterior_chart(arm, styles[arm], points, shown, label, y_range=spread, last_x=end)
        note = f"{len(rewards):,} rounds" + ("" if len(shown) == len(rewards) else f", {len(shown)} drawn")
        panels.append(Panel(arm, note, chart, styles[arm]))
    return panels


def _reward_range(rounds: list[Round]) -> tuple[float, float]:
    """Return a range for rewards that a few wild ones, or the wide first posteriors, cannot flatten."""
    bands = [edge for r in rounds for mean, std in r.posterior.values() for edge in (mean - std, mean + std)]
    low, high = _quantiles([r.reward for r in rounds], 0.02)
    band_low, band_high = _quantiles(bands, 0.15)
    low, high = min(low, band_low, 0.0), max(high, band_high, 0.0)
    air = 0.08 * (high - low) or 1e-3
    return low - air, high + air


def _quantiles(values: list[float], share: float) -> tuple[float, float]:
    finite = sorted(value for value in values if math.isfinite(value))
    if not finite:
        return 0.0, 0.0
    cut = int(share * len(finite))
    return finite[cut], finite[-1 - cut]
