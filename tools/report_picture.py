"""Make the picture of a report that README.md and the first page show.

    python tools/report_picture.py runs/demo/report.html      # writes docs/images/report.png

Needs Chromium or Chrome. The page is opened offline, in light colours, and cut off below the given height.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

PICTURE = Path(__file__).resolve().parent.parent / "docs" / "images" / "report.png"
NAMES = ("chromium", "google-chrome", "google-chrome-stable", "chromium-browser")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path, help="report.html of a run, or of a comparison")
    parser.add_argument("--width", type=int, default=1100)
    parser.add_argument("--height", type=int, default=1500)
    parser.add_argument("--out", type=Path, default=PICTURE)
    asked = parser.parse_args()
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        sys.exit(f"no Chromium is installed (looked for {', '.join(NAMES)})")
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--user-data-dir={folder}/profile", f"--window-size={asked.width},{asked.height}"]
        command += [f"--screenshot={shot}", asked.page.resolve().as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if not shot.exists():
            sys.exit(done.stderr)
        # A report has few colours; a palette makes the file a third as large.
        picture = Image.open(shot).convert("RGB").quantize(200, dither=Image.Dither.NONE)
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        picture.save(asked.out, optimize=True)
    print(f"{asked.out} ({asked.out.stat().st_size // 1024} KiB)")


if __name__ == "__main__":
    main()
