"""A run copied back from its backup, so that another machine can resume it.

The copy is made in `.restore` inside the run's folder, every file checked against its checksum on the way,
and moved into place at the end, the checkpoints last: until then the folder holds no run, and what arrived
is not copied again when the same command is given once more.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import fsspec

from train.record.backup import (
    LASTING,
    NUM_TRIES,
    POINTERS,
    open_target,
    read_pointers,
    wait_after,
)
from vox.checkpoint.files import check_checkpoint_space
from vox.checkpoint.integrity import parse_checksums
from vox.disk import hash_file, hash_stream, replace_link, sync
from vox.errors import CheckpointError, ConfigError
from vox.runs.layout import (
    BEST,
    CHECKPOINTS,
    CHECKSUMS,
    CONFIG,
    LAST,
    METRICS,
    OPTIONS,
    REQUIRED,
    TRAINER,
    list_checkpoints,
    name_original,
)

log = logging.getLogger(__name__)

ARRIVING = ".restore"

T = TypeVar("T")


class _Damage(Exception):  # noqa: N818 - a finding about one copy
    """What is wrong with a copy at the far side."""


@dataclass(frozen=True)
class _Source:
    """A run's folder at the far side."""

    filesystem: fsspec.AbstractFileSystem
    root: str

    def read(self, name: str) -> bytes:
        """Read a small file; raises _Damage if it is missing, CheckpointError if it cannot be had."""
        content: bytes = self.try_hard(name, lambda: self.filesystem.cat_file(f"{self.root}/{name}"))
        return content

    def size(self, name: str) -> int:
        """Return a file's size in bytes; raises as `read` does."""
        return int(self.try_hard(name, lambda: self.filesystem.size(f"{self.root}/{name}")))

    def copy(self, name: str, target: Path) -> str:
        """Copy a file to this machine's disk, return the sha256 of what arrived; raises as `read` does."""
        return self.try_hard(name, lambda: self._copy_once(name, target))

    def _copy_once(self, name: str, target: Path) -> str:
        with self.filesystem.open(f"{self.root}/{name}", "rb") as source, _open_here(target) as write:
            return hash_stream(source, write)

    def try_hard(self, name: str, action: Callable[[], T]) -> T:
        """Do something with a remote file, a few times; a missing file is damage, all else a lost line."""
        for attempt in range(NUM_TRIES):
            try:
                return action()
            except FileNotFoundError:
                raise _Damage(f"{name.rpartition('/')[2]} is missing") from None
            except CheckpointError:
                raise
            except Exception as error:  # whatever a remote filesystem raises
                reason = str(error) or type(error).__name__
                if attempt + 1 == NUM_TRIES or isinstance(error, LASTING):
                    break
            log.warning("cannot read %s/%s (%s): trying again", self.root, name, reason)
            wait_after(attempt)
        raise CheckpointError(
            f"cannot read the backup ({reason})",
            where=f"{self.root}/{name}",
            remedy="give the same command again: what has arrived is not copied twice",
        )


