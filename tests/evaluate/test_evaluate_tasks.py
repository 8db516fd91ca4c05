import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from potstill.errors import InputError, RecipeError
from potstill.evaluate import evaluate_retrieval, evaluate_tasks, main_score
from potstill.evaluate.batches import choose_indices
from potstill.evaluate.retrieval import recall


@pytest.fixture
def answers(toy, make_table):
    # Questions 0 to 3 right, 4 and 5 wrong; both claims right.
    return toy.model({"vqa": make_table([0, 1, 2, 0, 0, 0]), "entailment": make_table([0] * 6 + [0, 1])})


@pytest.mark.parametrize("batch_size", [1, 3, 8, 100])
def test_accuracy_and_kinds_are_counted_right_in_any_batching(toy, answers, batch_size):
    scores = evaluate_tasks(answers, toy.data, toy.collate, batch_size=batch_size)
    assert scores["vqa"]["accuracy"] == pytest.approx(4 / 6)
    assert scores["vqa"]["samples"] == 6
    # "where" asks samples 0, 2, 4 (one wrong), "what" 1, 3, 5 (one wrong).
    assert scores["vqa"]["kinds"] == pytest.approx({"what": 2 / 3, "where": 2 / 3})
    assert scores["vqa"]["stderr"] == pytest.approx(math.sqrt(4 / 6 * 2 / 6 / 6))
    claims = scores["entailment"]
    assert {k: claims[k] for k in ("accuracy", "stderr", "samples", "macro_accuracy")} == {
        **{"accuracy": 1.0, "stderr": 0.0, "samples": 2, "macro_accuracy": 1.0},
    }
    assert claims["kinds"] == {"colour": 1.0}


def test_model_runs_in_eval_mode_and_every_submodule_gets_its_mode_back(toy, answers):
    answers.train()
    answers.unused.eval()
    evaluate_tasks(answers, toy.data, toy.collate)
    assert answers.was_training
    assert not any(answers.was_training)
    assert answers.training
    assert not answers.unused.training


def test_mode_comes_back_after_an_error(toy, answers):
    answers.train()
    with pytest.raises(ZeroDivisionError):
        evaluate_tasks(answers, toy.data, lambda samples: 1 / 0)
    assert answers.training


def test_naming_a_task_leaves_the_others_out_before_they_cost_anything(toy, answers):
    seen = []

    def collate(samples):
        seen.extend(s["task"] for s in samples)
        return toy.collate(samples)

    assert list(evaluate_tasks(answers, toy.data, collate, tasks=["entailment"])) == ["entailment"]
    assert seen == ["entailment", "entailment"]


def test_an_unknown_task_is_refused_with_the_nearest_name(toy, answers):
    with pytest.raises(RecipeError, match="no sample of the task"):
        evaluate_tasks(answers, toy.data, toy.collate, tasks=["vqq"])


def test_a_model_without_the_head_of_a_task_is_measured_on_the_others_unless_it_is_named(toy, make_table):
    model = toy.model({"vqa": make_table([0] * 8)})
    assert list(evaluate_tasks(model, toy.data, toy.collate)) == ["vqa"]
    with pytest.raises(InputError, match="entailment"):
        evaluate_tasks(model, toy.data, toy.collate, tasks=["vqa", "entailment"])


def test_a_model_with_nothing_to_measure_is_an_error(toy):
    with pytest.raises(InputError, match="nothing to measure"):
        evaluate_tasks(toy.model({}), toy.data, toy.collate)


def test_samples_are_drawn_the_same_for_every_model_and_not_only_from_the_front():
    data = range(1000)
    chosen = choose_indices(data, 50)
    assert chosen == choose_indices(data, 50) == sorted(set(chosen))
    assert len(chosen) == 50
    assert chosen[-1] > 500
    assert choose_indices(data, 5000) == list(range(1000)) == choose_indices(data)


def test_a_stream_that_cannot_be_indexed_is_refused(toy, answers):
    with pytest.raises(InputError, match="cannot be indexed"):
        evaluate_tasks(answers, iter(toy.data), toy.collate)


class _Writer(nn.Module):
    """Writes the caption that its table holds for a sample; position t of its logits is certain of word t."""

    def __init__(self, captions, V=10):
        super().__init__()
        self.captions, self.V = captions, V
        self.config = SimpleNamespace(max_text_length=20)
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, pixel_values):
        ids = [self.captions[int(i)] for i in pixel_values]
        logits = torch.zeros(len(ids), 4, self.V)
        for row, words in enumerate(ids):
            for t, word in enumerate(words[:4]):
                logits[row, t, word] = 20.0
        return {"caption_logits": logits}

    def generate(self, pixel_values, max_new_tokens, do_sample, num_beams):
        assert not do_sample
        assert num_beams == 1
        assert max_new_tokens == 4 + 8
        rows = [[1, *self.captions[int(i)]] for i in pixel_values]
        longest = max(map(len, rows))
        return torch.tensor([row + [0] * (longest - len(row)) for row in rows])


