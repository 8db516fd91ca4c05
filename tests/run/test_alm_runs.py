import json

import pytest
import torch

from potstill import distill, evaluate_model, plan, source_from_datasets
from potstill.data.texts import byte_tokenizer
from potstill.errors import RecipeError
from potstill.recipe.schema import TeacherSection
from potstill.run.vocabularies import check_reading
from text_models import llama, save_pair
from two_vocabularies import BPE, BYTES, Samples, collator

SMALL = {
    "builder": "new",
    "family": "llama",
    "architecture": "LlamaForCausalLM",
    "fields": {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 512,
    },
}
TEXT = {"loss": "cross_entropy", "name": "text", "on": "logits", "labels": "labels", "shift": True}
ALM = {"loss": "alm"}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return save_pair(tmp_path_factory.mktemp("teacher"))


def recipe(teacher, *objectives, student=SMALL, steps=2, **data):
    data = {"tokenizer": "bpe-300", "teacher_tokenizer": "teacher", **data}
    return {
        "version": 1,
        "teacher": {"model": teacher},
        "student": student,
        "data": {
            "source": "texts",
            "domains": ["facts"],
            "max_tokens": 200,
            "size": 16,
            "written": 0,
            **{k: v for k, v in data.items() if v is not None},
        },
        "objectives": list(objectives),
        "train": {"steps": steps, "batch_size": 2, "checkpoint_every": 1},
        "evaluate": {"samples": 4, "batch_size": 4, "shown": 1},
    }


def test_a_recipe_runs_from_end_to_end(teacher, tmp_path):
    run = distill(recipe(teacher, ALM, TEXT), tmp_path / "run")
    faithful = run.metrics["models"]["student"]["fidelity"]["main"]
    assert faithful["chunks"] > 20
    assert faithful["chunk_gap"] > 0
    assert faithful["teacher_bits_per_byte"] > 0
    tokens = {side: entry["tasks"]["main"]["tokens"] for side, entry in run.metrics["models"].items()}
    assert tokens["teacher"] > tokens["student"]  # each is measured in its own
    saved = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert saved["data"]["tokenizer"] == "bpe-300"
    assert (tmp_path / "run" / "student" / "tokenizer.json").is_file()


@pytest.mark.parametrize(("name", "checkpointing"), [("alm-texts", False), ("alm-texts", True), ("alm-smollm2", False)])
def test_a_packaged_recipe_runs(teacher, tmp_path, name, checkpointing):
    changes = [f"teacher.model={teacher}", "data.domains=[facts]", "data.tokenizer=bpe-300", "data.written=0"]
    changes += ["data.teacher_max_tokens=320", "evaluate.shown=0"]
    changes += [
        "train.steps=2",
        "train.log_every=1",
        "train.batch_size=2",
        "evaluate.samples=4",
        "train.warmup_steps=0",
    ]
    changes += [f"train.gradient_checkpointing={str(checkpointing).lower()}"]
    run = distill(name, tmp_path / "run", overrides=changes)
    assert run.metrics["models"]["student"]["fidelity"]["main"]["chunks"] > 20
    steps = [json.loads(line) for line in (run.folder / "history.jsonl").read_text().splitlines()]
    weights = [term["weight"] for term in steps[-1]["terms"].values()]
    assert sum(weights) == pytest.approx(1)
    assert max(weights) > 0.6


def test_a_stopped_run_with_balanced_terms_ends_as_one_that_was_not(teacher, tmp_path):
    made = recipe(teacher, {**ALM, "weight": "gradmag"}, {**TEXT, "weight": "gradmag"}, steps=3)
    straight = distill(made, tmp_path / "straight").student
    distill(made, tmp_path / "stopped")
    for folder in (tmp_path / "stopped" / "checkpoints").iterdir():
        if not folder.name.endswith("-2"):
            for file in folder.rglob("*"):
                file.unlink()
            folder.rmdir()
    progress = tmp_path / "stopped" / "progress.json"
    if progress.is_file():
        progress.unlink()
    again = distill(made, tmp_path / "stopped", resume=True).student
    for one, other in zip(straight.parameters(), again.parameters()):
        assert torch.equal(one, other)


