"""The schema of a recipe: strict, every field explained, every error placed.

A section that names something registered (``policy``, ``objectives[i]``, ``data``, ``student``) takes that thing's own
options beside the name; they are checked against its signature when the recipe is resolved (``options.py``).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from potstill.errors import RecipeError
from potstill.recipe.check import check

TEACHER = "teacher"
STUDENT = "student"
GIVEN = "given in Python"
"""What a recipe names as model or data source that was passed as an object."""


class Section(BaseModel):
    """A mapping of the recipe whose unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


class OpenSection(Section):
    """A section that also takes the options of what it names."""

    model_config = ConfigDict(extra="allow", strict=True, protected_namespaces=())

    @property
    def options(self) -> dict[str, Any]:
        """The options given beside the declared fields."""
        return dict(self.model_extra or {})


class TeacherSection(Section):
    """Which model teaches."""

    model: str = Field(
        description='Packaged name, folder, or hub name; "student" = a frozen copy of the student as the stage begins.'
    )
    revision: str | None = Field(None, description="Hub revision.")
    sha256: str | None = Field(None, description="Expected hash of the weights file; refused if it differs.")
    dtype: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="Precision the teacher runs in.")
    allow_pickle: bool = Field(False, description="Load weights that are pickles. They can run code: trust the source.")
    allow_remote_code: bool = Field(False, description="Run Python code that comes with a hub model.")
    cache: str | None = Field(
        None, description='Folder of its cache ("potstill cache build"), read in its place; null = the model is run.'
    )
    cache_mode: Literal["tail", "renormalised", "sampled"] = Field(
        "tail", description="How losses read a distribution of which some classes are kept."
    )


class StudentSection(OpenSection):
    """How the student is made: a builder and its options."""

    builder: str = Field("depth", description="depth, width, config, pretrained or new.")


class DataSection(OpenSection):
    """What is trained on: a source and its options."""

    source: str = Field(
        "scenes", description="scenes, emoji, digits or texts (embedded), or files (a table of your own)."
    )


class ModuleSection(Section):
    """A module by path, where the model's family is unknown or its default is not wanted."""

    student: str | None = Field(
        None, description="A list of blocks, a layer or a pattern in the student; null = as its family says."
    )
    teacher: str | None = Field(None, description="The same in the teacher.")
    map: list[list[int]] | None = Field(None, description="[student layer, teacher layer] by index; null = evenly.")
    mask: str | None = Field(
        "auto", description='Batch key of the mask of its tokens; "auto" = as the family says, null = all count.'
    )


class ObjectiveSection(OpenSection):
    """One term of the loss, with the options of its loss."""

    loss: str = Field(
        description='A loss or objective by name: kd_kl, hidden, "cross_entropy", "model_loss", "readout", ...'
    )
    name: str | None = Field(None, description="Its name in logs; null = made from the output or module.")
    weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] | Literal["auto", "gradmag"] = Field(
        1.0,
        description="Its factor in the loss; auto = what makes it as large as the terms it is measured against, "
        "measured over 50 steps, then frozen; gradmag = what makes all such terms pull equally hard at the student's "
        "last layer, measured at every step.",
    )
    against: list[str] | None = Field(
        None, description="For weight: auto: names of those terms; null = all that compare outputs with the teacher."
    )
    on: str | None = Field(
        None, description="Output of the student, dotted: logits, task_logits.vqa; or a tap: text_decoder.cls@output."
    )
    teacher_on: str | None = Field(None, description="Output or tap of the teacher, if it has another name.")
    teacher: str | None = Field(None, description="Which of several teachers; null = the recipe's teacher.")
    teachers: list[str] | None = Field(
        None, min_length=1, description="Several teachers by name, for an objective that reads them together."
    )
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None, description="Learning rate of its trainable part; null = train.part_learning_rate."
    )
    labels: str | None = Field(None, description="Batch key of labels; positions with -100 do not count.")
    mask: str | None = Field(None, description="Batch key of a mask; zeros do not count.")
    shift: bool = Field(False, description="Compare position t with label t+1 (causal models).")
    modules: list[str] | Literal["all"] | None = Field(
        None, description='For "hidden" and attention maps: which modules.'
    )
    projector: str = Field("auto", description='For "hidden": auto, linear, mlp or none.')
    attention: list[Literal["self", "cross"]] | None = Field(
        None, description="For attention maps: which attention of a layer; null = what it has."
    )
    layers: int = Field(1, ge=1, le=4096, description="For attention maps: how many layers of a module, from the last.")
    pairs: list[list[str]] | None = Field(
        None, description='For attention maps, in place of modules: [student layer, teacher layer, "self" or "cross"].'
    )
    resize: dict[str, list[int]] | None = Field(
        None, description="For attention maps: {from: [h, w], to: [h, w]}, the teacher's patch grid and the student's."
    )
    tap: str | None = Field(None, description='For "readout" and "supervised_attention": the tapped module.')


