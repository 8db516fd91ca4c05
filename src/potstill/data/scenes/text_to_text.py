"""From samples to batches of one picture, one prompt and one target text: for models that answer by writing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from potstill.data.scenes.collate import IGNORED
from potstill.data.scenes.composer import POSITIONS
from potstill.data.scenes.pixels import Pixels
from potstill.data.scenes.wording import LANGUAGE_NAMES
from potstill.errors import InputError, RecipeError, ShapeError, suggest

# Which tasks a form can hold. Picture pairs have no place in a batch of single pictures.
FORMS = {
    "text_to_text": ("caption", "vqa", "entailment", "translation", "grounding"),
    "question_answer": ("vqa", "entailment"),
    "captioning": ("caption",),
}

_TASK_WORDS = {"vqa": "vqa", "entailment": "claim", "grounding": "find"}


def check_form(form: str, tasks: Sequence[str], where: str = "form") -> None:
    """Refuse a form that does not exist or cannot hold one of the tasks.

    Raises:
        RecipeError: Says which.
    """
    if form not in FORMS:
        raise RecipeError(f'unknown form "{form}"', where=where, hint=suggest(str(form), FORMS))
    for task in tasks:
        if task not in FORMS[form]:
            raise RecipeError(
                f'the form "{form}" has no place for "{task}"'
                + (": a row holds one picture, not two" if task == "nlvr2" else ""),
                where="tasks",
                expected=", ".join(FORMS[form]),
            )


def prompt_of(sample: Mapping[str, Any]) -> str:
    """Return what a text-to-text model is asked: the task, then the question, claim or text.

    The target is the sample's ``truth``, without a language tag. Tasks and languages are words ("translate to German:
    dog, apple") so that checkpoints that know English and were trained on such prompts can be used as they are.
    """
    task, language = sample["task"], sample["language"]
    if task == "caption":
        return "caption:" if language == "en" else f"caption in {LANGUAGE_NAMES[language]}:"
    if task == "translation":
        return f"translate to {LANGUAGE_NAMES[language]}: {sample['text']}"
    return f"{_TASK_WORDS[task]}: {sample['text']}"


def look_at(sample: Mapping[str, Any]) -> Iterator[tuple[int, int, int]]:
    """Yield parts of the target as (start, stop, quadrants): where one looks to write them.

    Each thing of a list stands where it stands. An answer is found at the place that the question names, or else where
    the things are that it names; where there is neither, nothing is said.
    """
    if sample["task"] in ("caption", "translation", "grounding"):
        things, start, target = sample["scenes"][0].visible, 0, _target_of(sample)
        cells = [1 << thing.cell for thing in things]
        if sample["task"] == "grounding":  # which names a thing once, however often it is there
            by_concept: dict[int, int] = {}
            for thing in things:
                by_concept[thing.concept] = by_concept.get(thing.concept, 0) | 1 << thing.cell
            cells = list(by_concept.values())
        for part, quadrants in zip(target.split(", "), cells):
            yield start, start + len(part), quadrants
            start += len(part) + 2
        return
    named = [1 << cell for cell, position in enumerate(POSITIONS) if position in sample["text"]]
    quadrants = 0
    for places in named or [places for _, places in sample.get("phrases", ())]:
        quadrants |= places
    if quadrants:
        yield 0, len(sample["truth"]), quadrants


class TextToTextCollator:
    """Puts samples with one picture each into one batch, in the form a model family trains on.

    All forms hold, for B samples, S prompt and T target tokens, padded on the right:
        ``pixel_values`` float32 ``[B, 3, H, W]`` in [-1, 1]; ``input_ids``, ``attention_mask`` long ``[B, S]``;
        ``labels`` long ``[B, T]``, -100 at padding, and the same rows by task, ``<task>_labels``, -100 in rows of
        other tasks: a model trains on ``labels`` and is measured by task;
        ``sample_id`` long ``[B]``; ``concept_map`` long ``[B, H, W]`` if the samples carry one, -100 = background;
        ``phrase_places`` long ``[B, S]`` if the samples carry phrases: at the last token of each name in the prompt
        its quadrants as a sum of 1, 2, 4 and 8, -100 elsewhere; and in the form "text_to_text" ``target_places`` long
        ``[B, T]``: at each token of the target the quadrants that one has to look at to write it (``look_at``).

    What differs:
        ``"text_to_text"`` (T5): the prompt is ``prompt_of(sample)``; labels are the target's tokens and EOS, the token
        to predict *at* each place; the model makes its decoder input of them.
        ``"question_answer"`` (BLIP): the prompt is the bare question or claim; ``decoder_input_ids`` are BOS, answer,
        EOS, then padding, ``decoder_attention_mask`` is their mask, and the labels are the same with -100 at padding:
        not shifted, the model does that.
        ``"captioning"`` (BLIP): ``input_ids`` are BOS, caption, EOS, and the labels the same with -100 at padding, not
        shifted.

    Args:
        tokenizer: From ``build_tokenizer(prompts=True)``, or any fast tokenizer with an end token and padding. Prompts
            get the special tokens that it adds itself; BOS and EOS are its own, or else its CLS and SEP.
        form: One of ``FORMS``.
        max_tokens: Longest prompt or target; a longer text is an error, not cut.
        ends: First and last token of what the model writes, where they are not the tokenizer's.
        pixels: How pictures become ``pixel_values``, where it is not [-1, 1] as drawn.

    Raises:
        RecipeError: if there is no such form, or the tokenizer lacks a token that the form needs.
        InputError: if a text has unknown words or is too long, or a task has no place in the form.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        form: str = "text_to_text",
        max_tokens: int = 40,
        pixels: Pixels | None = None,
        ends: tuple[int | None, int | None] = (None, None),
    ):
        check_form(form, ())
        self.tokenizer, self.form, self.max_tokens, self.pixels = tokenizer, form, max_tokens, pixels or Pixels()
        firsts = (ends[0], tokenizer.bos_token_id, tokenizer.cls_token_id)
        lasts = (ends[1], tokenizer.eos_token_id, tokenizer.sep_token_id)
        self.begin, self.end = (next((t for t in row if t is not None), None) for row in (firsts, lasts))
        needed = {"end": self.end, "padding": tokenizer.pad_token_id}
        if form != "text_to_text":
            needed["begin"] = self.begin
        for what, token in needed.items():
            if token is None:
                raise RecipeError(f"the tokenizer has no {what} token", where="tokenizer", got=type(tokenizer).__name__)

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Return the batch."""
        for sample in samples:
            if sample["task"] not in FORMS[self.form]:
                raise InputError(
                    f'"{sample["task"]}" has no place in the form "{self.form}"', expected=", ".join(FORMS[self.form])
                )
        batch = {"pixel_values": self._pictures([sample["images"][0] for sample in samples])}
        batch.update(getattr(self, f"_{self.form}")(samples))
        for task in FORMS[self.form]:
            rows = torch.tensor([sample["task"] == task for sample in samples])
            batch[f"{task}_labels"] = batch["labels"].masked_fill(~rows[:, None], IGNORED)
        batch["sample_id"] = torch.tensor([sample["index"] for sample in samples])
        if all("concept_map" in sample for sample in samples):
            maps = np.stack([sample["concept_map"][0] for sample in samples]).astype(np.int64)
            batch["concept_map"] = torch.from_numpy(maps)
        return batch

    def _pictures(self, pictures: Sequence[np.ndarray]) -> torch.Tensor:
        if len({picture.shape for picture in pictures}) > 1:
            raise ShapeError("images of one batch differ in size", got=sorted({p.shape for p in pictures}))
        return self.pixels(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2))

    def _text_to_text(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        encoded = self._encode([_target_of(sample) for sample in samples])
        batch = self._asked(samples, [prompt_of(sample) for sample in samples])
        batch["labels"] = self._padded([[*row, self.end] for row in encoded.input_ids], IGNORED)
        if "phrase_places" in batch:
            places = torch.full_like(batch["labels"], IGNORED)
            for row, sample in enumerate(samples):
                for start, stop, quadrants in look_at(sample):
                    first, last = (encoded.char_to_token(row, at) for at in (start, stop - 1))
                    places[row, first : last + 1] = quadrants
            batch["target_places"] = places
        return batch

    def _question_answer(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        ids, mask = self._framed([sample["truth"] for sample in samples])
        decoder = {"decoder_input_ids": ids, "decoder_attention_mask": mask.long()}
        asked = self._asked(samples, [sample["text"] for sample in samples])
        return asked | decoder | {"labels": ids.masked_fill(~mask, IGNORED)}

    def _captioning(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        ids, mask = self._framed([_target_of(sample) for sample in samples])
        return {"input_ids": ids, "attention_mask": mask.long(), "labels": ids.masked_fill(~mask, IGNORED)}

    def _asked(self, samples: Sequence[Mapping[str, Any]], prompts: list[str]) -> dict[str, torch.Tensor]:
        encoded = self._encode(prompts, add_special_tokens=True)
        batch = {
            "input_ids": self._padded(encoded.input_ids, self.tokenizer.pad_token_id),
            "attention_mask": self._padded(encoded.attention_mask, 0),
        }
        if all("phrases" in sample for sample in samples):
            places = torch.full_like(batch["input_ids"], IGNORED)
            for row, (sample, prompt) in enumerate(zip(samples, prompts)):
                start = len(prompt) - len(sample["text"])  # the text stands last
                for end, quadrants in sample["phrases"] if prompt.endswith(sample["text"]) else ():
                    places[row, encoded.char_to_token(row, start + end - 1)] = quadrants
            batch["phrase_places"] = places
        return batch

    def _framed(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return BOS, text, EOS, padded, and True where there is a token."""
        rows = [[self.begin, *row, self.end] for row in self._encode(texts).input_ids]
        return self._padded(rows, self.tokenizer.pad_token_id), self._padded([[1] * len(row) for row in rows], 0).bool()

    def _encode(self, texts: list[str], *, add_special_tokens: bool = False) -> Any:
        encoded = self.tokenizer(texts, add_special_tokens=add_special_tokens)
        unknown = self.tokenizer.unk_token_id
        for text, row in zip(texts, encoded.input_ids):
            if unknown is not None and unknown in row:
                raise InputError(
                    f'text has words outside the vocabulary: "{text}"',
                    hint="Build the tokenizer with the dataset's number of concepts and languages, and with prompts.",
                )
        return encoded

    def _padded(self, rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
        longest = max(map(len, rows))
        if longest > self.max_tokens:
            row = next(row for row in rows if len(row) == longest)
            raise InputError(
                f'text is longer than max_tokens: "{self.tokenizer.decode(row, skip_special_tokens=True)}"',
                expected=f"at most {self.max_tokens}",
                got=longest,
            )
        padded = np.full((len(rows), longest), value, dtype=np.int64)
        for place, row in enumerate(rows):
            padded[place, : len(row)] = row
        return torch.from_numpy(padded)


def _target_of(sample: Mapping[str, Any]) -> str:
    # A caption in another language starts with its tag, which here is in the prompt.
    return sample["truth"].removeprefix(f"[{sample['language']}] ")
