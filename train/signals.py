"""Signals: noted at once, acted on between two updates, by all ranks at the same one."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from train.ranks import Ranks

# Ctrl-C; a machine that is taken away, by hand or by a scheduler; a closed terminal.
HEARD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(Exception):  # noqa: N818 - an event, no error
    """A signal asked the run to stop; everything is saved. Carries the signal's number."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number


class Signals:
    """Notes signals instead of dying, so that the update under way can be finished and saved.

    Ranks hear of a signal at different moments, and torchrun repeats it: `number` is what all ranks agreed
    on, and only a second Ctrl-C ends a process at once.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.number = 0  # agreed on by all ranks; 0: none
        self.is_save_due = False  # likewise: a rank's clock says that it is time to save
        self._ranks = ranks
        self._heard = 0
        self._may_end_at_once = False
        self._previous: dict[int, Any] = {}

    def agree(self, *, is_save_due: bool = False) -> bool:
        """Exchange the signals of all ranks; return whether there was one. Every rank must call it."""
        self.number, due = self._ranks.highest([self._heard, is_save_due])
        self.is_save_due = bool(due)
        return self.number > 0

    def stop_if_heard(self) -> None:
        """Raise Interrupted on all ranks if one of them got a signal."""
        if self.agree():
            raise Interrupted(self.number)

    @contextmanager
    def ending_at_once(self) -> Iterator[None]:
        """Let a signal that comes now raise Interrupted where the process stands: nothing is left to save."""
        self._may_end_at_once = True
        try:
            yield
        finally:
            self._may_end_at_once = False

    def __enter__(self) -> "Signals":
        for number in HEARD:
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        is_repeated, self._heard = self._heard > 0, self._heard or number
        if self._may_end_at_once and not is_repeated:
            raise Interrupted(number)
        if is_repeated and number == signal.SIGINT:
            raise KeyboardInterrupt
