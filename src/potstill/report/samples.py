"""The ten samples: pictures the page may show, answers marked right or wrong."""

from __future__ import annotations

import re
from dataclasses import dataclass

from potstill.report.load import Run

# The head of every PNG file in base64, then nothing but the alphabet: no other type, no parameters, no markup.
PNG_URI = re.compile(r"data:image/png;base64,iVBORw0KGgo[A-Za-z0-9+/]*={0,2}")
MOST_SAMPLES, LARGEST_PICTURE = 12, 4_000_000

MARKS = {"right": "✓ right", "wrong": "✗ wrong", "differs": "≠ other words"}


@dataclass
class Answer:
    """What one model said and whether that is the truth; ``verdict`` is a key of ``MARKS``."""

    who: str
    text: str
    verdict: str
    style: str | None


@dataclass
class SampleView:
    """One sample with the answers of all models. A picture is None if it was refused."""

    task: str
    pictures: list[str | None]
    text: str | None
    truth: str
    answers: list[Answer]


def collect_samples(runs: list[Run], styles: dict[str, str]) -> tuple[list[SampleView], int]:
    """Join the samples of all runs: the same question is shown once, with every student's answer.

    Returns:
        The samples shown, and how many more there are.
    """
    views: dict[tuple, SampleView] = {}
    for run in runs:
        for sample in run.samples or []:
            key = (sample.task, tuple(sample.images), sample.text, sample.truth)
            if key not in views:
                pictures = [uri if is_trusted_picture(uri) else None for uri in sample.images]
                views[key] = SampleView(sample.task, pictures, sample.text, sample.truth, [])
            view = views[key]
            for who, text in sample.answers.items():
                if who == "teacher":
                    answer = Answer("teacher", text, verdict(sample.task, text, sample.truth), None)
                    if not any(known.who == "teacher" and known.text == text for known in view.answers):
                        view.answers.append(answer)
                else:
                    label = run.label if who == "student" else f"{run.label} · {who}"
                    view.answers.append(
                        Answer(label, text, verdict(sample.task, text, sample.truth), styles[run.label])
                    )
    shown = list(views.values())
    for view in shown:
        view.answers.sort(key=lambda answer: answer.style is not None)
    return shown[:MOST_SAMPLES], max(0, len(shown) - MOST_SAMPLES)


def is_trusted_picture(uri: str) -> bool:
    """Whether a data URI is a PNG in plain base64 of a sane size; everything else stays out of the page."""
    return len(uri) <= LARGEST_PICTURE and PNG_URI.fullmatch(uri) is not None


def verdict(task: str, answer: str, truth: str) -> str:
    """Compare without case and spacing. A caption in other words may still be right, so it only "differs"."""
    if " ".join(answer.split()).casefold() == " ".join(truth.split()).casefold():
        return "right"
    return "differs" if task == "caption" else "wrong"
