"""Hidden states are captured by path on any module, and nothing stays behind."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from potstill.errors import InputError, RecipeError
from potstill.taps import Signal, Taps
from potstill.taps.signal import lookup, observe


class Pair(nn.Module):
    def forward(self, x):
        return x + 1, x * 2


class Net(nn.Module):
    def __init__(self, recompute=False):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
        self.pair, self.idle, self.recompute = Pair(), nn.Linear(3, 3), recompute

    def forward(self, x):
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.recompute else block(x)
        return {"logits": self.pair(x)[0], "heads": {"vqa": x}}


X = torch.arange(6.0).view(2, 3)


def seen(net, paths, x=X):
    with Taps(net, paths) as taps:
        taps.open()
        net(x)
        return taps.close()


def test_outputs_inputs_and_elements_of_tuples_are_read():
    net = Net()
    first = net.blocks[0](X)
    last = net.blocks[1](first)
    got = seen(net, ["blocks.0", "blocks.1@input", "pair", "pair@output[1]"])
    for tap, expected in zip(got, (first, first, last + 1, last * 2)):
        torch.testing.assert_close(got[tap], expected)


def test_a_pattern_stands_for_all_it_matches_in_the_models_order():
    assert list(seen(Net(), ["blocks.*"])) == ["blocks.0", "blocks.1"]


@pytest.mark.parametrize("path", ["block.0", "blocks.2", "blocs.*"])
def test_a_tap_that_matches_nothing_names_the_nearest_path(path):
    with pytest.raises(RecipeError, match="no such module") as error:
        Taps(Net(), [path], where="objectives[0].tap")
    assert error.value.where == "objectives[0].tap"
    assert 'Did you mean "blocks' in error.value.hint


@pytest.mark.parametrize("text", ["blocks.0@middle", "blocks.0@output[x]"])
def test_a_tap_that_cannot_be_read_shows_the_forms(text):
    with pytest.raises(RecipeError, match="cannot read the tap"):
        Taps(Net(), [text])


def test_a_module_that_did_not_run_is_named():
    with pytest.raises(InputError, match=r'tap "idle": .*did not run'):
        seen(Net(), ["idle"])


def test_what_is_no_tensor_is_refused():
    net = nn.Sequential(nn.Identity())
    with pytest.raises(InputError, match="no tensor"):
        seen(net, ["0"], x="text")


def test_only_the_first_call_in_a_pass_is_kept():
    shared = nn.Linear(3, 3)
    net = nn.Sequential(shared, shared)
    torch.testing.assert_close(seen(net, ["0"])["0"], shared(X))


def test_hooks_are_gone_after_removal_and_nothing_is_kept_while_closed():
    net = Net()
    taps = Taps(net, ["blocks.*"])
    net(X)
    assert taps.close() == {}
    taps.remove()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_a_failing_pass_leaves_nothing_behind():
    net = Net()
    with Taps(net, ["blocks.0"]) as taps:
        with pytest.raises(RuntimeError):
            observe(net, {"x": torch.ones(2, 5)}, taps, [], ["blocks.0"])
        net(X)
        assert taps.close() == {}


def test_recomputation_in_backward_changes_neither_states_nor_gradients():
    torch.manual_seed(0)
    plain, saving = Net(), Net(recompute=True)
    saving.load_state_dict(plain.state_dict())
    for net in (plain, saving):
        seen(net, ["blocks.0"], X.clone().requires_grad_())["blocks.0"].square().sum().backward()
    torch.testing.assert_close(saving.blocks[0].weight.grad, plain.blocks[0].weight.grad)


def test_states_have_a_graph_only_where_gradients_are_on():
    assert seen(Net(), ["blocks.0"])["blocks.0"].requires_grad
    with torch.no_grad():
        assert not seen(Net(), ["blocks.0"])["blocks.0"].requires_grad


def test_outputs_are_found_by_dotted_name_and_a_missing_one_says_what_is_there():
    result = Net()(X)
    assert lookup(result, "heads.vqa") is result["heads"]["vqa"]
    with pytest.raises(InputError, match='the model returned no "vqq"') as error:
        lookup(result, "heads.vqq")
    assert error.value.where == 'output "heads.vqq"'
    assert 'Did you mean "vqa"?' in error.value.hint
    with pytest.raises(InputError, match="heads, logits"):
        lookup(result, "loss")


def test_one_pass_gives_outputs_and_states():
    net = Net()
    with Taps(net, ["blocks.*"]) as taps:
        signal = observe(net, {"x": X}, taps, ["logits"], ["blocks.1"])
    assert isinstance(signal, Signal)
    assert (list(signal.outputs), list(signal.tapped)) == (["logits"], ["blocks.1"])
