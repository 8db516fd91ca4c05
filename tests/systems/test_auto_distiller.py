import subprocess
import sys

import numpy as np
import pytest
import torch

from potstill.errors import InputError
from potstill.systems import AutoDistiller, task_features


def truth(features, pipeline):
    """Small tasks want augmentation, large ones none; mi_alpha is better than mse; alpha matters a little."""
    small = features["size"] < 1000
    return (
        0.8
        + 0.06 * (pipeline["loss"] == "mi_alpha")
        + 0.05 * (pipeline["augment"] == small)
        + 0.02 * pipeline.get("alpha", 0)
    )


PIPELINES = [
    {"loss": loss, "augment": augment, **({"alpha": alpha} if loss == "mi_alpha" else {})}
    for loss in ("mse", "mi_alpha")
    for augment in (False, True)
    for alpha in ((0.1, 0.9) if loss == "mi_alpha" else (None,))
]


def runs(tasks=8, seeds=2):
    draws = np.random.default_rng(0)
    made = []
    for t in range(tasks):
        features = {"size": [200, 500, 5000, 20000][t % 4] + t, "labels": 2 + t % 2, "language": ["en", "de"][t % 2]}
        made += [
            {
                "task": f"task{t}",
                "features": features,
                "pipeline": pipeline,
                "ratio": truth(features, pipeline) + 0.002 * draws.standard_normal(),
            }
            for pipeline in PIPELINES
            for _ in range(seeds)
        ]
    return made


@pytest.fixture(scope="module")
def fitted():
    return AutoDistiller(trees=60).fit(runs())


@pytest.mark.parametrize(("size", "augment"), [(300, True), (10_000, False)])
def test_the_pipeline_that_suits_the_task_is_recommended_first(fitted, size, augment):
    found = fitted.recommend({"size": size, "labels": 2, "language": "en"}, n=3)
    assert found[0].pipeline == {"loss": "mi_alpha", "augment": augment, "alpha": 0.9}
    assert [one.ratio for one in found] == sorted((one.ratio for one in found), reverse=True)
    assert found[0].ratio == pytest.approx(0.928, abs=0.01)


def test_as_many_as_asked_for_and_no_more_than_there_are(fitted):
    task = {"size": 300, "labels": 2, "language": "en"}
    assert len(fitted.recommend(task)) == 5
    assert len(fitted.recommend(task, n=2)) == 2
    assert len(fitted.recommend(task, n=50)) == len(PIPELINES)


def test_only_pipelines_that_are_offered_are_recommended(fitted):
    offered = [{"loss": "mse", "augment": False}, {"loss": "mse", "augment": True}]
    found = fitted.recommend({"size": 300}, pipelines=offered)
    assert [one.pipeline for one in found] == offered[::-1]


def test_features_that_are_left_out_and_words_never_seen_are_missing_values(fitted):
    known = fitted.predict({"size": 300, "labels": 2, "language": "en"}, PIPELINES)
    unknown = fitted.predict({"size": 300, "language": "fr"}, PIPELINES)
    assert np.allclose(known, unknown, atol=0.02)


def test_scores_of_student_and_teacher_are_a_ratio():
    with_scores = [
        {**{k: v for k, v in run.items() if k != "ratio"}, "student_score": 90 * run["ratio"], "teacher_score": 90}
        for run in runs()
    ]
    task = {"size": 300, "labels": 2, "language": "en"}
    a, b = AutoDistiller(trees=20).fit(runs()), AutoDistiller(trees=20).fit(with_scores)
    assert np.allclose(a.predict(task, PIPELINES), b.predict(task, PIPELINES))


def test_the_same_runs_give_the_same_recommendations_in_any_order():
    task = {"size": 300, "labels": 2, "language": "en"}
    first = AutoDistiller(trees=20).fit(runs()).recommend(task)
    again = AutoDistiller(trees=20).fit(runs()[::-1]).recommend(task)
    assert [one.pipeline for one in first] == [one.pipeline for one in again]


