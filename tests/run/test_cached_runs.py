"""Runs that read their teacher from its cache: like runs that ask it, without its weights, and refused where wrong."""

import json

import pytest
import torch

from potstill.errors import InputError, IntegrityError, PotstillError, RecipeError
from potstill.models.load import load_model
from potstill.recipe import load_recipe
from potstill.run import distill, plan
from potstill.run.cache_building import CacheForm, build_cache
from potstill.run.prepare import is_empty, prepare
from potstill.teachers.cache import CacheReader
from text_models import byte_tokenizer, save_pair

SMALL = (
    *("train.steps=4", "train.batch_size=8", "train.warmup_steps=0", "train.threads=1", "train.log_every=1"),
    *("train.checkpoint_every=4", "evaluate.samples=16", "evaluate.splits=[]", "evaluate.shown=0"),
)
DIGITS = (*SMALL, "data.augment=none", "data.pool=40")
EMOJI = (*SMALL, "data.pool=40")
SCENES = (
    *SMALL,
    *("data.tasks=[caption]", "data.size=32", "data.concepts=12", "evaluate.attention=false"),
    "objectives=[{loss: kd_kl, name: caption, on: caption_logits, labels: caption_labels}]",
)


def terms(folder):
    """The value of every term at every step."""
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [{n: t["value"] for n, t in line["terms"].items()} for line in lines if line["event"] == "step"]


def trained(recipe, folder, overrides):
    """Train and no more; return what ``terms`` does."""
    built = prepare(load_recipe(recipe, overrides).staged()[0][1], folder)
    built.trainer.train()
    built.close()
    events = built.trainer.history.events
    return [{n: t["value"] for n, t in line["terms"].items()} for line in events if line["event"] == "step"]


def first_terms(one, other, rtol):
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name] == pytest.approx(b[name], rel=rtol), name


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return build_cache("kd-digits", tmp_path_factory.mktemp("cache") / "digits", overrides=DIGITS)


@pytest.fixture(scope="module")
def emoji(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache") / "emoji"
    return build_cache("kd-emoji", folder, overrides=EMOJI, form=CacheForm(temperatures=(2.0,)))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory, coca_teacher):
    folder = tmp_path_factory.mktemp("cache") / "scenes"
    overrides = [*SCENES, f"teacher.model={coca_teacher}", "student={builder: depth, layers: 1}"]
    return build_cache("kd-scenes", folder, overrides=overrides, form=CacheForm(k=16, batch_size=8)), overrides


def test_a_student_compared_with_kept_classes_needs_no_whole_logits(scenes, tmp_path):
    folder, overrides = scenes
    given = [*overrides, f"teacher.cache={folder}"]
    assert plan("kd-scenes", [*given, "train.logits_budget_mb=null"])[0]["logits"]["fused"]
    whole = trained("kd-scenes", tmp_path / "whole", [*given, "train.logits_budget_mb=0"])
    fused = trained("kd-scenes", tmp_path / "fused", [*given, "train.logits_budget_mb=null"])
    first_terms(fused, whole, 1e-4)


def test_a_run_from_a_cache_of_all_classes_is_the_run_with_the_teacher(digits, tmp_path):
    live = distill("kd-digits", tmp_path / "live", overrides=DIGITS)
    cached = distill("kd-digits", tmp_path / "cached", overrides=[*DIGITS, f"teacher.cache={digits}"])
    assert CacheReader(digits).fields[0].kind == "whole"
    first_terms(terms(tmp_path / "cached"), terms(tmp_path / "live"), 1e-5)
    mine, theirs = cached.metrics["models"], live.metrics["models"]
    assert mine["teacher"]["tasks"] == theirs["teacher"]["tasks"]
    near, wanted = (m["student"]["fidelity"]["main"]["kl"] for m in (mine, theirs))
    assert near == pytest.approx(wanted, rel=1e-4)


def test_data_workers_read_the_cache(digits, tmp_path):
    overrides = [*DIGITS, f"teacher.cache={digits}", "evaluate.teacher=false"]
    distill("kd-digits", tmp_path / "0", overrides=overrides)
    distill("kd-digits", tmp_path / "2", overrides=[*overrides, "train.workers=2"])
    assert terms(tmp_path / "0") == terms(tmp_path / "2")