class _Collator:
    """Words are numbers 3 to 9; 0, 1 and 2 are special."""

    class tokenizer:  # noqa: N801 - stands for an object
        @staticmethod
        def decode(ids, skip_special_tokens):
            assert skip_special_tokens
            return " ".join(str(i) for i in ids if i > 2)

    def __call__(self, samples):
        labels = torch.full((len(samples), 4), -100)
        for row, sample in enumerate(samples):
            labels[row, : len(sample["words"])] = torch.tensor(sample["words"])
        return {"pixel_values": torch.tensor([s["index"] for s in samples]), "caption_labels": labels}


CAPTIONS = [[3, 4, 2], [5, 6, 7, 2], [8, 2]]


@pytest.fixture
def captions():
    return [{"task": "caption", "index": i, "words": words} for i, words in enumerate(CAPTIONS)]


def _pairs(text, language):
    assert language == "en"
    return set(text.split())


def test_perfect_captions_score_one(captions):
    scores = evaluate_tasks(_Writer(CAPTIONS), captions, _Collator(), objects_of=_pairs)["caption"]
    assert (scores["objects"], scores["exact"], scores["invented"], scores["token_accuracy"]) == (1, 1, 0, 1)
    assert scores["samples"] == 3
    assert scores["nll"] < 1e-6


def test_objects_exact_and_invented_by_hand(captions):
    written = [[3, 9, 2], [5, 6, 7, 2], [9, 2]]
    scores = evaluate_tasks(_Writer(written), captions, _Collator(), objects_of=_pairs)["caption"]
    assert scores["objects"] == pytest.approx(4 / 6)  # 3; 5 6 7; nothing
    assert scores["invented"] == pytest.approx(2 / 6)  # 9; 9
    assert scores["exact"] == pytest.approx(1 / 3)
    assert scores["token_accuracy"] == pytest.approx(7 / 9)
    assert scores["stderr"] > 0


def test_captions_that_name_nothing_known_have_no_object_score(captions):
    scores = evaluate_tasks(_Writer(CAPTIONS), captions, _Collator(), objects_of=lambda text, language: ())["caption"]
    assert "objects" not in scores
    assert scores["exact"] == 1


@pytest.mark.parametrize("language", ["en", "it"])
def test_captions_of_other_data_need_not_speak_of_the_scenes(captions, language):
    data = [{**sample, "language": language} for sample in captions]
    scores = evaluate_tasks(_Writer(CAPTIONS), data, _Collator())["caption"]
    assert "objects" not in scores
    assert scores["exact"] == 1


def test_without_a_tokenizer_only_tokens_are_scored(captions):
    collator = _Collator()
    scores = evaluate_tasks(_Writer(CAPTIONS), captions, lambda samples: collator(samples))["caption"]
    assert set(scores) == {"samples", "token_accuracy", "nll"}


def test_scenes_and_coca_give_every_task_and_retrieval(scenes):
    scores = evaluate_tasks(scenes.model(), scenes.data, scenes.collator, batch_size=32, retrieval=True)
    assert list(scores) == ["caption", "entailment", "nlvr2", "vqa", "retrieval"]
    assert {"objects", "invented", "exact", "token_accuracy", "nll", "samples"} <= set(scores["caption"])
    assert sum(scores[t]["samples"] for t in ("caption", "entailment", "nlvr2", "vqa")) == 60
    assert scores["retrieval"]["samples"] == scores["caption"]["samples"]
    assert set(scores["vqa"]["kinds"]) <= {s["kind"] for s in scenes.data}


def test_scores_do_not_depend_on_how_the_scenes_are_batched(scenes):
    model = scenes.model(1)
    one, many = (evaluate_tasks(model, scenes.data, scenes.collator, batch_size=n, max_samples=30) for n in (7, 30))
    assert one["caption"]["nll"] == pytest.approx(many["caption"]["nll"], rel=1e-4)
    assert {t: main_score(s) for t, s in one.items()} == {t: main_score(s) for t, s in many.items()}


def test_truthful_captions_of_the_scenes_name_every_object(scenes):
    """The parser reads what the tokenizer writes: else no model could score 1."""

    class Truthful(type(scenes.model())):
        def generate(self, pixel_values, image_mask, **kwargs):
            return torch.where(self.next_labels == -100, 0, self.next_labels)

    model = Truthful(scenes.model().config).eval()
    collate = scenes.collator

    class Watching:
        tokenizer = collate.tokenizer

        def __call__(self, samples):
            batch = collate(samples)
            model.next_labels = batch["caption_labels"][(batch["caption_labels"] != -100).any(1)]
            return batch

    scores = evaluate_tasks(model, scenes.data, Watching(), tasks=["caption"])["caption"]
    assert scores["objects"] == 1
    assert scores["exact"] == 1
    assert scores["invented"] == 0


