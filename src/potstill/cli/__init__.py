"""The command line: one thin file per command, nothing heavy imported before it is needed."""

from __future__ import annotations

import os
import signal
import sys
import traceback

from potstill.errors import PotstillError


def main() -> None:
    """Run ``potstill`` and exit: 0 done, 2 bad input, 1 our fault, 130 interrupted by SIGINT or SIGTERM."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # a cluster's way to say Ctrl-C
    try:
        _run()
    finally:
        signal.signal(signal.SIGTERM, before)


def _run() -> None:
    try:
        from potstill.cli.app import app

        app()  # prints usage errors itself and exits: 2, or 130 on Ctrl-C
    except SystemExit as stop:
        if stop.code == 130:
            print("\npotstill: interrupted", file=sys.stderr)
        raise
    except KeyboardInterrupt:  # while the commands were loaded
        print("\npotstill: interrupted", file=sys.stderr)
        sys.exit(130)
    except PotstillError as error:
        print(f"potstill: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except Exception as error:
        if os.environ.get("POTSTILL_TRACEBACK"):
            traceback.print_exc()
        print(
            f"potstill: this is a fault of Potstill, not yours: {type(error).__name__}: {error}\n"
            "Set POTSTILL_TRACEBACK=1 to see where, and please report it.",
            file=sys.stderr,
        )
        sys.exit(1)