def test_a_stopped_run_from_a_cache_ends_bit_for_bit_like_one_without_a_break(digits, tmp_path):
    overrides = [*DIGITS, f"teacher.cache={digits}", "evaluate.teacher=false", "train.checkpoint_every=2"]

    def stop(event):
        if event["event"] == "step" and event["step"] == 3:
            raise KeyboardInterrupt

    whole = distill("kd-digits", tmp_path / "whole", overrides=overrides)
    with pytest.raises(PotstillError):
        distill("kd-digits", tmp_path / "broken", overrides=overrides, progress=stop)
    resumed = distill("kd-digits", tmp_path / "broken", overrides=overrides, resume=True)
    ours, theirs = resumed.student.state_dict(), whole.student.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_no_weight_of_the_teacher_is_read_for_a_run_without_its_measurement(emoji, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the teacher was loaded")

    monkeypatch.setattr("potstill.run.build.load_model", refuse)
    notes = []
    run = distill(
        "kd-emoji",
        tmp_path / "run",
        overrides=[*EMOJI, f"teacher.cache={emoji}", "evaluate.teacher=false"],
        progress=notes.append,
    )
    assert list(run.metrics["models"]) == ["student"]
    assert run.metrics["models"]["student"]["fidelity"] is None
    assert "the teacher is not measured, as evaluate.teacher says" in [e.get("text") for e in notes]
    assert run.report.stat().st_size > 1000


def test_the_tail_is_a_bound_near_the_loss_and_draws_and_temperatures_serve(emoji, tmp_path):
    first = {}
    for name, more in {
        "live": [],
        "tail": [f"teacher.cache={emoji}"],
        "renormalised": [f"teacher.cache={emoji}", "teacher.cache_mode=renormalised"],
        "live 2": ["objectives[0].temperature=2"],
        "tail 2": [f"teacher.cache={emoji}", "objectives[0].temperature=2"],
        "reverse": ["objectives[0].loss=reverse_kl"],
        "tail reverse": [f"teacher.cache={emoji}", "objectives[0].loss=reverse_kl"],
    }.items():
        first[name] = plan("kd-emoji", [*EMOJI, *more])[0]["objectives"][0]["start"]
    assert first["live"] * 0.98 < first["tail"] <= first["live"] + 1e-4
    assert first["renormalised"] == pytest.approx(first["live"], rel=0.05)
    assert first["live 2"] * 0.8 < first["tail 2"] <= first["live 2"] + 1e-3
    assert first["tail reverse"] < first["reverse"]


def test_a_run_from_draws(tmp_path):
    drawn = build_cache("kd-emoji", tmp_path / "drawn", overrides=EMOJI, form=CacheForm(draws=50))
    overrides = [*EMOJI, f"teacher.cache={drawn}", "evaluate.teacher=false"]
    with pytest.raises(RecipeError, match=r'the targets are classes that were drawn.*expected mode "sampled"'):
        plan("kd-emoji", overrides)
    live = plan("kd-emoji", EMOJI)[0]["objectives"][0]["start"]
    distill("kd-emoji", tmp_path / "run", overrides=[*overrides, "teacher.cache_mode=sampled"])
    start = plan("kd-emoji", [*overrides, "teacher.cache_mode=sampled"])[0]["objectives"][0]["start"]
    assert start == pytest.approx(live, rel=0.2)


def test_captions_keep_the_positions_that_have_a_label(scenes, tmp_path):
    folder, overrides = scenes
    field = CacheReader(folder).fields[0]
    assert (field.kind, field.mask, field.k) == ("top_k", "caption_labels", 16)
    live = trained("kd-scenes", tmp_path / "live", overrides)
    cached = trained("kd-scenes", tmp_path / "cached", [*overrides, f"teacher.cache={folder}"])
    for with_teacher, from_cache in zip(live, cached, strict=True):
        assert 0 < from_cache["caption"] < with_teacher["caption"] * 1.001


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    teacher = save_pair(tmp_path_factory.mktemp("llama") / "teacher", width=32)
    return [
        *(*SMALL, f"teacher={{model: {teacher}}}", "student={builder: depth, layers: 1}"),
        *("data={source: texts, max_tokens: 320, size: 24, written: 0}", "evaluate.attention=false"),
        "objectives=[{loss: kd_kl, name: answer, on: logits, labels: labels, shift: true}, "
        "{loss: cross_entropy, name: text, on: logits, labels: labels, shift: true}]",
    ]


@pytest.mark.parametrize("form", [CacheForm(k=40), CacheForm(k=40, log_probs="u8", batch_size=5)])
def test_a_language_model_keeps_the_words_it_would_write(texts, form, tmp_path):
    folder = build_cache("kd-smollm2", tmp_path / "cache", overrides=texts, form=form)
    field = CacheReader(folder).fields[0]
    assert (field.mask, field.shift, field.vocab, field.is_ragged) == ("labels", True, 260, True)
    live = trained("kd-smollm2", tmp_path / "live", texts)
    cached = trained("kd-smollm2", tmp_path / "cached", [*texts, f"teacher.cache={folder}"])
    assert live[0]["text"] == cached[0]["text"]
    assert live[0]["answer"] * 0.5 < cached[0]["answer"] < live[0]["answer"]
    never_formed = [*texts, f"teacher.cache={folder}", "train.logits_budget_mb=null"]
    assert plan("kd-smollm2", never_formed)[0]["logits"]["fused"]
    first_terms(trained("kd-smollm2", tmp_path / "fused", never_formed), cached, 1e-4)
    with pytest.raises(RecipeError, match=r"reads other positions.*labels.*shifted"):
        plan("kd-smollm2", [*texts, f"teacher.cache={folder}", "objectives[0].shift=false"])
    byte_tokenizer(end="<|stop|>").save_pretrained(tmp_path / "words")
    with pytest.raises(RecipeError, match='another "tokenizer"'):
        plan("kd-smollm2", [*texts, f"teacher.cache={folder}", f"data.tokenizer={tmp_path / 'words'}"])
    with pytest.raises(RecipeError, match="texts that the student writes are in no cache"):
        plan("kd-smollm2", [*texts, f"teacher.cache={folder}", "rollout={lmbda: 0.5}"])


def test_hidden_states_and_maps_come_from_a_cache_and_a_policy_plays_on(coca_teacher, tmp_path):
    overrides = [
        *SCENES,
        *(f"teacher.model={coca_teacher}", "student={builder: depth, layers: 1}"),
        *("policy.round_steps=2", "policy.probe_batches=1", "policy.warmup_rounds=1"),
        "objectives=[{loss: kd_kl, name: caption, on: caption_logits, labels: caption_labels}, "
        "{loss: hidden, weight: 0.1}, {loss: one_to_one_heads, weight: 0.1, attention: [self]}]",
    ]
    folder = build_cache("optima-scenes", tmp_path / "cache", overrides=overrides, form=CacheForm(states="fp32", k=0))
    kinds = {field.name: field.kind for field in CacheReader(folder).fields}
    assert set(kinds.values()) == {"whole"}
    assert any(name.endswith("@self_attention") for name in kinds)
    live = trained("optima-scenes", tmp_path / "live", overrides)
    cached = trained("optima-scenes", tmp_path / "cached", [*overrides, f"teacher.cache={folder}"])
    first_terms(cached, live, 2e-3)
    part = build_cache(
        "optima-scenes", tmp_path / "part", overrides=overrides, fields=["caption_logits"], form=CacheForm(k=0)
    )
    with pytest.raises(RecipeError, match="does not hold"):
        plan("optima-scenes", [*overrides, f"teacher.cache={part}"])


def test_the_recipes_own_line_says_where_the_cache_is_built(tmp_path):
    overrides = [*DIGITS, f"teacher.cache={tmp_path / 'here'}"]
    with pytest.raises(RecipeError, match=r"teacher\.cache: there is no cache"):
        plan("kd-digits", overrides)
    assert build_cache("kd-digits", overrides=overrides) == tmp_path / "here"
    plan("kd-digits", overrides)


def test_the_packaged_recipe_asks_for_its_cache_builds_it_and_learns_from_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match="potstill cache build"):
        plan("kd-emoji-cached", [*EMOJI])
    assert build_cache("kd-emoji-cached", overrides=EMOJI).resolve() == tmp_path / "caches" / "kd-emoji"
    run = distill("kd-emoji-cached", tmp_path / "run", overrides=EMOJI)
    first, *_ = terms(run.folder)
    (live, *_) = terms(distill("kd-emoji", tmp_path / "live", overrides=EMOJI).folder)
    assert first["name"] == pytest.approx(live["name"], rel=0.02)