class SelectionSection(OpenSection):
    """Which samples of the training set the next epoch is made of, with the options of the policy."""

    name: str = Field(description="A selection policy by name.")


class RolloutSection(Section):
    """Text that the student writes while it trains, in place of a share of the data's completions."""

    lmbda: float = Field(0.5, ge=0, le=1, description="Share of batches (or rows) the student writes.")
    per: Literal["batch", "row"] = Field("batch", description="What is drawn for: whole batches, or single rows.")
    max_new_tokens: int = Field(128, ge=1, le=1_000_000, description="Longest text that is written, in tokens.")
    temperature: float = Field(1.0, gt=0, allow_inf_nan=False, description="Of what is drawn from.")
    top_k: int = Field(0, ge=0, description="0 = all.")
    top_p: float = Field(1.0, gt=0, le=1, description="Share of the probability drawn from, the likeliest first.")
    alpha: float = Field(0.0, ge=0, le=1, description="Share of the teacher in what is drawn from (MiniLLM: 0.2).")
    buffer: int = Field(0, ge=0, description="Rows that are kept to be used again, on each process.")
    reuse: float = Field(0.0, ge=0, le=1, description="Chance that rows come from the buffer once it has enough.")
    corrections: int = Field(0, ge=0, le=100, description="Worst tokens of each text that the teacher replaces (SCRG).")


class PolicySection(OpenSection):
    """Which module plays in each round, with the options of the policy."""

    name: str = Field("optima", description="optima, uniform, round_robin, fixed, all, greedy or thompson.")
    arms: Literal["modules", "all_subsets"] | list[list[str]] = Field("modules", description="What can be played.")
    round_steps: int = Field(20, ge=1, description="Optimiser steps per round (P).")
    probe_batches: int = Field(4, ge=1, description="Batches in the probe set.")
    reward: Literal["reference", "per_term", "prediction"] = "reference"
    reward_mode: Literal["relative", "absolute"] = "relative"
    reward_clip: float | None = Field(1.0, gt=0)
    equal_hidden_weight: bool = Field(False, description="Give every arm the same total hidden weight.")


class TrainSection(Section):
    """Steps, batches, optimiser, precision, checkpoints."""

    steps: int = Field(600, ge=1, le=100_000_000)
    batch_size: int = Field(64, ge=1, le=1_000_000, description="Rows per micro-batch and process.")
    accumulation: int = Field(1, ge=1, le=1_000_000)
    learning_rate: float = Field(1e-3, gt=0, allow_inf_nan=False)
    part_learning_rate: float | None = Field(None, gt=0, allow_inf_nan=False)
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_steps: int = Field(0, ge=0)
    optimizer: Literal["adamw", "adafactor", "sgd"] = "adamw"
    weight_decay: float = Field(0.01, ge=0, allow_inf_nan=False)
    betas: list[float] = Field([0.9, 0.999], min_length=2, max_length=2)
    max_grad_norm: float = Field(1.0, ge=0, allow_inf_nan=False, description="0 = no clipping.")
    on_nonfinite: Literal["stop", "skip"] = Field(
        "stop",
        description="What a term or gradient that is NaN or Inf ends: the run, or that optimiser step alone. The batch "
        "is kept either way; ten skipped steps in a row end the run.",
    )
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    gradient_checkpointing: bool = False
    logits_budget_mb: int | None = Field(
        256,
        ge=0,
        le=1_000_000,
        description="If the logits of a micro-batch, with the copies that a loss makes, take more, they are computed "
        "some rows at a time within that many MiB, by the losses that allow it; 0 = never, null = always.",
    )
    survey_samples: int = Field(
        4096, ge=1, le=100_000_000, description="Samples that a survey looks at, if the training set is generated."
    )
    shard: bool = Field(False, description="Split student, parts and optimiser state over the processes (FSDP2).")
    workers: int = Field(0, ge=0, le=256, description="Processes that load data.")
    log_every: int = Field(20, ge=1)
    checkpoint_every: int = Field(200, ge=1)
    keep_checkpoints: int = Field(2, ge=0, description="0 = all.")
    threads: int | None = Field(None, ge=1, le=4096, description="CPU threads of torch; null = its default.")
    deterministic: bool = Field(
        False, description="Only kernels whose results never vary; on a GPU a resumed run is exact only so, but slower."
    )

    @field_validator("betas")
    @classmethod
    def _betas_below_one(cls, value: list[float]) -> list[float]:
        if not all(0 <= b < 1 for b in value):
            raise ValueError("both must lie in [0, 1)")
        return value


