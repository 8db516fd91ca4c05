"""Ratios between ways of doing the same work, measured in turn so that what disturbs one disturbs the other."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch.profiler import ProfilerActivity, profile


@dataclass
class Clock:
    """Wall-clock and processor seconds of one piece of work, once per repetition."""

    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    _started: tuple[float, float] = (0.0, 0.0)

    def start(self) -> None:
        self._started = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        wall, processor = time.perf_counter(), time.process_time()
        self.wall.append(wall - self._started[0])
        self.processor.append(processor - self._started[1])

    def drop(self, count: int) -> None:
        """Forget the first repetitions, which warm up."""
        del self.wall[:count], self.processor[:count]


def interleave(works: Sequence[Callable[[], object]], repetitions: int, warm_up: int = 3) -> list[Clock]:
    """Do the works in turn, again and again, the order reversed every other time; return a clock for each."""
    clocks = [Clock() for _ in works]
    for turn in range(repetitions + warm_up):
        pairs = list(zip(works, clocks))
        for work, clock in pairs if turn % 2 else pairs[::-1]:
            gc.collect()
            clock.start()
            work()
            clock.stop()
    for clock in clocks:
        clock.drop(warm_up)
    return clocks


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Return the ratio of the medians, and the quartiles of the ratios of neighbours."""
    low, _, high = statistics.quantiles([a / b for a, b in zip(ours, theirs)], n=4)
    return {
        "ratio": round(statistics.median(ours) / statistics.median(theirs), 4),
        "quartile_low": round(low, 4),
        "quartile_high": round(high, 4),
    }


def peak_bytes(work: Callable[[], object]) -> int:
    """Return the largest sum of live allocations above what was live before, from the profiler's memory events."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    if not peak:
        raise SystemExit("the profiler of this torch reports no memory events")
    return peak