def test_a_build_that_was_stopped_goes_on_and_asks_the_teacher_only_for_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr("potstill.run.cache_building.SHARD_BYTES", 8 * 40)  # 8 samples a file
    form = CacheForm(batch_size=4)
    whole = build_cache("kd-digits", tmp_path / "whole", overrides=DIGITS, form=form)
    done = []

    def stop(event):
        if event["event"] == "rows":
            done.append(event["done"])
            if event["done"] >= 20:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_cache("kd-digits", tmp_path / "broken", overrides=DIGITS, form=form, progress=stop)
    with pytest.raises(IntegrityError, match="not finished"):
        plan("kd-digits", [*DIGITS, f"teacher.cache={tmp_path / 'broken'}"])
    again = []
    build_cache("kd-digits", tmp_path / "broken", overrides=DIGITS, form=form, progress=again.append)
    assert [e["done"] for e in again if e["event"] == "rows"][:3] == [8, 16, 20]
    for path in whole.iterdir():
        assert (tmp_path / "broken" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("teacher.model=digits-weak", r'teacher\.cache: the cache was built with another "teacher\.'),
        ("teacher.dtype=bf16", r'another "teacher\.dtype"; expected bf16'),
        ("data.pool=39", r'another "data\.rows"; expected 39'),
        ("data.odd=0.5", r'another "data\.fingerprint"'),
        ("data.augment=light", "change from epoch to epoch.*augment: none"),
        ("objectives[0].loss=lelp", "lelp"),
        ("teacher.cache=nowhere", "there is no cache"),
    ],
)
def test_a_cache_of_something_else_is_refused_by_the_field(digits, change, message):
    with pytest.raises(PotstillError, match=message):
        plan("kd-digits", [*DIGITS, f"teacher.cache={digits}", change])


