"""AutoDistiller: learns from past runs which distillation pipeline suits a task."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from potstill.errors import InputError, suggest

FEATURES = 50
"""How many means, and how many standard deviations, describe the embeddings of a data set."""


@dataclass(frozen=True)
class Recommendation:
    """A pipeline and what is expected of it.

    Attributes:
        pipeline: Its choices, as in the runs.
        ratio: Predicted score of the student over that of the teacher.
    """

    pipeline: Mapping[str, Any]
    ratio: float


class AutoDistiller:
    """Predicts what share of its teacher's score a student keeps, and recommends the pipelines that keep most.

    Gradient-boosted trees over the choices of a pipeline and the features of a task. Worth it with a few hundred runs
    over several tasks; with fewer, or for a task unlike all of them, take the pipeline that is best on average. Say how
    good it is by ``leave_one_task_out`` before trusting it.

    A run is a mapping::

        {"task": "sst2",                                     # a name: groups runs, is no feature
         "features": {"size": 67349, "labels": 2},           # of the task, see task_features
         "pipeline": {"loss": "mi_alpha", "alpha": 0.9, ...},  # numbers, words, true or false
         "ratio": 0.97}                                      # or "student_score" and "teacher_score"

    Choices that a run does not name are missing values, not mistakes.

    Args:
        trees: Number of trees.
        seed: Seed of the regressor.

    Raises:
        InputError: scikit-learn is not installed.

    Source:
        He et al., "Distiller", arXiv 2109.11105, section 5. Their regressor is an ensemble made by an AutoML tool; here
        it is scikit-learn's ``HistGradientBoostingRegressor``.
    """

    def __init__(self, *, trees: int = 200, seed: int = 0):
        _regressor_class()
        self.trees, self.seed = trees, seed
        self._table: _Table | None = None
        self._pipelines: list[dict[str, Any]] = []

    def fit(self, runs: Sequence[Mapping[str, Any]]) -> AutoDistiller:
        """Learn from past runs; returns self.

        Raises:
            InputError: fewer than two runs, or one that is incomplete, with its number.
        """
        rows = [_checked(run, i) for i, run in enumerate(runs)]
        if len(rows) < 2:
            raise InputError("too few runs to learn from", where="runs", expected="at least 2", got=len(rows))
        self._table = _Table([row.inputs for row in rows])
        self._model = _regressor_class()(
            max_iter=self.trees,
            # Its own 20 would leave a table of forty rows without a single split.
            min_samples_leaf=max(1, min(20, len(rows) // 20)),
            early_stopping=False,
            random_state=self.seed,
        )
        self._model.fit(self._table.encode([row.inputs for row in rows]), np.array([row.ratio for row in rows]))
        self._pipelines = _distinct([row.pipeline for row in rows])
        self._features = {key for row in rows for key in row.features}
        return self

    def predict(self, task_features: Mapping[str, Any], pipelines: Sequence[Mapping[str, Any]]) -> list[float]:
        """Return the expected ratio of each pipeline on a task.

        Raises:
            InputError: ``fit`` was not called, or a feature or choice that no run had.
        """
        if self._table is None:
            raise InputError("nothing was learned yet", where="AutoDistiller", hint="Call fit(runs) first.")
        for key in task_features:
            if key not in self._features:
                raise InputError(
                    "no run has this feature", where=f"task_features.{key}", hint=suggest(str(key), self._features)
                )
        known = {key for pipeline in self._pipelines for key in pipeline}
        for pipeline in pipelines:
            for key in pipeline:
                if key not in known:
                    raise InputError("no run has this choice", where=f"pipeline.{key}", hint=suggest(str(key), known))
        rows = [_inputs(task_features, pipeline) for pipeline in pipelines]
        return self._model.predict(self._table.encode(rows)).tolist() if rows else []

    def recommend(
        self,
        task_features: Mapping[str, Any],
        n: int = 5,
        *,
        pipelines: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[Recommendation]:
        """Return the n pipelines that promise most, best first.

        Args:
            task_features: Features of the new task, by the names that the runs have; missing ones may be left out.
            n: How many.
            pipelines: What to choose among; None = all that occur in the runs.

        Raises:
            InputError: ``fit`` was not called; n below 1; a feature or choice that no run had.
        """
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise InputError("no number of pipelines", where="n", expected="at least 1", got=n)
        choices = self._pipelines if pipelines is None else [dict(pipeline) for pipeline in pipelines]
        found = [Recommendation(p, r) for p, r in zip(choices, self.predict(task_features, choices))]
        # Equal predictions are common, trees being steps: the order must not hang on the order of the runs.
        return sorted(found, key=lambda one: (-one.ratio, _identity(one.pipeline)))[:n]

    def leave_one_task_out(self, runs: Sequence[Mapping[str, Any]], n: int = 1) -> dict[str, Any]:
        """Ask, for every task, a distiller that has not seen it, and look how good its choice was there.

        Only pipelines that were run on the task can be chosen. Beside it stand what anyone could do without the
        task's features: the pipelines that are best on average over the other tasks, and a blind choice.

        Args:
            runs: As for ``fit``; at least two tasks.
            n: How many pipelines are tried.

        Returns:
            ``tasks``: for each its name, how many pipelines there were, whether the best was among the n (``hit``),
            and what was lost against the best (``regret``, in ratio); for the average choice ``average_hit`` and
            ``average_regret``, for a blind one ``blind_hit``. Their means stand beside ``tasks``.
        """
        rows = [_checked(run, i) for i, run in enumerate(runs)]
        names = sorted({row.task for row in rows})
        if len(names) < 2:
            raise InputError("a task cannot be left out", where="runs", expected="at least 2 tasks", got=len(names))
        found = []
        for name in names:
            seen = [run for run, row in zip(runs, rows) if row.task != name]
            here = [row for row in rows if row.task == name]
            scores = _means(here)
            choices = [row.pipeline for row in here if _identity(row.pipeline) in scores]
            choices = _distinct(choices)
            known = {key for run in seen for key in run["pipeline"]}
            askable = [{k: v for k, v in p.items() if k in known} for p in choices]
            features = {k: v for k, v in here[0].features.items() if any(k in run["features"] for run in seen)}
            distiller = AutoDistiller(trees=self.trees, seed=self.seed).fit(seen)
            ratios = distiller.predict(features, askable)
            elsewhere = _means([row for row in rows if row.task != name])
            overall = sum(elsewhere.values()) / len(elsewhere)
            average = [elsewhere.get(_identity(p), overall) for p in choices]
            best = max(scores.values())
            row = {"task": name, "pipelines": len(choices), "blind_hit": min(1.0, n / len(choices))}
            for prefix, expected in (("", ratios), ("average_", average)):
                order = sorted(range(len(choices)), key=lambda i: (-expected[i], _identity(choices[i])))[:n]
                chosen = max(scores[_identity(choices[i])] for i in order)
                row |= {f"{prefix}hit": chosen == best, f"{prefix}regret": best - chosen}
            found.append(row)
        keys = ("hit", "regret", "average_hit", "average_regret", "blind_hit")
        return {"n": n, "tasks": found, **{key: sum(float(row[key]) for row in found) / len(found) for key in keys}}


def task_features(embeddings: Any, labels: Sequence[int] | int, *, size: int | None = None) -> dict[str, float]:
    """Describe a data set by its size, its number of classes and its embeddings, in 102 numbers.

    The embeddings are brought to 50 dimensions by a random projection that is always the same for a width, and each of
    the 50 gives a mean and a standard deviation. All runs have to be described with embeddings of one model.

    Args:
        embeddings: ``(N, D)``, a tensor or an array; a sample of the data set will do.
        labels: Its labels, or the number of classes.
        size: Number of samples of the data set; None = N.

    Returns:
        ``size``, ``labels``, ``mean_0`` to ``mean_49`` and ``std_0`` to ``std_49``.

    Raises:
        InputError: embeddings that are no finite ``(N, D)`` with N above 0.

    Source:
        arXiv 2109.11105, section 5, has 50 + 50 embedding statistics; which, it does not say. The projection is ours.
    """
    x = np.asarray(embeddings.detach().cpu().double() if hasattr(embeddings, "detach") else embeddings, dtype=float)
    if x.ndim != 2 or not x.size or not np.isfinite(x).all():
        raise InputError("no finite table of embeddings", where="embeddings", expected="(N, D)", got=x.shape)
    projection = np.random.default_rng(x.shape[1]).standard_normal((x.shape[1], FEATURES)) / math.sqrt(x.shape[1])
    x = x @ projection
    classes = labels if isinstance(labels, int) else len({int(label) for label in labels})
    return {
        "size": float(len(x) if size is None else size),
        "labels": float(classes),
        **{f"mean_{i}": float(v) for i, v in enumerate(x.mean(0))},
        **{f"std_{i}": float(v) for i, v in enumerate(x.std(0))},
    }


@dataclass(frozen=True)
class _Row:
    """A run whose fields have been checked."""

    task: str
    features: dict[str, Any]
    pipeline: dict[str, Any]
    ratio: float

    @property
    def inputs(self) -> dict[str, Any]:
        return _inputs(self.features, self.pipeline)


class _Table:
    """Turns rows of named values into columns of numbers.

    A field has one column for its number, one for each of its words, and one that says whether it was given. What does
    not vary is left out: it explains nothing, and scikit-learn (1.9) cannot bin a column of one value.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]]):
        self.names = sorted({name for row in rows for name in row})
        self.words = {n: sorted({r[n] for r in rows if isinstance(r.get(n), str)}) for n in self.names}
        self.varies: np.ndarray | None = None
        encoded = self.encode(rows)
        self.varies = np.array([len(np.unique(column[~np.isnan(column)])) > 1 for column in encoded.T])
        if not self.varies.any():
            raise InputError("the runs do not differ in anything", where="runs")

    def encode(self, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
        table = np.array([self._encode(row) for row in rows], dtype=float)
        return table if self.varies is None else table[:, self.varies]

    def _encode(self, row: Mapping[str, Any]) -> list[float]:
        encoded: list[float] = []
        for name in self.names:
            value = row.get(name)
            is_word = isinstance(value, str)
            encoded += [math.nan if value is None or is_word else float(value), float(value is not None)]
            encoded += [float(is_word and value == word) for word in self.words[name]]
        return encoded


def _checked(run: Mapping[str, Any], number: int) -> _Row:
    where = f"runs[{number}]"
    if not isinstance(run, Mapping):
        raise InputError("is no run", where=where, expected="a mapping", got=type(run).__name__)
    for key, kind in (("task", str), ("features", Mapping), ("pipeline", Mapping)):
        if not isinstance(run.get(key), kind):
            raise InputError("is missing or of another kind", where=f"{where}.{key}", expected=kind.__name__)
    for part in ("features", "pipeline"):
        for key, value in run[part].items():
            if not (value is None or isinstance(value, str | bool | int | float)):
                raise InputError(
                    "is no plain value", where=f"{where}.{part}.{key}", expected="a number, a word, true or false"
                )
    if not run["pipeline"]:
        raise InputError("names no choice", where=f"{where}.pipeline")
    ratio = run.get("ratio")
    if ratio is None:
        scores = [run.get(key) for key in ("student_score", "teacher_score")]
        if any(not isinstance(score, int | float) for score in scores):
            raise InputError("has no ratio", where=where, expected='"ratio", or "student_score" and "teacher_score"')
        if not scores[1] > 0:
            raise InputError("must be above 0", where=f"{where}.teacher_score", got=scores[1])
        ratio = scores[0] / scores[1]
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not math.isfinite(ratio):
        raise InputError("is no finite number", where=f"{where}.ratio", got=ratio)
    return _Row(run["task"], dict(run["features"]), dict(run["pipeline"]), float(ratio))


def _inputs(features: Mapping[str, Any], pipeline: Mapping[str, Any]) -> dict[str, Any]:
    return {**{f"task.{k}": v for k, v in features.items()}, **{f"pipeline.{k}": v for k, v in pipeline.items()}}


def _identity(pipeline: Mapping[str, Any]) -> str:
    return json.dumps({k: v for k, v in pipeline.items() if v is not None}, sort_keys=True)


def _distinct(pipelines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return list({_identity(pipeline): pipeline for pipeline in pipelines}.values())


def _means(rows: Sequence[_Row]) -> dict[str, float]:
    """Return the mean ratio of every pipeline over its runs (seeds)."""
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(_identity(row.pipeline), []).append(row.ratio)
    return {name: sum(ratios) / len(ratios) for name, ratios in found.items()}


def _regressor_class() -> Any:
    try:
        from sklearn.ensemble import HistGradientBoostingRegressor
    except ImportError as error:
        raise InputError(
            "needs scikit-learn, which is not installed",
            where="AutoDistiller",
            hint='pip install "potstill[recommend]"',
        ) from error
    return HistGradientBoostingRegressor
