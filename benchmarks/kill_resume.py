"""Kills real runs with SIGKILL, resumes them, and compares what they end as with a run that was left alone.

A run is ``potstill distill`` in a process of its own: OPTIMA on the emoji scenes with a tiny untrained teacher,
dropout, accumulation 2, two data workers, projectors, a line of history every two steps, a checkpoint every three and
a probe every four, so that runs go on in the middle of everything. The moments are drawn by the seed: while it starts
up, at any step, while a checkpoint is written, at the turn of a round (the probe), or after training (export,
measuring, report). A run is killed and resumed until it ends; then the next begins.

After every kill: no process of the run is left, every checkpoint is whole (and equal to that of the run left alone) or
refused by name, and the resumed run goes on from the newest whole one. At the end of every run: the exported student
equal bit for bit, the history equal line for line but for its seconds, the metrics equal but for theirs, the same files
and no others. Anything else is a difference, and the exit code is 1. Run from the repository root::

    python benchmarks/kill_resume.py --kills 100

Appends one row a kill to ``benchmarks/results/kill_resume_runs.csv`` and one for all to ``kill_resume.csv``.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from _record import RESULTS, append_rows, origin, summary_of
from safetensors.torch import load_file

from potstill.data.scene_source import build_scenes
from potstill.errors import IntegrityError
from potstill.models.coca import CocaConfig, CocaModel
from potstill.recipe import dump_recipe, load_recipe
from potstill.train.checkpoint import list_checkpoints, newest_valid, verify

AIMS = {"start-up": 3, "step": 4, "checkpoint": 6, "probe": 4, "after training": 3}  # aim -> how often, in shares
CHECKPOINT_EVERY, ROUND_STEPS = 3, 4
STALLED = 300.0  # seconds
TIMES = ("seconds", "ms_per_sample")  # keys that may differ
ONCE = ("environment.json", "report.html")  # they tell the time


@dataclass
class Pace:
    """Seconds of the run left alone: what moments are drawn from."""

    start_up: float
    step: float
    finish: float


def make_recipe(folder: Path, steps: int) -> Path:
    """Write a tiny teacher and the recipe to follow."""
    sizes = {"stem": "conv", "image_width": 16, "image_heads": 2, "image_layers": 2, "text_width": 16, "text_heads": 2}
    rest = {"text_layers": 2, "multimodal_layers": 2, "max_text_length": 40, "caption_queries": 4, "embed_dim": 16}
    drop = {"dropout": 0.1, "attention_dropout": 0.1}
    torch.manual_seed(3)
    source = build_scenes(concepts=12)
    config = CocaConfig(**sizes, **rest, **drop, max_images=2, tie_word_embeddings=True, **source.model_fields)
    CocaModel(config).save_pretrained(folder / "teacher")
    changes = (
        *(f"teacher.model={folder / 'teacher'}", "data.concepts=12"),
        "student={builder: width, width: 8, layers: 1, init: sliced}",
        *(f"train.steps={steps}", "train.batch_size=4", "train.accumulation=2", "train.workers=2", "train.threads=1"),
        *("train.log_every=2", f"train.checkpoint_every={CHECKPOINT_EVERY}", "train.warmup_steps=0"),
        *(f"policy.round_steps={ROUND_STEPS}", "policy.probe_batches=2", "policy.warmup_rounds=1"),
        *("evaluate.samples=16", "evaluate.shown=2"),
    )
    recipe = folder / "recipe.yaml"
    recipe.write_text(dump_recipe(load_recipe("optima-scenes", changes)), encoding="utf-8")
    return recipe


class Running:
    """One process of a run, in a session of its own so that its data workers can be killed and looked for."""

    def __init__(self, recipe: Path, out: Path, log: Path, *more: str):
        self.out, self.log = out, log
        self.history = out / "history.jsonl"
        self._old = self._inode()
        command = [sys.executable, "-m", "potstill", "distill", str(recipe), "--out", str(out), *more]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )

    def _inode(self) -> int | None:
        return self.history.stat().st_ino if self.history.exists() else None

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition, or for the process to end by itself."""
        late = time.monotonic() + STALLED
        while self.process.poll() is None and not condition():
            if time.monotonic() > late:
                raise SystemExit(f"nothing happened for {STALLED:g} s; see {self.log}")
            time.sleep(0.001)

    def rest(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        self.until(lambda: time.monotonic() >= end)

    def reached(self, step: int) -> bool:
        """Whether this process, not the one before, has logged the step: a resumed run writes a new file."""
        return self._inode() not in (None, self._old) and last_step(self.history) >= step

    def kill(self) -> list[int]:
        """Kill every process of the run at once; return those that are still there."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        late = time.monotonic() + 5
        while (left := list(self._alive())) and time.monotonic() < late:
            time.sleep(0.01)
        return left

    def _alive(self) -> Iterator[int]:
        for process in psutil.process_iter():
            try:
                if os.getsid(process.pid) == self.process.pid and process.status() != psutil.STATUS_ZOMBIE:
                    yield process.pid
            except (ProcessLookupError, psutil.NoSuchProcess):
                pass

    @property
    def resumed_from(self) -> str:
        """What it says it started from; empty if it was killed before it said so."""
        text = " ".join(self.log.read_text(encoding="utf-8", errors="replace").split())
        found = re.search(r"going on from (checkpoint-\d+)|(starting at step 0)|(training was finished before)", text)
        return next(filter(None, found.groups())) if found else ""


def last_step(history: Path) -> int:
    """Return the last step a history holds whole; 0 if none."""
    if not history.exists():
        return 0
    with history.open("rb") as file:
        file.seek(max(0, history.stat().st_size - 16384))
        lines = file.read().split(b"\n")[:-1]
    return next((int(m[1]) for line in reversed(lines) if (m := re.search(rb'"step", "step": (\d+),', line))), 0)


def wait_for(aim: str, run: Running, begun: int, pace: Pace, draw: random.Random) -> None:
    """Return at the moment to kill, or when the run ended before it came."""
    target = begun + draw.randint(1, 4 * CHECKPOINT_EVERY)
    if aim == "start-up":
        run.rest(draw.uniform(0, pace.start_up))
    elif aim == "after training":
        run.until((run.out / "stages").exists)
        run.rest(draw.uniform(0, pace.finish))
    elif aim == "checkpoint":
        run.until(lambda: run.reached(target))
        run.until((run.out / "checkpoints" / ".growing").exists)
        run.rest(draw.uniform(0, 2 * pace.step))
    elif aim == "probe":
        run.until(lambda: run.reached(-(-target // ROUND_STEPS) * ROUND_STEPS))
        run.rest(draw.uniform(0, 2 * pace.step))
    else:
        run.until(lambda: run.reached(target))
        run.rest(draw.uniform(0, pace.step))


class Straight:
    """The run that was left alone, and what the others are compared with."""

    def __init__(self, recipe: Path, folder: Path):
        self.recipe, self.out = recipe, folder / "straight"
        run = Running(recipe, self.out, folder / "straight.log", "--set", "train.keep_checkpoints=0")
        seconds = [time.monotonic()]
        for condition in (lambda: run.reached(1), (self.out / "stages").exists, lambda: False):
            run.until(condition)
            seconds.append(time.monotonic())
        if run.process.returncode:
            raise SystemExit(f"the run left alone failed:\n{run.log.read_text()[-3000:]}")
        steps = last_step(run.history)
        self.pace = Pace(seconds[1] - seconds[0], (seconds[2] - seconds[1]) / steps, seconds[3] - seconds[2])

    def check_checkpoints(self, out: Path) -> tuple[str, list[str]]:
        """Return what lies in the folder of checkpoints, and what is wrong about it."""
        words, wrong = [], []
        for path in list_checkpoints(out / "checkpoints"):
            try:
                verify(path)
            except IntegrityError as error:
                words.append(f"{path.name} refused")
                if path.name not in str(error):
                    wrong.append(f"{path.name} refused without its name: {error}")
                continue
            words.append(path.name)
            for name in ("student.safetensors", "parts.safetensors"):
                if not same_tensors(path / name, self.out / "checkpoints" / path.name / name):
                    wrong.append(f"{path.name}/{name} differs")
        if (out / "checkpoints" / ".growing").exists():
            words.append("one growing")
        return ", ".join(words) or "nothing", wrong

    def differences(self, out: Path) -> list[str]:
        """Return how a finished run differs from this one."""
        wrong = []
        if not same_tensors(*(folder / "student" / "model.safetensors" for folder in (out, self.out))):
            wrong.append("the student differs")
        for name in ("history.jsonl", "metrics.json", "samples.json", "plan.json"):
            if events(out / name) != events(self.out / name):
                wrong.append(f"{name} differs")
        here, there = (set(files_of(folder)) for folder in (out, self.out))
        return wrong + [f"{name} is left over" for name in here - there] + [f"{n} is missing" for n in there - here]


def same_tensors(one: Path, other: Path) -> bool:
    """Whether two files hold the same bits; the order of names in the header is safetensors' own affair."""
    if not (one.exists() and other.exists()):
        return False
    a, b = load_file(one), load_file(other)
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and a[k].numpy().tobytes() == b[k].numpy().tobytes()
        for k in a
    )