def test_weights_that_were_trained_on_are_another_teacher(digits, tmp_path):
    model = load_model("digits-cnn")
    with torch.no_grad():
        next(model.parameters())[0] += 1e-3
    model.save_pretrained(tmp_path / "teacher")
    with pytest.raises(RecipeError, match=r'another "teacher\.files"'):
        plan("kd-digits", [*DIGITS, f"teacher.cache={digits}", f"teacher.model={tmp_path / 'teacher'}"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["objectives[0].temperature=4"], r"objectives\[0\]: the mass of the tail is not known at this temp.*1, 2"),
        (["objectives[0].loss=dist_loss"], r"objectives\[0\]\.loss: \"dist_loss\" needs .* all classes"),
        (["teacher.cache_mode=sampled"], "the targets are the most likely classes"),
        (["teacher.cache_mode=renormalised", "objectives[0].loss=reverse_kl"], "reverse KL is infinite"),
        (["objectives[0].shared_vocab=100"], r"objectives\[0\]\.shared_vocab: the cache was built with another voc"),
        (["selection={name: active_distill, selector: random, budget: 10, rounds: 1, epoch_samples: 16}"],
         r"teacher\.cache: the selection asks the teacher itself"),
        (["teacher.model=student"], "a copy of the student has no cache"),
    ],
)  # fmt: skip
def test_what_cannot_use_the_cache_is_refused_with_what_to_do(emoji, change, message):
    with pytest.raises(RecipeError, match=message) as caught:
        plan("kd-emoji", [*EMOJI, f"teacher.cache={emoji}", *change])
    assert caught.value.hint or caught.value.expected or "copy of the student" in str(caught.value)


def test_labels_of_another_task_are_other_positions(scenes):
    folder, overrides = scenes
    with pytest.raises(RecipeError, match=r'reads other positions of "caption_logits"'):
        plan("kd-scenes", [*overrides, f"teacher.cache={folder}", "objectives[0].labels=null"])


@pytest.mark.parametrize(
    ("recipe", "overrides", "message"),
    [
        ("kd-digits", [*SMALL, "data.augment=light"], "change from epoch to epoch"),
        ("kd-emoji", SMALL, "each once: a cache would save nothing"),
        ("teach-digits", [*SMALL, "data.augment=none"], "teacher: the recipe has no such teacher"),
        ("kd-digits", [*DIGITS, "teacher.model=student"], "a copy of the student is another model in every run"),
    ],
)
def test_what_cannot_be_cached_is_refused(recipe, overrides, message, tmp_path):
    with pytest.raises(PotstillError, match=message):
        build_cache(recipe, tmp_path / "cache", overrides=overrides)
    assert not (tmp_path / "cache").exists()


