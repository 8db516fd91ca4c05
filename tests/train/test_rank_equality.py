"""Two gloo processes against one: steps, gradients, policies, files, resuming; sharded (FSDP2) against DDP."""

import pytest
import rank_cases
import torch
from launching import launch
from rank_cases import make
from safetensors.torch import load_file

from potstill.errors import InputError, IntegrityError
from potstill.train.checkpoint import load_weights

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two ranks saw, in one launch, and the folder they wrote to."""
    folder = tmp_path_factory.mktemp("two")
    return folder, launch("rank_cases.py", folder)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process with the same rows per step."""
    return rank_cases.run(make(tmp_path_factory.mktemp("alone")))


def assert_same_gradients(ours, theirs, **tolerance):
    assert len(ours) == len(theirs)
    for step, (mine, other) in enumerate(zip(ours, theirs)):
        assert mine.keys() == other.keys()
        for name in mine:
            torch.testing.assert_close(
                mine[name], other[name], msg=lambda m, at=f"step {step}, {name}": f"{at}: {m}",
                **{"rtol": 1e-4, "atol": 1e-7, **tolerance},
            )  # fmt: skip


def assert_same_rounds(ours, theirs):
    assert [(r, arm) for r, arm, _ in ours] == [(r, arm) for r, arm, _ in theirs]
    assert [reward for *_, reward in ours] == pytest.approx([reward for *_, reward in theirs], rel=1e-3, abs=1e-5)


def assert_same_state(ours, theirs, *, exact=False):
    assert ours.keys() == theirs.keys()
    for name in ours:
        if exact:
            assert torch.equal(ours[name], theirs[name]), name
        else:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("case", ["counted", "coupled", "sharded", "own sharding"])
def test_all_parameters_are_equal_on_both_ranks_after_every_step(two, case):
    first, second = (rank[case] for rank in two[1])
    assert len(first["hashes"]) == 6
    assert len(set(first["hashes"])) == 6
    assert first["hashes"] == second["hashes"]
    assert first["rounds"] == second["rounds"]


def test_gradients_equal_those_of_one_process_though_a_rank_has_nothing_to_count(two, alone):
    seen = two[1][0]["counted"]
    assert seen["wrapped"] == "DistributedDataParallel"
    assert_same_gradients(seen["gradients"], alone["gradients"])
    assert_same_state(seen["state"], alone["state"])
    assert seen["losses"] == pytest.approx(alone["losses"], rel=1e-4)
    assert set(alone["gradients"][0]) == {name for name in alone["state"] if "_alpha." not in name}
    assert seen["state"]["parts.readout_alpha.steps"] == 6


def test_the_policy_sees_the_same_rewards_and_plays_the_same_arms(two, alone):
    rounds = two[1][0]["counted"]["rounds"]
    assert len({arm for _, arm, _ in rounds}) == 3
    assert_same_rounds(rounds, alone["rounds"])


def test_gradients_do_not_depend_on_the_split_of_a_step(two, tmp_path):
    here = rank_cases.splits(tmp_path)
    assert sorted(here) == [1, 2, 4, 8]
    assert sorted(two[1][0]["splits"]) == [1, 2, 4]
    for run in [*here.values(), *two[1][0]["splits"].values()]:
        assert_same_gradients(run["gradients"], here[1]["gradients"], rtol=1e-3, atol=1e-6)
        assert_same_rounds(run["rounds"], here[1]["rounds"])


def test_batch_coupled_objectives_are_the_mean_over_micro_batches_wherever_these_lie(two, tmp_path):
    """Two ranks do what one process does in two micro-batches; one large batch is another loss."""
    assert all(o.batch_coupled for o in rank_cases.coupled())
    seen = two[1][0]["coupled"]["gradients"]
    halves = rank_cases.run(make(tmp_path / "halves", rank_cases.coupled, accumulation=2))["gradients"]
    assert_same_gradients(seen, halves)
    once = rank_cases.run(make(tmp_path / "once", rank_cases.coupled, steps=1))["gradients"]
    with pytest.raises(AssertionError):
        assert_same_gradients(seen[:1], once, rtol=1e-2)


