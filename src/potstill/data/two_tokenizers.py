"""Batches of one text in the tokens of two models, with the chunks that both cover exactly."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from potstill.align import SpecialToken, align_chunks, token_bytes
from potstill.errors import InputError
from potstill.losses._vocabularies import vocabulary_kind

__all__ = ["TwoTokenizerCollator"]

IGNORED = -100
NONE = -1
Collator = Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]]


class TwoTokenizerCollator:
    """Batches texts once for the student and once for a teacher with another tokenizer, and aligns the two by bytes.

    The batch is the student's own (``input_ids``, ``attention_mask``, ``labels``, ...), the teacher's under
    ``teacher_input_ids``, ``teacher_attention_mask`` and ``teacher_labels``, and for every token the number of its
    chunk in ``student_chunks`` ``[B, L_s]`` and ``teacher_chunks`` ``[B, L_t]``, -1 for tokens in none: those of the
    prompt, padding, and what only one side has. Where a row was cut because it is too long, both sides learn the text
    up to the last chunk they share: labels behind it are -100. ``chunk_bytes`` ``[B]`` is how much text is in chunks.
    All of it is done here, by the data workers.

    Args:
        student: Makes batches for the student: has a ``tokenizer`` and gives ``input_ids`` and ``labels``, the tokens
            of a sample's ``text`` and an end token, -100 elsewhere, not shifted.
        teacher: The same for the teacher.

    Raises:
        InputError: A collator has no tokenizer, or its tokenizer no vocabulary to look at.
    """

    def __init__(self, student: Collator, teacher: Collator):
        self.student, self.teacher = student, teacher
        for side, collator in (("student", student), ("teacher", teacher)):
            if getattr(collator, "tokenizer", None) is None:
                raise InputError(f"the {side}'s collator has no tokenizer", where="TwoTokenizerCollator")
        self._read = {side: _Reader(getattr(self, side).tokenizer) for side in ("student", "teacher")}

    @property
    def tokenizer(self) -> Any:
        """The student's tokenizer."""
        return self.student.tokenizer

    def __getattr__(self, name: str) -> Any:
        if name in ("student", "teacher") or name.startswith("__"):  # while it is unpickled, nothing is there
            raise AttributeError(name)
        return getattr(self.student, name)  # whoever measures the student asks for its metrics and prompts

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the batch."""
        batch, other = self.student(samples), self.teacher(samples)
        labels = {"student": batch["labels"].clone(), "teacher": other["labels"].clone()}
        num_bytes = []
        chunks = {side: torch.full_like(rows, NONE, dtype=torch.int32) for side, rows in labels.items()}
        for row, sample in enumerate(samples):
            places = {side: (rows[row] != IGNORED).nonzero()[:, 0] for side, rows in labels.items()}
            ids = {side: labels[side][row, places[side]].tolist() for side in labels}
            tokens = {side: self._read[side](ids[side], sample["text"]) for side in ids}
            found = align_chunks(tokens["teacher"], tokens["student"])
            for number, (ts, te, ss, se) in enumerate(found):
                chunks["teacher"][row, places["teacher"][ts:te]] = number
                chunks["student"][row, places["student"][ss:se]] = number
            aligned = [t for ts, te, _, _ in found for t in tokens["teacher"][ts:te] if isinstance(t, bytes)]
            num_bytes.append(sum(map(len, aligned)))
            if any(self._was_cut(side, ids[side]) for side in ids):
                ends = {"teacher": found[-1][1] if found else 0, "student": found[-1][3] if found else 0}
                for side, end in ends.items():
                    labels[side][row, places[side][end:]] = IGNORED
        batch["labels"] = labels["student"]
        batch |= {f"teacher_{key}": other[key] for key in ("input_ids", "attention_mask")}
        batch |= {"teacher_labels": labels["teacher"], "chunk_bytes": torch.tensor(num_bytes)}
        return batch | {f"{side}_chunks": rows for side, rows in chunks.items()}

    def _was_cut(self, side: str, ids: Sequence[int]) -> bool:
        end = getattr(getattr(self, side).tokenizer, "eos_token_id", None)
        return end is not None and (not ids or ids[-1] != end)


class _Reader:
    """Turns the tokens of a text into bytes, by the vocabulary or by where each token stood in the text."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.rows = token_bytes(tokenizer)
        # Such vocabularies do not say where a space stood, nor what an unknown token was.
        self.by_place = vocabulary_kind(tokenizer) in ("wordpiece", "text") and getattr(tokenizer, "is_fast", False)

    def __call__(self, ids: Sequence[int], text: str) -> list[bytes | SpecialToken]:
        tokens = [self.rows[i] for i in ids]
        if not self.by_place:
            return tokens
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        start = 0
        for n, (own, (_, end)) in enumerate(zip(encoded["input_ids"], encoded["offset_mapping"])):
            if n == len(ids) or ids[n] != own:
                break
            if end > start or not isinstance(tokens[n], SpecialToken):
                tokens[n], start = text[start:end].encode("utf-8", "surrogatepass"), max(start, end)
        return tokens