def test_a_disk_too_small_is_said_before_the_work(tmp_path, monkeypatch):
    class Usage:
        free = 10

    monkeypatch.setattr("potstill.run.cache_building.shutil.disk_usage", lambda path: Usage)
    with pytest.raises(InputError, match="the disk is too small for this cache"):
        build_cache("kd-digits", tmp_path / "cache", overrides=DIGITS)


def test_a_folder_must_be_named(tmp_path):
    with pytest.raises(RecipeError, match=r"teacher\.cache: is missing"):
        build_cache("kd-digits", overrides=DIGITS)
    with pytest.raises(RecipeError, match=r'there is no stage "warm"'):
        build_cache("kd-digits", tmp_path, overrides=DIGITS, stage="warm")
    with pytest.raises(RecipeError, match=r"teachers\.other: the recipe has no such teacher"):
        build_cache("kd-digits", tmp_path, overrides=DIGITS, teacher="other")


def test_a_teacher_larger_than_memory_is_refused_unless_it_is_read_from_its_cache(digits, tmp_path, monkeypatch):
    monkeypatch.setattr("potstill.models.memory.free_memory", lambda: 1000)
    with pytest.raises(RecipeError, match=r"teacher\.model.*larger than the memory.*1\.2 MB|0\.0 GB"):
        plan("kd-digits", DIGITS)
    cached = [*DIGITS, f"teacher.cache={digits}"]
    with pytest.raises(RecipeError, match=r"set evaluate\.teacher: false"):
        plan("kd-digits", cached)
    plan("kd-digits", [*cached, "evaluate.teacher=false"])


def test_one_of_several_teachers_may_be_cached(digits, tmp_path):
    more = [
        *DIGITS,
        "teachers={second: {model: digits-weak}}",
        "objectives=[{loss: kd_kl, name: first, on: logits}, {loss: kd_kl, name: second, on: logits, teacher: second}]",
    ]
    second = build_cache("kd-digits", tmp_path / "second", overrides=more, teacher="second")
    live = plan("kd-digits", more)[0]["objectives"]
    both = plan("kd-digits", [*more, f"teacher.cache={digits}", f"teachers.second.cache={second}"])[0]["objectives"]
    assert [o["start"] for o in both] == pytest.approx([o["start"] for o in live], rel=1e-5)
    assert live[0]["start"] != pytest.approx(live[1]["start"], rel=1e-3)


def test_a_recipe_says_where_its_cache_is():
    recipe = load_recipe("kd-digits", ["teacher.cache=somewhere"])
    assert recipe.teacher.cache == "somewhere"
    assert recipe.teacher.cache_mode == "tail"
    assert is_empty(torch.nn.Linear(1, 1, device="meta"))


def test_stages_share_a_cached_teacher(digits):
    two = "stages=[{name: first, train: {steps: 2}}, {name: second, train: {steps: 2}}]"
    plans = plan("kd-digits", [*DIGITS, f"teacher.cache={digits}", two])
    assert [p["teacher"]["class"] for p in plans] == ["ResNetForImageClassification"] * 2


def test_a_teacher_given_in_python_must_be_the_one_that_was_cached(digits, tmp_path):
    recipe = load_recipe("kd-digits", [*DIGITS, f"teacher.cache={digits}"])
    model = load_model("digits-cnn")
    prepare(recipe, tmp_path, teacher=model).close()
    with torch.no_grad():
        next(model.parameters()).mul_(1.001)
    with pytest.raises(RecipeError, match=r'another "teacher\.weights"'):
        prepare(recipe, tmp_path, teacher=model)


def test_an_objective_that_looks_at_weights_runs_its_teacher(tmp_path):
    objective = (
        "objectives=[{loss: vlm_ood, on: logits, teacher_on: classifier.1@input, labels: labels, "
        "text: classifier.1.weight}]"
    )
    with pytest.raises(RecipeError, match="looks at the weights of its teacher"):
        build_cache("kd-digits", tmp_path / "cache", overrides=[*DIGITS, objective])
