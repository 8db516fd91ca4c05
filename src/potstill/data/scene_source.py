"""The emoji scenes as a data source of a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from potstill.data.scenes import SceneCollator, SceneDataset, build_tokenizer
from potstill.data.sources import DATA, DataSource

EVALUATION_SEED = 0
IN_BATCH = ("caption", "vqa", "entailment", "nlvr2")


@DATA.register("scenes")
def build_scenes(
    *,
    tasks: Sequence[str] = IN_BATCH,
    image_size: int = 48,
    concepts: int = 96,
    min_objects: int = 1,
    max_objects: int = 4,
    vendors: Sequence[str] | None = None,
    kinds: Sequence[str] | None = None,
    languages: Sequence[str] = ("en",),
    masks: bool = False,
    phrases: bool = False,
    max_tokens: int = 40,
    size: int | None = None,
    seed: int = 0,
) -> DataSource:
    """Return the scenes as a source; see ``SceneDataset`` for the arguments.

    ``max_tokens`` is the longest text, ``size`` the number of training samples. Splits are measured on the same tasks,
    but "heldout_language" on captions alone. The seed changes the training scenes only: runs with different seeds are
    measured on the same pictures.
    """
    common = {
        "seed": seed,
        "image_size": image_size,
        "concepts": concepts,
        "min_objects": min_objects,
        "max_objects": max_objects,
        "kinds": kinds,
        "masks": masks,
        "phrases": phrases,
    }

    def make(split: str, length: int | None) -> SceneDataset:
        if split == "train":
            return SceneDataset("train", tasks, length or size, vendors=vendors, languages=languages, **common)
        asked: dict[str, Any] = dict(common, masks=False, phrases=False, seed=EVALUATION_SEED)
        if split == "heldout_language":
            asked["kinds"] = None
            return SceneDataset(split, ("caption",), length, vendors=vendors, **asked)
        return SceneDataset(split, tasks, length, vendors=vendors if split == "test" else None, **asked)

    train = make("train", None)
    tokenizer = build_tokenizer(concepts, tuple(dict.fromkeys([*languages, "es"])))
    return DataSource(
        make=make,
        collator=SceneCollator(tokenizer, train.task_labels, max_tokens),
        processor=tokenizer,
        model_fields={
            "image_size": image_size,
            "vocab_size": len(tokenizer),
            "task_labels": train.task_labels,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        },
        facts={
            "tasks": list(train.tasks),
            "image_size": image_size,
            "concepts": concepts,
            "vendors": list(train.vendors),
            "languages": list(train.languages),
            "objects": [min_objects, max_objects],
            "train_samples": len(train),
        },
    )
