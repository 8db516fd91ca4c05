"""From samples to the batch a model takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from tokenizers import Encoding
from transformers import PreTrainedTokenizerFast

from potstill.errors import InputError, ShapeError

IGNORED = -100
CLASSIFIED = ("vqa", "entailment", "nlvr2")


class SceneCollator:
    """Puts samples of any mix of tasks into one batch of tensors.

    The batch holds, for B samples, I images (2 if any sample is a pair, else 1) and T tokens:
        ``pixel_values`` float32 ``[B, I, 3, H, W]`` in [-1, 1], 0 where there is no image;
        ``image_mask`` bool ``[B, I]``, True where there is one;
        ``input_ids``, ``attention_mask`` long ``[B, T]``: ``[BOS] words`` for a caption, ``[BOS] words [EOS]`` else;
        ``caption_labels`` long ``[B, T]``: the token to predict at each place, -100 outside captions;
        ``vqa_labels``, ``entailment_labels``, ``nlvr2_labels`` long ``[B]``, -100 in rows of another task;
        ``sample_id`` long ``[B]``; ``concept_map`` long ``[B, I, H, W]`` if the samples carry one, -100 = background;
        ``phrase_places`` long ``[B, T]`` if the samples carry phrases: at the last token of each, its quadrants as a
        sum of 1, 2, 4 and 8, -100 elsewhere.

    Rows of "retrieval" and "segmentation" carry no labels of their own. "translation" has no place in this batch.

    Args:
        tokenizer: From ``build_tokenizer``, or any fast tokenizer with BOS, EOS and PAD.
        task_labels: Classes of each task with classes; labels out of their range are refused.
        max_tokens: Longest row; a longer text is an error, not cut.

    Raises:
        InputError: if a text has unknown words or is too long, or a task has no place here.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, task_labels: Mapping[str, Sequence[str]], max_tokens: int = 32
    ):
        self.tokenizer, self.max_tokens = tokenizer, max_tokens
        self.classes = {task: len(task_labels[task]) for task in CLASSIFIED if task in task_labels}

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Return the batch."""
        number = len(samples)
        images = max(len(sample["images"]) for sample in samples)
        shape = samples[0]["images"].shape[1:]
        pixels = np.full((number, images, *shape), 0, dtype=np.uint8)
        present = np.zeros((number, images), dtype=bool)
        for row, sample in enumerate(samples):
            count = len(sample["images"])
            if sample["images"].shape[1:] != shape:
                raise ShapeError(
                    "images of one batch differ in size", expected=str(shape), got=str(sample["images"].shape[1:])
                )
            pixels[row, :count] = sample["images"]
            present[row, :count] = True
        image_mask = torch.from_numpy(present)
        values = (
            torch.from_numpy(pixels).permute(0, 1, 4, 2, 3).to(torch.float32, memory_format=torch.contiguous_format)
        )
        values.mul_(2 / 255).sub_(1)
        if not present.all():
            values[~image_mask] = 0.0
        batch = {"pixel_values": values, "image_mask": image_mask}
        batch.update(self._text(samples))
        for task in CLASSIFIED:
            batch[f"{task}_labels"] = self._labels(task, samples)
        batch["sample_id"] = torch.tensor([sample["index"] for sample in samples])
        if all("concept_map" in sample for sample in samples):
            maps = np.full((number, images, *shape[:2]), IGNORED, dtype=np.int64)
            for row, sample in enumerate(samples):
                maps[row, : len(sample["concept_map"])] = sample["concept_map"]
            batch["concept_map"] = torch.from_numpy(maps)
        return batch

    def _text(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        tokenizer = self.tokenizer
        bos, eos, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
        rows, targets = [], []
        encoded = self._encode([sample["text"] for sample in samples])
        for sample, words in zip(samples, (one.ids for one in encoded)):
            if sample["task"] == "caption":
                rows.append([bos, *words])
                targets.append([*words, eos])
            elif sample["task"] == "translation":
                raise InputError("translation samples have no place in this batch", hint="Collate them yourself.")
            else:
                rows.append([bos, *words, eos])
                targets.append([])
        longest = max(len(row) for row in rows)
        if longest > self.max_tokens:
            sample = samples[max(range(len(rows)), key=lambda row: len(rows[row]))]
            raise InputError(
                f'text is longer than max_tokens: "{sample["text"]}"',
                expected=f"at most {self.max_tokens}",
                got=longest,
            )
        ids = np.full((len(rows), longest), pad, dtype=np.int64)
        attention = np.zeros((len(rows), longest), dtype=np.int64)
        labels = np.full((len(rows), longest), IGNORED, dtype=np.int64)
        for place, (row, target) in enumerate(zip(rows, targets)):
            ids[place, : len(row)] = row
            attention[place, : len(row)] = 1
            labels[place, : len(target)] = target
        texts = {"input_ids": ids, "attention_mask": attention, "caption_labels": labels}
        if all("phrases" in sample for sample in samples):
            places = np.full((len(rows), longest), IGNORED, dtype=np.int64)
            for row, (sample, one) in enumerate(zip(samples, encoded)):
                for end, quadrants in sample["phrases"]:
                    places[row, one.char_to_token(end - 1) + 1] = quadrants  # + 1: BOS
            texts["phrase_places"] = places
        return {key: torch.from_numpy(value) for key, value in texts.items()}

    def _encode(self, texts: list[str]) -> list[Encoding]:
        encoded = self.tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
        unknown = self.tokenizer.unk_token_id
        for text, one in zip(texts, encoded):
            if unknown in one.ids:
                raise InputError(
                    f'text has words outside the vocabulary: "{text}"',
                    hint="Build the tokenizer with the dataset's number of concepts and languages.",
                )
        return encoded

    def _labels(self, task: str, samples: Sequence[Mapping[str, Any]]) -> torch.Tensor:
        labels = [sample["label"] if sample["task"] == task else IGNORED for sample in samples]
        classes = self.classes.get(task)
        if classes is None and any(label != IGNORED for label in labels):
            raise InputError(f'task_labels has no classes for "{task}"', hint="Pass SceneDataset.task_labels.")
        if classes is not None and max(labels) >= classes:
            raise InputError(
                f'a label of "{task}" is outside its classes',
                expected=f"less than {classes}",
                got=max(labels),
                hint="Model and data differ in their answers: use the same number of concepts.",
            )
        return torch.tensor(labels)
