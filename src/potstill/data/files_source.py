"""Data of your own as a data source: a table on disk with a processor, or any datasets with a collator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset, Subset

from potstill.data.sources import DATA, DataSource
from potstill.data.tables import TableDataset, check_columns, find_labels, read_splits
from potstill.errors import InputError, suggest

IGNORED = -100


def source_from_datasets(
    datasets: Mapping[str, Any],
    collator: Callable[[list[Any]], dict[str, Any]],
    *,
    processor: Any | None = None,
    model_fields: Mapping[str, Any] | None = None,
) -> DataSource:
    """Return a source made of map-style datasets (of ``datasets``, PyTorch or your own), one for each split.

    Args:
        datasets: Split name to dataset; "train" is needed.
        collator: A list of samples to a batch of tensors.
        processor: Saved beside the student.
        model_fields: Fields that a model made for this data must have in its configuration.

    Raises:
        InputError: if there is no "train", or later for a split that is not there.
    """
    if "train" not in datasets:
        raise InputError('there is no split "train"', where="datasets", hint=suggest("train", datasets))

    def make(split: str, size: int | None) -> Any:
        if split not in datasets:
            raise InputError(f'unknown split "{split}"', where="split", hint=suggest(str(split), datasets))
        data = datasets[split]
        return data if size is None or size >= len(data) else Subset(data, range(size))

    facts = {f"{name}_samples": len(data) for name, data in datasets.items()}
    return DataSource(make, collator, processor, dict(model_fields or {}), facts)


class ProcessorCollator:
    """Batches rows of a table with a processor, tokenizer or image processor of transformers.

    The batch is what the processor gives, plus ``sample_id`` and ``labels``: class numbers ``[B]``, or for
    ``predict="text"`` the token numbers ``[B, T]`` with -100 at padding.

    Args:
        processor: From transformers.
        predict: "label", "text", or None for no labels.
        max_tokens: Longer texts are cut there; None = never.
    """

    def __init__(self, processor: Any, predict: str | None = None, max_tokens: int | None = None):
        self.processor, self.predict, self.max_tokens = processor, predict, max_tokens

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Return the batch."""
        given: dict[str, Any] = {"return_tensors": "pt"}
        if "image" in samples[0]:
            given["images"] = [sample["image"] for sample in samples]
        if "text" in samples[0]:
            given.update(text=[sample["text"] for sample in samples], padding=True)
            if self.max_tokens is not None:
                given.update(truncation=True, max_length=self.max_tokens)
        try:
            batch = dict(self.processor(**given))
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{type(self.processor).__name__} does not take these columns",
                where="processor",
                got=str(error).splitlines()[0],
                hint="Map exactly the columns that the processor reads: image, text, or both.",
            ) from error
        if self.predict == "label":
            batch["labels"] = torch.tensor([sample["label"] for sample in samples])
        elif self.predict == "text":
            batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
        batch["sample_id"] = torch.tensor([sample["index"] for sample in samples])
        return batch


@DATA.register("files")
def build_files(
    *,
    path: str,
    processor: str,
    columns: Mapping[str, str],
    predict: str | None = None,
    labels: Sequence[str] | None = None,
    max_tokens: int | None = None,
    size: int | None = None,
    seed: int = 0,
) -> DataSource:
    """Return a table on disk as a source.

    Args:
        path: A folder written by ``datasets.save_to_disk``, or a .parquet, .jsonl, .json or .csv file. Picture paths
            in it are relative to it.
        processor: Folder or hub name of a processor, tokenizer or image processor. Remote code is refused.
        columns: Role ("image", "text", "label") to column name.
        predict: "label" (the default where a label is mapped), "text", or None.
        labels: Classes in the order of their numbers; None = as the table declares them, or its distinct values.
        max_tokens: Longer texts are cut there.
        size: Number of training rows; None = all.
        seed: Taken because every source is given one; which row is in which split does not depend on it.

    Raises:
        InputError: if table, columns, labels or processor do not fit; says which.
    """
    tables = read_splits(path)
    first = next(iter(tables.values()))
    columns = check_columns(columns, first)
    predict = predict or ("label" if "label" in columns else None)
    if predict not in (None, "label", "text"):
        raise InputError("unknown target", where="predict", expected='"label" or "text"', got=predict)
    if predict is not None and predict not in columns:
        raise InputError(f'no column is mapped to "{predict}"', where="predict", hint="Add it to columns.")
    if "label" in columns and labels is None:
        labels = find_labels(first, columns["label"])
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    sets: dict[str, Dataset] = {
        name: TableDataset(table, columns, labels, folder, size if name == "train" else None)
        for name, table in tables.items()
    }
    loaded = _load_processor(processor)
    tokenizer = getattr(loaded, "tokenizer", loaded)
    fields = {}
    if "text" in columns and hasattr(tokenizer, "pad_token_id"):
        fields = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    if predict == "label":
        fields["num_labels"] = len(labels)
    source = source_from_datasets(
        sets, ProcessorCollator(loaded, predict, max_tokens), processor=loaded, model_fields=fields
    )
    source.facts = {"path": str(path), "columns": columns, "predict": predict, **source.facts}
    return source


def _load_processor(name: str) -> Any:
    from transformers import AutoProcessor

    try:
        return AutoProcessor.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # tokenizers raises bare Exception for a damaged file, each processor class its own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            "no processor could be loaded",
            where="processor",
            expected="a folder or hub name of a processor, tokenizer or image processor",
            got=f"{name}: {reason}",
        ) from error
