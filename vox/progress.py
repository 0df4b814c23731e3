"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere."""

import logging
import time
from types import TracebackType
from typing import NamedTuple

from tqdm import tqdm

log = logging.getLogger(__name__)

FIRST_LINE_SECONDS = 5.0  # early, for an estimate
LINE_SECONDS = 30.0


class Unit(NamedTuple):
    """What is shown of an amount of work."""

    name: str  # in lines
    bar_name: str  # on bars
    rate: str  # so many of it a second
    size: float = 1.0  # of one, in what is counted


AUDIO = Unit("s of audio", "s audio", "times real time")  # counted in seconds
MEGABYTES = Unit("MB", "MB", "MB/s", size=1e6)  # counted in bytes


class ProgressBar:
    """Counts work done, and says how fast and how long still; a context manager."""

    def __init__(
        self,
        total: float | None,
        name: str,
        unit: Unit = AUDIO,
        *,
        done: float = 0.0,
        has_result: bool = False,
        is_hidden: bool = False,
    ) -> None:
        """Begin at `done` of `total`, both in what the unit counts; a total of None is not known.

        has_result: the work logs its result itself, so no line says that it is done, nor an early one how
        long it takes. is_hidden: nor is there a bar.
        """
        self._total = None if total is None else total / unit.size
        self._name, self._unit = name, unit
        self._done = self._first = done / unit.size
        self._start = time.monotonic()
        self._has_result = has_result or is_hidden
        self._next_line = self._start + (LINE_SECONDS if self._has_result else FIRST_LINE_SECONDS)
        self._bar = tqdm(
            total=None if self._total is None else round(self._total),
            initial=round(self._done),
            desc=name,
            unit=unit.bar_name,
            disable=True if is_hidden else None,  # None: unless stderr is a terminal
        )

    def add(self, amount: float) -> None:
        """Count more work as done."""
        before, self._done = self._done, self._done + amount / self._unit.size
        self._bar.update(round(self._done) - round(before))
        if self._bar.disable and time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + LINE_SECONDS
            log.info("%s: %s", self._name, self._describe_state())

    def _describe_state(self) -> str:
        """Say how much of how much is done, how fast, and how long the rest takes."""
        rate, unit = self._rate(), self._unit
        if self._total is None:
            return f"{self._done:.0f} {unit.name}, {rate:.1f} {unit.rate}"
        amounts = f"{self._done:.0f} of {self._total:.0f} {unit.name}, {rate:.1f} {unit.rate}"
        left = max(0.0, self._total - self._done)
        return amounts + (f", {format_duration(left / rate)} left" if rate else "")

    def _rate(self) -> float:
        """Return what was done a second, of what this process did."""
        return (self._done - self._first) / (time.monotonic() - self._start)

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bar away and, unless an error ended the work or it has a result, say what it came to."""
        self._bar.close()
        if kind is not None or self._has_result:
            return
        duration = format_duration(time.monotonic() - self._start)
        amount = f"{self._done:.0f} {self._unit.name}"
        log.info("%s: %s in %s, %.1f %s", self._name, amount, duration, self._rate(), self._unit.rate)


def format_duration(seconds: float) -> str:
    """Write a duration for people: 8.2 s, 4 min 10 s, 3 h 05 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = int(seconds) // 60
    if minutes < 60:
        return f"{minutes} min {int(seconds) % 60:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
