"""Prompts with the text to write, one split at a time."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import Dataset

from potstill.data.sources import check_index
from potstill.data.texts.pack import TextPack, check_domains, read_pack
from potstill.errors import InputError, IntegrityError, suggest

SPLITS = {
    "train": "eight tenths of the documents",
    "validation": "one tenth; for choosing",
    "test": "one tenth; for reporting",
}


class TextDataset(Dataset):
    """Samples ``{"index", "id", "prompt", "text", "domain", "kind"}`` of one split.

    ``domain`` is the number of the domain among those asked for, ``kind`` its name. Which document (a source file, a
    definition, a question) is in which split is fixed in the pack, so no text of one split is in another. Training
    samples come in an order that the seed decides, so a smaller ``size`` holds some of each domain; those of the other
    splits in an order that never changes.

    Args:
        split: "train", "validation" or "test".
        size: Number of samples; None = all there are.
        seed: Order of the training samples.
        domains: Names; None = all of the pack.
        pack: Where the texts come from; None = the shipped ones.
        written: Rows by id (``read_completions``) whose text stands in place of the pack's; samples without one are
            left out. They have an entry ``ended`` beside the others: False where the text was cut off.

    Raises:
        InputError: An unknown split or domain, or nothing is left.
        IntegrityError: The pack is damaged.
    """

    def __init__(
        self,
        split: str,
        size: int | None = None,
        seed: int = 0,
        *,
        domains: Sequence[str] | None = None,
        pack: TextPack | None = None,
        written: Mapping[str, Mapping[str, Any]] | None = None,
    ):
        if split not in SPLITS:
            raise InputError(f'unknown split "{split}"', where="split", hint=suggest(str(split), SPLITS))
        if size is not None and size < 1:
            raise InputError("does not fit", where="size", expected="at least 1, or null for all", got=size)
        pack = pack or read_pack()
        self.split, self.domains = split, check_domains(domains, pack)
        rows = [
            {"id": f"{name}/{number}", "prompt": row["prompt"], "text": row["text"], "domain": d, "kind": name}
            for d, name in enumerate(self.domains)
            for number, row in enumerate(pack.rows[name])
            if row["split"] == split
        ]
        if written is not None:
            rows = [_replaced(row, written[row["id"]]) for row in rows if row["id"] in written]
        self.all_samples = len(rows)
        rows = [row for row in rows if row["text"].strip()]
        self.empty = self.all_samples - len(rows)
        if not rows:
            raise InputError(
                f'the split "{split}" holds no text',
                where="domains",
                got=f"{self.empty} empty ones" if self.empty else 0,
            )
        random.Random(seed if split == "train" else 0).shuffle(rows)
        self.rows = rows if size is None else rows[:size]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        number = check_index(index, len(self.rows))
        return {"index": number, **self.rows[number]}


def _replaced(row: Mapping[str, Any], written: Mapping[str, Any]) -> dict[str, Any]:
    if written["prompt"] != row["prompt"]:
        raise IntegrityError(
            "the texts were written for other prompts",
            where="completions",
            expected=row["prompt"],
            got=written["prompt"],
        )
    return {**row, "text": written["text"], "ended": bool(written.get("ended", True))}
