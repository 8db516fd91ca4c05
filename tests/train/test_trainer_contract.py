"""What our overrides assume of the Trainer; a release that breaks one of these breaks us silently otherwise."""

import inspect

import pytest
import torch
from accelerate import Accelerator
from transformers import Trainer

from potstill.train import DistillationArguments, DistillationTrainer
from potstill.train.resumable import ResumableTrainer

PARAMETERS = {
    "get_batch_samples": ["self", "epoch_iterator", "num_batches", "device"],
    "training_step": ["self", "model", "inputs", "num_items_in_batch"],
    "compute_loss": ["self", "model", "inputs", "return_outputs", "num_items_in_batch"],
    "prediction_step": ["self", "model", "inputs", "prediction_loss_only", "ignore_keys"],
    "create_optimizer": ["self", "model"],
    "_get_train_sampler": ["self", "train_dataset"],
    "_get_output_dir": ["self", "trial"],
    "_save_checkpoint": ["self", "model", "trial"],
    "_save": ["self", "output_dir", "state_dict"],
    "_load_from_checkpoint": ["self", "resume_from_checkpoint", "model"],
    "save_model": ["self", "output_dir", "_internal_call"],
    "_save_optimizer_and_scheduler": ["self", "output_dir"],
    "_load_optimizer_and_scheduler": ["self", "checkpoint"],
    "_load_best_model": ["self"],
    "_init_training_state": [
        *("self", "max_steps", "num_update_steps_per_epoch", "num_train_epochs", "resume_from_checkpoint", "trial")
    ],
    "train": ["self", "resume_from_checkpoint", "trial", "ignore_keys_for_eval"],
    "get_train_dataloader": ["self"],
    "log": ["self", "logs", "start_time"],
    "_clip_grad_norm": ["self", "model"],
    "_get_grad_norm": ["self", "model", "grad_norm"],
    "_save_rng_state": ["self", "output_dir"],
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_an_overridden_method_takes_what_we_expect(name):
    assert list(inspect.signature(getattr(Trainer, name)).parameters) == PARAMETERS[name]


def test_every_overridden_method_is_listed_here():
    ours = {**vars(ResumableTrainer), **vars(DistillationTrainer)}
    overridden = {name for name in ours if inspect.isfunction(vars(Trainer).get(name))}
    assert overridden - {"__init__"} == set(PARAMETERS)


@pytest.mark.parametrize(
    ("caller", "called"),
    [
        ("_run_epoch", "self.get_batch_samples("),
        ("_run_epoch", "self.training_step("),
        ("training_step", "self.compute_loss("),
        ("_maybe_log_save_evaluate", "self._save_checkpoint("),
        ("_maybe_log_save_evaluate", "self.log("),
        ("_save_checkpoint", "self._get_output_dir("),
        ("_save_checkpoint", "self.save_model("),
        ("_save_checkpoint", "self._save_optimizer_and_scheduler("),
        ("_save_checkpoint", "self._save_rng_state("),
        ("_prepare_for_training", "self._load_optimizer_and_scheduler("),
        ("_inner_training_loop", "self._init_training_state("),
        ("_inner_training_loop", "self.get_train_dataloader("),
        ("_prepare_for_training", "self.create_optimizer("),
        ("train", "self._load_from_checkpoint("),
        ("_run_epoch", "self._clip_grad_norm("),
        ("_run_epoch", "self._get_grad_norm("),
    ],
)
def test_the_trainer_still_goes_through_our_overrides(caller, called):
    assert called in inspect.getsource(getattr(Trainer, caller))


def test_the_probe_runs_before_the_mode_is_set_and_the_random_state_restored_after_the_fetch():
    """On resume the Trainer restores the random state between get_batch_samples and training_step."""
    source = inspect.getsource(Trainer._run_epoch)
    assert source.index("self.get_batch_samples(") < source.index("rng_to_sync = False\n\n            #")
    assert source.index("self._load_rng_state(resume_from_checkpoint)\n                rng_to_sync") < source.index(
        "self.training_step("
    )


def test_the_loss_of_a_step_is_added_in_place_before_its_gradient_is_measured():
    """A skipped step is taken out of the running loss again."""
    source = inspect.getsource(Trainer._run_epoch)
    assert source.index("self._tr_loss += tr_loss_step") < source.index("self._clip_grad_norm(")
    assert source.index("self._get_grad_norm(") < source.index("self.optimizer.step()")


def test_defaults_that_would_hide_mistakes_are_off(tmp_path):
    args = DistillationArguments(output_dir=str(tmp_path), use_cpu=True)
    assert args.logging_nan_inf_filter is False
    assert args.remove_unused_columns is False
    assert args.ddp_find_unused_parameters is False
    assert args.save_total_limit is None


def test_the_loss_since_the_last_log_is_reset_before_our_first_step_and_added_to_after_it():
    loop, epoch = inspect.getsource(Trainer._inner_training_loop), inspect.getsource(Trainer._run_epoch)
    assert loop.index("self._init_training_state(") < loop.index("self._tr_loss = ") < loop.index("self._run_epoch(")
    assert epoch.index("self.training_step(") < epoch.index("self._tr_loss += tr_loss_step")


def test_a_prepared_model_is_not_prepared_again():
    """What keeps a sharded model out of DDP; accelerate before 1.14 wraps it all the same."""
    accelerator, model = Accelerator(cpu=True), torch.nn.Linear(2, 2)
    accelerator.prepare_model(model, device_placement=False, evaluation_mode=True)
    accelerator.prepare(model)
    assert accelerator._models == [model]
