"""A data source of short texts over a handful of words, with a tokenizer."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from potstill.data.sources import DataSource
from tiny_writers import V

WORDS = ["[pad]", "[end]", "[unk]", *"abcdefghi"]


def tokenizer(words=WORDS):
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[unk]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[pad]", eos_token="[end]", unk_token="[unk]", padding_side="right"
    )


class Texts(torch.utils.data.Dataset):
    """Prompts of two tokens with completions of three."""

    def __init__(self, n=32, seed=0):
        self.rows = torch.randint(3, V, (n, 5), generator=torch.Generator().manual_seed(seed))

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i]


def collate(rows):
    ids = torch.stack(rows)
    labels = ids.clone()
    labels[:, :2] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def source():
    def make(split, size=None):
        return Texts(size or 32, seed={"train": 0, "validation": 1, "test": 2}[split])

    return DataSource(make, collate, processor=tokenizer(), model_fields={"vocab_size": V})
