"""Metrics: one JSON line an event in `metrics.jsonl`, and the same figures in TensorBoard."""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from vox.runs.layout import METRICS, TENSORBOARD

log = logging.getLogger(__name__)


class MetricsLog:
    """Append-only metrics of one run.

    A resumed run cuts the file back to where its checkpoint stood, so that no line is missing or doubled.
    """

    def __init__(self, run_dir: Path, *, keep_bytes: int = 0, purge_update: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        run_dir.mkdir(parents=True, exist_ok=True)
        self._file = (run_dir / METRICS).open("ab")
        self._file.truncate(_count_whole_lines(run_dir / METRICS, keep_bytes))
        self._writer = SummaryWriter(str(run_dir / TENSORBOARD), purge_step=purge_update)

    def write(self, kind: str, update: int, values: Mapping[str, Any]) -> None:
        """Write one event: a JSON line, and a scalar for every number in it."""
        line = json.dumps({"kind": kind, "update": update, **values})
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                self._writer.add_scalar(f"{kind}/{name}", value, update)

    def write_text(self, name: str, update: int, text: str) -> None:
        """Write a text to TensorBoard only."""
        self._writer.add_text(name, text, update)

    def sync(self) -> int:
        """Force everything to disk; return the file's length in bytes, for a checkpoint to record."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._writer.flush()
        return self._file.seek(0, os.SEEK_END)

    def close(self) -> None:
        """Close the file and TensorBoard's."""
        self._file.close()
        self._writer.close()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _count_whole_lines(path: Path, num_bytes: int) -> int:
    """Return how many of the first bytes are whole lines; say so if not all are there or whole.

    Truncating a file to more than its length would fill it up with zeros.
    """
    with path.open("rb") as file:
        whole = file.read(num_bytes).rfind(b"\n") + 1
    if whole != num_bytes:
        log.warning(
            "%s: %d of the %d bytes that the checkpoint counted are there; earlier metrics are incomplete",
            path,
            whole,
            num_bytes,
        )
    return whole
