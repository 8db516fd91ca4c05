"""Fair tuning: every method gets the same number of trials, judged on the split "validation"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.errors import InputError
from potstill.recipe import Recipe
from potstill.recipe.load import validate
from potstill.systems.compare.collect import mean_score
from potstill.systems.compare.folder import write_recipe
from potstill.systems.compare.runner import Job, Tell, run_jobs
from potstill.systems.compare.spaces import Range, space_of, with_choice
from potstill.train.checkpoint import read_json, write_json

SPLIT = "validation"
_RANDOM = 5  # trials before the sampler begins to learn from those that are done


@dataclass
class Study:
    """The trials of one method on one recipe with one budget.

    Attributes:
        name: What messages call it.
        folder: ``trials.json``, and a run folder for every trial.
        recipe: With its budget; what a trial chooses is changed in it.
    """

    name: str
    folder: Path
    recipe: Recipe

    @property
    def trials(self) -> list[dict[str, Any]]:
        """The finished trials: ``choice``, and ``score`` (None = it failed)."""
        path = self.folder / "trials.json"
        return read_json(path, hint="Delete the file: trials that are there are read again.") if path.exists() else []

    def job(self, number: int, choice: dict[str, float]) -> Job:
        """Write down the recipe of a trial, and return its job: seed 0, measured on the validation split alone."""
        data = with_choice(self.recipe, choice).model_dump()
        data["seed"] = 0
        data["evaluate"] |= {"split": SPLIT, "splits": [], "shown": 0, "attention": False}
        path = self.folder / f"trial-{number}.yaml"
        write_recipe(path, validate(data))
        return Job(f"{self.name}, trial {number}", path, self.folder / f"trial-{number}")

    def best(self) -> dict[str, Any] | None:
        """Return the best trial, the earlier of equal ones; None if all failed."""
        done = [trial for trial in self.trials if trial["score"] is not None]
        return max(done, key=lambda trial: trial["score"], default=None)


def tune(studies: Sequence[Study], trials: int, parallel: int, tell: Tell) -> dict[str, str]:
    """Bring every study to its number of trials; the k-th of all studies run side by side.

    The first trial is the recipe as it is. What a trial chooses depends on those before it and its number alone, so a
    comparison that was killed chooses what it would have chosen.

    Returns:
        Why trials failed, by their names.
    """
    optuna = load_optuna()
    failures: dict[str, str] = {}
    for number in range(trials):
        jobs, choices = {}, {}
        for study in studies:
            if len(study.trials) <= number:
                choices[study.name] = choose(optuna, space_of(study.recipe), study.trials)
                jobs[study.name] = study.job(number, choices[study.name])
        failures |= run_jobs(list(jobs.values()), parallel, tell)
        for study in studies:
            if study.name in jobs:
                job = jobs[study.name]
                score = None
                if job.is_done:
                    metrics = read_json(job.out / "metrics.json")
                    score = mean_score(metrics["models"]["student"]["tasks"])
                row = {"choice": choices[study.name], "score": score}
                write_json(study.folder / "trials.json", [*study.trials, row])
    return failures


def choose(optuna: Any, space: dict[str, Range], done: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return what the next trial is made with: first the recipe's own values, then what the sampler proposes."""
    if not done:
        return {name: one.start for name, one in space.items()}
    distributions = {
        name: optuna.distributions.FloatDistribution(one.low, one.high, log=True) for name, one in space.items()
    }
    sampler = optuna.samplers.TPESampler(seed=len(done), n_startup_trials=_RANDOM)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for row in done:
        is_failed = row["score"] is None
        study.add_trial(
            optuna.trial.create_trial(
                params=row["choice"],
                distributions=distributions,
                value=None if is_failed else row["score"],
                state=optuna.trial.TrialState.FAIL if is_failed else optuna.trial.TrialState.COMPLETE,
            )
        )
    return study.ask(distributions).params


def load_optuna() -> Any:
    """Return the module, quiet.

    Raises:
        InputError: It is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise InputError(
            "needs optuna, which is not installed", where="--trials", hint='pip install "potstill[tune]"'
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
