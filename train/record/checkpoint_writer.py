"""Checkpoints written by a thread: training goes on while a copy of its state goes to the disk.

The copy is made first, in host memory and at one moment of the run, so that no update can change it. From a
GPU it is only asked for, into pinned memory, and made in the order of the GPU's work: before the next update.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import torch

from train.signals import Interrupted

log = logging.getLogger(__name__)


def copy_to_host(value: Any, former: Any = None) -> Any:
    """Copy a tree of mappings, lists and tuples, with every tensor in it, to memory of its own on the host.

    Memory of a former copy is used again where tensors have the same place and shape: new memory takes longer
    than the copying. Copies from a GPU are there when the work given to its current stream so far is done.
    """
    if isinstance(value, torch.Tensor):
        kind = (value.shape, value.dtype)
        is_reused = isinstance(former, torch.Tensor) and (former.shape, former.dtype) == kind
        host = former if is_reused else torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
        return host.copy_(value.detach(), non_blocking=True)
    if isinstance(value, Mapping):
        formers = former if isinstance(former, Mapping) else {}
        return {key: copy_to_host(each, formers.get(key)) for key, each in value.items()}
    if isinstance(value, list | tuple):
        is_like = isinstance(former, list | tuple) and len(former) == len(value)
        return type(value)(map(copy_to_host, value, former if is_like else [None] * len(value)))
    return value


class CheckpointWriter:
    """Writes one checkpoint at a time. A context manager: leaving it waits for the last one.

    An error in the writing is raised by whichever of `check`, `wait` and `start` comes next, or on leaving.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._copy: Any = None

    def copy(self, content: dict[str, Any]) -> dict[str, Any]:
        """Return a copy of what is to be written, in memory that the next copy overwrites.

        Waits for the checkpoint under way; raises what went wrong.
        """
        self.wait()
        self._copy = copy_to_host(content, self._copy)
        copied: dict[str, Any] = self._copy
        return copied

    def start(self, write: Callable[[], None]) -> None:
        """Call `write` in a thread, once the checkpoint before is written and copies from a GPU are there."""
        self.wait()
        copied = torch.cuda.Event() if self._device.type == "cuda" else None
        if copied is not None:
            copied.record(torch.cuda.current_stream(self._device))

        def work() -> None:
            try:
                if copied is not None:
                    copied.synchronize()
                write()
            except BaseException as error:  # raised again where the run can stop
                self._error = error

        self._thread = threading.Thread(target=work, name="checkpoint", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise what went wrong, if anything did; returns at once."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def wait(self) -> None:
        """Return when the checkpoint under way is written; raise what went wrong."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Wait, but not for a second Ctrl-C, which ends the process at once."""
        if isinstance(error, KeyboardInterrupt):
            return
        try:
            self.wait()
        except Exception as failure:
            if error is None or isinstance(error, Interrupted):  # a stop that saved nothing is a failure
                raise
            log.error("%s", failure)
