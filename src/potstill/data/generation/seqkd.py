"""Sequence-level distillation: the teacher writes one text per prompt, once, into a file that students learn from."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from potstill.data.generation.writing import check_sampling, write_tokens
from potstill.data.sources import fetch
from potstill.errors import InputError, IntegrityError

VERSION = 1


class SeqKDGenerator:
    """Lets a teacher answer every prompt of a dataset and keeps prompt, text, token ids and how it was made.

    The student is then trained on these texts with plain cross-entropy, on the tokens of the text alone: one sequence
    in place of the teacher's whole distribution over sequences. It needs no teacher while training and no common
    tokenizer, but loses what the teacher held for likely beside the one text. Not worth its cost where logits can be
    compared: distil them, on the data or on the student's own texts.

    The file is JSON, one object a line: a header (teacher's weights, tokenizer, decoding, number of prompts), then one
    row per prompt, ``{"id", "prompt", "text", "ids", "ended"}``. It is written beside its place as ``NAME.part`` and
    moved there when it is whole; a run that was stopped goes on from the last whole batch and ends with the same file.

    Args:
        teacher: A causal language model of transformers.
        collator: Of texts (``TextCollator``): makes the prompts, and knows tokenizer, end and padding.
        max_new_tokens: Most tokens per text. A text cut there is marked ``"ended": false``, and its end is not learnt.
        beams: Width of the beam search; 1 = always the most likely token.
        temperature: None = beam search; above 0 = draw, by ``top_k`` and ``top_p``.
        top_k: Draw from the k most likely tokens only; 0 = all.
        top_p: Draw from the fewest most likely tokens with this share together.
        seed: Of the draws; a batch's draws depend on it and on the number of the batch alone.

    Raises:
        InputError: A setting out of range.

    Source:
        Kim & Rush, "Sequence-Level Knowledge Distillation", EMNLP 2016, section 3.2 (beam of 5 there); drawing instead
        of searching is ours to choose.
    """

    def __init__(
        self,
        teacher: nn.Module,
        collator: Any,
        *,
        max_new_tokens: int = 128,
        beams: int = 5,
        temperature: float | None = None,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
    ):
        check_sampling(max_new_tokens, 1.0 if temperature is None else temperature, top_k, top_p, 0.0, "generate")
        if temperature is not None and not temperature > 0:
            raise InputError("nothing is drawn", where="generate.temperature", expected="above 0", got=temperature)
        if temperature is None and (top_k or top_p != 1.0):
            raise InputError("belong to drawing", where="generate.top_k, top_p", hint="Give a temperature, too.")
        if beams < 1:
            raise InputError("does not fit", where="generate.beams", expected="1 or more", got=beams)
        self.teacher, self.collator = teacher, collator
        self.decoding: dict[str, Any] = {"max_new_tokens": max_new_tokens}
        if temperature is None:
            self.decoding |= {"kind": "beam", "beams": beams}
        else:
            self.decoding |= {"kind": "draw", "temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}

    def generate(
        self,
        dataset: Any,
        path: str | Path,
        *,
        batch_size: int = 8,
        progress: Callable[[int, int], None] | None = None,
    ) -> Path:
        """Write the file, or go on with one that was begun; a file that is whole is left as it is.

        Args:
            dataset: Map-style; samples ``{"id", "prompt", ...}``.
            path: Of the file.
            batch_size: Prompts at a time. Part of what decides the texts: padding changes last bits, and draws go by
                batch.
            progress: Called with (prompts done, prompts in all).

        Raises:
            IntegrityError: The file that is there was made by another teacher or in another way; names the field.
            InputError: A prompt is longer than the teacher's context.
        """
        if batch_size < 1:
            raise InputError("does not fit", where="generate.batch_size", expected="1 or more", got=batch_size)
        path = Path(path)
        part = path.with_name(path.name + ".part")
        header = self._header(dataset, batch_size)
        if path.is_file():
            check_header(read_header(path), header, path)
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        done = _whole_rows(part, header, batch_size)
        with open(part, "a", encoding="utf-8") as file:
            if file.tell() == 0:
                file.write(json.dumps(header, ensure_ascii=False) + "\n")
            while done < len(dataset):
                rows = self._rows(fetch(dataset, range(done, min(done + batch_size, len(dataset)))), done // batch_size)
                file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
                file.flush()
                done += len(rows)
                if progress is not None:
                    progress(done, len(dataset))
            os.fsync(file.fileno())
        os.replace(part, path)
        return path

    def _header(self, dataset: Any, batch_size: int) -> dict[str, Any]:
        from potstill.align.vocabulary import tokenizer_hash
        from potstill.teachers import fingerprint

        prompts = hashlib.sha256()
        for start in range(0, len(dataset), 1024):
            for sample in fetch(dataset, range(start, min(start + 1024, len(dataset)))):
                prompts.update(json.dumps([sample["id"], sample["prompt"]]).encode())
        return {
            "version": VERSION,
            "teacher": fingerprint(self.teacher),
            "tokenizer": tokenizer_hash(self.collator.tokenizer),
            "chat": self.collator.chat,
            "decoding": {**self.decoding, "batch_size": batch_size},
            "prompts": prompts.hexdigest(),
            "samples": len(dataset),
        }

    def _rows(self, samples: list[Mapping[str, Any]], number: int) -> list[dict[str, Any]]:
        asked = self.collator.prompts(samples)
        device = next(self.teacher.parameters()).device
        ids, mask = asked["input_ids"].to(device), asked["attention_mask"].to(device)
        end, positions = self.collator.end, getattr(self.teacher.config, "max_position_embeddings", None)
        longest = ids.shape[1] + self.decoding["max_new_tokens"]
        if positions is not None and longest > positions:
            raise InputError(
                "prompt and text are longer than the teacher's context",
                where="generate.max_new_tokens",
                expected=f"at most {positions - ids.shape[1]} behind a prompt of {ids.shape[1]} tokens",
                got=self.decoding["max_new_tokens"],
            )
        rows = self._searched(ids, mask) if self.decoding.get("beams", 1) > 1 else self._taken(ids, mask, number)
        found = []
        for sample, row in zip(samples, rows):
            row = row[: row.index(end) + 1] if end in row else row
            ended = bool(row) and row[-1] == end
            text = self.collator.tokenizer.decode(row[:-1] if ended else row, skip_special_tokens=True)
            found.append({"id": sample["id"], "prompt": sample["prompt"], "text": text, "ids": row, "ended": ended})
        return found

    def _searched(self, ids: torch.Tensor, mask: torch.Tensor) -> list[list[int]]:
        was_training = self.teacher.training
        self.teacher.eval()
        try:
            with torch.no_grad():
                found = self.teacher.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    max_new_tokens=self.decoding["max_new_tokens"],
                    num_beams=self.decoding["beams"],
                    do_sample=False,
                    eos_token_id=self.collator.end,
                    pad_token_id=self.collator.padding,
                )
        finally:
            self.teacher.train(was_training)
        return found[:, ids.shape[1] :].tolist()

    def _taken(self, ids: torch.Tensor, mask: torch.Tensor, number: int) -> list[list[int]]:
        draws = {k: self.decoding[k] for k in ("temperature", "top_k", "top_p") if k in self.decoding}
        generator = None
        if draws:
            key = hashlib.sha256(f"{self.decoding['seed']} {number}".encode()).digest()
            generator = torch.Generator(ids.device).manual_seed(int.from_bytes(key[:7], "little"))
        done = write_tokens(
            self.teacher,
            ids,
            mask,
            max_new_tokens=self.decoding["max_new_tokens"],
            eos_token_id=self.collator.end,
            pad_token_id=self.collator.padding,
            generator=generator,
            **(draws or {"temperature": 0.0}),
        )
        return [tokens[kept].tolist() for tokens, kept in zip(done.tokens, done.mask)]


def read_completions(path: str | Path) -> dict[str, dict[str, Any]]:
    """Return the rows of a file that ``SeqKDGenerator`` wrote, by id.

    Raises:
        InputError: There is no such file, or it is not whole yet.
        IntegrityError: It is damaged.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        begun = path.with_name(path.name + ".part").is_file()
        raise InputError(
            "the file of texts is not whole yet" if begun else "there is no such file of texts",
            where="completions",
            got=str(path),
            hint=f"Run: potstill generate RECIPE --out {path}",
        )
    header, rows = read_header(path), {}
    for row in _rows_of(path):
        rows[row["id"]] = row
    if len(rows) != header["samples"]:
        raise IntegrityError("rows are missing", where=str(path), expected=header["samples"], got=len(rows))
    return rows


def read_header(path: Path) -> dict[str, Any]:
    """Return the first line of a file of texts.

    Raises:
        IntegrityError: It is no such file.
    """
    try:
        with open(path, encoding="utf-8") as file:
            header = json.loads(file.readline())
        if header["version"] != VERSION or not isinstance(header["samples"], int):
            raise ValueError(f"version {header['version']}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"is no file of texts that a teacher wrote ({error})", where=str(path)) from error
    return header


def check_header(found: Mapping[str, Any], wanted: Mapping[str, Any], path: Path) -> None:
    """Refuse to go on with a file that was begun in another way."""
    for field, value in wanted.items():
        if found.get(field) != value:
            raise IntegrityError(
                f"was made with another {field}",
                where=str(path),
                expected=str(value),
                got=found.get(field),
                hint="Name another file, or delete this one.",
            )


def _rows_of(path: Path) -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8") as file:
        next(file)
        for number, line in enumerate(file, 2):
            try:
                row = json.loads(line)
                if not (isinstance(row["id"], str) and isinstance(row["text"], str) and isinstance(row["prompt"], str)):
                    raise ValueError("no texts")
            except (ValueError, KeyError, TypeError) as error:
                raise IntegrityError(f"line {number} is damaged ({error})", where=str(path)) from error
            yield row


def _whole_rows(part: Path, header: Mapping[str, Any], batch_size: int) -> int:
    """Cut a begun file behind its last whole batch, and return how many rows it then holds."""
    if not part.is_file():
        return 0
    lines = part.read_bytes().split(b"\n")[:-1]  # behind the last line end stands nothing, or a torn line
    if not lines:
        part.unlink()
        return 0
    check_header(read_header(part), header, part)
    rows = (len(lines) - 1) // batch_size * batch_size if len(lines) - 1 < header["samples"] else header["samples"]
    part.write_bytes(b"".join(line + b"\n" for line in lines[: rows + 1]))
    return rows
