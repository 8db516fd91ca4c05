"""Data workers that outlive a signal to the whole run."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable


def start_worker(then: Callable[[int], None] | None, worker: int) -> None:
    """Make a data worker heed its parent alone, then do what else is to be done at its start.

    Ctrl-C and a cluster's SIGTERM go to every process of a run. torch's workers die of SIGTERM, and the main process
    then fails in the middle of a step instead of finishing it and writing a checkpoint.

    Args:
        then: Called with the worker's number.
        worker: Number of this worker.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # macOS has none
        # Blocked before the thread starts, which inherits it: the signal is only ever taken by waiting for it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    if then is not None:
        then(worker)


def _end_with(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
