"""The heartbeat of a run: `alive.json` in its folder, rewritten every few seconds while the process lives.

It says which process trains, in which state, and how far it is; `vox status` reads it. A process that is
killed writes nothing more, so its last heartbeat says when and in which state it died.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from vox.disk import remove_leftovers, write_whole
from vox.errors import VoxError
from vox.runs.layout import ALIVE
from vox.runs.liveness import State, identify_machine, read_process_start

log = logging.getLogger(__name__)

EVERY_SECONDS = 5.0
LEAVE_SECONDS = 5.0  # to wait for the last heartbeat: a dead network disk must not hold up the process
ERROR_CHARACTERS = 500


class Heartbeat:
    """A context manager with a thread that keeps a run's `alive.json` up to date.

    On leaving it writes "done"; "interrupted" for the exceptions named in `interruptions`; "failed" and
    the error's first line for any other. The first failure to write is logged, and none stops training.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        device: torch.device | str = "cpu",
        world_size: int = 1,
        interruptions: tuple[type[BaseException], ...] = (KeyboardInterrupt,),
        every_seconds: float = EVERY_SECONDS,
        is_enabled: bool = True,
    ) -> None:
        """Prepare a heartbeat; with `is_enabled` False (ranks but the first) nothing is ever written."""
        self._path = run_dir / ALIVE
        self._device = torch.device(device)
        self._interruptions = interruptions
        self._every_seconds = every_seconds
        self._is_enabled = is_enabled
        self._process = {
            "pid": os.getpid(),
            "process_start": read_process_start(os.getpid()),
            **identify_machine(),
            "started": time.time(),
            "world_size": world_size,
            "device": str(self._device),
            "device_name": _name_device(self._device),
        }
        self._state: State = "starting"
        self._heard = time.time()
        self._error: str | None = None
        self._figures: dict[str, float | str | None] = {}
        self._lock = threading.Lock()  # of the five above
        self._is_leaving = False
        self._has_complained = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._work, name="heartbeat", daemon=True)

    def beat(self, *, state: State | None = None, **figures: float | str | None) -> None:
        """Note that the loop goes on, and its newest figures; returns at once.

        figures: plain numbers and texts, kept until they are given again. `vox status` reads update,
        total_updates, epoch (the one under way, counted from 1), epochs and updates_per_second.
        A new state is written at once, all else within seconds.
        """
        with self._lock:
            is_new = state is not None and state != self._state
            self._state = state or self._state
            self._figures |= figures
            self._heard = time.time()
        if is_new:
            self._wake.set()

    @contextmanager
    def during(self, state: State) -> Iterator[None]:
        """Be in a state inside a `with` block, and in the former one after it."""
        former = self._state
        self.beat(state=state)
        try:
            yield
        finally:
            self.beat(state=former)

    def __enter__(self) -> "Heartbeat":
        """Write that the process starts, making the run's folder if it is not there yet."""
        if self._is_enabled:
            with suppress(OSError):  # logged when the file cannot be written
                self._path.parent.mkdir(parents=True, exist_ok=True)
                remove_leftovers(self._path.parent)
            self._write()
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Write how it ended, and stop the thread."""
        if error is None:
            self.beat(state="done")
        elif isinstance(error, self._interruptions):
            self.beat(state="interrupted")
        else:
            with self._lock:
                self._error = _describe(error)
            self.beat(state="failed")
        if self._is_enabled:
            self._is_leaving = True
            self._wake.set()
            self._thread.join(LEAVE_SECONDS)

    def _work(self) -> None:
        is_leaving = False
        while not is_leaving:
            self._wake.wait(self._every_seconds)
            self._wake.clear()
            is_leaving = self._is_leaving  # read before writing: the last state must be in the last write
            self._write()

    def _write(self) -> None:
        """Replace the file; log the first failure only."""
        try:
            # Not durable: it is written again in a few seconds, and a dead machine writes no heartbeat.
            content = f"{json.dumps(self._collect(), indent=1)}\n".encode()
            write_whole(self._path, content, is_durable=False)
        except Exception as error:  # a full disk, a deleted folder, a figure that is no JSON
            if not self._has_complained:
                log.warning("cannot write the heartbeat (%s): vox status will not know this run", error)
            self._has_complained = True

    def _collect(self) -> dict[str, Any]:
        gpu = measure_gpu(self._device)
        with self._lock:
            now = {"state": self._state, "heard": self._heard, "error": self._error}
            return self._figures | self._process | now | {"written": time.time(), "gpu": gpu}


def measure_gpu(device: torch.device) -> dict[str, float | None] | None:
    """Return what this process uses of a GPU: memory in GB; None on a CPU.

    Utilization in percent and temperature in degrees Celsius are those of the whole GPU, and None where
    the driver does not tell them. Never raises.
    """
    if device.type != "cuda":
        return None
    gigabyte = 1e9
    try:
        figures: dict[str, float | None] = {
            "memory_gb": torch.cuda.memory_allocated(device) / gigabyte,
            "reserved_gb": torch.cuda.memory_reserved(device) / gigabyte,
            "peak_gb": torch.cuda.max_memory_allocated(device) / gigabyte,
            "total_gb": torch.cuda.get_device_properties(device).total_memory / gigabyte,
        }
    except Exception:  # a driver that is going down raises many kinds
        return None
    return figures | {
        "utilization": _ask_driver(torch.cuda.utilization, device),
        "temperature": _ask_driver(torch.cuda.temperature, device),
    }


def _ask_driver(question: Callable[[torch.device], int], device: torch.device) -> float | None:
    try:
        return float(question(device))
    except Exception:  # pynvml and torch raise kinds of their own
        return None


def _name_device(device: torch.device) -> str:
    if device.type != "cuda":
        return device.type
    try:
        return torch.cuda.get_device_name(device)
    except Exception:  # it is a label only
        return str(device)


def _describe(error: BaseException) -> str:
    """Say in one line what went wrong, as the command line does."""
    line = str(error) if isinstance(error, VoxError) else f"{type(error).__name__}: {error}"
    return next(iter(line.splitlines()), "")[:ERROR_CHARACTERS]
