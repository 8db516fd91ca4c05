"""Texts behind prompts: likelihoods per token and byte, and what is written against what is true."""

import math

import pytest
import torch

from potstill.data.texts import TextCollator, TextDataset
from potstill.evaluate import evaluate_tasks, fidelity, measure, sample_answers
from potstill.evaluate.texts import rouge_l, write_on
from text_models import byte_tokenizer, llama


def by_hand(said, true):
    """The longest common subsequence by trying all of them."""
    best = 0
    for choice in range(2 ** len(said)):
        picked = [word for i, word in enumerate(said) if choice >> i & 1]
        at = iter(true)
        if all(word in at for word in picked):
            best = max(best, len(picked))
    return 2 * best / (len(said) + len(true))


@pytest.mark.parametrize(
    ("said", "true"),
    [
        ("the cat sat on the mat", "the mat sat on the cat"),
        ("a b c d", "d c b a"),
        ("a a b", "a b a b"),
        ("x", "y z"),
    ],
)
def test_rouge_l_is_the_share_of_the_longest_common_subsequence(said, true):
    assert rouge_l(said, true) == pytest.approx(by_hand(said.split(), true.split()))


def test_rouge_l_reads_words_and_not_marks_or_case():
    assert rouge_l("The CAT, sat!", "the cat sat") == 1.0
    assert rouge_l("", "") == 1.0
    assert rouge_l("", "word") == 0.0


@pytest.fixture(scope="module")
def collator():
    return TextCollator(byte_tokenizer(), 256, written=3)


@pytest.fixture(scope="module")
def data():
    return TextDataset("test", 12, domains=["facts", "words"])


def test_likelihoods_are_those_of_the_texts_alone_one_by_one(collator, data):
    model = llama()
    scores = evaluate_tasks(model, data, collator, batch_size=5)["main"]
    nll = tokens = hits = size = 0
    for sample in data.rows:
        (prompt,) = collator.prompt_ids([sample["prompt"]])
        text = [*collator.tokenizer(sample["text"], add_special_tokens=False).input_ids, collator.end]
        ids = torch.tensor([(prompt + text)[: collator.max_tokens]])
        text = ids[0, len(prompt) :]
        with torch.no_grad():
            chances = model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        nll -= float(chances.gather(1, text[:, None]).sum())
        hits += int((chances.argmax(-1) == text).sum())
        tokens += len(text)
        size += len(collator.tokenizer.decode(text, skip_special_tokens=True).encode())
    assert scores["tokens"] == tokens
    assert scores["accuracy"] == pytest.approx(hits / tokens)
    assert scores["nll"] == pytest.approx(nll / tokens, rel=1e-5)
    assert scores["perplexity"] == pytest.approx(math.exp(nll / tokens), rel=1e-5)
    assert scores["byte_perplexity"] == pytest.approx(math.exp(nll / size), rel=1e-5)
    assert set(scores["domains"]) == set(scores["kinds"]) == {"facts", "words"}
    assert sum(domain["tokens"] for domain in scores["domains"].values()) == tokens


def test_only_some_texts_are_written_whatever_the_batch(collator, data):
    model = llama()
    one, other = (evaluate_tasks(model, data, collator, batch_size=n)["main"] for n in (2, 12))
    assert one["written"] == other["written"] == 3
    assert other["tokens_per_second"] > 0
    silent = TextCollator(byte_tokenizer(), 256, written=0)
    assert "rouge_l" not in evaluate_tasks(model, data, silent)["main"]


def test_a_model_that_knows_the_text_writes_it_exactly(data):
    """One row learnt by heart: then ROUGE-L and exact match are 1, and the perplexity nearly."""
    collator = TextCollator(byte_tokenizer(), 128, written=1)
    model = llama(width=32, layers=1, heads=2).train()
    sample = {"index": 0, "prompt": "What is it?", "text": "It is a pot.", "domain": 0, "kind": "facts"}
    batch = collator([sample])
    given = {k: batch[k] for k in ("input_ids", "attention_mask", "labels")}
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        model(**given).loss.backward()
        optimizer.step()
    scores = evaluate_tasks(model, [sample], collator)["main"]
    assert scores["exact"] == scores["rouge_l"] == scores["accuracy"] == 1.0
    assert scores["perplexity"] < 1.1
    shown = sample_answers({"student": model}, [sample], collator, 1)
    assert shown == [
        {"task": "facts", "images": [], "text": "What is it?", "truth": "It is a pot.",
         "answers": {"student": "It is a pot."}}
    ]  # fmt: skip


def test_fidelity_is_measured_at_the_texts_by_position(collator, data):
    scores = fidelity(llama(), llama(seed=1), data, collator, batch_size=4)["main"]
    assert 0 <= scores["agreement"] < 1
    assert scores["kl"] > 0
    assert len(scores["kl_by_position"]) == 64


def test_the_whole_entry_of_a_model_is_measured(collator, data):
    entry = measure(llama(), dataset=data, collator=collator, teacher=llama(seed=1), batch_size=6)
    assert entry["tasks"]["main"]["samples"] == 12
    assert entry["fidelity"]["main"]["samples"] == entry["tasks"]["main"]["tokens"]


def test_writing_ends_where_the_positions_of_the_model_do(collator):
    model, decode = llama(positions=24), collator.tokenizer.decode
    asked = collator.prompts([{"prompt": "x" * 19}])
    texts, tokens, _ = write_on(model, asked, 100, end=1, padding=0, decode=decode)
    assert len(texts) == 1
    assert 1 <= tokens <= 4
    asked = collator.prompts([{"prompt": "x" * 23}])
    assert write_on(model, asked, 100, end=1, padding=0, decode=decode) == ([""], 0, 0.0)
