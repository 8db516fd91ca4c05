"""Outputs that a model computes but does not return, read by a tap: as good as returned ones."""

import copy

import pytest
import torch

from potstill.data.sources import DataSource
from potstill.errors import PotstillError, RecipeError
from potstill.losses import kd_kl
from potstill.objectives import LabelObjective, OutputObjective, Where
from potstill.run import plan
from potstill.teachers import LiveTeacher
from potstill.train import DistillModule

TAP = "text_decoder.cls@output"
ANSWERS = torch.tensor([[1, 9, 8, 2], [1, 7, 2, 0]])
LABELS = torch.tensor([[1, 9, 8, 2], [1, 7, 2, -100]])


@pytest.fixture
def answering(tiny):
    """A tiny BLIP that answers questions, which returns no logits, and a batch with answers."""
    model, batch = tiny("blip-vqa")
    batch = {k: v for k, v in batch.items() if k != "labels"}
    return model.requires_grad_(True), {**batch, "decoder_input_ids": ANSWERS, "labels": LABELS}


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_a_tapped_prediction_trains_as_the_models_own_loss_does(answering):
    model, batch = answering
    module = DistillModule(model, [LabelObjective("answer", TAP, "labels", shift=True)])
    output = module(batch)
    assert output.counts["answer"] == 5
    own = model(**batch).loss
    torch.testing.assert_close(output.totals["answer"] / 5, own.detach())
    torch.testing.assert_close(gradients(model, module(batch).loss), gradients(model, own), rtol=1e-4, atol=1e-7)
    module.close()


def test_a_tapped_prediction_is_compared_with_the_teachers(answering, tiny):
    model, batch = answering
    teacher, _ = tiny("blip-caption")  # which returns its logits
    objective = OutputObjective(
        "kd", kd_kl, TAP, teacher_on="logits", where=Where(labels="labels"), shift=True, options={"temperature": 2.0}
    )
    module = DistillModule(model, [objective])
    assert (module.teacher_outputs, module.teacher_taps) == (["logits"], [])
    texts = {"input_ids": ANSWERS, "attention_mask": torch.ones_like(ANSWERS)}
    signal = LiveTeacher(teacher, outputs=module.teacher_outputs).signal({**batch, **texts})
    logits = model.text_decoder(
        ANSWERS,
        encoder_hidden_states=model.text_encoder(
            batch["input_ids"],
            attention_mask=batch["attention_mask"],
            encoder_hidden_states=model.vision_model(batch["pixel_values"]).last_hidden_state,
        ).last_hidden_state,
        encoder_attention_mask=batch["attention_mask"],
    ).logits
    counts = LABELS[:, 1:] != -100
    expected = kd_kl(logits[:, :-1], signal.outputs["logits"][:, :-1], mask=counts, reduction="sum", temperature=2.0)
    torch.testing.assert_close(module(batch, signal).totals["kd"], expected.detach())
    module.close()


def test_the_gradient_does_not_depend_on_how_a_batch_is_split(answering):
    model, batch = answering
    teacher = copy.deepcopy(model)
    with torch.no_grad():
        teacher.text_decoder.cls.predictions.transform.dense.weight.neg_()
    module = DistillModule(model, [OutputObjective("kd", kd_kl, TAP, where=Where(labels="labels"), shift=True)])
    live = LiveTeacher(teacher, outputs=module.teacher_outputs, taps=module.teacher_taps)
    counts = module.count(batch)
    whole = gradients(model, module(batch, live.signal(batch), counts=counts).loss)
    rows = [{k: v[i : i + 1] for k, v in batch.items()} for i in range(2)]
    parts = [gradients(model, module(row, live.signal(row), counts=counts).loss) for row in rows]
    assert max(g.abs().max() for g in whole.values()) > 1e-3
    torch.testing.assert_close({n: parts[0][n] + parts[1][n] for n in whole}, whole, rtol=1e-4, atol=1e-6)
    module.close()


@pytest.mark.parametrize("tap", ["text_decoder.cls@outputs", "text_decoder.*@output"])
def test_a_tap_that_is_none_or_names_several_modules_is_refused(tap):
    with pytest.raises(RecipeError) as error:
        LabelObjective("answer", tap, "labels")
    assert error.value.where == "answer.on"
    with pytest.raises(RecipeError) as error:
        OutputObjective("kd", kd_kl, "logits", teacher_on=tap)
    assert error.value.where == "kd.teacher_on"


def recipe(folder, **objective):
    section = {"loss": "kd_kl", "on": TAP, "labels": "labels", "shift": True, **objective}
    return {
        "version": 1,
        "teacher": {"model": str(folder)},
        "student": {"builder": "depth", "layers": 1},
        "objectives": [section],
        "train": {"batch_size": 2, "threads": 1},
        "evaluate": {"samples": 2},
    }


@pytest.fixture
def run_of(answering, tmp_path):
    """``run_of(on=...)``: the plan of a recipe that distils the tiny BLIP."""
    model, batch = answering
    model.save_pretrained(tmp_path / "teacher")
    rows = [{k: v[i] for k, v in batch.items()} for i in range(2)]
    source = DataSource(
        lambda split, size: rows, lambda picked: {k: torch.stack([r[k] for r in picked]) for k in batch}
    )
    return lambda **objective: plan(recipe(tmp_path / "teacher", **objective), source=source)[0]


def test_a_plan_shows_the_tap_and_what_the_term_is_worth(run_of):
    (row,) = run_of()["objectives"]
    assert (row["name"], row["on"]) == ("cls", TAP)
    assert row["start"] > 0


@pytest.mark.parametrize(
    ("objective", "where"),
    [
        ({"on": "text_decoder.clss@output"}, "objectives[0].on"),
        ({"teacher_on": "text_decoder.clss@output"}, "objectives[0].teacher_on"),
        ({"on": "text_decoder.cls@sideways"}, "objectives[0].on"),
        ({"on": "logits"}, "objectives[0].on"),
        ({"teacher_on": "logits"}, "objectives[0].teacher_on"),
        ({"loss": "cross_entropy", "on": "logits"}, "objectives[0].on"),
        ({"on": "text_decoder.*@output"}, "objectives[0].on"),
        ({"on": "text_encoder@output.nothing"}, "objectives[0].on"),  # there, but without such a field
        ({"teacher_on": "text_encoder@output.nothing"}, "objectives[0].teacher_on"),
        ({"teacher_on": "text_encoder@output.nothing", "on": "text_encoder@output"}, "objectives[0].teacher_on"),
        ({"on": "vision_model.embeddings.position_ids@output"}, "objectives[0].on"),
    ],
)
def test_a_tap_that_does_not_fit_is_placed_in_the_recipe(run_of, objective, where):
    with pytest.raises(PotstillError) as error:
        run_of(**objective)
    assert error.value.where == where


def test_a_tapped_module_that_does_not_run_is_placed_in_the_recipe(run_of):
    with pytest.raises(PotstillError, match="did not run") as error:
        run_of(on="text_encoder.encoder.layer@output")  # a list of modules, never called itself
    assert error.value.where == "objectives[0].on"
