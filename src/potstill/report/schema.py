"""What the JSON files of a run folder hold, as far as the report reads them.

Unknown keys are kept and ignored, so a run written by a newer Potstill of the same file version still opens. A key that
is there with the wrong type is damage: the loader turns pydantic's complaint into an ``IntegrityError``.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Record(BaseModel):
    model_config = ConfigDict(extra="allow", populate_by_name=True, protected_namespaces=())


class ModelInfo(_Record):
    """A model as the plan names it: where it comes from, its class, its parameters."""

    model: str | None = None
    class_name: str | None = Field(None, alias="class")
    parameters: float | None = None


class LayerPair(_Record):
    """One student layer and the teacher layer it is matched with; shapes as probed on one batch."""

    student: str
    teacher: str
    student_shape: list[int] | None = None
    teacher_shape: list[int] | None = None
    projector: bool = False


class ModulePlan(_Record):
    """A module and its layer map."""

    name: str
    pairs: list[LayerPair] = []


class ObjectivePlan(_Record):
    """One term of the loss."""

    name: str
    loss: str | None = None
    role: str | None = None
    weight: float | None = None
    module: str | None = None
    on: str | None = None


class PartPlan(_Record):
    """A trainable helper of an objective, dropped at export."""

    name: str
    parameters: float | None = None


class PolicyPlan(_Record):
    """The policy by name and its arms."""

    name: str | None = None
    arms: list[str] = []


class Plan(_Record):
    """``plan.json``."""

    version: Literal[1] = 1
    name: str | None = None
    steps: int | None = None
    teacher: ModelInfo | None = None
    student: ModelInfo | None = None
    modules: list[ModulePlan] = []
    objectives: list[ObjectivePlan] = []
    parts: list[PartPlan] = []
    policy: PolicyPlan | None = None


class TaskScore(_Record):
    """Scores of one model on one task; any other number a task reports is kept as an extra."""

    accuracy: float | None = None
    objects: float | None = None
    exact: float | None = None
    stderr: float | None = None
    samples: float | None = None
    kinds: dict[str, float | None] | None = None


class CkaPair(_Record):
    """Linear CKA between a student layer and its teacher layer, 0 to 1."""

    module: str
    student: str
    teacher: str
    cka: float | None = None


class Cost(_Record):
    """Size in parameters and bytes, work in FLOPs and milliseconds per sample, peak memory in bytes."""

    parameters: float | None = None
    bytes: float | None = None
    flops_per_sample: float | None = None
    ms_per_sample: float | None = None
    peak_memory_bytes: float | None = None


class SplitMetrics(_Record):
    """What was measured of one model on a further split."""

    tasks: dict[str, TaskScore] = {}
    fidelity: dict[str, dict[str, Any]] | None = None


class ModelMetrics(_Record):
    """Everything measured on one model."""

    role: Literal["teacher", "student"]
    class_name: str | None = Field(None, alias="class")
    tasks: dict[str, TaskScore] = {}
    fidelity: dict[str, dict[str, Any]] | None = None
    cka: list[CkaPair] | None = None
    cost: Cost | None = None
    splits: dict[str, SplitMetrics] = {}


class Metrics(_Record):
    """``metrics.json``."""

    version: Literal[1] = 1
    models: dict[str, ModelMetrics]


class Sample(_Record):
    """One entry of ``samples.json``. Pictures stay strings here; the page decides which it trusts."""

    task: str
    images: list[str] = []
    text: str | None = None
    truth: str
    answers: dict[str, str] = {}


class MapRow(_Record):
    """A map of the teacher beside the student's; numbers of the heads, or None for the mean over all of them.

    Values are in thousandths: of a map over pictures one list of cells a picture, of words one list of keys a query, of
    a bar one list.
    """

    query: str | None = None
    cell: int | None = None
    teacher_head: int | None = None
    student_head: int | None = None
    teacher: list[list[float]] | list[float]
    student: list[list[float]] | list[float]


class ShownMaps(_Record):
    """The maps of one pair for one sample."""

    pair: int
    kind: Literal["picture", "words", "bars"]
    grid: tuple[int, int] | None = None
    queries: list[str] = []
    keys: list[str] = []
    rows: list[MapRow] = []


class AttentionSample(_Record):
    """A sample whose maps are shown."""

    task: str | None = None
    images: list[str] = []
    maps: list[ShownMaps] = []


class AttentionPair(_Record):
    """A compared pair of maps: how alike heads are, a row for each head of the teacher."""

    name: str = ""
    student: str
    teacher: str
    queries: str | None = None
    keys: str | None = None
    similarity: list[list[float | None]] = []


class AttentionDistance(_Record):
    """How far the heads of a layer look."""

    module: str
    student: str
    teacher: str
    unit: str | None = None
    student_heads: list[float | None] = []
    teacher_heads: list[float | None] = []


class Attention(_Record):
    """``attention.json``."""

    version: Literal[1] = 1
    samples: int = 0
    notes: list[str] = []
    pairs: list[AttentionPair] = []
    distance: list[AttentionDistance] = []
    shown: list[AttentionSample] = []
