import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_tables_of_results_say_what_the_files_of_results_say():
    command = [sys.executable, ROOT / "tools" / "make_result_tables.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"run tools/make_result_tables.py: {done.stdout}{done.stderr}"
