"""What is refused before a training starts."""

import pytest
from toy_models import arguments, trainer

from potstill.errors import InputError
from potstill.train import DistillationArguments


@pytest.mark.parametrize(
    ("settings", "variable", "message"),
    [
        ({"fsdp": "full_shard"}, None, "FSDP cannot be asked for"),
        ({}, "ACCELERATE_USE_FSDP", "FSDP cannot be asked for"),
        ({"deepspeed": "zero.json"}, None, "DeepSpeed is not supported"),
        ({}, "ACCELERATE_USE_DEEPSPEED", "DeepSpeed is not supported"),
        ({"shard": True, "fp16": True}, None, r"train\.shard: does not go with fp16"),
        ({"shard": True, "torch_compile": True}, None, r"train\.shard: does not go with torch_compile"),
    ],
)
def test_engines_that_would_be_ignored_are_refused(tmp_path, monkeypatch, settings, variable, message):
    if variable:
        monkeypatch.setenv(variable, "true")
    with pytest.raises(InputError, match=message):
        arguments(tmp_path, **settings)


def test_several_gpus_in_one_process_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(DistillationArguments, "n_gpu", property(lambda self: 2))
    with pytest.raises(InputError, match="DataParallel"):
        trainer(tmp_path)