class EvaluateSection(Section):
    """What is measured at the end."""

    split: str = Field("test", description="Split of the data source.")
    splits: list[str] = Field(default_factory=list, description="Further splits, for task scores and fidelity.")
    samples: int = Field(1000, ge=1, description="Samples of each split.")
    batch_size: int = Field(128, ge=1)
    shown: int = Field(10, ge=0, description="Samples shown in the report.")
    attention: bool = Field(True, description="Compare attention maps with the teacher's (attention.json).")
    teacher: bool = Field(
        True, description="Measure the teacher too, and how near the student is to it; a cached one is loaded for it."
    )


class StageSection(Section):
    """One stage of several; what it gives replaces the same field of the recipe, mappings key by key."""

    name: str = Field(pattern=r"^\w[\w.-]*$", description="Its name in logs, and of its folder of checkpoints.")
    teacher: TeacherSection | Literal["none"] | None = Field(None, description='"none" trains on labels.')
    teachers: dict[str, TeacherSection] | None = None
    selection: SelectionSection | Literal["none"] | None = None
    rollout: RolloutSection | Literal["none"] | None = None
    data: dict[str, Any] | None = None
    objectives: list[ObjectiveSection] | None = None
    policy: PolicySection | Literal["none"] | None = None
    train: dict[str, Any] | None = None
    freeze: list[str] | None = None
    inputs: list[str] | None = None


class Recipe(Section):
    """A run: teacher, student, data, objectives, policy and settings; or several stages of these."""

    version: Literal[1]
    name: str = Field("run", max_length=200)
    seed: int = Field(0, ge=0, lt=2**32)
    teacher: TeacherSection | None = Field(None, description="null = train on labels.")
    teachers: dict[str, TeacherSection] = Field(
        default_factory=dict, description="Further teachers by a name of yours, which objectives ask for by it."
    )
    student: StudentSection = Field(default_factory=StudentSection)
    data: DataSection = Field(default_factory=DataSection)
    modules: dict[str, ModuleSection] | None = Field(None, description="null = those of the model's family.")
    objectives: list[ObjectiveSection] = Field(min_length=1)
    policy: PolicySection | None = Field(None, description="null = all objectives play always.")
    selection: SelectionSection | None = Field(None, description="null = every epoch has all training samples.")
    rollout: RolloutSection | None = Field(None, description="null = the student writes nothing.")
    inputs: list[str] | None = Field(
        None, description="Batch keys both models are given; null = those their forward names, without labels."
    )
    freeze: list[str] = Field(default_factory=list, description="Modules of the student that stay as they are.")
    train: TrainSection = Field(default_factory=TrainSection)
    evaluate: EvaluateSection = Field(default_factory=EvaluateSection)
    stages: list[StageSection] | None = Field(None, min_length=1)

    @field_validator("version", mode="before")
    @classmethod
    def _no_bool(cls, value: Any) -> Any:
        if isinstance(value, bool):  # which equals 1
            raise ValueError("is the number 1, not true or false")
        return value

    @field_validator("teachers")
    @classmethod
    def _not_the_main_one(cls, value: dict[str, TeacherSection]) -> dict[str, TeacherSection]:
        if TEACHER in value:
            raise ValueError(f'"{TEACHER}" is the name of the recipe\'s own teacher')
        return value

    @field_validator("stages")
    @classmethod
    def _names_differ(cls, value: list[StageSection] | None) -> list[StageSection] | None:
        names = [stage.name for stage in value or ()]
        if len(set(names)) < len(names):
            raise ValueError("two stages have the same name")
        return value

    def staged(self) -> list[tuple[str, Recipe]]:
        """Return (stage name, recipe of that stage), one entry named "main" without stages."""
        if not self.stages:
            return [("main", self)]
        rows = []
        for i, stage in enumerate(self.stages):
            base = self.model_dump(exclude={"stages"})
            for key in ("data", "train"):
                base[key].update(getattr(stage, key) or {})
            for key in ("objectives", "freeze", "inputs"):
                if getattr(stage, key) is not None:
                    base[key] = stage.model_dump()[key]
            if stage.teachers is not None:
                base["teachers"] = {name: one.model_dump() for name, one in stage.teachers.items()}
            for key in ("teacher", "policy", "selection", "rollout"):
                value = getattr(stage, key)
                if value is not None:
                    base[key] = None if value == "none" else value.model_dump()
            try:
                rows.append((stage.name, check(type(self), base)))
            except RecipeError as error:
                raise error.at(f"stages[{i}]") from None
        return rows
