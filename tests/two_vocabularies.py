"""Two tokenizers of one text, tiny models for each, and rows of both."""

import torch

from potstill.data.texts import byte_tokenizer
from potstill.data.token_sets import train_bpe
from potstill.data.two_tokenizers import TwoTokenizerCollator
from tiny_writers import llama

TEXTS = ["the cat sat on the mat", "a dog and the cat", "the dogs of Köln", "on the mat a cat", "cats sat", "dogs"]
BYTES = byte_tokenizer()
BPE = train_bpe(TEXTS * 3, 285)


class Rows:
    """Prompt, text and end in one row, padded on the right, labels at the text."""

    def __init__(self, tokenizer, max_tokens=64):
        self.tokenizer, self.max_tokens = tokenizer, max_tokens

    def __call__(self, samples):
        rows, starts = [], []
        for sample in samples:
            prompt = self.tokenizer(sample["prompt"] + "\n")["input_ids"]
            text = self.tokenizer(sample["text"], add_special_tokens=False)["input_ids"]
            rows.append([*prompt, *text, self.tokenizer.eos_token_id][: self.max_tokens])
            starts.append(len(prompt))
        L = max(map(len, rows))
        ids = torch.tensor([row + [self.tokenizer.pad_token_id] * (L - len(row)) for row in rows])
        place = torch.arange(L)
        mask = place < torch.tensor([[len(row)] for row in rows])
        is_text = mask & (place >= torch.tensor(starts)[:, None])
        return {
            "input_ids": ids,
            "attention_mask": mask.long(),
            "labels": ids.masked_fill(~is_text, -100),
            "sample_id": torch.tensor([sample["index"] for sample in samples]),
        }


class Samples(list):
    """The texts as a dataset."""

    def __init__(self):
        super().__init__({"index": i, "prompt": "write", "text": text, "domain": 0} for i, text in enumerate(TEXTS * 2))


def collator(student=BYTES, teacher=BPE, *, longest=64, teacher_longest=64):
    return TwoTokenizerCollator(Rows(student, longest), Rows(teacher, teacher_longest))


def student(seed=1, tokenizer=BYTES):
    return llama(seed, len(tokenizer))


def teacher(seed=0, tokenizer=BPE):
    return llama(seed, len(tokenizer))