@pytest.mark.parametrize("case", ["counted", "sharded"])
def test_files_are_written_once_and_hold_the_whole_model(two, tmp_path, case):
    folder = two[0] / case
    (checkpoint,) = folder.glob("checkpoint-*")
    weights = ["optimizer.pt", "parts.safetensors", "scheduler.pt", "student.safetensors"]
    rest = ["manifest.json", "policy.json", "rng_state_0.pth", "rng_state_1.pth", "trainer_state.json"]
    assert sorted(path.name for path in checkpoint.iterdir()) == sorted(weights + rest)
    steps = [line for line in (folder / "history.jsonl").read_text().splitlines() if '"event": "step"' in line]
    assert len(steps) == 6
    fresh = make(tmp_path).model
    load_weights(checkpoint, fresh.student, fresh.parts)
    assert_same_state(fresh.state_dict(), two[1][0][case]["state"], exact=True)


@pytest.mark.parametrize("case", ["resume", "sharded resume", "sharded sgd resume"])
def test_a_resumed_run_ends_bit_for_bit_like_the_straight_one(two, case):
    for rank in two[1]:
        straight, resumed = rank[case]
        assert resumed["hashes"] == straight["hashes"][2:]
        assert resumed["rounds"] == straight["rounds"]


def test_a_run_is_not_gone_on_with_other_rows_per_step(two, tmp_path):
    with pytest.raises(IntegrityError, match="expected 2 processes, 8 rows per step; got 1 processes, 4 rows") as error:
        make(tmp_path / "other", batch=4).train(resume_from_checkpoint=str(two[0] / "resume" / "checkpoint-2"))
    assert "Resume with 2 processes" in str(error.value)


def test_the_same_rows_per_step_can_be_gone_on_with_by_another_number_of_processes(two, tmp_path):
    resumed = rank_cases.run(make(tmp_path / "run"), resume=str(two[0] / "counted" / "checkpoint-6"))
    assert_same_state(resumed["state"], two[1][0]["counted"]["state"], exact=True)


def test_a_sharded_checkpoint_is_not_gone_on_with_unsharded(two, tmp_path):
    with pytest.raises(IntegrityError, match=r"train\.shard"):
        make(tmp_path / "run").train(resume_from_checkpoint=str(two[0] / "sharded" / "checkpoint-6"))


@pytest.mark.parametrize("case", ["sharded", "own sharding"])
def test_sharded_training_equals_ddp(two, case):
    """Also where the user has sharded module and teacher by hand before giving them to the trainer."""
    sharded, plain = two[1][0][case], two[1][0]["counted"]
    assert sharded["sharded"]
    assert not plain["sharded"]
    assert sharded["wrapped"].startswith("FSDP")
    assert sharded["losses"] == pytest.approx(plain["losses"], rel=1e-5)
    assert_same_gradients(sharded["gradients"], plain["gradients"], rtol=1e-3, atol=1e-6)
    assert_same_rounds(sharded["rounds"], plain["rounds"])
    assert_same_state(sharded["state"], plain["state"])


def test_a_loop_of_ones_own_may_shard_and_export(two):
    for rank in two[1]:
        plain, sharded = rank["own loop"]["ends"]
        assert_same_state(sharded, plain)
        assert rank["own loop"]["hooks"] == 0
        assert "whole_student" in rank["own loop"]["inside"]
    exported = load_file(two[0] / "own loop" / "exported" / "model.safetensors")
    assert_same_state(exported, two[1][1]["own loop"]["ends"][1], exact=True)


def test_autocast_works_sharded(two):
    half, full = two[1][0]["sharded bf16"], two[1][0]["sharded"]
    assert half["losses"] == pytest.approx(full["losses"], rel=0.05)
    assert half["losses"] != full["losses"]
    assert half["hashes"] == two[1][1]["sharded bf16"]["hashes"]


def test_a_signal_to_one_rank_stops_both_after_the_same_step(two):
    first, second = (rank["stopped by one"] for rank in two[1])
    assert len(first["hashes"]) == 2
    assert first == second
    assert first["stopped"]


def test_ranks_that_see_different_checkpoints_are_told(two):
    for rank in two[1]:
        assert "the processes see different checkpoints" in rank["other checkpoints"]


def test_one_process_cannot_shard(tmp_path):
    with pytest.raises(InputError, match=r"train\.shard: there is one process"):
        make(tmp_path, shard=True).train()
