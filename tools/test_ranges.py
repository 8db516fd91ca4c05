"""Run the tests that touch other packages at both ends of the version ranges in pyproject.toml.

    python tools/test_ranges.py
    python tools/test_ranges.py --ends oldest --tests tests/models

The ends: ``oldest`` and ``newest`` of transformers and accelerate with everything else as installed here, and
``all-oldest``, the lower bound of every dependency but torch. Each is a virtual environment of its own that puts its
versions before the packages of this Python, which it borrows: torch is not installed again. Installs packages, so it
is no part of ``make test``.

Appends to ``benchmarks/results/version_ranges.csv``; exits with 1 if a test fails at any end.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import tomllib
from packaging.requirements import Requirement
from packaging.version import Version
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from _record import RESULTS, append_rows, origin  # noqa: E402

RANGES = ("transformers", "accelerate")
BORROWED = ("torch",)
ENDS = ("oldest", "newest", "all-oldest")
TESTS = (
    *("tests/train", "tests/taps", "tests/models", "tests/students", "tests/data/test_files_source.py"),
    *("tests/run/test_distill.py", "tests/run/test_resume.py", "tests/recipe/test_recipe_files.py"),
    *("tests/report/test_report_page.py", "tests/cli/test_commands.py"),
)
VERSIONS = "import importlib.metadata as m, json, sys; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"


def declared() -> list[Requirement]:
    """Return what Potstill and its data sources ask for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [Requirement(text) for text in project["dependencies"] + project["optional-dependencies"]["datasets"]]


def wanted(end: str) -> list[Requirement]:
    """Return what to install for an end. The lower bound is itself the oldest release of a range."""
    if end == "newest":
        return [r for r in declared() if r.name in RANGES]
    names = RANGES if end == "oldest" else [r.name for r in declared() if r.name not in BORROWED]
    bounds = {r.name: s.version for r in declared() for s in r.specifier if s.operator == ">="}
    return [Requirement(f"{name}=={bounds[name]}") for name in names]


def make_environment(folder: Path, end: str) -> Path:
    """Return the Python of a new environment with the versions of an end."""
    venv.create(folder, symlinks=True)  # without pip: ours installs into it
    python = folder / "bin" / "python"
    base = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    # Listed in a .pth file, our packages come after those of the environment on sys.path, in child processes too.
    Path(base, "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", "install", "--quiet"]
    # Packages outside the environment count as installed, and pip leaves them where they are.
    subprocess.run([*pip, "--upgrade", *map(str, wanted(end))], check=True)
    return python


def versions(python: Path) -> dict[str, str]:
    names = sorted({r.name for r in declared()} | {"huggingface_hub"})
    done = subprocess.run([python, "-c", VERSIONS, *names], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def run_tests(python: Path, tests: list[str], folder: Path) -> dict[str, Any]:
    """Run tests with this Python; return how many passed, failed and were skipped."""
    results = folder / "results.xml"
    environment = {**os.environ, "PYTHONPATH": "src", "OMP_NUM_THREADS": "1"}
    command = [str(python), "-m", "pytest", f"--junitxml={results}", *tests]
    began = time.perf_counter()
    code = subprocess.run(command, cwd=ROOT, env=environment).returncode
    if code not in (0, 1):
        raise SystemExit(f"pytest ended with exit code {code} before it could count")
    suite = next(ElementTree.parse(results).iter("testsuite"))
    total, skipped = int(suite.get("tests", 0)), int(suite.get("skipped", 0))
    failed = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
    seconds = round(time.perf_counter() - began)
    return {"passed": total - skipped - failed, "failed": failed, "skipped": skipped, "seconds": seconds}


def measure(end: str, tests: list[str]) -> dict[str, Any]:
    """Build the environment of an end, run the tests in it and return the row."""
    where = origin()
    with tempfile.TemporaryDirectory() as folder:
        python = make_environment(Path(folder, "environment"), end)
        found = versions(python)
        for requirement in wanted(end):
            if not requirement.specifier.contains(Version(found[requirement.name]), prereleases=True):
                raise SystemExit(f"{end}: wanted {requirement}, the environment has {found[requirement.name]}")
        counts = run_tests(python, tests, Path(folder))
    rest = {key: value for key, value in where.items() if key not in found}
    return {"end": end, "tests": " ".join(tests), **counts, **found, **rest}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ends", nargs="+", choices=ENDS, default=list(ENDS))
    parser.add_argument("--tests", nargs="+", default=list(TESTS))
    parser.add_argument("--out", type=Path, default=RESULTS / "version_ranges.csv")
    options = parser.parse_args()
    rows = []
    for end in options.ends:
        rows.append(measure(end, options.tests))
        append_rows(options.out, rows[-1:])
    shown = ("end", *RANGES, "tokenizers", "huggingface_hub", "passed", "failed", "skipped")
    table = Table(*shown)
    for row in rows:
        table.add_row(*(str(row[key]) for key in shown))
    Console().print(table)
    if any(row["failed"] for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