def events(path: Path) -> Any:
    """Return the content of a JSON file, or of JSON lines, without times and what the two recipes differ in."""

    def cleaned(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: cleaned(v) for k, v in value.items() if k not in (*TIMES, "keep_checkpoints")}
        return [cleaned(v) for v in value] if isinstance(value, list) else value

    text = path.read_text(encoding="utf-8")
    return cleaned([json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text))


def files_of(folder: Path) -> Iterator[str]:
    """Name every file, but of the checkpoints only what is not in one."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if not re.match(r"checkpoints/checkpoint-\d+(/|$)", name):
            yield name


def endure(number: int, straight: Straight, kills: int, draw: random.Random, folder: Path) -> list[dict[str, Any]]:
    """Kill one run until it ends or the kills are spent, let it end, and return a row for every kill."""
    out, rows = folder / f"run-{number}", []
    while True:
        expected, _ = newest_valid(out / "checkpoints")
        is_trained = (out / "progress.json").exists()
        begun = int(expected.name.rpartition("-")[2]) if expected else 0
        log = folder / f"run-{number}-{len(rows)}.log"
        run = Running(straight.recipe, out, log, *(["--resume"] if (out / "recipe.yaml").exists() else []))
        is_last = len(rows) == kills
        shares = {k: v for k, v in AIMS.items() if not is_trained or k in ("start-up", "after training")}
        aim = draw.choices(list(shares), list(shares.values()))[0]
        try:
            if is_last or (is_trained and draw.random() < 0.4):
                run.until(lambda: False)
            else:
                wait_for(aim, run, begun, straight.pace, draw)
        except BaseException:
            run.kill()  # it has a session of its own and would outlive this script
            raise
        if run.process.poll() is not None:
            return finished(run, straight, rows, expected, is_trained, number)
        left = run.kill()
        on_disk, wrong = straight.check_checkpoints(out)
        wrong += [f"process {pid} is left" for pid in left] + came_from(run, expected, is_trained)
        rows.append(
            {
                "run": number,
                "kill": len(rows) + 1,
                "aimed_at": aim,
                "resumed_from": run.resumed_from,
                "died_at_step": last_step(run.history),
                "on_disk": on_disk,
                "verdict": "; ".join(wrong) or "ok",
            }
        )
        print(" | ".join(str(v) for v in rows[-1].values()), flush=True)


def came_from(run: Running, expected: Path | None, is_trained: bool) -> list[str]:
    """Return what is wrong about where a process went on from."""
    said = run.resumed_from
    if is_trained or not said:
        return []
    right = expected.name if expected else "starting at step 0"
    return [] if said == right else [f"went on from {said}, not {right}"]


def finished(
    run: Running, straight: Straight, rows: list[dict[str, Any]], expected: Path | None, is_trained: bool, number: int
) -> list[dict[str, Any]]:
    """Compare a run that ended by itself."""
    if run.process.returncode:
        wrong = [f"exit code {run.process.returncode}: {' '.join(run.log.read_text()[-300:].split())}"]
    else:
        wrong = came_from(run, expected, is_trained) + straight.differences(run.out)
    ended = "; ".join(wrong) or "identical"
    print(f"run {number} ended after {len(rows)} kills: {ended}", flush=True)
    return [{**row, "run_ended": ended} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--steps", type=int, default=90, help="of a run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="keep runs and logs here; a temporary folder if left out")
    parser.add_argument("--out", type=Path, default=RESULTS / "kill_resume_runs.csv")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    summary, where, draw = summary_of(options.out), origin(), random.Random(options.seed)
    where["threads"] = 1  # of the runs, not of this script
    rows: list[dict[str, Any]] = []
    runs = 0
    with tempfile.TemporaryDirectory(prefix="potstill-kills-") as temporary:
        folder = options.work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        straight = Straight(make_recipe(folder, options.steps), folder)
        print(f"left alone: {straight.pace}", flush=True)
        while len(rows) < options.kills:
            runs += 1
            new = endure(runs, straight, options.kills - len(rows), draw, folder)
            append_rows(options.out, [{"seed": options.seed, **row, **where} for row in new])
            rows += new
    bad = sum(row["verdict"] != "ok" for row in rows)
    unlike = len({row["run"] for row in rows if row["run_ended"] != "identical"})
    aims = collections.Counter(row["aimed_at"] for row in rows)
    row = {"seed": options.seed, "steps": options.steps, "runs": runs, "kills": len(rows)}
    row |= {f"kills_{aim.replace(' ', '_').replace('-', '_')}": aims[aim] for aim in AIMS}
    row |= {"kills_wrong": bad, "runs_different": unlike}
    append_rows(summary, [row | where])
    print(f"{len(rows)} kills in {runs} runs: {bad} wrong, {unlike} runs different")
    sys.exit(1 if bad or unlike else 0)


if __name__ == "__main__":
    main()
