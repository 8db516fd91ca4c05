"""DDK in a run: texts by domain, perplexities on held-out texts, exact in resume."""

import json
import math
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file

from potstill.data.selection import SELECTIONS, DDKSelection, Pool
from potstill.data.sources import DataSource
from potstill.errors import InputError, RecipeError
from potstill.policies import update_domain_weights
from potstill.run import distill
from text_models import byte_tokenizer, save_pair

SIZES = {"prose": 24, "sums": 12, "genes": 4}


class Lines(torch.utils.data.Dataset):
    """Rows of bytes from three domains of unequal size; the held-out ones are others."""

    def __init__(self, split, sizes=SIZES):
        start = 0 if split == "train" else 1000
        makers = (lambda i: f"the {i} old ones of {i}", lambda i: f"{i} + 7 = {i + 7}", lambda i: "acgt"[i % 4] * 9)
        self.rows = [
            {"text": make(start + i), "domain": d}
            for d, (make, n) in enumerate(zip(makers, sizes.values()))
            for i in range(n if split == "train" else 4)
        ]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return {**self.rows[i], "sample_id": i}


def collate(samples):
    ids = [[*(4 + b for b in s["text"].encode()[:16]), 1] for s in samples]
    L = max(map(len, ids))
    row = lambda fill, x: torch.tensor([r + [fill] * (L - len(r)) for r in x])  # noqa: E731
    return {
        "input_ids": row(0, ids),
        "attention_mask": row(0, [[1] * len(r) for r in ids]),
        "labels": row(-100, ids),
        "domain": torch.tensor([s["domain"] for s in samples]),
        "sample_id": torch.tensor([s["sample_id"] for s in samples]),
    }


def source(sizes=SIZES):
    return DataSource(
        lambda split, size=None: Lines(split, sizes),
        collate,
        processor=byte_tokenizer(),
        model_fields={"vocab_size": 260},
        facts={"domains": list(SIZES)},
    )


def recipe(teacher, **selection):
    return {
        "version": 1,
        "student": {"builder": "depth", "layers": 1},
        "teacher": {"model": save_pair(teacher)},
        "objectives": [{"loss": "ddk", "on": "logits", "labels": "labels"}],
        "selection": {"name": "ddk", "interval": 2, **selection},
        "train": {"steps": 6, "batch_size": 4, "learning_rate": 0.01, "log_every": 1, "checkpoint_every": 1},
        "evaluate": {"samples": 4, "batch_size": 4, "attention": False},
    }


def events(folder, kind):
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [row for row in rows if row["event"] == kind]


class Models:
    """A pool of two models' logits for the rows of ``Lines``, and which of them was asked how often."""

    def __init__(self, sharpness):
        self.asked, self.sharpness = [], sharpness

    def pool(self, rows=None):
        train, held = Lines("train"), Lines("validation")
        return Pool(len(train), None, None, lambda key: collate(list(train))[key], heldout=self._of(held))

    def _of(self, data):
        def measure(side, read, indices=None):
            self.asked.append(side)
            batch = collate([data[i] for i in indices.tolist()])
            logits = torch.nn.functional.one_hot(batch["labels"].clamp_min(0).roll(-1, 1), 260) * self.sharpness[side]
            return read(logits.float(), batch)

        return Pool(len(data), None, None, lambda key: collate(list(data))[key], measure)


def test_perplexities_are_those_of_the_held_out_texts_and_the_teacher_is_asked_once():
    models, selection = Models({"student": 1.0, "teacher": 3.0}), DDKSelection(interval=5, domains=list(SIZES))
    selection.rows_per_step = 4
    for epoch in range(3):
        chosen = selection.choose(models.pool(), epoch)
        assert len(chosen.order) == 20
        assert chosen.indices.tolist() == sorted(set(chosen.order.tolist()))
    assert models.asked == ["teacher", "student", "student", "student"]
    for side, s in (("student", 1.0), ("teacher", 3.0)):
        for name in SIZES:
            assert chosen.facts[f"{side}_ppl.{name}"] == pytest.approx((math.exp(s) + 259) / math.exp(s), rel=1e-5)
    assert [chosen.facts[f"weight.{name}"] for name in SIZES] == pytest.approx([1 / 3] * 3)  # lags alike in all


def test_perplexities_can_be_per_byte():
    models, selection = Models({"student": 2.0, "teacher": 4.0}), DDKSelection(num_bytes="sample_id")
    held = Lines("validation")
    batch = collate(list(held))
    counts = (batch["labels"][:, 1:] != -100).sum(1).double()
    own = batch["domain"] == 1
    ce = math.log(math.exp(2.0) + 259) - 2.0
    facts = selection.choose(models.pool(), 0).facts
    expected = math.exp(ce * counts[own].sum().item() / batch["sample_id"][own].sum().item())
    assert facts["student_ppl.1"] == pytest.approx(expected, rel=1e-5)