def restore_run(url: str, run_dir: Path, stage: int | None = None) -> None:
    """Copy a run's last and best checkpoints, its config, options and metrics into a folder without a run.

    `url` is the run's folder at the far side, or the folder above it that --backup was given. A damaged
    checkpoint is passed over for the other one, with a warning. Raises CheckpointError when the folder
    holds a run, no backup is there, or no checkpoint of it is whole; ConfigError when it is of another stage.
    """
    if (run_dir / LAST).exists() or list_checkpoints(run_dir):
        raise CheckpointError(
            "this folder holds a run already, so none is restored into it",
            where=run_dir,
            remedy="continue it with --resume alone, or name another with --run",
        )
    source, pointers = _find_run(url, run_dir.name)
    try:
        options, config = source.read(OPTIONS), source.read(CONFIG)
        found_stage = json.loads(options)["stage"]
    except _Damage as damage:
        raise CheckpointError(f"the backup is damaged: {damage}", where=source.root) from None
    except (ValueError, KeyError, TypeError):
        raise CheckpointError("the backup is damaged", where=f"{source.root}/{OPTIONS}") from None
    if stage is not None and found_stage != stage:
        raise ConfigError(
            f"the backup is of a run of stage {found_stage}",
            where=source.root,
            remedy=f"use --stage {found_stage}, or name another backup",
        )
    arriving = run_dir / ARRIVING
    (arriving / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    links = _copy_checkpoints(source, pointers, arriving / CHECKPOINTS)
    (arriving / OPTIONS).write_bytes(options)
    (arriving / CONFIG).write_bytes(config)
    try:
        (arriving / METRICS).write_bytes(source.read(METRICS))
    except _Damage as damage:
        log.warning("the backup has no metrics (%s)", damage)
    _put_in_place(arriving, run_dir, links)
    log.info(
        "restored from %s: %s", source.root, ", ".join(f"{link} is {name}" for link, name in links.items())
    )


def _find_run(url: str, name: str) -> tuple[_Source, dict[str, str]]:
    """Return the run's folder at the far side and what its pointers name."""
    filesystem, root = open_target(url, "--from")
    filesystem.invalidate_cache()
    for candidate in (root, f"{root}/{name}"):
        source = _Source(filesystem, candidate)
        if pointers := source.try_hard("", partial(read_pointers, filesystem, candidate)):
            return source, pointers
    found = _list_runs(filesystem, root)
    raise CheckpointError(
        f"no backup of a run called {name} ({'found there: ' + ', '.join(found) if found else 'nor of any'})",
        where=url,
        remedy="name the run's folder in it, or the folder that --backup was given and the run with --run",
    )


def _list_runs(filesystem: fsspec.AbstractFileSystem, root: str) -> list[str]:
    """List the names of the backed-up runs below a folder, as far as it can be looked into."""
    try:
        folders = [path.rstrip("/") for path in filesystem.ls(root, detail=False)]
        return sorted(path.rpartition("/")[2] for path in folders if read_pointers(filesystem, path))
    except Exception:  # it only helps to word an error
        return []


def _copy_checkpoints(source: _Source, pointers: dict[str, str], target: Path) -> dict[str, str]:
    """Copy what `last` and `best` name; return what they name here.

    A folder's name may end in a number (`update-7.1`) where a resumed run came by the same name again.
    """
    links: dict[str, str] = {}
    damages: dict[str, str] = {}
    for link in POINTERS:
        folder = pointers.get(link)
        if folder is None:
            continue
        name = name_original(folder)
        is_copied = folder == pointers.get(LAST) and LAST in links
        if folder in damages or (name in links.values() and not is_copied):  # or of an earlier life
            continue
        try:
            if not is_copied:
                _copy_checkpoint(source, f"{CHECKPOINTS}/{folder}", target / name)
            links[link] = name
        except _Damage as damage:
            damages[folder] = str(damage)
            log.warning("%s: %s, which `%s` names, is damaged: %s", source.root, folder, link, damage)
    if not links:
        reasons = "; ".join(f"{folder}: {damage}" for folder, damage in damages.items())
        raise CheckpointError(
            f"no checkpoint of the backup is whole ({reasons})",
            where=source.root,
            remedy="restore another backup",
        )
    if LAST not in links:
        log.warning("restoring the older checkpoint %s: what was trained after it is lost", links[BEST])
        links[LAST] = links[BEST]
    for path in target.iterdir():  # of an interrupted restore, when the backup was another
        if path.name not in links.values():
            shutil.rmtree(path)
    return links


def _copy_checkpoint(source: _Source, folder: str, target: Path) -> None:
    """Copy a checkpoint's files that are not here yet; raises _Damage unless every one is what it was."""
    content = source.read(f"{folder}/{CHECKSUMS}")
    try:
        checksums = parse_checksums(content)
    except ValueError as error:
        raise _Damage(f"{CHECKSUMS} is unreadable ({error})") from None
    for name in (*REQUIRED, TRAINER):
        if name not in checksums:
            raise _Damage(f"{name} is missing")
    target.mkdir(exist_ok=True)
    missing = {name: path for name in checksums if not _is_whole(path := target / name, checksums[name])}
    num_bytes = sum(source.size(f"{folder}/{name}") for name in missing)
    log.info("copying %s/%s: %.2f GB", source.root, folder, num_bytes / 1e9)
    check_checkpoint_space(target, num_bytes)
    for name, path in missing.items():
        for _ in range(2):  # what arrives damaged may be whole at the far side
            if source.copy(f"{folder}/{name}", path) == checksums[name]:
                break
        else:
            raise _Damage(f"{name} has changed since it was written")
    (target / CHECKSUMS).write_bytes(content)
    for path in (target / CHECKSUMS, target):
        sync(path)


def _is_whole(path: Path, checksum: str) -> bool:
    return path.is_file() and hash_file(path) == checksum


@contextmanager
def _open_here(path: Path) -> Iterator[Callable[[bytes], object]]:
    """Yield a function that writes to a file, on disk when this ends; its errors are not the far side's."""

    def fail(error: OSError) -> CheckpointError:
        return CheckpointError(f"cannot write a checkpoint ({error.strerror})", where=path)

    def write(chunk: bytes) -> None:
        try:
            file.write(chunk)
        except OSError as error:
            raise fail(error) from None

    try:
        file = path.open("wb", buffering=0)
    except OSError as error:
        raise fail(error) from None
    with file:
        yield write
        try:
            os.fsync(file.fileno())
        except OSError as error:
            raise fail(error) from None


def _put_in_place(arriving: Path, run_dir: Path, links: dict[str, str]) -> None:
    """Move everything into the run's folder; it holds a run when its checkpoints have come, at the end."""
    for name in (METRICS, CONFIG, OPTIONS):
        if (arriving / name).exists():
            sync(arriving / name)
            (arriving / name).replace(run_dir / name)
    for link, name in links.items():
        replace_link(run_dir / link, run_dir / CHECKPOINTS / name)
    sync(arriving / CHECKPOINTS)
    shutil.rmtree(run_dir / CHECKPOINTS, ignore_errors=True)  # what killed runs left, and no run
    (arriving / CHECKPOINTS).rename(run_dir / CHECKPOINTS)
    sync(run_dir)
    shutil.rmtree(arriving)
