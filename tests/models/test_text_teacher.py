"""The shipped teacher of texts: better than guessing by far, and a recipe runs with it without any fetch."""

from potstill.data.texts_source import build_texts
from potstill.evaluate import evaluate_tasks
from potstill.models.load import load_model, packaged_models
from potstill.run import distill
from potstill.run.check import check_fit

NAME = "texts-byte-lm"


def test_it_predicts_held_out_texts_byte_by_byte():
    """Guessing is 256, and knowing how often each byte occurs about 20."""
    source, model = build_texts(tokenizer=NAME, max_tokens=320, written=0), load_model(NAME)
    check_fit(model, "teacher", source)
    scores = evaluate_tasks(model, source.split("test", 60), source.collator, batch_size=20)["main"]
    assert scores["byte_perplexity"] < 4.8
    assert scores["accuracy"] > 0.54


def test_it_is_small():
    assert sum(path.stat().st_size for path in packaged_models()[NAME].iterdir()) < 2_000_000


def test_it_teaches_a_narrower_one_by_the_packaged_recipe(tmp_path):
    tiny = [
        *("train.steps=2", "train.batch_size=4", "train.threads=1", "train.warmup_steps=0", "train.checkpoint_every=2"),
        *("data.domains=[facts, words, graphs, tables]", "data.written=2", "evaluate.samples=6", "evaluate.shown=1"),
    ]
    run = distill("kd-texts", tmp_path / "run", overrides=tiny)
    student = run.metrics["models"]["student"]
    assert student["fidelity"]["main"]["kl"] > 0
    assert run.student.config.hidden_size == 64
    assert run.student.config.num_hidden_layers == 2
