"""Everything that ``metrics.json`` says about one model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from potstill.evaluate.batches import choose_indices, device_of, iterate
from potstill.evaluate.cost import cost
from potstill.evaluate.fidelity import cka_table, fidelity
from potstill.evaluate.metrics import ObjectsOf
from potstill.evaluate.tasks import evaluate_tasks

COST_ROWS = 32
CKA_SAMPLES = 256


def measure(
    model: nn.Module,
    *,
    dataset: Any,
    collator: Callable[[list[Any]], Mapping[str, Any]],
    teacher: nn.Module | None = None,
    tasks: Sequence[str] | None = None,
    batch_size: int = 128,
    max_samples: int | None = None,
    pairs: Sequence[tuple[str, str, str]] | None = None,
    retrieval: bool = False,
    role: str | None = None,
    objects_of: ObjectsOf | None = None,
    inputs: Iterable[str] | None = None,
) -> dict[str, Any]:
    """Return the entry of one model for ``metrics.json``.

    Args:
        model: The model to measure, where it is.
        dataset: Map-style.
        collator: Samples to a batch.
        teacher: The model to be like; None = no fidelity and no CKA.
        tasks: As in ``evaluate_tasks``.
        batch_size: Samples per forward pass.
        max_samples: As in ``evaluate_tasks``; CKA uses at most 256 of them, cost a batch of 32.
        pairs: (module name, tap in the student, tap in the teacher) for CKA.
        retrieval: Also measure retrieval.
        role: "teacher" or "student"; None = "student" if there is a teacher to compare with.
        objects_of: As in ``evaluate_tasks``.
        inputs: Batch keys that model and teacher take; None = those the ``forward`` of each names.

    Returns:
        ``{"role", "class", "tasks", "fidelity", "cka", "cost"}``; ``fidelity`` and ``cka`` are None without a teacher,
        without an output in common, and without pairs.
    """
    inputs = None if inputs is None else list(inputs)
    shared = {"batch_size": batch_size, "max_samples": max_samples, "inputs": inputs}
    entry: dict[str, Any] = {
        "role": role or ("student" if teacher is not None else "teacher"),
        "class": type(model).__name__,
        "tasks": evaluate_tasks(
            model, dataset, collator, tasks=tasks, retrieval=retrieval, objects_of=objects_of, **shared
        ),
        "fidelity": None,
        "cka": None,
    }
    # The same rows of the same dataset for every model, so that costs and CKA can be compared.
    indices = choose_indices(dataset, max_samples)
    if teacher is not None:
        entry["fidelity"] = fidelity(model, teacher, dataset, collator, tasks=tasks, **shared) or None
        if pairs:
            some = choose_indices(dataset, min(CKA_SAMPLES, len(indices)))
            batches = (b for _, b in iterate(dataset, collator, some, batch_size=min(batch_size, COST_ROWS)))
            entry["cka"] = cka_table(model, teacher, pairs, batches, inputs=inputs)
    few = choose_indices(dataset, min(COST_ROWS, len(indices)))
    _, batch = next(iterate(dataset, collator, few, batch_size=COST_ROWS, device=device_of(model)))
    entry["cost"] = cost(model, batch, inputs=inputs)
    return entry
