"""The emoji scenes as a data source of a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from potstill.data.scenes import SceneCollator, SceneDataset, build_tokenizer
from potstill.data.scenes.ends import read_ends
from potstill.data.scenes.pixels import Pixels, read_pixels
from potstill.data.scenes.splits import HELDOUT_DIRECTIONS
from potstill.data.scenes.text_to_text import TextToTextCollator, check_form
from potstill.data.sources import DATA, DataSource
from potstill.errors import RecipeError
from potstill.models.load import find_model

EVALUATION_SEED = 0
IN_BATCH = ("caption", "vqa", "entailment", "nlvr2")


@DATA.register("scenes")
def build_scenes(
    *,
    tasks: Sequence[str] = IN_BATCH,
    form: str = "classes",
    tokenizer: str | None = None,
    image_size: int = 48,
    concepts: int = 96,
    min_objects: int = 1,
    max_objects: int = 4,
    vendors: Sequence[str] | None = None,
    kinds: Sequence[str] | None = None,
    languages: Sequence[str] = ("en",),
    directions: Sequence[str] | None = None,
    masks: bool = False,
    phrases: bool = False,
    places: bool = False,
    max_tokens: int = 40,
    size: int | None = None,
    seed: int = 0,
) -> DataSource:
    """Return the scenes as a source; see ``SceneDataset`` for the arguments.

    ``max_tokens`` is the longest text, ``size`` the number of training samples. Splits are measured on the same tasks,
    but "heldout_language" on captions alone and "heldout_directions" on translation; with the form "classes" in
    English. The seed changes the training scenes only: runs with different seeds are measured on the same pictures.

    Args:
        form: What a batch looks like: "classes" (``SceneCollator``, for CoCa), or as ``TextToTextCollator`` makes it
            "text_to_text" (T5), "question_answer" or "captioning" (BLIP).
        tokenizer: Of a packaged model, a folder or a name on the hub; null = the scenes' own words. If its folder says
            how pictures are prepared (preprocessor_config.json), they are resized and normalised so; if it is that of a
            BLIP, its texts begin and end with the model's tokens. Not with "classes".

    Raises:
        RecipeError: A form that does not exist or cannot hold a task, or a tokenizer that cannot be read.
    """
    is_written = form != "classes"
    if is_written:
        check_form(form, (tasks,) if isinstance(tasks, str) else tasks)
    elif tokenizer is not None:
        raise RecipeError(
            "the scenes' own words are part of this form", where="tokenizer", hint='Set form: "text_to_text".'
        )
    common = {
        "seed": seed,
        "image_size": image_size,
        "concepts": concepts,
        "min_objects": min_objects,
        "max_objects": max_objects,
        "kinds": kinds,
        "masks": masks,
        "phrases": phrases,
        "places": places,
    }
    spoken = {"languages": languages, "directions": directions}

    def make(split: str, length: int | None) -> SceneDataset:
        if split == "train":
            return SceneDataset("train", tasks, length or size, vendors=vendors, **spoken, **common)
        asked: dict[str, Any] = dict(common, masks=False, phrases=False, places=False, seed=EVALUATION_SEED)
        if split in ("heldout_language", "heldout_directions"):
            asked["kinds"] = None
            only = "caption" if split == "heldout_language" else "translation"
            if split == "heldout_directions" and tokenizer is None:
                _check_heard(known)
            return SceneDataset(split, (only,), length, vendors=vendors, **asked)
        if is_written:
            asked |= spoken
        return SceneDataset(split, tasks, length, vendors=vendors if split == "test" else None, **asked)

    train = make("train", None)
    heard = (language for direction in train.directions for language in direction.split("-"))
    known = tuple(dict.fromkeys([*languages, *heard, "es"]))
    pixels, ends = None, (None, None)
    if tokenizer is None:
        words: Any = build_tokenizer(concepts, known, prompts=is_written)
    else:
        words, pixels, ends = load_tokenizer(tokenizer)
    fields = {
        "image_size": image_size if pixels is None else pixels.size,
        "vocab_size": len(words),
        "pad_token_id": words.pad_token_id,
        "eos_token_id": words.eos_token_id,
    }
    if words.bos_token_id is not None:
        fields["bos_token_id"] = words.bos_token_id
    if is_written:
        collator: Any = TextToTextCollator(words, form, max_tokens, pixels, ends)
        fields["eos_token_id"] = collator.end
        if form != "text_to_text":
            fields["bos_token_id"] = collator.begin  # a tokenizer without one begins with its CLS
    else:
        collator = SceneCollator(words, train.task_labels, max_tokens)
        fields["task_labels"] = train.task_labels
    return DataSource(
        make=make,
        collator=collator,
        processor=words,
        model_fields=fields,
        facts={
            "tasks": list(train.tasks),
            "image_size": image_size,
            "concepts": concepts,
            "vendors": list(train.vendors),
            "languages": list(train.languages),
            **({"form": form, "directions": list(train.directions)} if is_written else {}),
            "objects": [min_objects, max_objects],
            "train_samples": len(train),
        },
    )


def _check_heard(known: Sequence[str]) -> None:
    unheard = sorted({language for one in HELDOUT_DIRECTIONS for language in one.split("-")} - set(known))
    if unheard:
        raise RecipeError(
            f"the data has no words of {', '.join(unheard)}",
            where='split "heldout_directions"',
            hint="Train on directions from and to each of its languages: [en-de, de-en, en-fr, fr-en].",
        )


def load_tokenizer(name: str) -> tuple[Any, Pixels | None, tuple[int | None, int | None]]:
    """Return the tokenizer in the folder of a model (packaged, on disk, or on the hub) and what else it expects.

    That is how it has its pictures, and the first and last token it writes (None = its tokenizer's).

    Raises:
        RecipeError: There is none of that name, or it cannot be read.
    """
    from transformers import AutoTokenizer

    folder = find_model(name, where="tokenizer")
    pixels, ends = read_pixels(folder), read_ends(folder)
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False), pixels, ends
    except Exception as error:  # tokenizers raises bare Exception for a damaged file, each class its own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RecipeError(
            f"no tokenizer can be read there ({reason})",
            where="tokenizer",
            expected="a packaged model, a folder or a hub name",
            got=name,
        ) from error
