"""Output heads that rest, on two ranks: the gradients are those of whole logits, under DDP and sharded."""

import pytest
import torch
from launching import launch
from rank_heads import CASES, KINDS, train


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return launch("rank_heads.py", tmp_path_factory.mktemp("ranks"))


def assert_same(found, expected):
    assert len(found["gradients"]) == len(expected["gradients"]) == 3
    for one, other in zip(found["gradients"], expected["gradients"], strict=True):
        assert one.keys() == other.keys()
        for name, gradient in one.items():
            torch.testing.assert_close(gradient, other[name], rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_both_ranks_end_with_the_gradients_of_one_process_and_whole_logits(ranks, tmp_path, case):
    alone = train(tmp_path, CASES[case][0], rests=False)
    assert_same(ranks[0][case], alone)
    assert ranks[0][case]["hashes"] == ranks[1][case]["hashes"]
    assert ranks[0][case]["sharded"] == ("sharded" in case)
    assert ranks[0][case]["lazy"] == ("whole" not in case)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("accumulation", [1, 4])
def test_in_one_process_the_gradients_do_not_depend_on_head_or_split(tmp_path, kind, accumulation):
    whole = train(tmp_path / "whole", kind, rests=False)
    assert_same(train(tmp_path / "rests", kind, rests=True, accumulation=accumulation), whole)
