"""Tasks whose answers are texts: what is counted, and that models which write them are asked the right way."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from potstill.errors import InputError
from potstill.evaluate import evaluate_tasks, fidelity, main_score, sample_answers

V, EOS = 12, 1
WORDS = dict(enumerate(["", "", "a", "b", "c", ",", "d", "?", "e", "f", "g", "h"]))


def tokenizer():
    def decode(ids, skip_special_tokens):
        return " ".join(WORDS[i] for i in ids if WORDS[i]).replace(" ,", ",")

    return SimpleNamespace(decode=decode)


def collator(task):
    def collate(samples):
        longest = max(len(s["target"]) for s in samples)
        labels = torch.tensor([[*s["target"], *[-100] * (longest - len(s["target"]))] for s in samples])
        return {
            "pixel_values": torch.tensor([[float(s["index"])] for s in samples]),
            "input_ids": torch.tensor([[7, s["index"] % 3 + 2] for s in samples]),
            "attention_mask": torch.ones(len(samples), 2).long(),
            "labels": labels,
            f"{task}_labels": labels.clone(),
        }

    collate.tokenizer = tokenizer()
    return collate


class Writer(nn.Module):
    """Writes for picture i what its list holds, and is certain of just these words when it is shown the true ones."""

    def __init__(self, texts, is_encoder_decoder=True):
        super().__init__()
        self.texts, self.weight = texts, nn.Parameter(torch.zeros(1))
        self.config = SimpleNamespace(is_encoder_decoder=is_encoder_decoder)
        self.asked = []

    def forward(self, pixel_values, input_ids, attention_mask, labels=None):
        length = 3 if labels is None else labels.shape[1]
        logits = torch.zeros(len(pixel_values), length, V)
        for row, i in enumerate(pixel_values[:, 0].long().tolist()):
            for t, word in enumerate(self.texts[i][:length]):
                logits[row, t, word] = 20.0
        return {"logits": logits}

    def generate(self, max_new_tokens, do_sample, num_beams, **inputs):
        assert not do_sample
        self.asked.append(sorted(inputs))
        rows = [self.texts[i] for i in inputs["pixel_values"][:, 0].long().tolist()]
        longest = max(map(len, rows))
        return torch.tensor([[0, *row, *[0] * (longest - len(row))] for row in rows])


TARGETS = [[2, EOS], [3, EOS], [4, EOS], [2, 3, EOS]]


def data(targets=TARGETS, task="vqa"):
    kinds = ["what", "where"]
    return [
        {"task": task, "kind": kinds[i % 2], "index": i, "language": "en", "target": t} for i, t in enumerate(targets)
    ]


@pytest.mark.parametrize("batch_size", [1, 3, 10])
def test_an_answer_counts_if_every_word_is_right(batch_size):
    model = Writer([[2, EOS], [3, 3, EOS], [4, EOS], [2, 4, EOS]])
    scores = evaluate_tasks(model, data(), collator("vqa"), batch_size=batch_size)["vqa"]
    assert scores["accuracy"] == 0.5
    assert scores["samples"] == 4
    assert scores["stderr"] == pytest.approx(0.25)
    assert scores["kinds"] == {"what": 1.0, "where": 0.0}
    assert scores["token_accuracy"] == pytest.approx(7 / 9)
    assert main_score(scores) == 0.5


def test_a_model_with_an_encoder_is_given_the_prompt_and_only_the_rows_of_the_task():
    model = Writer(TARGETS)
    evaluate_tasks(model, data(), collator("vqa"), tasks=["vqa"])
    assert model.asked == [["attention_mask", "input_ids", "pixel_values"]]


def test_a_model_without_an_encoder_for_the_prompt_is_not_given_the_text_it_is_to_write():
    model = Writer([[*t] for t in TARGETS], is_encoder_decoder=False)
    evaluate_tasks(model, data(), collator("vqa"), tasks=["vqa"])
    assert model.asked == [["pixel_values"]]


def test_a_batch_with_a_decoder_input_of_its_own_has_a_prompt():
    plain = collator("vqa")

    def collate(samples):
        return plain(samples) | {"decoder_input_ids": torch.zeros(len(samples), 1).long()}

    collate.tokenizer = plain.tokenizer
    model = Writer(TARGETS, is_encoder_decoder=False)
    evaluate_tasks(model, data(), collate, tasks=["vqa"])
    assert model.asked == [["attention_mask", "input_ids", "pixel_values"]]


def test_of_a_name_list_each_name_counts():
    targets = [[2, 5, 3, EOS], [4, EOS], [2, 5, 2, EOS]]
    model = Writer([[3, 5, 2, EOS], [4, EOS], [2, EOS]])
    scores = evaluate_tasks(model, data(targets, "translation"), collator("translation"))["translation"]
    assert scores["names"] == pytest.approx(4 / 5)
    assert scores["accuracy"] == pytest.approx(1 / 3)
    assert scores["kinds"] == {"what": 0.0, "where": 1.0}


def test_a_caption_is_scored_in_logits_where_there_are_no_caption_logits():
    targets = [[2, 3, EOS], [4, EOS]]
    model = Writer([[2, 3, EOS], [3, EOS]])
    score = {"objects_of": lambda text, language: text.split()}
    scores = evaluate_tasks(model, data(targets, "caption"), collator("caption"), **score)["caption"]
    assert scores["objects"] == pytest.approx(2 / 3)
    assert scores["invented"] == pytest.approx(1 / 3)
    assert scores["exact"] == 0.5
    assert scores["token_accuracy"] == pytest.approx(4 / 5)


def test_without_a_tokenizer_only_the_tokens_are_scored():
    collate = collator("vqa")
    del collate.tokenizer
    scores = evaluate_tasks(Writer(TARGETS), data(), collate)["vqa"]
    assert set(scores) == {"samples", "token_accuracy", "nll"}
    assert scores["token_accuracy"] == 1.0


def test_a_model_that_writes_but_scores_no_tokens_is_measured_on_what_it_writes():
    class Mute(Writer):
        def forward(self, pixel_values, labels):
            return {"loss": torch.zeros(())}

    scores = evaluate_tasks(Mute(TARGETS), data(), collator("vqa"))
    assert scores["vqa"]["accuracy"] == 1.0
    assert "nll" not in scores["vqa"]
    assert "main" not in scores


def test_a_task_that_is_no_text_stays_next_token_prediction():
    scores = evaluate_tasks(Writer(TARGETS), data(task="mlm"), collator("mlm"))
    assert "perplexity" in scores["mlm"]
    assert "perplexity" in scores["main"]


def test_fidelity_compares_written_tasks_token_by_token():
    student, teacher = Writer([[2, EOS], [4, EOS], [4, EOS], [2, 3, EOS]]), Writer(TARGETS)
    scores = fidelity(student, teacher, data(), collator("vqa"))["vqa"]
    assert scores["samples"] == 9
    assert scores["agreement"] == pytest.approx(8 / 9)
    assert fidelity(teacher, teacher, data(), collator("vqa"))["vqa"]["kl"] == pytest.approx(0, abs=1e-9)


def test_shown_answers_are_written_beside_prompt_and_truth():
    def collate(samples):
        batch = collator("vqa")(samples)
        return batch | {"pixel_values": batch["pixel_values"][:, :, None, None].expand(-1, 3, 2, 2)}

    class Painter(Writer):
        def forward(self, pixel_values, **rest):
            return super().forward(pixel_values.flatten(1), **rest)

        def generate(self, pixel_values, **rest):
            return super().generate(pixel_values=pixel_values.flatten(1), **rest)

    collate.tokenizer = tokenizer()
    Painter.forward.__signature__ = __import__("inspect").signature(Writer.forward)
    shown = sample_answers({"student": Painter([[2, EOS]] * 4)}, data(), collate, n=2)
    assert [s["answers"]["student"] for s in shown] == ["a", "a"]
    assert [s["truth"] for s in shown] == ["b", "a"]  # one that is wrong, one that is right
    assert [s["text"] for s in shown] == ["? b", "? a"]


def test_a_named_task_without_an_output_says_which_is_missing():
    class Silent(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, pixel_values):
            return {"other": pixel_values}

    with pytest.raises(InputError, match="nothing to measure"):
        evaluate_tasks(Silent(), data(), collator("vqa"))
