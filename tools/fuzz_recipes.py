"""Feed mutated recipes and overrides to the command line, and keep those that it does not answer well.

    python tools/fuzz_recipes.py --n 2000 --seed 7 --save offenders
    python tools/fuzz_recipes.py --n 200 --depth plan

A good answer is exit code 0 and a recipe that reads back the same, or exit code 2 and one line on stderr; quickly, in
little memory, and without writing anything. The same seed makes the same recipes. ``--depth door`` reads them
(``potstill config show``), ``--depth plan`` builds what they name (``potstill plan``).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from recipe_mutations import Case, make_bases, make_cases

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_ONE_PATH = ("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod")


class Watch:
    """Writes down every file that this process makes or changes outside one folder, as long as it is switched on."""

    def __init__(self):
        self.allowed: Path | None = None
        self.written: list[str] = []
        sys.addaudithook(self._note)  # cannot be taken away again, so it is switched

    def _note(self, event: str, args: tuple) -> None:
        if self.allowed is None:
            return
        paths: Sequence[Any] = ()
        is_writing = event == "open" and isinstance(args[2], int) and args[2] & _WRITING
        if is_writing or event in _ONE_PATH:
            paths = args[:1]
        elif event in ("os.rename", "os.link", "os.symlink"):
            paths = args[:2]
        for path in paths:
            if isinstance(path, str | bytes | os.PathLike) and os.fsdecode(path) != os.devnull:
                full = os.path.abspath(os.fsdecode(path))
                if not full.startswith(str(self.allowed)):
                    self.written.append(f"{event} {full[:200]}")


class SlowError(BaseException):
    """Raised into an answer that takes too long; no handler of the program catches it."""


class Judge:
    """Runs cases in this process and says what was wrong with the answer.

    Args:
        folder: An empty folder; work is done in it.
        depth: "door" or "plan".
        seconds: Longest time an answer may take.
    """

    watch: Watch | None = None

    def __init__(self, folder: Path, depth: str = "door", seconds: int = 60):
        self.folder, self.depth, self.seconds = folder.resolve(), depth, seconds
        self.codes: dict[int, int] = {}
        self.messages: list[str] = []
        Judge.watch = Judge.watch or Watch()
        for name in ("here", "temporary"):
            (self.folder / name).mkdir()

    def __call__(self, case: Case) -> str | None:
        """Return what is wrong with the answer to a case, or None."""
        path = self.folder / "recipe.yaml"
        name = case.make(path) if case.make else path.write_bytes(case.content)
        argument = name if isinstance(name, str) else str(path)
        command = ["config", "show"] if self.depth == "door" else ["plan"]
        sets = [word for override in case.overrides for word in ("--set", override)]
        try:
            with self._set_apart():
                code, out, err, seconds = self._run([*command, *sets, "--", argument])
                wrong = self._wrong(code, out, err, seconds)
        finally:
            if path.is_symlink() or path.is_file() or path.is_fifo():
                path.unlink()
            elif path.is_dir():
                path.rmdir()
        return wrong

    def _wrong(self, code: int, out: str, err: str, seconds: float) -> str | None:
        self.codes[code] = self.codes.get(code, 0) + 1
        self.messages.append(err)
        left = [p.name for name in ("here", "temporary") for p in (self.folder / name).iterdir()]
        if left or self.watch.written:
            return f"wrote {left or self.watch.written}"
        if code == -1:
            return f"took longer than {self.seconds} s"
        if "Traceback" in out + err:
            return f"a traceback: {err[-2000:]}"
        if code == 0:
            if err:
                return f"exit code 0 with a message: {err[:500]}"
            return self._reads_back(out) if self.depth == "door" else None
        usage = err.startswith("Usage: ") and "Error: " in err  # the parser of options words its own errors
        lines = err.rstrip("\n").split("\n")
        if code != 2 or not (usage or (len(lines) == 1 and err.startswith("potstill: "))):
            return f"exit code {code}: {err[:2000]}"
        if len(err) > 3000:
            return f"a message of {len(err)} characters: {err[:200]}"
        if out:
            return f"exit code 2, but something on stdout: {out[:500]}"
        return None

    def _reads_back(self, out: str) -> str | None:
        path = self.folder / "again.yaml"
        path.write_text(out, encoding="utf-8")
        code, again, err, _ = self._run(["config", "show", str(path)])
        path.unlink()
        return (
            None if (code, again) == (0, out) else f"what config show prints does not read back the same: {err[:500]}"
        )

    @contextlib.contextmanager
    def _set_apart(self) -> Iterator[None]:
        """Run in a folder of its own, with temporary files beside it, watched, and put everything back."""
        import torch

        threads, before, kept = torch.get_num_threads(), os.getcwd(), tempfile.tempdir
        os.chdir(self.folder / "here")
        tempfile.tempdir = str(self.folder / "temporary")
        self.watch.written, self.watch.allowed = [], self.folder
        try:
            yield
        finally:
            self.watch.allowed = None
            os.chdir(before)
            tempfile.tempdir = kept
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)

    def _run(self, arguments: list[str]) -> tuple[int, str, str, float]:
        from potstill.cli import main

        out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors=how) for how in ("strict", "backslashreplace"))
        code, started, kept = 0, time.perf_counter(), sys.argv
        before = signal.signal(signal.SIGALRM, _too_slow)
        signal.alarm(self.seconds)
        sys.argv = ["potstill", *arguments]
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                main()
        except SystemExit as stop:
            code = stop.code or 0
        except SlowError:
            code = -1
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)
            sys.argv = kept
        texts = []
        for stream in (out, err):
            stream.flush()
            texts.append(stream.buffer.getvalue().decode("utf-8", "replace"))
        return code, *texts, time.perf_counter() - started


def _too_slow(number, frame) -> None:
    raise SlowError


@contextlib.contextmanager
def little_memory(gigabytes: int = 6) -> Iterator[None]:
    """Refuse memory beyond what is in use now and some more, so that a case cannot take the machine with it."""
    used = int(re.search(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text())[1]) << 10
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (gigabytes << 30), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def shrink(case: Case, judge: Judge, tries: int = 200) -> Case:
    """Return a smaller case that is answered as badly: without lines and overrides that do not matter."""
    if case.make:
        return case
    best = case
    for _ in range(3):
        lines, i, size = best.content.splitlines(keepends=True), 0, len(best.content)
        while i < len(lines) and tries:
            fewer = Case(best.name, b"".join(lines[:i] + lines[i + 1 :]), best.overrides)
            tries -= 1
            if judge(fewer):
                best, lines = fewer, lines[:i] + lines[i + 1 :]
            else:
                i += 1
        for override in list(best.overrides):
            fewer = Case(best.name, best.content, [o for o in best.overrides if o is not override])
            if judge(fewer):
                best = fewer
        if len(best.content) == size:
            break
    return best


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=1000, help="number of recipes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--depth", choices=("door", "plan"), default="door")
    parser.add_argument("--seconds", type=int, default=60, help="longest time for an answer")
    parser.add_argument("--save", type=Path, help="folder for the offenders, made smaller")
    chosen = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.dont_write_bytecode = True

    import potstill.run  # noqa: F401 - before the memory is limited and writing is watched

    with tempfile.TemporaryDirectory(prefix="potstill-fuzz-") as folder, little_memory():
        judge, offenders = Judge(Path(folder), chosen.depth, chosen.seconds), 0
        for case in make_cases(chosen.seed, chosen.n, make_bases("train.batch_size=6", "train.threads=1")):
            wrong = judge(case)
            if wrong is None:
                continue
            offenders += 1
            print(f"{case.name}\n  {wrong}\n", flush=True)
            if chosen.save:
                small = shrink(case, judge)
                chosen.save.mkdir(parents=True, exist_ok=True)
                name = f"{chosen.depth}-{chosen.seed}-{re.sub('[^a-z0-9]+', '-', case.name.lower())[:60]}"
                (chosen.save / f"{name}.yaml").write_bytes(small.content)
                (chosen.save / f"{name}.txt").write_text(ascii((small.overrides, wrong)) + "\n", encoding="utf-8")
        print(f"{chosen.n} cases, exit codes {judge.codes}, {offenders} offenders")
    return int(offenders > 0)


if __name__ == "__main__":
    sys.exit(main())
