"""The comparison across tokenizers, in a size that says nothing but that it runs."""

import csv
import sys
from pathlib import Path

import pytest
import torch

from text_models import save_pair

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_every_system_runs_and_is_summed_up(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import alm_small

    from potstill.objectives import OBJECTIVES

    monkeypatch.setattr(OBJECTIVES, "_items", dict(OBJECTIVES._items))  # it registers one of its own
    words = [
        "--domains",
        "facts",
        "--teacher",
        save_pair(tmp_path / "teacher"),
        "--vocabulary",
        "bpe-300",
        "--steps",
        2,
        "--batch-size",
        2,
    ]
    words += ["--samples", 4, "--seeds", "0-1", "--systems", "labels,labels+uld,labels+alm"]
    words += ["--folder", tmp_path / "runs", "--out", tmp_path / "rows_runs.csv"]
    monkeypatch.setattr(sys, "argv", ["alm_small.py", *map(str, words)])
    alm_small.main()
    with (tmp_path / "rows_runs.csv").open(encoding="utf-8") as file:
        runs = list(csv.DictReader(file))
    assert len(runs) == 6
    assert all(float(row["bits_per_byte"]) > 1 and row["commit"] for row in runs)
    with (tmp_path / "rows.csv").open(encoding="utf-8") as file:
        summary = [row for row in csv.DictReader(file) if row["measure"] == "bits_per_byte"]
    assert [row["system"] for row in summary] == ["labels", "labels+uld", "labels+alm"]


def test_uld_compares_sorted_probabilities_position_by_position(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from alm_small import uld_sum

    student, teacher = torch.tensor([[0.7, 0.2, 0.1]]).log(), torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log()
    assert uld_sum(student, teacher).item() == pytest.approx(0.2 + 0.3 + 0.1)
    assert uld_sum(student, student.flip(1)).item() == pytest.approx(0)
