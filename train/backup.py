"""Copies of finished checkpoints elsewhere, in the background (any URL that fsspec understands).

A copy is written under a `.partial` name, checked file by file for its size, and only then given its
name and pointed to by `last.json` or `best.json`. A failing target never stops training: it is said, and
the age of the last good copy is in the run's `backup.json`.
"""

import json
import logging
import queue
import threading
import time
from pathlib import Path
from typing import Any

import fsspec

from vox.errors import ConfigError

log = logging.getLogger(__name__)

STATE = "backup.json"


class Backup:
    """A thread that copies the newest finished checkpoint; older ones that wait are passed over."""

    def __init__(self, url: str, run_dir: Path) -> None:
        try:
            self._filesystem, root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise ConfigError(
                f"--backup: {error}", where=url, remedy="install what that kind of URL needs"
            ) from None
        self._root = f"{root.rstrip('/')}/{run_dir.name}"
        self._run_dir = run_dir
        self._jobs: queue.Queue[tuple[Path, bool] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name="backup", daemon=True)
        self._thread.start()

    def submit(self, folder: Path, *, is_best: bool) -> None:
        """Ask for a copy of a finished checkpoint; returns at once.

        The files are hard-linked aside first, so that deleting the checkpoint does not disturb the copy.
        """
        held = self._run_dir / ".backup" / folder.name
        held.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            link = held / path.name
            link.unlink(missing_ok=True)
            link.hardlink_to(path)
        self._jobs.put((held, is_best))

    def close(self) -> None:
        """Wait for the copies that were asked for."""
        self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            folder, is_best = job
            try:
                self._copy(folder, is_best)
                self._note({"last_good": time.time(), "checkpoint": folder.name, "error": None})
            except Exception as error:  # whatever a remote filesystem raises, training goes on
                log.warning("backup of %s failed: %s", folder.name, error)
                self._note({"error": str(error), "failed": time.time()})
            finally:
                for path in folder.iterdir():
                    path.unlink()
                folder.rmdir()

    def _copy(self, folder: Path, is_best: bool) -> None:
        target = f"{self._root}/{folder.name}"
        partial = f"{target}.partial"
        if self._filesystem.exists(partial):
            self._filesystem.rm(partial, recursive=True)
        self._filesystem.makedirs(partial, exist_ok=True)
        for path in sorted(folder.iterdir()):
            self._filesystem.put_file(str(path), f"{partial}/{path.name}")
            size = self._filesystem.size(f"{partial}/{path.name}")
            if size != path.stat().st_size:
                raise OSError(f"{path.name}: {size} bytes arrived of {path.stat().st_size}")
        if self._filesystem.exists(target):
            self._filesystem.rm(target, recursive=True)
        self._filesystem.mv(partial, target, recursive=True)
        for name in ("last", "best") if is_best else ("last",):
            self._filesystem.pipe_file(
                f"{self._root}/{name}.json", json.dumps({"checkpoint": folder.name}).encode()
            )

    def _note(self, news: dict[str, Any]) -> None:
        path = self._run_dir / STATE
        old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(old | news, indent=1) + "\n", encoding="utf-8")
        partial.replace(path)