def test_a_loss_without_bounds_is_cut_off_with_a_warning():
    models = Models({"student": -100.0, "teacher": 4.0})
    with pytest.warns(UserWarning, match='student\'s cross-entropy on the domain "0" is 10'):
        facts = DDKSelection().choose(models.pool(), 0).facts
    assert facts["student_ppl.0"] == pytest.approx(math.exp(20))


def test_a_run_weighs_its_domains_anew_before_every_interval_and_tells_so(tmp_path):
    distill(recipe(tmp_path / "teacher"), tmp_path / "run", source=source())
    chosen = events(tmp_path / "run", "selection")
    assert [e["epoch"] for e in chosen] == [0, 1, 2]
    for event in chosen:
        assert sum(event[f"weight.{name}"] for name in SIZES) == pytest.approx(1)
        assert event["teacher_ppl.sums"] == chosen[0]["teacher_ppl.sums"]
    for before, after in pairwise(chosen):
        ppl = [[after[f"{side}_ppl.{name}"] for name in SIZES] for side in ("student", "teacher")]
        expected = update_domain_weights([before[f"weight.{name}"] for name in SIZES], *ppl)
        assert [after[f"weight.{name}"] for name in SIZES] == pytest.approx(expected.tolist())
    assert chosen[1]["student_ppl.prose"] < chosen[0]["student_ppl.prose"]
    terms = [e["terms"]["logits"] for e in events(tmp_path / "run", "step")]
    assert all(term["notes"]["ce"] > 0 and term["notes"]["kl"] >= 0 for term in terms)


class CrashError(Exception):
    pass


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_run_resumed_in_an_interval_or_between_two_equals_the_straight_one(tmp_path, stop):
    def crash(event):
        if event["event"] == "step" and event["step"] == stop + 1:
            raise CrashError

    given = recipe(tmp_path / "teacher")
    distill(given, tmp_path / "straight", source=source())
    with pytest.raises(CrashError):
        distill(given, tmp_path / "stopped", source=source(), progress=crash)
    distill(given, tmp_path / "stopped", source=source(), resume=True)
    ends = [load_file(tmp_path / name / "student" / "model.safetensors") for name in ("straight", "stopped")]
    assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())
    assert events(tmp_path / "straight", "selection") == events(tmp_path / "stopped", "selection")


def test_a_domain_without_training_texts_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"domains\.genes"):
        distill(recipe(tmp_path / "teacher"), tmp_path / "run", source=source({"prose": 9, "sums": 9, "genes": 0}))


def test_a_domain_without_held_out_texts_is_refused():
    models = Models({"student": 1.0, "teacher": 1.0})
    pool = models.pool()
    few = Pool(4, None, None, lambda key: torch.tensor([0, 0, 1, 1]), None)
    with pytest.raises(InputError, match='no text of the domain "2"'):
        DDKSelection().choose(Pool(pool.size, None, None, pool.batch, heldout=few), 0)


def test_a_teacher_of_another_tokenizer_needs_bytes():
    def pool():
        models = Models({"student": 1.0, "teacher": 1.0})
        made = models.pool()
        inner = made.heldout.measure

        def measure(side, read, indices=None):
            return inner(
                side, lambda logits, batch: read(logits, {**batch, "teacher_labels": batch["labels"]}), indices
            )

        return Pool(made.size, None, None, made.batch, heldout=Pool(12, None, None, made.heldout.batch, measure))

    with pytest.raises(InputError, match="tokenizer of its own"):
        DDKSelection().choose(pool(), 0)
    DDKSelection(teacher_labels="teacher_labels", num_bytes="sample_id").choose(pool(), 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"interval": 0}, "interval"),
        ({"samples": 1.5}, "samples"),
        ({"alpha": 2}, "alpha"),
        ({"heldout": "train"}, "what is trained on"),
        ({"teacher_labels": "teacher_labels"}, "not comparable"),
    ],
)
def test_options_that_do_not_fit_are_refused(change, message):
    with pytest.raises(RecipeError, match=message):
        SELECTIONS.get("ddk")(**change)


def test_the_recipe_may_not_name_the_domains(tmp_path):
    with pytest.raises(RecipeError, match="no such option"):
        distill(recipe(tmp_path / "teacher", domains=["a"]), tmp_path / "run", source=source())