def test_a_task_left_out_is_judged_by_what_was_run_on_it():
    found = AutoDistiller(trees=60).leave_one_task_out(runs(), n=2)
    assert [row["task"] for row in found["tasks"]] == [f"task{t}" for t in range(8)]
    assert all(row["pipelines"] == 6 and row["blind_hit"] == pytest.approx(1 / 3) for row in found["tasks"])
    assert found["hit"] == 1
    assert found["regret"] == 0
    # Without the features small and large tasks cannot both be served.
    one = AutoDistiller(trees=60).leave_one_task_out(runs(), n=1)
    assert one["hit"] > one["average_hit"]
    assert one["regret"] < one["average_regret"]


def test_what_the_left_out_task_says_is_not_used():
    spoilt = [
        {**run, "ratio": 0.1} if run["task"] == "task0" and run["pipeline"]["loss"] == "mi_alpha" else run
        for run in runs()
    ]
    row = AutoDistiller(trees=60).leave_one_task_out(spoilt)["tasks"][0]
    assert not row["hit"]
    assert row["regret"] > 0.5


def test_incomplete_runs_are_refused_with_their_number():
    good = runs()
    for change, where in (
        ({"task": None}, r"runs\[1\].task"),
        ({"pipeline": {}}, r"runs\[1\].pipeline"),
        ({"pipeline": {"loss": ["a", "list"]}}, r"runs\[1\].pipeline.loss"),
        ({"features": [1]}, r"runs\[1\].features"),
        ({"ratio": None}, r"runs\[1\]: has no ratio"),
        ({"ratio": float("nan")}, r"runs\[1\].ratio"),
        ({"ratio": None, "student_score": 1.0, "teacher_score": 0.0}, r"runs\[1\].teacher_score"),
    ):
        with pytest.raises(InputError, match=where):
            AutoDistiller().fit([good[0], {**good[1], **change}, *good[2:]])
    with pytest.raises(InputError, match="do not differ"):
        AutoDistiller().fit([good[0], good[0]])
    with pytest.raises(InputError, match="at least 2; got 1"):
        AutoDistiller().fit(good[:1])
    with pytest.raises(InputError, match="at least 2 tasks"):
        AutoDistiller().leave_one_task_out(good[:4])


def test_questions_that_cannot_be_answered_are_refused(fitted):
    with pytest.raises(InputError, match="nothing was learned yet"):
        AutoDistiller().recommend({"size": 3})
    with pytest.raises(InputError, match=r"task_features.sise.*size"):
        fitted.recommend({"sise": 3})
    with pytest.raises(InputError, match=r"pipeline.los.*loss"):
        fitted.recommend({"size": 3}, pipelines=[{"los": "mse"}])
    with pytest.raises(InputError, match="at least 1; got 0"):
        fitted.recommend({"size": 3}, n=0)


def test_without_scikit_learn_the_extra_is_named():
    code = (
        "import sys; sys.modules['sklearn'] = None; sys.modules['sklearn.ensemble'] = None\n"
        "from potstill.errors import InputError\nfrom potstill.systems import AutoDistiller\n"
        "try:\n    AutoDistiller()\nexcept InputError as error:\n    assert 'potstill[recommend]' in str(error)\n"
        "else:\n    raise SystemExit('no error')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_the_package_imports_neither_torch_nor_scikit_learn():
    code = "import sys, potstill.systems; sys.exit('torch' in sys.modules or 'sklearn' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_data_set_is_described_by_its_size_classes_and_embeddings():
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(400, 30, generator=draws)
    found = task_features(x, torch.arange(400) % 3)
    assert len(found) == 102
    assert (found["size"], found["labels"]) == (400, 3)
    assert task_features(x, 7, size=9000)["size"] == 9000
    assert task_features(x, 7)["labels"] == 7
    assert task_features(x.numpy(), 7) == task_features(x, 7)
    # Twice as far out: means and deviations double, and a shift moves the means alone.
    double, moved = task_features(2 * x, 3), task_features(x + 1, 3)
    assert double["mean_3"] == pytest.approx(2 * found["mean_3"], rel=1e-4)
    assert double["std_3"] == pytest.approx(2 * found["std_3"], rel=1e-4)
    assert moved["std_3"] == pytest.approx(found["std_3"], rel=1e-4)
    assert moved["mean_3"] != pytest.approx(found["mean_3"], abs=1e-2)


def test_embeddings_that_are_no_finite_table_are_refused():
    for bad in (torch.zeros(3), torch.zeros(0, 4), torch.full((2, 2), torch.nan)):
        with pytest.raises(InputError, match="no finite table"):
            task_features(bad, 2)
