"""The recipes of language models, made tiny: two steps from an untrained Llama of bytes, measured and reported."""

import json
import math

import pytest

from potstill.models.load import load_model
from potstill.run import distill, generate
from potstill.students import build_student
from text_models import save_pair

TINY = [
    *("train.batch_size=4", "train.steps=2", "train.warmup_steps=0", "train.threads=1", "train.log_every=1"),
    *("train.checkpoint_every=2", "evaluate.samples=6", "evaluate.shown=2"),
    *("data.domains=[facts, words]", "data.max_tokens=192", "data.written=2"),
]
LAYERS = "student.layers={text_decoder: [0, 3]}"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return save_pair(tmp_path_factory.mktemp("teacher") / "llama", width=32, layers=4)


@pytest.fixture(scope="module")
def runs(teacher, tmp_path_factory):
    """Every recipe once."""
    folder = tmp_path_factory.mktemp("runs")
    given = [*TINY, f"teacher.model={teacher}", LAYERS]
    generate("seqkd-smollm2", folder / "texts.jsonl", overrides=given, samples=24, beams=2, max_new_tokens=6)
    new = ["student.fields.hidden_size=16", "student.fields.intermediate_size=16", "student.fields.num_hidden_layers=1"]
    return {
        "kd-smollm2": distill("kd-smollm2", folder / "kd", overrides=given),
        "seqkd-smollm2": distill(
            "seqkd-smollm2", folder / "seqkd", overrides=[*given, f"data.completions={folder / 'texts.jsonl'}"]
        ),
        "kd-smollm2-narrow": distill(
            "kd-smollm2-narrow",
            folder / "narrow",
            overrides=[*TINY, f"teacher.model={teacher}", "student.width=16", "student.layers=1", "evaluate.shown=0"],
        ),
        "teach-texts": distill("teach-texts", folder / "teach", overrides=[*TINY, *new]),
    }


def events(run):
    return [json.loads(line) for line in (run.folder / "history.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("name", "terms"),
    [
        ("kd-smollm2", {"answer", "text"}),
        ("kd-smollm2-narrow", {"answer", "text"}),
        ("seqkd-smollm2", {"text"}),
        ("teach-texts", {"text"}),
    ],
)
def test_a_recipe_trains_and_its_student_is_measured_on_texts(runs, name, terms):
    steps = [event for event in events(runs[name]) if event["event"] == "step"]
    assert len(steps) == 2
    assert all(set(step["terms"]) == terms and math.isfinite(step["loss"]) for step in steps)
    scores = runs[name].metrics["models"]["student"]["tasks"]["main"]
    assert {"perplexity", "byte_perplexity", "rouge_l", "exact", "tokens_per_second"} <= set(scores)
    assert scores["written"] == 2
    assert scores["samples"] == 6


def test_closeness_to_the_teacher_is_reported_by_position(runs):
    found = runs["kd-smollm2"].metrics["models"]["student"]["fidelity"]["main"]
    assert found["kl"] > 0
    assert len(found["kl_by_position"]) > 10


def test_the_report_shows_perplexity_rouge_and_what_was_written(runs):
    page = runs["kd-smollm2"].report.read_text()
    for word in ("perplexity", "rouge_l", "tokens_per_second"):
        assert word in page
    samples = json.loads((runs["kd-smollm2"].folder / "samples.json").read_text())
    assert len(samples) == 2
    assert set(samples[0]["answers"]) == {"teacher", "student"}
    assert samples[0]["text"]


def test_the_student_is_saved_with_its_tokenizer(runs):
    folder = runs["kd-smollm2"].folder / "student"
    assert load_model(folder).config.num_hidden_layers == 2
    assert (folder / "tokenizer.json").is_file()


def test_the_teacher_is_not_run_while_a_student_learns_from_written_texts(runs):
    plan = json.loads((runs["seqkd-smollm2"].folder / "plan.json").read_text())
    assert [o["role"] for o in plan["objectives"]] == ["task"]


def test_half_the_layers_are_those_that_were_named(teacher):
    model = load_model(teacher)
    student, record = build_student("depth", model, {"layers": {"text_decoder": [0, 3]}})
    assert record.layers == {"text_decoder": [0, 3]}
    assert record.fresh == []
    own, theirs = student.state_dict(), model.state_dict()
    for s, t in ((0, 0), (1, 3)):
        name = "mlp.up_proj.weight"
        assert own[f"model.layers.{s}.{name}"].equal(theirs[f"model.layers.{t}.{name}"])
    assert student.lm_head.weight is student.model.embed_tokens.weight  # tied, as in the teacher


@pytest.mark.parametrize("init", ["random", "sliced"])
def test_a_narrow_student_keeps_tied_embeddings_and_grouped_heads(teacher, init):
    model = load_model(teacher)
    student, _ = build_student("width", model, {"width": 16, "layers": 2, "init": init, "heads": 1})
    assert student.config.hidden_size == 16
    assert student.config.num_attention_heads % student.config.num_key_value_heads == 0
    assert student.lm_head.weight is student.model.embed_tokens.weight


def test_a_model_with_fewer_positions_than_the_texts_is_refused(teacher, tmp_path):
    from potstill.errors import RecipeError

    overrides = [*TINY, f"teacher.model={teacher}", LAYERS, "data.max_tokens=600"]
    with pytest.raises(RecipeError, match="cannot read texts of that length"):
        distill("kd-smollm2", tmp_path / "run", overrides=overrides)


def test_the_report_draws_the_divergence_along_the_text(runs):
    page = runs["kd-smollm2"].report.read_text()
    assert "Along the text" in page
    assert "KL to the teacher by token of main" in page
    assert "Along the text" not in runs["teach-texts"].report.read_text()  # there is no teacher to be far from
