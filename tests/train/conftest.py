"""Fixtures of the tests of backups: file systems elsewhere."""

from collections.abc import Iterator

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import train.record.backup
from tests.support.backups import FailingFilesystem


@pytest.fixture(params=["folder", "memory", "failing"])
def url(request, tmp_path, failing) -> Iterator[str]:
    """A folder, an object store, and one that fails at first."""
    if request.param == "folder":
        yield f"file://{tmp_path}/there"
    elif request.param == "memory":
        yield "memory://there"
        MemoryFileSystem().rm("/there", recursive=True)
    else:
        FailingFilesystem.failures = 2
        yield failing


@pytest.fixture
def failing(monkeypatch) -> Iterator[str]:
    """An empty failing object store; tries follow each other at once."""
    fsspec.register_implementation("failing", FailingFilesystem, clobber=True)
    monkeypatch.setattr(train.record.backup, "RETRY_SECONDS", 0)
    yield "failing://there"
    FailingFilesystem.store.clear()
    FailingFilesystem.pseudo_dirs[:] = [""]
    FailingFilesystem.opened.clear()
    FailingFilesystem.failures = 0
