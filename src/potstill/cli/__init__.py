"""The command line: one thin file per command, nothing heavy imported before it is needed."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from typing import NoReturn

from potstill.errors import DISK_FULL, NOT_ALLOWED, Interrupted, PotstillError, explain_disk
from potstill.ranks import process_rank

PATIENCE = 20.0  # seconds in which a launcher ends the other processes after the first one failed


def _tell(error: PotstillError) -> None:
    """Print the message once: of several processes that make the same mistake the first one speaks.

    The others wait for their launcher to end them; one that is still there has found something of its own.
    """
    rank = process_rank()
    if rank and isinstance(error, Interrupted):  # all stop together
        return
    if rank:
        time.sleep(PATIENCE)
    print(f"potstill: {f'[process {rank}] ' if rank else ''}{error}", file=sys.stderr, flush=True)


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
            _say_interrupted()
        raise
    except KeyboardInterrupt:  # while the commands were loaded
        _say_interrupted()
        sys.exit(130)
    except PotstillError as error:
        _tell(error)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in (*DISK_FULL, *NOT_ALLOWED):
            _say_our_fault(error)
        told = explain_disk(error, "output")
        _tell(told)
        sys.exit(told.exit_code)
    except Exception as error:
        _say_our_fault(error)


def _say_interrupted() -> None:
    if not process_rank():  # a launcher ends the others when the first has failed, and that one has told why
        print("\npotstill: interrupted", file=sys.stderr)


def _say_our_fault(error: Exception) -> NoReturn:
    if os.environ.get("POTSTILL_TRACEBACK"):
        traceback.print_exc()
    print(
        f"potstill: this is a fault of Potstill, not yours: {type(error).__name__}: {error}\n"
        "Set POTSTILL_TRACEBACK=1 to see where, and please report it.",
        file=sys.stderr,
    )
    sys.exit(1)
