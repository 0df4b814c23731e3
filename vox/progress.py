"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere."""

import logging
import sys
import time
from types import TracebackType

from tqdm import tqdm

log = logging.getLogger(__name__)

FIRST_LINE_SECONDS = 5.0  # early, for an estimate
LINE_SECONDS = 30.0


class AudioProgress:
    """Counts seconds of audio done, and says how fast and how long still; a context manager."""

    def __init__(self, total_seconds: float, name: str) -> None:
        self._total = total_seconds
        self._name = name
        self._done = 0.0
        self._start = time.monotonic()
        self._next_line = self._start + FIRST_LINE_SECONDS
        self._bar = (
            tqdm(total=round(total_seconds), desc=name, unit="s audio") if sys.stderr.isatty() else None
        )

    def add(self, seconds: float) -> None:
        """Count seconds of audio as done."""
        if self._bar is not None:
            self._bar.update(round(self._done + seconds) - round(self._done))
        self._done += seconds
        now = time.monotonic()
        if self._bar is None and now >= self._next_line:
            self._next_line = now + LINE_SECONDS
            rate = self._done / (now - self._start)
            log.info(
                "%s: %.0f of %.0f s of audio, %.1f times real time, %s left",
                self._name,
                self._done,
                self._total,
                rate,
                format_duration(max(0.0, self._total - self._done) / rate),
            )

    def __enter__(self) -> "AudioProgress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bar away and, unless an error ended the work, say what it came to."""
        if self._bar is not None:
            self._bar.close()
        if kind is not None:
            return
        elapsed = time.monotonic() - self._start
        log.info(
            "%s: %.0f s of audio in %s, %.1f times real time",
            self._name,
            self._done,
            format_duration(elapsed),
            self._done / elapsed,
        )


def format_duration(seconds: float) -> str:
    """Write a duration for people: 8.2 s, 4 min 10 s, 3 h 05 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = int(seconds) // 60
    if minutes < 60:
        return f"{minutes} min {int(seconds) % 60:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
