"""What a step's time goes into, without changing the step: on the host, and on a GPU's stream."""

import itertools
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import torch


class Clock:
    """Divides time among parts: it belongs to the innermost that is under way."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._stack = ["rest"]
        self._marks: list[tuple[str, float, torch.cuda.Event | None]] = []
        self._mark()

    def _mark(self) -> None:
        event = None
        if self._is_cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
        self._marks.append((self._stack[-1], time.perf_counter(), event))

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Give the time inside to a part."""
        self._stack.append(name)
        self._mark()
        try:
            yield
        finally:
            self._stack.pop()
            self._mark()

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, its time given to a part."""

        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return run

    def shares(self) -> list[dict[str, float]]:
        """Return each part's share of the time so far: the device's, where there is one, and the host's."""
        self._mark()
        host: dict[str, float] = defaultdict(float)
        gpu: dict[str, float] = defaultdict(float)
        if self._is_cuda:
            torch.cuda.synchronize()
        for (name, start, start_event), (_, end, end_event) in itertools.pairwise(self._marks):
            host[name] += end - start
            if start_event is not None and end_event is not None:
                gpu[name] += start_event.elapsed_time(end_event)
        found = [gpu, host] if self._is_cuda else [host]
        return [{name: each[name] / sum(each.values()) for name in list(each)} for each in found]


def find_waits(work: Callable[[], object]) -> Counter[str]:
    """Count the times that some work waits for the GPU, by line of code, as torch reports them."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    messages = [each for each in caught if "synchroniz" in str(each.message)]
    return Counter(f"{Path(each.filename).name}:{each.lineno}" for each in messages)
