"""Attention maps by recipe: what is paired, what is refused, and a run that stops and goes on."""

import pytest
from safetensors.torch import load_file

from potstill.errors import Interrupted, PotstillError
from potstill.run import distill, plan

AMAD = "amad-scenes"
LAST = "objectives[4]"


@pytest.fixture
def tiny(tiny_run):
    """Four steps of the packaged recipe: a student with one head in place of two."""

    def overrides(*more):
        student = "student={builder: config, overrides: {image_heads: 1, text_heads: 1, pooler_heads: 1}}"
        return tiny_run(student, "train.steps=8", "train.checkpoint_every=4", *more)

    return overrides


def test_the_last_layers_of_every_module_are_paired_and_weigh_together_what_the_predictions_weigh(tiny):
    (made,) = plan(AMAD, tiny())
    rows = [row for row in made["objectives"] if row["loss"] == "amad_loss"]
    assert {row["module"]: row["on"] for row in rows} == {
        "image_encoder": "image_encoder.blocks.1@self_attention",
        "text_decoder": "text_decoder.blocks.1@self_attention",
        "multimodal_decoder": "multimodal_decoder.blocks.1@self_attention, multimodal_decoder.blocks.1@cross_attention",
    }
    assert {row["alpha"] for row in rows} == {"attention"}
    assert [row["weight"] / rows[0]["weight"] for row in rows] == pytest.approx([1, 1, 2])
    others = sum(row["weight"] * row["start"] for row in made["objectives"] if not row["alpha"])
    assert sum(row["weight"] * row["start"] for row in rows) == pytest.approx(others, rel=1e-5)


@pytest.mark.parametrize(
    ("change", "pairs"),
    [
        (f"{LAST}.attention=[cross]", {"multimodal_decoder": 1}),
        (f"{LAST}.layers=2", {"image_encoder": 2, "text_decoder": 2, "multimodal_decoder": 4}),
        (f"{LAST}.modules=[text_decoder]", {"text_decoder": 1}),
        (f"{LAST}.pairs=[[image_pooler.caption, image_pooler.caption, self]]", {None: 1}),
    ],
)
def test_kinds_layers_modules_and_pairs_can_be_chosen(tiny, change, pairs):
    (made,) = plan(AMAD, tiny(change))
    rows = [row for row in made["objectives"] if row["loss"] == "amad_loss"]
    assert {row["module"]: row["on"].count("@") for row in rows} == pairs


@pytest.mark.parametrize("loss", ["one_to_one_heads", "head_mean", "squeezing_heads"])
def test_the_rivals_take_the_place_of_the_loss(tiny, loss):
    objective = f"{LAST}={{loss: {loss}, name: attention, weight: auto}}"
    (made,) = plan(AMAD, tiny(objective))
    assert sum(row["loss"] == loss for row in made["objectives"]) == 3


@pytest.mark.parametrize(
    ("change", "where", "message"),
    [
        (f"{LAST}.modules=[text_encoder]", f"{LAST}.modules[0]", 'unknown module "text_encoder"'),
        (f"{LAST}={{loss: amad_loss, modules: [text_decoder], attention: [cross]}}", f"{LAST}.attention", "no such"),
        (f"{LAST}.pairs=[[image_encoder.blocks.9, image_encoder.blocks.1, self]]", LAST, "no such module"),
        (f"{LAST}.pairs=[[image_encoder.blocks.1, image_encoder.blocks.1, cross]]", LAST, "no cross-attention"),
        (f"{LAST}.pairs=[[image_encoder.blocks.1, text_decoder.blocks.1, self]]", LAST, "different positions"),
        (f"{LAST}.variant=kll", LAST, "unknown variant"),
        (f"{LAST}.tau=0", LAST, "tau"),
        (f"{LAST}.taus=1", f"{LAST}.taus", "no such option"),
        (f"{LAST}.weight=automatic", f"{LAST}.weight", "auto"),
        (f"{LAST}.against=[captions]", LAST, 'no objective "captions"'),
        (f"{LAST}.layers=0", f"{LAST}.layers", "greater"),
        (f"{LAST}.attention=[both]", f"{LAST}.attention", "self"),
        (f"{LAST}.resize={{from: [6, 6]}}", LAST, "pair of grids"),
    ],
)
def test_mistakes_are_placed(tiny, change, where, message):
    with pytest.raises(PotstillError) as caught:
        plan(AMAD, tiny(change))
    assert caught.value.where.startswith(where)
    assert message in str(caught.value)


def test_other_losses_can_have_an_automatic_weight_too(tiny):
    (made,) = plan(AMAD, tiny(f"{LAST}={{loss: hidden, weight: auto, against: [vqa]}}"))
    rows = {row["name"]: row["weight"] * row["start"] for row in made["objectives"]}
    assert sum(v for name, v in rows.items() if name.startswith("hidden")) == pytest.approx(rows["vqa"], rel=1e-5)


def test_a_run_goes_on_exactly_and_a_policy_can_choose_whose_attention_is_matched(tiny, tmp_path):
    policy = "policy={name: optima, round_steps: 2, probe_batches: 1, warmup_rounds: 1}"
    straight = distill(AMAD, tmp_path / "straight", overrides=tiny(policy))
    with pytest.raises(Interrupted):
        distill(AMAD, tmp_path / "resumed", overrides=tiny(policy), progress=_stop_after(6))
    resumed = distill(AMAD, tmp_path / "resumed", overrides=tiny(policy), resume=True)
    ours, theirs = (load_file(run.folder / "student" / "model.safetensors") for run in (straight, resumed))
    assert all(ours[name].equal(theirs[name]) for name in ours)
    parts = load_file(resumed.folder / "checkpoints" / "checkpoint-8" / "parts.safetensors")
    assert parts["attention_alpha.steps"] == 8
    assert not any("alpha" in name for name in ours)


def _stop_after(step):
    def progress(event):
        if event["event"] == "step" and event["step"] >= step:
            raise KeyboardInterrupt

    return progress


def test_the_shipped_captioner_is_taught_by_self_and_cross_attention():
    (made,) = plan("amad-blip-caption", ["train.batch_size=4", "train.threads=1"])
    kinds = {row["module"]: row["on"].count("@") for row in made["objectives"] if row["loss"] == "amad_loss"}
    assert kinds == {"image_encoder": 1, "text_decoder": 2}
    assert made["student"]["parameters"] < made["teacher"]["parameters"]


def test_the_shipped_blip_is_taught_by_self_and_cross_attention_of_question_and_answer():
    (made,) = plan("amad-blip-vqa", ["train.batch_size=4", "train.threads=1"])
    kinds = {row["module"]: row["on"].count("@") for row in made["objectives"] if row["loss"] == "amad_loss"}
    assert kinds == {"image_encoder": 1, "text_encoder": 2, "text_decoder": 2}
    assert made["student"]["parameters"] < made["teacher"]["parameters"]