def test_feeding_the_students_ids_to_a_teacher_with_another_tokenizer_is_refused(teacher):
    with pytest.raises(RecipeError, match=r"teacher\.model: the teacher would read ids of another tokenizer") as error:
        plan(recipe(teacher, {**TEXT, "loss": "kd_kl"}, teacher_tokenizer=None))
    text = str(error.value)
    assert "BPE of 260 tokens" in text
    assert "BPE of 300 tokens" in text
    assert "teacher_tokenizer: teacher" in text
    assert "loss: alm" in text


def test_a_teacher_tokenizer_that_is_not_the_teachers_is_refused(teacher):
    with pytest.raises(RecipeError, match=r"teacher\.model: the teacher would read ids of another tokenizer"):
        plan(recipe(teacher, ALM, tokenizer="bytes", teacher_tokenizer="bpe-300"))


def test_comparing_token_by_token_across_tokenizers_is_refused(teacher):
    with pytest.raises(RecipeError, match=r'objectives\[1\]\.loss: "kd_kl" compares token by token') as error:
        plan(recipe(teacher, ALM, {**TEXT, "loss": "kd_kl"}))
    assert "loss: alm" in str(error.value)


def test_texts_that_the_student_writes_are_refused(teacher):
    with pytest.raises(RecipeError, match=r"rollout: what the student writes"):
        plan({**recipe(teacher, ALM), "rollout": {"lmbda": 0.5}})


def test_alm_with_one_stream_of_tokens_is_refused(teacher):
    with pytest.raises(RecipeError, match='no "student_chunks"'):
        plan(recipe(teacher, ALM, tokenizer=None, teacher_tokenizer=None))


def test_one_tokenizer_on_both_sides_may_be_named_twice(teacher):
    built = plan(recipe(teacher, ALM, {**TEXT, "loss": "kd_kl"}, tokenizer="bytes"))
    assert len(built[0]["objectives"]) == 2


def padded_pair(folder, rows):
    """Save a teacher whose output layer has more rows than its tokenizer has tokens."""
    llama(vocabulary=rows).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


def test_output_layers_padded_differently_name_the_rows_to_share(tmp_path):
    teacher, logits = padded_pair(tmp_path, 272), {**TEXT, "loss": "kd_kl", "name": "kd"}
    given = {"tokenizer": None, "teacher_tokenizer": None}
    with pytest.raises(RecipeError, match=r"objectives\[0\]\.shared_vocab: is missing") as error:
        plan(recipe(teacher, logits, **given))
    text = str(error.value)
    assert "student 260 rows, teacher 272" in text
    assert "shared_vocab: 260" in text
    assert plan(recipe(teacher, {**logits, "shared_vocab": 260}, **given))


def test_a_teacher_made_in_python_has_no_tokenizer_to_compare_with():
    built, rows = llama(vocabulary=285), Samples()
    source = source_from_datasets({"train": rows, "test": rows}, collator(BPE, BYTES).student, processor=BPE)
    check_reading(source, {"teacher": built}, {"teacher": ("teacher", TeacherSection(model="given in Python"))})


def test_data_made_in_python_is_checked_too(teacher):
    rows = Samples()
    source = source_from_datasets({"train": rows, "test": rows}, collator(BPE, BYTES), processor=BPE)
    built = plan({**recipe(teacher, ALM), "data": {"source": "scenes"}}, source=source)
    assert built[0]["objectives"][0]["loss"] == "alm"
    source = source_from_datasets({"train": rows, "test": rows}, collator(BPE, BYTES).student, processor=BPE)
    with pytest.raises(RecipeError, match="would read ids of another tokenizer"):
        plan({**recipe(teacher, TEXT), "data": {"source": "scenes"}}, source=source)


def test_measuring_against_a_teacher_with_another_tokenizer_is_refused(teacher, tmp_path):
    made = recipe(teacher, ALM, TEXT)
    student = distill(made, tmp_path / "run").folder / "student"
    scores = evaluate_model(student, made, teacher=teacher, samples=4)
    assert scores["fidelity"]["main"]["chunks"] > 20
    with pytest.raises(RecipeError, match="would read ids of another tokenizer"):
        evaluate_model(student, {**made, "data": {**made["data"], "teacher_tokenizer": None}}, teacher=teacher)
