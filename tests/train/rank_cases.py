"""Small trainings that leave what they saw: run by torchrun on every rank, or called in the test's own process."""

import hashlib
import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist

torch.set_num_threads(1)
from toy_models import Stack, Toy, ToyData, collate, trainer  # noqa: E402
from transformers import TrainerCallback  # noqa: E402

from potstill.errors import PotstillError  # noqa: E402
from potstill.losses import dist_loss, kd_kl  # noqa: E402
from potstill.objectives import (  # noqa: E402
    HiddenObjective,
    LabelObjective,
    ModelLossObjective,
    OutputObjective,
    PLDObjective,
    ReadoutObjective,
    SinkDObjective,
    TRGObjective,
    Where,
)
from potstill.policies import OptimaPolicy  # noqa: E402
from potstill.train import DistillModule, is_sharded, shard, whole_state, whole_student  # noqa: E402

ROWS = 8  # per step, over all ranks and micro-batches


class Net(Toy):
    """A toy with a third stack, "side", that only its hidden states' objective reaches; and a loss of its own."""

    def __init__(self, width=6, layers=2, dropout=0.0, seed=0):
        super().__init__(width, layers, dropout, seed=seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed + 100)
            self.side = Stack(width, layers, dropout)
        self.scale = torch.nn.Parameter(torch.tensor(1.1))  # FSDP2 cannot split a scalar

    def forward(self, pixels, words, words_mask=None, labels=None):
        outputs = super().forward(pixels, words, words_mask)
        self.side(self.enter_image(pixels))
        outputs["logits"] = outputs["logits"] * self.scale
        alike = outputs["logits"] @ outputs["logits"].T  # rows of a micro-batch know each other
        return {**outputs, "loss": alike.log_softmax(1).diagonal().neg().mean()}


class Uneven(ToyData):
    """In two of three steps the second half of the rows, which the second of two ranks gets, has nothing to count."""

    def __getitem__(self, index):
        row = super().__getitem__(index)
        counts = index % ROWS < ROWS // 2 or index // ROWS % 3 == 0
        row["few"] = row["words_mask"] & counts
        row["labels"] = row["labels"] if counts else torch.tensor(-100)
        row["word_labels"] = torch.where(row["few"], torch.arange(4) % 3, -100)
        return row


def hidden(name, where=None):
    return HiddenObjective(f"hidden.{name}", [(f"{name}.blocks.0", f"{name}.blocks.1")], module=name, where=where)


def counted():
    """Every kind of objective whose units can be counted: with parts and arms, by labels, tokens and rows.

    One has an automatic weight, which is measured in every step here.
    """
    readout = ReadoutObjective("readout", "text.blocks.0", "word_labels", 3)
    readout.alpha = "readout"
    return [
        OutputObjective("answer", kd_kl, "logits", where=Where(labels="labels")),
        LabelObjective("label", "logits", "labels", weight=0.5),
        PLDObjective("ranked", "logits", "labels", weight=0.5),
        readout,
        hidden("image"),
        hidden("text", Where(mask="few")),
        hidden("side"),
    ]


def coupled():
    """Objectives whose value depends on which rows lie in one micro-batch."""
    return [
        OutputObjective("dist", dist_loss, "logits"),
        ModelLossObjective("own"),
        SinkDObjective("sinkd", "logits", reduction="mean", weight=1.0),
        TRGObjective("trg", "image.blocks.0", teacher_tap="image.blocks.1", skip=1, teacher_skip=1, r=3),
    ]


