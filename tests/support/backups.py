"""A run's checkpoints, and remote file systems that fail on demand."""

import hashlib
import json
from pathlib import Path
from typing import ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

from vox.runs.layout import CHECKSUMS, REQUIRED, STATE, TRAINER


class FailingFilesystem(MemoryFileSystem):
    """An object store in memory that fails in the middle of a file, `failures` times."""

    protocol = "failing"
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list] = [""]
    failures: ClassVar[int] = 0
    opened: ClassVar[list[str]] = []

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(str(path).removeprefix("failing://"))

    @classmethod
    def fail(cls) -> None:
        if cls.failures > 0:
            cls.failures -= 1
            raise ConnectionResetError("connection lost")

    def put_file(self, lpath, rpath, **keywords) -> None:
        content = Path(lpath).read_bytes()
        self.pipe_file(rpath, content[: len(content) // 2])
        self.fail()
        self.pipe_file(rpath, content)

    def open(self, path, mode="rb", **keywords):
        if mode == "rb" and "checkpoints" in str(path):
            self.fail()
            self.opened.append(path)
        return super().open(path, mode, **keywords)


def write_checkpoint(run_dir: Path, name: str, **state: object) -> Path:
    """Write files that resemble a checkpoint only in their names and checksums."""
    folder = run_dir / "checkpoints" / name
    folder.mkdir(parents=True)
    contents = {file: f"{file} of {name}".encode() for file in (*REQUIRED, TRAINER)}
    contents[STATE] = json.dumps(state).encode()
    for file, content in contents.items():
        (folder / file).write_bytes(content)
    checksums = {file: hashlib.sha256(content).hexdigest() for file, content in contents.items()}
    (folder / CHECKSUMS).write_text(json.dumps(checksums))
    return folder


def read_json(url: str, path: str) -> dict:
    filesystem, root = fsspec.core.url_to_fs(url)
    return json.loads(filesystem.cat_file(f"{root}/{path}"))
