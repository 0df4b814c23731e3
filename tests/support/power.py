"""Simulated loss of power: which contents had reached the disk when a file was renamed."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass
class Rename:
    """A renamed file, folder or link. Both fields must be true: see `assert_durable`."""

    path: str
    not_on_disk: list[str]  # what of it had been written and not forced to disk when it was renamed
    is_lasting: bool = False  # the folder that holds the name was forced to disk afterwards


def watch_renames(patch: pytest.MonkeyPatch) -> list[Rename]:
    """Return a list that is filled with every rename of this process, judged by its `os.fsync` calls."""
    on_disk: dict[str, str] = {}
    renames: list[Rename] = []
    fsync = os.fsync

    def note_fsync(descriptor: int) -> None:
        fsync(descriptor)
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        on_disk[str(path)] = _digest(path)
        for rename in renames:
            rename.is_lasting |= Path(rename.path).parent == path

    def noting(call: Any) -> Any:
        def rename(source: Any, target: Any, **keywords: Any) -> None:
            top = Path(os.path.realpath(Path(source).parent)) / Path(source).name
            parts = [] if top.is_symlink() else [top, *top.rglob("*")]
            missing = [str(path) for path in parts if on_disk.get(str(path)) != _digest(path)]
            call(source, target, **keywords)
            place = Path(os.path.realpath(Path(target).parent)) / Path(target).name
            renames.append(Rename(str(place), missing))

        return rename

    patch.setattr(os, "fsync", note_fsync)
    patch.setattr(os, "rename", noting(os.rename))
    patch.setattr(os, "replace", noting(os.replace))
    return renames


def assert_durable(renames: list[Rename], *paths: Path) -> None:
    """Check that these and all other renamed files were on disk before, and that the renames are durable."""
    assert {str(path.parent.resolve() / path.name) for path in paths} <= {rename.path for rename in renames}
    for rename in renames:
        assert rename.not_on_disk == [] and rename.is_lasting, rename


def _digest(path: Path) -> str:
    """Return a value that identifies a file's content, or a folder's names."""
    if path.is_dir():
        return " ".join(sorted(entry.name for entry in path.iterdir()))
    return hashlib.sha256(path.read_bytes()).hexdigest()