class Watch(TrainerCallback):
    """Keeps whole gradients before each step, and the hash of all parameters after it."""

    def __init__(self):
        self.gradients, self.hashes = [], []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        named = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        self.gradients.append({n: whole(g).clone() for n, g in named.items()})

    def on_step_end(self, args, state, control, model=None, **kwargs):
        digest = hashlib.sha256()
        for _, parameter in model.named_parameters():
            digest.update(whole(parameter.detach()).numpy().tobytes())
        self.hashes.append(digest.hexdigest())


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def make(folder, kind=counted, batch=None, accumulation=1, dropout=0.0, student=None, teacher=None, **settings):
    """A trainer that sees ROWS rows per step whatever the ranks, and probes on the same 16 rows."""
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    batch = batch or ROWS // ranks // accumulation
    policy = OptimaPolicy([("image",), ("text",), ("side",)], warmup_rounds=1) if kind is counted else None
    defaults = {"steps": 6, "round_steps": 1, "probe_batches": 16 // (batch * ranks), "max_grad_norm": 0.05}
    made = trainer(
        folder,
        student=student or Net(4, 1, dropout, seed=1),
        teacher=teacher or Net(),
        objective_list=None if isinstance(student, DistillModule) else kind(),
        policy=policy,
        batch=batch,
        accumulation=accumulation,
        data=Uneven(),
        history=folder / "history.jsonl",
        **{**defaults, **settings},
    )
    made.watch = Watch()
    made.add_callback(made.watch)
    return made


def run(made, resume=None):
    """Train and return what was seen, whole."""
    made.train(resume_from_checkpoint=resume)
    steps = [event for event in made.history.events if event["event"] == "step"]
    return {
        "gradients": made.watch.gradients,
        "hashes": made.watch.hashes,
        "rounds": made.policy.history if made.policy else None,
        "losses": [event["loss"] for event in steps],
        "terms": [event["terms"] for event in steps],
        "wrapped": type(made.model_wrapped).__name__,
        "sharded": is_sharded(made.model),
        "state": whole_state(made.model, on_all=True),
    }


def splits(folder):
    """Gradients of the first steps under every way to split a step."""
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    ways = [n for n in (1, 2, 4, 8) if ROWS // ranks % n == 0]
    return {n: run(make(folder / f"split{n}", accumulation=n, steps=3, optim="sgd")) for n in ways}


def straight_and_resumed(folder, **settings):
    saving = {"save_strategy": "steps", "save_steps": 2, "keep_checkpoints": 0, "dropout": 0.2, **settings}
    straight = run(make(folder, **saving))
    resumed = run(make(folder, **saving), resume=str(folder / "checkpoint-2"))
    return straight, resumed


def average(parameter):
    dist.all_reduce(parameter.grad)
    parameter.grad /= dist.get_world_size()


def own_sharding(folder):
    """A module sharded by hand, under the Trainer, with a sharded teacher."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from potstill.teachers import LiveTeacher

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    module = DistillModule(Net(4, 1, seed=1), counted())
    net = Net()
    live = LiveTeacher(net, outputs=module.teacher_outputs, taps=module.teacher_taps)
    batch = collate([Uneven()[i] for i in range(4)])
    module.build_parts(batch, live.signal(batch), seed=0)
    fully_shard(module.student.image.blocks[0], mesh=mesh)
    scale = module.student.scale
    scale.register_post_accumulate_grad_hook(average)
    fully_shard(module, mesh=mesh, ignored_params={scale})
    fully_shard(net, mesh=mesh, ignored_params={net.scale})
    return run(make(folder, student=module, teacher=live))


def own_loop(folder):
    """A loop without the Trainer: sharded and under DDP; then the student is gathered and exported."""
    from potstill.export import export_student
    from potstill.teachers import LiveTeacher

    rank, ranks = dist.get_rank(), dist.get_world_size()
    ends, notes = [], {}
    for is_ddp in (True, False):
        module = DistillModule(Net(4, 1, seed=1), counted())
        live = LiveTeacher(Net(), outputs=module.teacher_outputs, taps=module.teacher_taps)
        first = collate([Uneven()[i] for i in range(ROWS)])
        module.build_parts(first, live.signal(first))
        model = torch.nn.parallel.DistributedDataParallel(module) if is_ddp else shard(module)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for step in range(3):
            batch = collate([Uneven()[ROWS * step + i] for i in range(rank, ROWS, ranks)])
            weights = {"image": float(step != 1), "text": float(step == 1), "side": float(step == 2)}
            model(batch, live.signal(batch), weights).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        student = whole_student(module)
        ends.append({n: t.clone() for n, t in student.state_dict().items()})
        if not is_ddp:
            notes["inside"] = refusal(export_student, module.student, folder / "no")
            if rank == 0:
                export_student(student, folder / "exported", batch=batch)
            notes["hooks"] = sum(len(m._forward_hooks) for m in student.modules())
    return {"ends": ends, **notes}


def refusal(call, *arguments):
    try:
        call(*arguments)
    except PotstillError as error:
        return str(error)
    return None


def stopped_by_one(folder):
    """The second rank alone is sent a signal during the second step."""
    from potstill.run.watch import StopOnSignal

    stopper = StopOnSignal()
    made = make(folder)
    stopper.trainer = made

    class Send(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 1 and dist.get_rank() == 1:
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGTERM)  # as a queue and a launcher both do

    made.add_callback(Send())
    made.add_callback(stopper)
    with stopper:
        seen = run(made)
    return {"hashes": seen["hashes"], "stopped": stopper.stopped}


def other_checkpoints(folder):
    """Each rank is given another checkpoint, as on disks of their own."""
    made = make(folder, save_strategy="steps", save_steps=2, steps=4, keep_checkpoints=0)
    made.train()
    mine = folder / f"checkpoint-{2 + 2 * dist.get_rank()}"
    return refusal(make(folder / "again").train, str(mine))


CASES = {
    "counted": lambda folder: run(make(folder, save_strategy="steps", save_steps=6)),
    "coupled": lambda folder: run(make(folder, coupled)),
    "splits": splits,
    "resume": straight_and_resumed,
    "sharded": lambda folder: run(make(folder, shard=True, save_strategy="steps", save_steps=6)),
    "sharded resume": lambda folder: straight_and_resumed(folder, shard=True),
    "sharded sgd resume": lambda folder: straight_and_resumed(folder, shard=True, optim="sgd", steps=4),
    "sharded bf16": lambda folder: run(make(folder, shard=True, bf16=True)),
    "own sharding": own_sharding,
    "own loop": own_loop,
    "stopped by one": stopped_by_one,
    "other checkpoints": other_checkpoints,
}


def main(folder: Path, names) -> None:
    dist.init_process_group("gloo")
    torch.save({name: CASES[name](folder / name) for name in names}, folder / f"rank{dist.get_rank()}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or CASES)
