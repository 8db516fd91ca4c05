"""The page: every method, in the look of the report, from one file."""

import re

import pytest

from potstill.systems.compare.page import page, write_p, write_page
from potstill.systems.compare.summary import summarise

METHODS = ["kd_kl", "dkd", "labels", "<b>bold</b>"]


def rows(recipes=("one", "two"), budgets=(("steps-4", 4), ("steps-8", 8)), methods=METHODS):
    return [
        {
            "recipe": recipe, "method": method, "budget": budget, "seed": seed, "steps": steps,
            "score": 0.5 + 0.02 * number + 0.01 * ((seed + number) % 3) + steps / 100,
            "score.other": 0.4, "kl": 0.2 - 0.01 * number, "agreement": 0.6, "teacher_score": 0.9,
            "parameters": 1000 * (1 + recipes.index(recipe)), "seconds": 2.5, "machine": "toy, 2 cores",
        }
        for recipe in recipes
        for budget, steps in budgets
        for number, method in enumerate(methods)
        for seed in range(3)
    ]  # fmt: skip


def written(tmp_path, data, failures=(), methods=METHODS):
    write_page(tmp_path / "index.html", data, summarise(data, methods), dict(failures), methods)
    return (tmp_path / "index.html").read_text(encoding="utf-8")


def test_the_page_names_every_method_in_table_dots_ranks_and_panels(tmp_path):
    text = written(tmp_path, rows())
    for method in ("kd_kl", "dkd", "labels", "&lt;b&gt;bold&lt;/b&gt;"):
        assert text.count(f'<th scope="row">{method}') == 4  # recipes times budgets
        assert (
            text.count(f'class="panel-title">{method}') == 4
        )  # over budgets of each recipe, over sizes of each budget
        assert text.count(f">{method}</text>") == 16  # dots and ranks, wide and narrow
    assert "<b>bold" not in text


def test_the_page_loads_nothing(tmp_path):
    text = written(tmp_path, rows())
    assert "<script" not in text
    assert set(re.findall(r'(?:src|href)="(.)', text)) == {"#"}
    assert "default-src 'none'" in text


def test_one_recipe_with_one_budget_has_no_empty_sections(tmp_path):
    text = written(tmp_path, rows(("one",), (("steps-4", 4),)))
    assert 'id="budget"' not in text
    assert 'id="size"' not in text
    assert "Rank over seeds" in text


def test_failures_and_methods_without_a_run_are_shown(tmp_path):
    data = [row for row in rows() if row["method"] != "labels"]
    text = written(tmp_path, data, {"one, labels": "does not <fit>"})
    assert "one, labels: does not &lt;fit&gt;" in text
    assert text.count("no run finished") == 4


def test_the_table_says_what_the_summary_says():
    data = rows(("one",), (("steps-4", 4),))
    summary = summarise(data, METHODS)
    (part,) = page(data, summary, {}, METHODS)["parts"]
    best = summary[0]
    first = part.rows[0]
    assert first.name == best["method"] == "<b>bold</b>"
    assert first.cells[0].text.startswith(f"{100 * best['mean']:.1f}")
    assert first.cells[0].is_best
    assert first.cells[3].text.split() == [str(best["won"]), "of", "3"]
    assert len(part.heads) == len(first.cells)
    reference = next(row for row in part.rows if row.name == "kd_kl")
    assert "reference" in reference.note
    assert [cell.text for cell in reference.cells[1:4]] == ["–"] * 3


def test_an_empty_comparison_is_a_page_too(tmp_path):
    assert "No run is finished yet" in written(tmp_path, [])


@pytest.mark.parametrize(("p", "text"), [(0.04321, "0.043"), (0.0001, "<\u00a00.001"), (1.0, "1.000")])
def test_p_values_are_written_short(p, text):
    assert write_p(p) == text
