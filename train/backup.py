"""Copies of finished checkpoints elsewhere, in the background (any URL that fsspec understands).

URL/RUN has the layout of the run's own folder: copied back, it can be resumed. A checkpoint is written
under a `.partial` name, read back and compared with its checksums, and only then given its name and
pointed to by `last.json` or `best.json`; what neither names is deleted. A failing target never stops
training: it is said, and the age of the last good copy is in the run's `backup.json`.
"""

import hashlib
import json
import logging
import shutil
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

from train.metrics import METRICS
from train.options import OPTIONS
from vox.checkpoint import CHECKSUMS, CONFIG
from vox.errors import ConfigError

log = logging.getLogger(__name__)

STATE = "backup.json"
CHUNK_BYTES = 4 << 20


@dataclass(frozen=True)
class _Job:
    folder: Path  # hard links to the checkpoint's files: deleting the checkpoint does not disturb the copy
    is_best: bool


class Backup:
    """A thread that copies the newest finished checkpoint and the newest best one.

    Older ones that still wait are passed over.
    """

    def __init__(self, url: str, run_dir: Path) -> None:
        try:
            self._filesystem, root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise ConfigError(
                f"--backup: {error}", where=url, remedy="install what that kind of URL needs"
            ) from None
        self._root = f"{root.rstrip('/')}/{run_dir.name}"
        self._run_dir = run_dir
        self._held_dir = run_dir / ".backup"
        shutil.rmtree(self._held_dir, ignore_errors=True)  # of a killed run
        self._pending: list[_Job] = []
        self._is_closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="backup", daemon=True)
        self._thread.start()

    def submit(self, folder: Path, *, is_best: bool) -> None:
        """Ask for a copy of a finished checkpoint; returns at once."""
        held = self._held_dir / folder.name
        try:
            held.mkdir(parents=True)
            for path in folder.iterdir():
                (held / path.name).hardlink_to(path)
        except OSError as error:
            self._fail(folder.name, error)
            return
        with self._changed:
            passed_over = [job for job in self._pending if is_best or not job.is_best]
            self._pending = [job for job in self._pending if job not in passed_over] + [_Job(held, is_best)]
            self._changed.notify()
        for job in passed_over:
            shutil.rmtree(job.folder, ignore_errors=True)

    def close(self, patience_seconds: float) -> None:
        """Wait for the copies that were asked for, but not for ever; say so if they are given up."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join(patience_seconds)
        if self._thread.is_alive():
            log.warning(
                "backup: gave up waiting after %.0f s; the newest copy is not there", patience_seconds
            )

    def _work(self) -> None:
        while (job := self._next_job()) is not None:
            try:
                self._copy(job)
                self._note({"last_good": time.time(), "checkpoint": job.folder.name, "error": None})
                self._prune()
            except Exception as error:  # whatever a remote filesystem raises, training goes on
                self._fail(job.folder.name, error)
            finally:
                shutil.rmtree(job.folder, ignore_errors=True)

    def _next_job(self) -> _Job | None:
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self._is_closing)
            return self._pending.pop(0) if self._pending else None

    def _copy(self, job: _Job) -> None:
        target = f"{self._root}/checkpoints/{job.folder.name}"
        partial = f"{target}.partial"
        self._remove(partial)
        self._filesystem.makedirs(partial, exist_ok=True)
        checksums = json.loads((job.folder / CHECKSUMS).read_text(encoding="utf-8"))
        checksums[CHECKSUMS] = hashlib.sha256((job.folder / CHECKSUMS).read_bytes()).hexdigest()
        for name, checksum in checksums.items():
            self._filesystem.put_file(str(job.folder / name), f"{partial}/{name}")
            self._verify(f"{partial}/{name}", (job.folder / name).stat().st_size, checksum)
        self._remove(target)
        self._filesystem.mv(partial, target, recursive=True)
        for name in (OPTIONS, CONFIG, METRICS):  # small; the metrics grow meanwhile, resuming cuts them
            if (self._run_dir / name).exists():
                self._filesystem.pipe_file(f"{self._root}/{name}", (self._run_dir / name).read_bytes())
        for name in ("best", "last") if job.is_best else ("last",):
            pointer = json.dumps({"checkpoint": job.folder.name}).encode()
            self._filesystem.pipe_file(f"{self._root}/{name}.json", pointer)

    def _verify(self, path: str, size: int, checksum: str) -> None:
        """Read a copy back; raise OSError unless it is what was sent."""
        arrived = self._filesystem.size(path)
        if arrived != size:
            raise OSError(f"{path}: {arrived} bytes arrived of {size}")
        content = hashlib.sha256()
        with self._filesystem.open(path, "rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                content.update(chunk)
        if content.hexdigest() != checksum:
            raise OSError(f"{path}: what arrived is not what was sent")

    def _prune(self) -> None:
        self._filesystem.invalidate_cache()  # some list from memory
        kept = set()
        for name in ("last", "best"):
            if self._filesystem.exists(f"{self._root}/{name}.json"):
                kept.add(json.loads(self._filesystem.cat_file(f"{self._root}/{name}.json"))["checkpoint"])
        for path in self._filesystem.ls(f"{self._root}/checkpoints", detail=False):
            if path.rstrip("/").rpartition("/")[2] not in kept:
                self._remove(path)

    def _remove(self, path: str) -> None:
        if self._filesystem.exists(path):
            self._filesystem.rm(path, recursive=True)

    def _fail(self, name: str, error: Exception) -> None:
        log.warning("backup of %s failed: %s", name, error)
        self._note({"error": str(error), "failed": time.time()})

    def _note(self, news: dict[str, Any]) -> None:
        """Add to the run's `backup.json`; a full disk here must not end the thread."""
        path = self._run_dir / STATE
        partial = path.with_suffix(".partial")
        try:
            old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            partial.write_text(json.dumps(old | news, indent=1) + "\n", encoding="utf-8")
            partial.replace(path)
        except (OSError, ValueError) as error:
            log.warning("cannot note the state of the backup (%s)", error)
