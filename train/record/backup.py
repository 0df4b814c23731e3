"""Copies of finished checkpoints elsewhere, in the background (any URL that fsspec understands).

URL/RUN has the layout of the run's own folder: `train.record.restore` copies it back, to be resumed. A
checkpoint is written under a `.partial` name, read back and compared with its checksums, and only then given
its name and, last of all, pointed to by `last.json` or `best.json`; what neither names is deleted. Object
stores rename file by file: so a folder that a pointer names is never written to, and only pointers are
trusted.
A failing target never stops training: it is logged, and the age of the last good copy is in the run's
`backup.json`.
"""

import itertools
import json
import logging
import shutil
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from train.options import find_run_id
from vox.disk import hash_file, hash_stream, write_whole
from vox.errors import ConfigError
from vox.runs.layout import (
    BACKUP,
    BEST,
    CHECKPOINTS,
    CHECKSUMS,
    CONFIG,
    LAST,
    METRICS,
    OPTIONS,
    list_checkpoints,
    name_copy,
)

log = logging.getLogger(__name__)

POINTERS = (LAST, BEST)  # NAME.json holds the name of a folder below checkpoints/
NUM_TRIES = 3  # of each copy
# Errors that another try will not fix.
LASTING = (PermissionError, FileExistsError, NotADirectoryError, ConfigError)
RETRY_SECONDS = 4.0  # before the second try; each further wait is four times as long


