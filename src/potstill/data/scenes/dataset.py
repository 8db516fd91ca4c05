"""The scenes as a map-style dataset: sample i of a split is the same picture and text on every machine, always."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from potstill.data.scenes import entailment, nlvr2, vqa
from potstill.data.scenes.composer import POSITIONS, Painter, Scene, SceneBuilder
from potstill.data.scenes.draws import Draws, draws_for, make_key
from potstill.data.scenes.pack import load_pack
from potstill.data.scenes.splits import HELDOUT_DIRECTIONS, Split, get_split, heldout_partners
from potstill.data.scenes.wording import (
    ENTAILMENT_LABELS,
    NLVR2_LABELS,
    PhraseFinder,
    caption,
    check_directions,
    check_languages,
    closed_answers,
    name_list,
)
from potstill.data.scenes.world import World
from potstill.data.sources import check_index
from potstill.errors import InputError, suggest

TASKS = ("caption", "vqa", "entailment", "nlvr2", "retrieval", "translation", "segmentation", "grounding")
_GROUNDING_WORDS = 28  # words and commas of a list of names: with the longest name still a row of 32 tokens


class SceneDataset(Dataset):
    """Emoji scenes with captions, questions, claims and picture pairs.

    A sample is a pure function of the arguments and its index: nothing is stored, no random state is kept, and any
    number of workers, any order and any resumed run see the same data.

    Args:
        split: "train", "validation", "test", "heldout_vendor", "heldout_pairs", "heldout_language" or
            "heldout_directions".
        tasks: Of "caption", "vqa", "entailment", "nlvr2", "retrieval", "translation", "segmentation", "grounding" (a
            list of names, some of them seen in the picture; what each points at is in ``phrases``); every run of
            ``len(tasks)`` samples holds each entry once, in random order. Name a task twice to get more of it. None =
            the split's own (the first four; retrieval and translation for "heldout_language", translation for
            "heldout_directions").
        size: Number of samples; None = 1,000,000 for train, 2,000 else.
        seed: Another seed is another set of scenes.
        image_size: Side of the pictures in pixels; even, 32 to 128.
        concepts: How many concepts, from the front of the pack's fixed order.
        min_objects: Fewest things in a picture.
        max_objects: Most things in a picture, 1 to 4.
        vendors: Drawing styles; None = the split's own.
        kinds: Of the questions, claims and picture pairs those that occur, such as ("where", "exists"); None = all.
        languages: Languages of captions, retrieval and translation; None = the split's own (("en",), but ("es",) for
            "heldout_language"). Questions and claims are English.
        directions: Of translation, such as "en-de"; None = the split's own ("de-fr" and "fr-de" for
            "heldout_directions", which "train" refuses), elsewhere from English to every other language asked for.
        masks: Also give ``masks`` and ``concept_map`` for every sample.
        phrases: Also give ``phrases``: what the names in a sentence about one picture point at. Always with the task
            "grounding".
        places: With phrases, also what the places in a question or claim point at ("the top left" at its quadrant).
        extra_packs: Folders with further vendors (see ``tools/build_scene_pack.py``).

    Attributes:
        answers: Every answer a vqa question can have.
        task_labels: Classes of each task that has classes.
        concepts: The concepts that occur.

    Each sample is a dict:
        ``task``, ``kind`` (question, template or direction), ``index``, ``language`` (of a translation the target's);
        ``images`` uint8 ``[I, H, W, 3]`` (I = 2 for nlvr2, else 1); ``text`` (question, claim, caption, or what is to
        be translated); ``truth`` (the right answer, or the caption again); ``label`` (class number, -100 where there
        is none); ``scenes`` (one record for each image); with masks also ``masks`` uint8 ``[I, H, W]`` and
        ``concept_map`` int16 ``[I, H, W]``; with phrases also ``phrases``: for each name of a thing or kind, where in
        the text it ends and in which quadrants such things are seen, as a sum of 1, 2, 4 and 8 in reading order (0 =
        in none). English, one picture, no translation; elsewhere the list is empty.

    Raises:
        InputError: if an argument is out of range or names something unknown.
        IntegrityError: if the pack is damaged.
    """

    is_generated = True  # a sample is random by its index: a trainer may read in order

    def __init__(
        self,
        split: str = "train",
        tasks: Sequence[str] | None = None,
        size: int | None = None,
        seed: int = 0,
        image_size: int = 48,
        concepts: int = 96,
        min_objects: int = 1,
        max_objects: int = 4,
        vendors: Sequence[str] | None = None,
        kinds: Sequence[str] | None = None,
        languages: Sequence[str] | None = None,
        directions: Sequence[str] | None = None,
        masks: bool = False,
        phrases: bool = False,
        places: bool = False,
        extra_packs: Sequence[str | Path] = (),
    ):
        self.split = get_split(split)
        self.tasks = _check_tasks(self.split.tasks if tasks is None else tasks, self.split.name)
        self.size = self.split.size if size is None else size
        self.seed, self.image_size, self.masks, self.places = seed, image_size, masks, places
        self.languages = check_languages(self.split.languages if languages is None else languages)
        self.directions = _choose_directions(self.split, self.tasks, self.languages, directions)
        pack = load_pack(tuple(str(folder) for folder in extra_packs))
        self.vendors = (vendors,) if isinstance(vendors, str) else tuple(vendors or self.split.vendors)
        _check_numbers(self, len(pack.concepts), concepts, min_objects, max_objects)

        self.concepts = pack.concepts[:concepts]
        partners = heldout_partners(tuple(c.hex for c in self.concepts))
        builder = SceneBuilder(concepts, self.vendors, partners, self.split.pairs, min_objects, max_objects)
        self.world = World(pack, self.concepts, self.vendors, builder)
        self.painter = Painter(pack, concepts, self.vendors, image_size)
        self.answers = closed_answers(self.concepts)
        self._finder = PhraseFinder(self.concepts) if phrases or "grounding" in self.tasks else None
        self.task_labels = {
            "vqa": self.answers,
            "entailment": list(ENTAILMENT_LABELS),
            "nlvr2": list(NLVR2_LABELS),
        }
        self._answer_numbers = {answer: number for number, answer in enumerate(self.answers)}
        has_numbers = builder.min_objects < builder.max_objects
        pairs = [kind for kind in nlvr2.KINDS if has_numbers or kind not in nlvr2.COMPARES_NUMBERS]
        mixes = {"vqa": vqa.KIND_NAMES, "entailment": entailment.KIND_MIX, "nlvr2": pairs}
        self._kinds = _choose_kinds(mixes, kinds, self.tasks)
        self._scene_key = make_key("scene", self.split.name, seed)
        self._order_key = make_key("order", self.split.name, seed)
        self._makers: dict[str, Callable[[Draws], dict[str, Any]]] = {
            task: getattr(self, f"_make_{task}") for task in dict.fromkeys(self.tasks)
        }

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return the samples of a batch; the pictures share one block of memory."""
        indices = [check_index(index, self.size) for index in indices]
        samples = []
        for index, task, draws in zip(indices, self.tasks_of(indices), draws_for(self._scene_key, indices)):
            sample = self._makers[task](draws)
            sample["task"], sample["index"] = task, index
            if self._finder is not None:
                sample["phrases"] = sorted([*self._phrases(sample), *self._places(sample)])
            samples.append(sample)
        pictures = self.painter.paint([scene for sample in samples for scene in sample["scenes"]])
        start = 0
        for sample in samples:
            stop = start + len(sample["scenes"])
            sample["images"] = pictures[start:stop]
            start = stop
            if self.masks or sample["task"] == "segmentation":
                pairs = [self.painter.masks(scene) for scene in sample["scenes"]]
                sample["masks"] = np.stack([instances for instances, _ in pairs])
                sample["concept_map"] = np.stack([concepts for _, concepts in pairs])
        return samples

    def tasks_of(self, indices: Sequence[int]) -> list[str]:
        """Return the task of each sample: within every run of ``len(tasks)`` indices, each entry once."""
        number = len(self.tasks)
        if number == 1:
            return [self.tasks[0]] * len(indices)
        runs = draws_for(self._order_key, [index // number for index in indices])
        return [run.shuffled(self.tasks)[index % number] for run, index in zip(runs, indices)]

    def _phrases(self, sample: dict[str, Any]) -> list[tuple[int, int]]:
        # A colour can have a thing's name ("orange"), so claims about colours are left out.
        is_english = sample["language"] == "en" and sample["task"] != "translation"
        if len(sample["scenes"]) > 1 or not is_english or sample["kind"] == "colour":
            return []
        seen = sample["scenes"][0].visible
        return [
            (end, sum(1 << cell for cell in {t.cell for t in seen if t.concept in members}))
            for end, members in self._finder(sample["text"])
        ]

    def _places(self, sample: dict[str, Any]) -> list[tuple[int, int]]:
        if not self.places or sample["task"] not in ("vqa", "entailment"):
            return []
        text = sample["text"]
        return [(text.index(p) + len(p), 1 << cell) for cell, p in enumerate(POSITIONS) if p in text]

    def _make_caption(self, draws: Draws) -> dict[str, Any]:
        scene = self.world.builder.build(draws)
        language = draws.pick(self.languages)
        text = caption(scene, self.concepts, language)
        if language != "en":
            text = f"[{language}] {text}"
        return _sample(language, "caption", (scene,), text, text, -100)

    def _make_vqa(self, draws: Draws) -> dict[str, Any]:
        kind = draws.pick(self._kinds["vqa"])
        scene, question, answer = vqa.KINDS[kind](draws, self.world)
        return _sample("en", kind, (scene,), question, answer, self._answer_numbers[answer])

    def _make_entailment(self, draws: Draws) -> dict[str, Any]:
        kind = draws.pick(self._kinds["entailment"])
        scene, claim, label = entailment.KINDS[kind](draws, self.world)
        return _sample("en", kind, (scene,), claim, ENTAILMENT_LABELS[label], label)

    def _make_nlvr2(self, draws: Draws) -> dict[str, Any]:
        kind = draws.pick(self._kinds["nlvr2"])
        pair, sentence, label = nlvr2.KINDS[kind](draws, self.world)
        return _sample("en", kind, pair, sentence, NLVR2_LABELS[label], label)

    def _make_retrieval(self, draws: Draws) -> dict[str, Any]:
        scene = self.world.builder.build(draws)
        language = draws.pick(self.languages)
        text = caption(scene, self.concepts, language)
        return _sample(language, "retrieval", (scene,), text, text, -100)

    def _make_translation(self, draws: Draws) -> dict[str, Any]:
        scene = self.world.builder.build(draws)
        direction = draws.pick(self.directions)
        source, target = direction.split("-")
        text, truth = (name_list(scene, self.concepts, language) for language in (source, target))
        return _sample(target, direction, (scene,), text, truth, -100)

    def _make_segmentation(self, draws: Draws) -> dict[str, Any]:
        scene = self.world.builder.build(draws)
        return _sample("en", "segmentation", (scene,), "", "", -100)

    def _make_grounding(self, draws: Draws) -> dict[str, Any]:
        scene = self.world.builder.build(draws)
        chosen = {p for t in scene.visible for p in draws.shuffled(self._finder.names_of[t.concept])[:2]}
        words = sum(len(phrase.split()) for phrase in chosen)
        while words + len(chosen) < _GROUNDING_WORDS:
            phrase = draws.pick(self._finder.phrases)
            words += len(phrase.split()) if phrase not in chosen else 0
            chosen.add(phrase)
        text = ", ".join(draws.shuffled(sorted(chosen)))
        truth = ", ".join(dict.fromkeys(self.concepts[t.concept].name for t in scene.visible))
        return _sample("en", "grounding", (scene,), text, truth, -100)


def _sample(language: str, kind: str, scenes: tuple[Scene, ...], text: str, truth: str, label: int) -> dict[str, Any]:
    return {"kind": kind, "language": language, "scenes": scenes, "text": text, "truth": truth, "label": label}


def _check_tasks(tasks: Sequence[str], split: str) -> tuple[str, ...]:
    tasks = (tasks,) if isinstance(tasks, str) else tuple(tasks)
    for task in tasks:
        if task not in TASKS:
            raise InputError(f'unknown task "{task}"', where="tasks", hint=suggest(str(task), TASKS))
    if not tasks:
        raise InputError("no task is given", where="tasks", expected=", ".join(TASKS))
    if split == "heldout_language":
        english = sorted({"vqa", "entailment", "nlvr2"}.intersection(tasks))
        if english:
            raise InputError(
                f"{', '.join(english)} speak English, so there is no held-out language to test",
                where="tasks",
                expected="caption, retrieval or translation",
                hint="Use another split, or leave tasks out to get the split's own.",
            )
    return tasks


def _choose_directions(
    split: Split, tasks: Sequence[str], languages: Sequence[str], directions: Sequence[str] | None
) -> tuple[str, ...]:
    """Return the directions of translation; none where the task does not occur."""
    if directions is None:
        directions = split.directions or tuple(f"en-{code}" for code in languages if code != "en")
        if not directions and "translation" in tasks:
            raise InputError(
                "out of range", where="languages", expected="a language besides en, to translate to", got=languages
            )
        return tuple(directions)
    directions = check_directions(directions)
    kept = [direction for direction in directions if direction in HELDOUT_DIRECTIONS]
    if kept and split.name == "train":
        raise InputError(
            f"{kept[0]} is kept back from training",
            where="directions",
            expected=f"any but {', '.join(HELDOUT_DIRECTIONS)}",
            hint='The split "heldout_directions" measures it.',
        )
    return directions


def _choose_kinds(
    mixes: dict[str, Sequence[str]], kinds: Sequence[str] | None, tasks: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """Return for every task with kinds those to draw from, as often as the task's own mix has them."""
    if kinds is None:
        return {task: tuple(mix) for task, mix in mixes.items()}
    kinds = (kinds,) if isinstance(kinds, str) else tuple(kinds)
    known = list(dict.fromkeys(kind for mix in mixes.values() for kind in mix))
    for kind in kinds:
        if kind not in known:
            raise InputError(f'unknown kind "{kind}"', where="kinds", hint=suggest(str(kind), known))
    chosen = {task: tuple(kind for kind in mix if kind in kinds) for task, mix in mixes.items()}
    for task in tasks:
        if not chosen.get(task, kinds):
            raise InputError(
                f"leaves nothing for {task}", where="kinds", expected=", ".join(dict.fromkeys(mixes[task]))
            )
    return chosen


def _check_numbers(data: SceneDataset, available: int, concepts: int, low: int, high: int) -> None:
    fewest = 40 if data.split.pairs == "need" else 12
    checks = [
        (isinstance(data.size, int) and data.size > 0, "size", "a positive number of samples", data.size),
        (isinstance(data.seed, int) and not isinstance(data.seed, bool), "seed", "a whole number", data.seed),
        (
            isinstance(data.image_size, int) and data.image_size % 2 == 0 and 32 <= data.image_size <= 128,
            "image_size",
            "an even number from 32 to 128",
            data.image_size,
        ),
        (
            isinstance(concepts, int) and fewest <= concepts <= available,
            "concepts",
            f"{fewest} to {available} for this split",
            concepts,
        ),
        (isinstance(low, int) and isinstance(high, int) and 1 <= low <= high <= 4, "min_objects, max_objects",
         "1 <= min_objects <= max_objects <= 4", (low, high)),
        (
            data.split.pairs != "need" or high >= 2,
            "max_objects",
            "2 or more: a held-out pair is two things",
            high,
        ),
    ]  # fmt: skip
    for fine, where, expected, got in checks:
        if not fine:
            raise InputError("out of range", where=where, expected=expected, got=got)
