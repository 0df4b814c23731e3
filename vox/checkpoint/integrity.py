"""Whether a checkpoint is whole: every file is there, with the checksum it was written with."""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from vox.disk import hash_file
from vox.errors import CheckpointError, name_first
from vox.runs.layout import BEST, CHECKPOINTS, CHECKSUMS, REQUIRED, checkpoints_of

MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)

Content = TypeVar("Content")


def check_files(folder: Path) -> None:
    """Check that a checkpoint is all there and that every file has the checksum it was written with."""
    check_place(folder)
    if damage := find_damage(folder):
        raise CheckpointError(f"damaged checkpoint: {damage}", where=folder, remedy="use another checkpoint")


def check_place(folder: Path) -> None:
    """Raise CheckpointError unless a folder looks like a checkpoint; its files are not read."""
    if not folder.is_dir():
        raise CheckpointError("no checkpoint", where=folder, remedy="train one, or name another folder")
    if (folder / BEST).exists() or checkpoints_of(folder).exists():
        what = "this is a run, not a checkpoint"
        raise CheckpointError(what, where=folder, remedy=f"name {folder / BEST}")
    if inside := sorted(path.parent.name for path in folder.glob(f"[!.]*/{CHECKSUMS}")):
        raise CheckpointError(
            "this folder holds checkpoints and is not one",
            where=folder,
            remedy=f"name {_name_inside(folder, inside)}",
        )
    if not (folder / CHECKSUMS).is_file():
        raise CheckpointError(
            f"not a checkpoint, or a damaged one: {CHECKSUMS} is missing", where=folder
        ) from None


def _name_inside(folder: Path, names: list[str]) -> str:
    """Name a run's best checkpoint, if these are a run's, and the newest of the checkpoints in a folder."""
    best = folder.parent / BEST
    first = [str(best)] if folder.name == CHECKPOINTS and best.exists() else []
    return " or ".join([*first, f"one of those inside: {name_first(names[::-1])}"])


def find_damage(folder: Path) -> str | None:
    """Say what is wrong with a checkpoint's files; None if all are there with the checksums they had.

    Raises CheckpointError when the disk fails: it says nothing about the checkpoint.
    """
    try:
        checksums = parse_checksums(_read_patiently(folder / CHECKSUMS, Path.read_bytes))
    except (*MISSING, ValueError):
        return f"{CHECKSUMS} is missing or unreadable"
    for name in sorted({*REQUIRED, *checksums}):
        if name not in checksums:
            return f"{name} is missing"
        try:
            if _read_patiently(folder / name, hash_file) != checksums[name]:
                return f"{name} has changed since it was written"
        except MISSING:
            return f"{name} is missing"
    return None


def _read_patiently(path: Path, read: Callable[[Path], Content]) -> Content:
    """Read a file, once more if the disk fails; raises CheckpointError then, and MISSING as they come."""
    with suppress(OSError):
        return read(path)
    try:
        return read(path)
    except MISSING:
        raise
    except OSError as error:
        raise CheckpointError(
            f"cannot read a checkpoint ({error.strerror})",
            where=path.resolve(),
            remedy="see to the disk, then give the same command again, or move this checkpoint away",
        ) from None


def parse_checksums(content: bytes) -> dict[str, str]:
    """Read the content of a checksums file: file names to sha256.

    Raises ValueError for anything else, such as a name that leads out of the checkpoint's folder.
    """
    checksums = json.loads(content)
    if not isinstance(checksums, dict) or not all(isinstance(value, str) for value in checksums.values()):
        raise ValueError("not a table of checksums")
    if any(Path(name).name != name for name in checksums):
        raise ValueError("not names of files")
    return checksums
