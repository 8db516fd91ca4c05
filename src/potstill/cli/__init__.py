"""The command line: one thin file per command, nothing heavy imported before it is needed."""

from __future__ import annotations

import os
import sys
import traceback
from typing import NoReturn

from potstill.errors import DISK_FULL, NOT_ALLOWED, PotstillError, explain_disk


def main() -> None:
    """Run ``potstill`` and exit: 0 done, 2 bad input, 1 our fault, 130 interrupted."""
    from potstill.cli.app import app

    try:
        app()  # prints usage errors itself and exits: 2, or 130 on Ctrl-C
    except SystemExit as stop:
        if stop.code == 130:
            print("\npotstill: interrupted", file=sys.stderr)
        raise
    except PotstillError as error:
        print(f"potstill: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in (*DISK_FULL, *NOT_ALLOWED):
            _say_our_fault(error)
        print(f"potstill: {explain_disk(error, 'output')}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        _say_our_fault(error)


def _say_our_fault(error: Exception) -> NoReturn:
    if os.environ.get("POTSTILL_TRACEBACK"):
        traceback.print_exc()
    print(
        f"potstill: this is a fault of Potstill, not yours: {type(error).__name__}: {error}\n"
        "Set POTSTILL_TRACEBACK=1 to see where, and please report it.",
        file=sys.stderr,
    )
    sys.exit(1)