def open_target(url: str, option: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the filesystem that a URL or a path names, and the folder in it; ConfigError if it has none."""
    try:
        filesystem, root = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"{option}: {error}", where=url, remedy="install what that kind of URL needs"
        ) from None
    return filesystem, root.rstrip("/")


def start_backup(url: str | None, run_dir: Path) -> "Backup | None":
    """Start copying a run's checkpoints to a URL, if there is one; raises ConfigError as `Backup` does.

    A backup that is resumed where it lies would be copied onto itself: it is not, with a warning.
    """
    if url is None:
        return None
    filesystem, root = open_target(url, "--backup")
    if isinstance(filesystem, LocalFileSystem) and Path(root, run_dir.name).resolve() == run_dir.resolve():
        log.warning("--backup: %s is the run itself, so there is no backup; name another with --backup", url)
        return None
    return Backup(url, run_dir)


def read_pointers(filesystem: fsspec.AbstractFileSystem, run_root: str) -> dict[str, str]:
    """Read which folders `last` and `best` are at the far side, of those pointers that are there and whole.

    Raises whatever the filesystem does when it cannot be reached.
    """
    pointers = {}
    for name in POINTERS:
        try:
            folder = json.loads(filesystem.cat_file(f"{run_root}/{name}.json"))["checkpoint"]
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (ValueError, KeyError, TypeError):
            folder = None
        if isinstance(folder, str) and Path(folder).name == folder:
            pointers[name] = folder
        else:
            log.warning("%s/%s.json is damaged", run_root, name)
    return pointers


def wait_after(attempt: int) -> None:
    """Wait before another try; `attempt` counts from 0."""
    time.sleep(RETRY_SECONDS * 4**attempt)


def _hold(path: Path, held: Path) -> None:
    """Make a file last until its copy is made: by a hard link, or a copy where the disk has none."""
    try:
        held.hardlink_to(path)
    except OSError:
        shutil.copyfile(path, held)


@dataclass(frozen=True)
class _Job:
    folder: Path  # the checkpoint's files again: deleting the checkpoint does not disturb the copy
    is_best: bool


class Backup:
    """A thread that copies the newest finished checkpoint and the newest best one.

    Older ones that still wait are passed over. Each is tried NUM_TRIES times; a best one that failed is
    tried again with the next checkpoint, and at the end.
    """

    def __init__(self, url: str, run_dir: Path) -> None:
        """Start the thread; ConfigError for an unknown kind of URL, or one with another run of that name."""
        self._filesystem, root = open_target(url, "--backup")
        self._root = f"{root}/{run_dir.name}"
        self._run_dir = run_dir
        try:
            self._refuse_another_run(is_new=not list_checkpoints(run_dir))
        except ConfigError:
            raise
        except Exception as error:  # not reached: the first copy will say so too
            log.warning("backup: cannot look into %s (%s)", self._root, error)
        self._held_dir = run_dir / ".backup"
        shutil.rmtree(self._held_dir, ignore_errors=True)  # of a killed run
        self._pending: list[_Job] = []
        self._postponed: list[_Job] = []  # a best one whose tries all failed
        self._is_closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="backup", daemon=True)
        self._thread.start()

    def submit(self, folder: Path, *, is_best: bool) -> None:
        """Ask for a copy of a finished checkpoint; returns at once, if the disk has hard links."""
        held = self._held_dir / folder.name
        shutil.rmtree(held, ignore_errors=True)
        try:
            held.mkdir(parents=True)
            for path in folder.iterdir():
                _hold(path, held / path.name)
        except OSError as error:
            shutil.rmtree(held, ignore_errors=True)
            self._fail(folder.name, error)
            return
        with self._changed:
            waiting = self._postponed + self._pending
            passed_over = [job for job in waiting if is_best or not job.is_best]
            self._pending = [job for job in waiting if job not in passed_over] + [_Job(held, is_best)]
            self._postponed = []
            self._changed.notify()
        for job in passed_over:
            shutil.rmtree(job.folder, ignore_errors=True)

    def close(self, patience_seconds: float) -> None:
        """Wait for the copies that were asked for, but not for ever; say so if they are given up."""
        with self._changed:
            self._is_closing = True
            self._pending, self._postponed = self._postponed + self._pending, []
            self._changed.notify()
        self._thread.join(patience_seconds)
        if self._thread.is_alive():
            log.warning(
                "backup: gave up waiting after %.0f s; the newest copy is not there", patience_seconds
            )

    def _refuse_another_run(self, *, is_new: bool = False) -> None:
        """Raise ConfigError if the copies of another run would be replaced; whatever the filesystem raises.

        is_new: the run is a new one, so any copies are of another. A run of an older version has no id,
        like others of its kind.
        """
        if not any(self._filesystem.exists(f"{self._root}/{name}.json") for name in POINTERS):
            return
        if is_new or not self._is_own_backup():
            raise ConfigError(
                "--backup: the backup of another run of this name is there already",
                where=self._root,
                remedy=f"go on with that one (--resume --from URL --run {self._run_dir}), "
                "or name another URL or run",
            )

    def _is_own_backup(self) -> bool:
        """Compare the ids of the run and of what is at the far side, as far as that is whole."""
        try:
            far_id = find_run_id(self._filesystem.cat_file(f"{self._root}/{OPTIONS}"))
        except (FileNotFoundError, ValueError):
            return True
        try:
            return far_id == find_run_id((self._run_dir / OPTIONS).read_bytes())
        except (FileNotFoundError, ValueError):
            return far_id is None

    def _work(self) -> None:
        while (job := self._next_job()) is not None:
            is_done = self._try(job)
            with self._changed:
                is_kept = (
                    job.is_best
                    and not is_done
                    and not self._is_closing
                    and not any(other.is_best for other in self._pending)
                )
                if is_kept:
                    self._postponed = [job]
            if not is_kept:
                shutil.rmtree(job.folder, ignore_errors=True)

    def _try(self, job: _Job) -> bool:
        """Copy a checkpoint in a few tries; say whether one succeeded."""
        for attempt in range(NUM_TRIES):
            if attempt:
                wait_after(attempt - 1)
            try:
                self._copy(job)
            except Exception as error:  # whatever a remote filesystem raises, training goes on
                self._fail(job.folder.name, error)
                if isinstance(error, LASTING):
                    return False
                continue
            self._note({"last_good": time.time(), "checkpoint": job.folder.name, "error": None})
            try:
                self._prune()
            except Exception as error:
                log.warning("backup: cannot delete the older copies in %s (%s)", self._root, error)
            return True
        return False

    def _next_job(self) -> _Job | None:
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self._is_closing)
            return self._pending.pop(0) if self._pending else None

    def _copy(self, job: _Job) -> None:
        self._filesystem.invalidate_cache()  # some list from memory
        self._refuse_another_run()
        target = f"{self._root}/{CHECKPOINTS}/{self._free_name(job.folder.name)}"
        partial = f"{target}.partial"
        for path in self._list_copies():
            if path.endswith(".partial"):  # of a failed try: it may be what fills the target
                self._remove(path)
        self._filesystem.makedirs(partial, exist_ok=True)
        checksums = json.loads((job.folder / CHECKSUMS).read_text(encoding="utf-8"))
        checksums[CHECKSUMS] = hash_file(job.folder / CHECKSUMS)
        for name, checksum in checksums.items():
            self._filesystem.put_file(str(job.folder / name), f"{partial}/{name}")
            self._verify(f"{partial}/{name}", (job.folder / name).stat().st_size, checksum)
        self._remove(target)
        self._filesystem.mv(partial, target, recursive=True)
        for name in (OPTIONS, CONFIG, METRICS):  # small; the metrics grow meanwhile, resuming cuts them
            if (self._run_dir / name).exists():
                self._replace(name, (self._run_dir / name).read_bytes())
        # `last` first: what its state calls the best is then still there, whenever this ends.
        for name in POINTERS if job.is_best else POINTERS[:1]:
            self._replace(f"{name}.json", json.dumps({"checkpoint": Path(target).name}).encode())

    def _free_name(self, name: str) -> str:
        """Return a folder's name that no pointer names: a resumed run comes by the same names again."""
        taken = read_pointers(self._filesystem, self._root).values()
        names = (name_copy(name, life) for life in itertools.count())
        return next(free for free in names if free not in taken)

    def _replace(self, name: str, content: bytes) -> None:
        """Write a small file; not if it is there already, for where that is not atomic."""
        path = f"{self._root}/{name}"
        if not self._filesystem.exists(path) or self._filesystem.cat_file(path) != content:
            self._filesystem.pipe_file(path, content)

    def _verify(self, path: str, size: int, checksum: str) -> None:
        """Read a copy back; raise OSError unless it is what was sent."""
        arrived = self._filesystem.size(path)
        if arrived != size:
            raise OSError(f"{path}: {arrived} bytes arrived of {size}")
        with self._filesystem.open(path, "rb") as file:
            found = hash_stream(file)
        if found != checksum:
            raise OSError(f"{path}: what arrived is not what was sent")

    def _prune(self) -> None:
        self._filesystem.invalidate_cache()
        kept = read_pointers(self._filesystem, self._root).values()
        for path in self._list_copies():
            if path.rpartition("/")[2] not in kept:
                self._remove(path)

    def _list_copies(self) -> list[str]:
        folder = f"{self._root}/{CHECKPOINTS}"
        if not self._filesystem.exists(folder):
            return []
        return [path.rstrip("/") for path in self._filesystem.ls(folder, detail=False)]

    def _remove(self, path: str) -> None:
        if self._filesystem.exists(path):
            self._filesystem.rm(path, recursive=True)

    def _fail(self, name: str, error: Exception) -> None:
        reason = str(error) or type(error).__name__
        last_good = self._read_notes().get("last_good")
        age = "there is no good copy yet"
        if isinstance(last_good, float):
            age = f"the last good copy is {(time.time() - last_good) / 60:.0f} minutes old"
        log.warning("backup of %s failed (%s); %s", name, reason, age)
        self._note({"error": reason, "failed": time.time()})

    def _read_notes(self) -> dict[str, Any]:
        try:
            notes = json.loads((self._run_dir / BACKUP).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return notes if isinstance(notes, dict) else {}

    def _note(self, news: dict[str, Any]) -> None:
        """Add to the run's `backup.json`; a full disk here must not end the thread."""
        path = self._run_dir / BACKUP
        try:
            # Not durable: it only informs `vox status`, and the next copy writes it again.
            content = f"{json.dumps(self._read_notes() | news, indent=1)}\n".encode()
            write_whole(path, content, is_durable=False)
        except OSError as error:
            log.warning("cannot note the state of the backup (%s)", error)
