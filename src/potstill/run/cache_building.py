"""Build the cache of a recipe's teacher."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from potstill.align.masks import token_mask
from potstill.data.sources import DataSource, fetch
from potstill.errors import InputError, RecipeError, suggest
from potstill.evaluate.batches import to_device
from potstill.losses._top_k import CACHED_LOSSES
from potstill.objectives import Objective, OutputObjective
from potstill.objectives.base import TEACHER, is_tap
from potstill.recipe import Recipe, load_recipe
from potstill.recipe.schema import STUDENT
from potstill.run.build import build_modules, build_source, build_student, build_teacher
from potstill.run.caching import FULL_MASK, identity_of, place_of, positions_of, skeleton_of
from potstill.run.check import check_fit, check_names
from potstill.run.objectives import build_objectives
from potstill.taps import Signal
from potstill.teachers import LiveTeacher, fingerprint
from potstill.teachers.cache import CacheWriter, Field
from potstill.teachers.cache.codecs import encode
from potstill.teachers.cache.fields import check_form, shape_of
from potstill.teachers.cache.header import config_hash, data_fingerprint, make_header
from potstill.teachers.cache.header import refuse_changing as refuse_changing_samples
from potstill.train import DistillModule

SHARD_BYTES = 1 << 26

Report = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class CacheForm:
    """In what form a cache keeps what the teacher showed.

    Attributes:
        k: Most likely classes kept of each position; 0 = all.
        draws: Draw so many classes from the teacher instead of keeping the most likely ones; None = do not.
        log_probs: "fp16" or "u8".
        states: Of hidden states and other tensors kept whole: "bf16", "fp16", "fp32" or "int8".
        temperatures: Further temperatures at which the mass of the tail is kept; those of the objectives are anyway.
        logsumexp: Keep the log of the sum of exp(logit) too.
        batch_size: Samples per forward pass.
        seed: Of the draws.
    """

    k: int = 64
    draws: int | None = None
    log_probs: str = "fp16"
    states: str = "bf16"
    temperatures: tuple[float, ...] = ()
    logsumexp: bool = False
    batch_size: int = 32
    seed: int = 0

    def check(self) -> None:
        """Refuse settings that mean nothing, with the name of the first as the place."""
        check_form(self.k, self.log_probs, self.states, self.draws)
        if self.batch_size < 1:
            raise RecipeError("does not fit", where="batch_size", expected="at least 1", got=self.batch_size)
        for temperature in self.temperatures:
            if not 0 < temperature < float("inf"):
                raise RecipeError("is no temperature", where="temperatures", expected="above 0", got=temperature)


def build_cache(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    out: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    fields: Iterable[str] | None = None,
    form: CacheForm | None = None,
    teacher: str = TEACHER,
    stage: str | None = None,
    source: DataSource | None = None,
    progress: Report | None = None,
) -> Path:
    """Run a recipe's teacher once over the training samples and keep what its objectives read.

    What is there already is not made again: a build that was stopped, or whose disk ran full, goes on when it is
    started again.

    Args:
        recipe: Path, name of a packaged recipe, mapping or ``Recipe``.
        out: Folder; None = ``teacher.cache`` of the recipe.
        overrides: ``"data.pool=5000"``.
        fields: Outputs and taps of the teacher to keep; None = those that the recipe's objectives read.
        form: How they are kept; None = the defaults.
        teacher: Which of several teachers.
        stage: Which stage of several; None = the first that has this teacher.
        source: Data made in Python, in place of what the recipe names.
        progress: Called with {"event": "field", ...} for each field, then {"event": "rows", "done", "of"}.

    Returns:
        The folder.

    Raises:
        PotstillError: The recipe has no such teacher, the samples are augmented or seen but once, the folder holds
            another cache, the disk is too small, the teacher shows NaN.
    """
    report, form = progress or (lambda event: None), form or CacheForm()
    form.check()
    recipe = _stage_of(load_recipe(recipe, overrides), teacher, stage)
    section = recipe.teacher if teacher == TEACHER else recipe.teachers[teacher]
    place = place_of(teacher)
    if section.model == STUDENT:
        raise RecipeError("a copy of the student is another model in every run", where=f"{place}.model")
    folder = out if out is not None else section.cache
    if folder is None:
        raise RecipeError("is missing: where the cache is to lie", where=f"{place}.cache", hint="Or give --out.")
    recipe = _without_caches(recipe)
    check_names(recipe)
    source = build_source(recipe) if source is None else source
    dataset = source.split("train")
    _refuse_endless(dataset, recipe)
    refuse_changing_samples(dataset, source.collator)
    model = build_teacher(section, place)
    check_fit(model, place, source)
    live = _ask(recipe, source, teacher, model, fields)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    live.teacher.to(device)
    try:
        kept = _fields(live, source, dataset, form, device, report)
        header = make_header(
            teacher={**identity_of(section, place), "class": type(model).__name__, "weights": fingerprint(model)}
            | {"config": config_hash(model), "dtype": section.dtype},
            processor=source.processor,
            data={"rows": len(dataset), "fingerprint": data_fingerprint(dataset, source.collator)},
            fields=[field.as_row() for field, _ in kept],
            settings={
                "batch_size": form.batch_size,
                "shard_rows": _shard_rows(kept, form.batch_size),
                "seed": form.seed,
            },
        )
        with CacheWriter(folder, header).open() as writer:
            _refuse_small_disk(writer, sum(size for _, size in kept))
            _write(writer, live.teacher, source, dataset, form, device, report)
    finally:
        live.teacher.close()
    return Path(folder)


@dataclass(frozen=True)
class _Asked:
    """A teacher ready to be asked, and who asks for what."""

    teacher: LiveTeacher
    readers: dict[str, list[Objective]]  # output or tap -> objectives

    @property
    def names(self) -> list[str]:
        return [*self.teacher.outputs, *self.teacher.taps]


def _ask(recipe: Recipe, source: DataSource, name: str, model: nn.Module, fields: Iterable[str] | None) -> _Asked:
    sections = ({TEACHER: recipe.teacher} if recipe.teacher else {}) | recipe.teachers
    models = {name: model} | {
        other: skeleton_of(section, place_of(other))
        for other, section in sections.items()
        if other != name and section.model != STUDENT
    }
    student = build_student(recipe, models.get(TEACHER), source)
    modules = build_modules(recipe, student, models.get(TEACHER))
    by_section = build_objectives(recipe, student, modules, source.example(), models)
    objectives = [o for row in by_section.values() for o in row if o.reads_teacher and name in o.of]
    module = DistillModule(student, [o for row in by_section.values() for o in row], inputs=recipe.inputs)
    outputs, taps = module.outputs_of(name), module.taps_of(name)
    module.close()
    for where, row in by_section.items():
        for one in row:
            if one in objectives and one.reads_weights:
                raise RecipeError("looks at the weights of its teacher, which a cache does not hold", where=where)
    if fields is not None:
        chosen = list(dict.fromkeys(fields))
        inside = {path for path, _ in model.named_modules()}
        taps = [n for n in chosen if is_tap(n) or n in inside]
        outputs = [n for n in chosen if n not in taps]
    if not outputs and not taps:
        raise RecipeError(
            "no objective reads anything of this teacher",
            where=place_of(name),
            hint='Name outputs or taps: "--fields".',
        )
    live = LiveTeacher(model, outputs=outputs, taps=taps, inputs=recipe.inputs)
    readers = {n: [o for o in objectives if n in (*o.teacher_outputs, *o.teacher_taps)] for n in [*outputs, *live.taps]}
    return _Asked(live, readers)


def _fields(
    asked: _Asked, source: DataSource, dataset: Any, form: CacheForm, device: torch.device, report: Report
) -> list[tuple[Field, float]]:
    """Return the fields with the bytes that a sample takes in each, by the first batch."""
    rows = min(form.batch_size, len(dataset))
    batch = to_device(source.collator(fetch(dataset, range(rows))), device)
    signal = asked.teacher.signal(batch)
    found = []
    for name in asked.names:
        value = _shown(signal, name)
        if not isinstance(value, torch.Tensor) or value.ndim < 2 or len(value) != rows:
            raise InputError(
                "has no row for each sample",
                where=f'field "{name}"',
                expected=f"[{rows}, ...]",
                got=list(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__,
                hint="Only what the teacher shows of each sample by itself can be kept; run this teacher live.",
            )
        is_output = name in asked.teacher.outputs
        field = _field(name, value, asked.readers[name], batch, form, is_output=is_output)
        generator = torch.Generator(device).manual_seed(form.seed)
        encoded = encode(field, value, field.kept(batch), generator)
        size = sum(array.nbytes for row in encoded for array in row.values()) / rows
        report({"event": "field", "bytes_per_sample": size, **field.as_row()})
        found.append((field, size))
    return found


def _shown(signal: Signal, name: str) -> Any:
    return signal.tapped[name] if name in signal.tapped else signal.outputs[name]


def _field(
    name: str,
    value: torch.Tensor,
    readers: Sequence[Objective],
    batch: Mapping[str, Any],
    form: CacheForm,
    *,
    is_output: bool,
) -> Field:
    mask, shift = _positions(name, value, readers, batch)
    shape = shape_of(name, value, None if mask is None else token_mask(batch, mask))
    if -1 not in shape:
        mask, shift = None, False
    common = {"name": name, "shape": shape, "mask": mask, "shift": shift}
    outputs = [o for o in readers if isinstance(o, OutputObjective)]
    of_classes = outputs and all(o in outputs and o.loss_name in CACHED_LOSSES for o in readers)
    if not of_classes or form.k == 0:
        is_map = Field(kind="whole", codec="fp16", **common).is_map
        codec = "fp16" if is_map else "fp32" if of_classes or form.k == 0 else form.states
        if is_output and value.shape[-1] <= form.k:
            codec = "fp32"  # the logits of a few classes, or as small: not worth rounding
        return Field(kind="whole", codec=codec, **common)
    cuts = {o.options.get("shared_vocab") for o in outputs}
    if len(cuts) > 1:
        raise RecipeError("objectives on one output cut its vocabulary differently", where=f'field "{name}"')
    vocab = next(iter(cuts)) or value.shape[-1]
    if vocab > value.shape[-1]:
        raise RecipeError("is more than the teacher has", where="shared_vocab", expected=f"at most {value.shape[-1]}")
    if form.draws is not None:
        return Field(kind="drawn", codec="fp16", vocab=vocab, k=form.draws, **common)
    if vocab <= form.k and vocab == value.shape[-1]:
        return Field(kind="whole", codec="fp32", **common)
    temperatures = {1.0, *map(float, form.temperatures), *(float(o.options.get("temperature", 1.0)) for o in outputs)}
    return Field(
        kind="top_k",
        codec=form.log_probs,
        vocab=vocab,
        k=min(form.k, vocab),
        temperatures=tuple(sorted(temperatures)),
        logsumexp=form.logsumexp,
        **common,
    )


def _positions(
    name: str, value: torch.Tensor, readers: Sequence[Objective], batch: Mapping[str, Any]
) -> tuple[str | None, bool]:
    """Return which positions are kept: those that all readers agree on, else all that are no padding."""
    axis = 2 if is_tap(name) and value.ndim == 4 else 1

    def fits(key: str) -> bool:
        mask = token_mask(batch, key) if any(k.partition("+")[0] in batch for k in key.split("|")) else None
        return mask is not None and value.ndim > axis and mask.shape == (len(value), value.shape[axis])

    wanted = {positions_of(o) for o in readers}
    if len(wanted) == 1:
        key, shift = next(iter(wanted))
        if key is not None and value.ndim > 2 and fits(key):
            return key, shift
    return (FULL_MASK, False) if value.ndim > 2 and fits(FULL_MASK) else (None, False)


def _write(
    writer: CacheWriter,
    teacher: LiveTeacher,
    source: DataSource,
    dataset: Any,
    form: CacheForm,
    device: torch.device,
    report: Report,
) -> None:
    for number in range(writer.number):
        span = writer.span(number)
        if not writer.is_done(number):
            rows, positions = [], []
            for start in range(span.start, span.stop, form.batch_size):
                numbers = range(start, min(start + form.batch_size, span.stop))
                batch = to_device(source.collator(fetch(dataset, numbers)), device)
                signal = teacher.signal(batch)
                made, counts = [], []
                for i, field in enumerate(writer.fields):
                    value = _shown(signal, field.name)
                    kept = field.kept(batch) if field.is_ragged else None
                    # By the samples alone: a build that goes on draws what one without a break would have.
                    generator = torch.Generator(device).manual_seed(_seed(form.seed, start, i))
                    field.check(value, len(numbers))
                    made.append(encode(field, value, kept, generator))
                    fixed = field.vectors_of(0) if not field.is_ragged else 0
                    counts.append(np.full(len(numbers), fixed) if kept is None else kept.sum(1).cpu().numpy())
                rows += list(zip(*made))
                positions.append(np.stack(counts, 1))
                report({"event": "rows", "done": numbers.stop, "of": writer.rows})
            writer.write(number, rows, np.concatenate(positions))
        report({"event": "rows", "done": span.stop, "of": writer.rows})
    writer.finish()


def _seed(seed: int, start: int, field: int) -> int:
    return int(np.random.SeedSequence([seed, start, field]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _shard_rows(kept: Sequence[tuple[Field, float]], batch_size: int) -> int:
    """Return how many samples go into a file: whole batches, some 64 MB."""
    rows = int(SHARD_BYTES / max(1.0, sum(size for _, size in kept)))
    return max(1, min(rows, 1 << 16) // batch_size) * batch_size


def _refuse_small_disk(writer: CacheWriter, bytes_per_row: float) -> None:
    there = sum(path.stat().st_size for path in writer.folder.glob("*.safetensors"))
    needed, free = int(bytes_per_row * writer.rows) - there, shutil.disk_usage(writer.folder).free
    if needed > free:
        raise InputError(
            "the disk is too small for this cache",
            where=str(writer.folder),
            expected=f"about {needed / 1e9:.2f} GB",
            got=f"{free / 1e9:.2f} GB free",
            hint="Keep fewer classes (k), log-probabilities as u8, states as int8, fewer fields or samples, or choose "
            "another disk.",
        )


def _refuse_endless(dataset: Any, recipe: Recipe) -> None:
    read = recipe.train.steps * recipe.train.batch_size * recipe.train.accumulation
    if getattr(dataset, "is_generated", False) and len(dataset) > read:
        raise RecipeError(
            f"the {len(dataset):,} samples are generated, and the run sees {read:,} of them, each once: a cache would "
            "save nothing",
            where="data",
            hint="Fix a smaller set of samples (data.size, data.pool), or run the teacher live.",
        )


def _stage_of(recipe: Recipe, teacher: str, stage: str | None) -> Recipe:
    stages = recipe.staged()
    if stage is not None and stage not in [name for name, _ in stages]:
        raise RecipeError(f'there is no stage "{stage}"', where="stages", hint=suggest(stage, [n for n, _ in stages]))
    for name, one in stages:
        has = one.teacher is not None if teacher == TEACHER else teacher in one.teachers
        if has and stage in (None, name):
            return one
    known = sorted({n for _, one in stages for n in [*one.teachers, *([TEACHER] if one.teacher else [])]})
    raise RecipeError("the recipe has no such teacher", where=place_of(teacher), hint=suggest(teacher, known))


def _without_caches(recipe: Recipe) -> Recipe:
    bare = {name: s.model_copy(update={"cache": None}) for name, s in recipe.teachers.items()}
    own = None if recipe.teacher is None else recipe.teacher.model_copy(update={"cache": None})
    return recipe.model_copy(update={"teacher": own, "teachers": bare})