def test_recall_by_hand_counts_both_directions():
    images = torch.eye(4)
    texts = torch.eye(4)[[1, 0, 2, 3]]
    assert recall(images, texts, k=1) == (0.5, 0.5)
    assert recall(images, texts, k=4) == (1.0, 1.0)


def test_equal_texts_are_the_same_item_in_retrieval():
    images, texts = torch.eye(3), torch.eye(3)[[1, 0, 2]]
    assert recall(images, texts, ["a", "a", "b"], k=1) == (1.0, 1.0)


def test_retrieval_needs_embeddings(toy, answers):
    with pytest.raises(InputError):
        evaluate_retrieval(answers, toy.data, lambda s: toy.collate(s) | {"input_ids": torch.ones(len(s), 2).long()})


class _CausalModel(nn.Module):
    def __init__(self, can_generate):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.can_generate = lambda: can_generate

    def forward(self, input_ids):
        # Sure (as far as logit 3 is) that the next token is the same again.
        return SimpleNamespace(logits=3.0 * nn.functional.one_hot(input_ids, 4).float())


def _language_batch(samples):
    ids = torch.tensor(samples)
    labels = ids.clone()
    labels[:, 0] = -100
    return {"input_ids": ids, "labels": labels}


def test_causal_models_are_scored_on_the_next_token():
    data = [[1, 1, 1, 2], [2, 2, 3, 3]]
    scores = evaluate_tasks(_CausalModel(True), data, _language_batch, batch_size=1)["main"]
    assert scores["accuracy"] == pytest.approx(4 / 6)
    assert scores["tokens"] == 6
    normaliser = math.log(math.exp(3) + 3)
    nll = (4 * (normaliser - 3) + 2 * normaliser) / 6
    assert scores["nll"] == pytest.approx(nll, rel=1e-5)
    assert scores["perplexity"] == pytest.approx(math.exp(nll))


def test_models_that_fill_in_tokens_are_scored_in_place():
    scores = evaluate_tasks(_CausalModel(False), [[1, 1, 1, 2]], _language_batch)["main"]
    assert scores["accuracy"] == 1
    assert scores["tokens"] == 3


def test_a_plain_classifier_is_scored_from_its_only_logits():
    class Classifier(nn.Linear):
        def forward(self, x):
            return {"logits": super().forward(x)}

    model = Classifier(2, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.eye(2))
    data = [((1.0, 0.0), 0), ((0.0, 1.0), 1), ((0.0, 1.0), 0), ((1.0, 0.0), 0)]

    def collate(samples):
        return {"x": torch.tensor([s[0] for s in samples]), "labels": torch.tensor([s[1] for s in samples])}

    scores = evaluate_tasks(model, data, collate)
    sure = math.e / (math.e + 1)
    assert scores == {
        "main": {
            "accuracy": 0.75,
            "stderr": pytest.approx(math.sqrt(0.75 * 0.25 / 4)),
            "samples": 4,
            "macro_accuracy": pytest.approx((2 / 3 + 1) / 2),
            "ece": pytest.approx(0.75 - sure),
            "nll": pytest.approx(-math.log(sure) + 1 / 4),
        }
    }


def test_more_than_five_classes_are_also_scored_by_the_five_highest():
    class Ranked(nn.Module):
        def forward(self, x):
            return {"logits": x}

    data = [(list(range(7)), label) for label in (6, 5, 2, 1, 0)]  # first, second, fifth, sixth, seventh

    def collate(samples):
        x = torch.tensor([s[0] for s in samples], dtype=torch.float32)
        return {"x": x, "labels": torch.tensor([s[1] for s in samples])}

    scores = evaluate_tasks(Ranked(), data, collate)["main"]
    assert scores["top5_accuracy"] == pytest.approx(3 / 5)
    assert scores["accuracy"] == scores["macro_accuracy"] == pytest.approx(1 / 5)


def test_a_class_the_model_does_not_have_is_an_error_of_the_model_and_has_no_likelihood():
    class Two(nn.Module):
        def forward(self, x):
            return {"logits": x}

    def collate(samples):
        return {"x": torch.eye(2)[[s % 2 for s in samples]], "labels": torch.tensor(samples)}

    scores = evaluate_tasks(Two(), [0, 1, 2, 3], collate)["main"]
    assert scores["accuracy"] == 0.5
    assert "nll" not in scores


def test_labels_no_metric_knows_are_refused(toy, answers):
    def collate(samples):
        return {"sample_id": torch.tensor([s["index"] for s in samples]), "labels": torch.rand(len(samples))}

    answers.forward = lambda sample_id: {"logits": torch.zeros(len(sample_id), 1)}
    with pytest.raises(InputError, match="no metric"):
        evaluate_tasks(answers, toy.data, collate)


def test_main_score_prefers_objects():
    assert main_score({"objects": 0.5, "token_accuracy": 0.9}) == 0.5
    assert main_score({"accuracy": 0.0, "samples": 3}) == 0.0
    assert main_score({}) is None
