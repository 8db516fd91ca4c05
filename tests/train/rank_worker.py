"""Run by torchrun: trains the toy on every rank and leaves each rank's weights and arms in a folder.

Arguments: folder, and the index of a sample that is NaN, whose step is to be skipped.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

torch.set_num_threads(1)
from toy_models import Toy, ToyData, trainer  # noqa: E402

from potstill.policies import OptimaPolicy  # noqa: E402


def main(folder: Path, bad: int) -> None:
    policy = OptimaPolicy([("image",), ("text",)], warmup_rounds=1)
    t = trainer(
        folder / "run", student=Toy(4, 1, 0.0, seed=1), policy=policy, batch=4, steps=9, optim="sgd",
        save_strategy="steps", save_steps=9, history=folder / "history.jsonl",
        data=ToyData(bad=(bad,)), on_nonfinite="skip",
    )  # fmt: skip
    t.train()
    rank = t.args.process_index
    torch.save({"weights": t.model.state_dict(), "rounds": policy.history}, folder / f"rank{rank}.pt")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
