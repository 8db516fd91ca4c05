"""DAC-KL, span correlation and DDK as objectives: values, counts, parts and what they note."""

import warnings

import pytest
import torch

from potstill.errors import InputError, RecipeError
from potstill.losses import dac_kl_loss, dac_kl_tokens, ddk_loss, span_correlation_loss
from potstill.objectives import DacKLObjective, DDKObjective, Seen, SpanCorrelationObjective
from potstill.taps import Signal
from potstill.teachers import LiveTeacher
from potstill.train import DistillModule
from tiny_writers import V, llama


def batch(rows=4, seed=0):
    draws = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, V, (rows, 7), generator=draws)
    labels = ids.masked_fill(torch.rand(rows, 7, generator=draws) < 0.3, -100)
    spans = torch.randint(-1, 2, (rows, 7), generator=draws)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, "span_ids": spans}


def objectives():
    return {
        "learned": DacKLObjective("learned", "logits", "labels", shift=True, M=4, hidden=3),
        "fixed": DacKLObjective("fixed", "logits", "labels", shift=True, lower=0.5, upper=1, temperature=2.0),
        "spans": SpanCorrelationObjective("spans", "logits", labels="labels", shift=True),
        "ddk": DDKObjective("ddk", "logits", "labels", gamma=0.5),
    }


def built(names=None):
    chosen = [o for name, o in objectives().items() if names is None or name in names]
    module = DistillModule(llama(0), chosen)
    teacher = LiveTeacher(llama(1), outputs=module.teacher_outputs, taps=module.teacher_taps)
    given = batch()
    module.build_parts(given, teacher.signal(given))
    return module, teacher


def shifted(given):
    student, teacher = (llama(seed)(given["input_ids"]).logits[:, :-1] for seed in (0, 1))
    return student, teacher, {k: v[:, 1:] for k, v in given.items()}


def test_each_is_the_mean_of_its_loss():
    module, teacher = built()
    given = batch()
    output = module(given, teacher.signal(given))
    student, told, rest = shifted(given)
    mask = rest["labels"] != -100
    means = {name: output.totals[name] / output.counts[name] for name in output.totals}
    fixed = dac_kl_loss(student, told, 0.5, 1.0, rest["labels"], mask, temperature=2.0)
    torch.testing.assert_close(means["fixed"].float(), fixed.detach())
    spans = span_correlation_loss(student, told, rest["span_ids"], mask)
    torch.testing.assert_close(means["spans"].float(), spans.detach())
    whole = [llama(seed)(given["input_ids"]).logits for seed in (0, 1)]
    torch.testing.assert_close(means["ddk"].float(), ddk_loss(*whole, given["labels"], gamma=0.5).detach())
    net = module.parts["learned"].net
    tokens = dac_kl_tokens(student, told, *net(student, told), rest["labels"], mask, mode="soft")
    expected = tokens.kl.mean() + 10 * (0.9 - tokens.coverage).relu().mean()
    torch.testing.assert_close(means["learned"].float(), expected.detach())


@pytest.mark.parametrize("name", objectives())
def test_gradients_do_not_depend_on_how_a_batch_is_split(name):
    def gradients(sizes):
        module, teacher = built([name])
        given, start = batch(6), 0
        counts = {name: module.objectives[0].count(given)}
        for size in sizes:
            part = {k: v[start : start + size] for k, v in given.items()}
            module(part, teacher.signal(part), counts=counts).loss.backward()
            start += size
        return [p.grad for p in module.parameters()]

    for got, expected in zip(gradients([1, 2, 3]), gradients([6])):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", objectives())
def test_a_batch_without_anything_to_learn_has_gradients_of_zero_everywhere(name):
    module, teacher = built([name])
    given = {**batch(), "labels": torch.full((4, 7), -100)}
    output = module(given, teacher.signal(given))
    output.loss.backward()
    assert output.loss == 0
    assert all(p.grad is not None and not p.grad.any() for p in module.parameters())


def test_the_network_is_a_part_that_learns_and_the_teacher_does_not():
    module, teacher = built(["learned"])
    given = batch()
    module(given, teacher.signal(given)).loss.backward()
    net = module.parts["learned"].net
    assert net.layers[-1].weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in teacher.model.parameters())


def test_a_fixed_band_has_nothing_to_learn():
    module, _ = built(["fixed"])
    assert not list(module.parts.parameters())


def test_what_they_note_is_a_mean_over_batches_of_training():
    module, teacher = built(["learned", "ddk"])
    learned, ddk = module.objectives
    assert learned.notes(module.part_of(learned)) == {}
    given = batch()
    for _ in range(3):
        module(given, teacher.signal(given))
    student, told, rest = shifted(given)
    mask = rest["labels"] != -100
    tokens = dac_kl_tokens(
        student, told, *module.parts["learned"].net(student, told), rest["labels"], mask, mode="soft"
    )
    notes = learned.notes(module.part_of(learned))
    assert notes["coverage"] == pytest.approx(tokens.coverage.mean().item(), rel=1e-4)
    assert notes["kept"] == pytest.approx(tokens.kept.mean().item(), rel=1e-4)
    ce = torch.nn.functional.cross_entropy(student.flatten(0, 1), rest["labels"].flatten(), ignore_index=-100)
    assert ddk.notes(module.part_of(ddk))["ce"] == pytest.approx(ce.item(), rel=1e-4)
    module.eval()
    before = module.part_of(ddk).batches.item()
    module(given, teacher.signal(given))
    assert module.part_of(ddk).batches.item() == before


def test_a_gate_that_closes_is_told_once():
    module, _ = built(["learned"])
    objective, part = module.objectives[0], module.parts["learned"]
    for _ in range(250):
        part.means.take(torch.tensor(0.3), torch.tensor(2.0))
    for _ in range(49):
        objective.before_step(module.student, part)
    with pytest.warns(UserWarning, match=r"lets 0\.30 of the teacher through"):
        objective.before_step(module.student, part)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(100):
            objective.before_step(module.student, part)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DacKLObjective("a", "logits", "labels", lower=0.5), r"a\.upper"),
        (lambda: DacKLObjective("a", "logits", "labels", lower=0.5, upper=0.4), r"a\.lower"),
        (lambda: DacKLObjective("a", "logits", "labels", coverage=1.5), r"a\.coverage"),
        (lambda: DacKLObjective("a", "logits", "labels", penalty=-1), r"a\.penalty"),
        (lambda: DacKLObjective("a", "logits", "labels", sharpness=0), r"a\.sharpness"),
        (lambda: SpanCorrelationObjective("a", "logits", temperature=0), r"a\.temperature"),
        (lambda: DDKObjective("a", "logits", "labels", gamma=-1), r"a\.gamma"),
    ],
)
def test_options_out_of_range_are_refused(make, message):
    with pytest.raises(RecipeError, match=message):
        make()


@pytest.mark.parametrize("name", objectives())
def test_a_batch_without_its_keys_is_refused(name):
    objective = objectives()[name]
    given = {k: v for k, v in batch().items() if k in ("input_ids", "attention_mask")}
    with pytest.raises(RecipeError, match="the batch has no"):
        objective.count(given)


def test_models_of_different_vocabularies_are_refused_with_what_to_do():
    objective = DacKLObjective("a", "logits", "labels", lower=0.5, upper=1, shift=True)
    student, teacher = (Signal(outputs={"logits": torch.zeros(4, 7, V + i)}) for i in (0, 1))
    part = objective.build_part(student, teacher)
    with pytest.raises(InputError, match=r"vocabularies differ.*cut both logits"):
        objective.total(Seen(batch(), student, teacher), part)
