"""The finished pieces of a transcription that may be killed: JSON lines in a file beside its output.

The first line identifies the checkpoint and the options. For each recording there is a line with its name and
content hash, and then a line for each piece. The same command goes on after the last piece.
"""

import contextlib
import fcntl
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from vox.decode.found import Found
from vox.disk import name_os_errors
from vox.errors import VoxError
from vox.progress import format_duration
from vox.units import FRAME_RATE

log = logging.getLogger(__name__)

PARTIAL_FORMAT = 2  # 2: pieces end before words


class PartialFile:
    """An open file of pieces, locked by this process; a context manager. It outlives an error."""

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        """Open or create it. Pieces that were decoded with another identity are removed, which is logged.

        identity: JSON; everything that the text depends on except for the recording. Raises VoxError if
        another process has the file open, and OSError.
        """
        self.path = path
        self._pieces: dict[str, list[Found]] = {}  # by content hash
        self._names: dict[str, str] = {}  # name: content hash
        self._current = ""  # content hash of the recording that the last lines belong to
        self._fd = _open_locked(path)
        header = {"format": PARTIAL_FORMAT, **identity}
        content = os.pread(self._fd, os.fstat(self._fd).st_size, 0)
        num_good_bytes = self._read(content, header)
        os.ftruncate(self._fd, num_good_bytes)
        os.lseek(self._fd, num_good_bytes, os.SEEK_SET)
        if not num_good_bytes:
            self._write(header)

    def _read(self, content: bytes, header: Mapping[str, Any]) -> int:
        """Take in what was written with this header; return the number of bytes up to the first bad line."""
        lines = [line for line in content.splitlines(keepends=True) if line.endswith(b"\n")]
        try:
            found = json.loads(lines[0]) if lines else None
        except ValueError:
            found = None
        if found != header:
            if content and not (isinstance(found, dict) and "format" in found):
                raise VoxError(
                    "a file with the name of a partial transcript, which it is not",
                    where=self.path,
                    remedy="move it, or choose another --out",
                )
            if isinstance(found, dict):
                missing = object()
                keys = [
                    key for key in (*header, *found) if header.get(key, missing) != found.get(key, missing)
                ]
                log.info(
                    "%s: starting again, because of another %s", self.path, " and ".join(dict.fromkeys(keys))
                )
            return 0
        num_good_bytes = len(lines[0])
        for line in lines[1:]:
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError, TypeError):
                break
            num_good_bytes += len(line)
        return num_good_bytes

    def _take(self, fields: dict[str, Any]) -> None:
        if "recording" in fields:
            self._current = fields["sha256"]
            self._names[fields["recording"]] = self._current
            self._pieces.setdefault(self._current, [])
        else:
            self._pieces[self._current].append(Found.from_fields(fields))

    def begin(self, name: str, sha256: str) -> list[Found]:
        """Return a recording's finished pieces; `add` adds to them. sha256: of its content."""
        if self._names.get(name, sha256) != sha256:
            log.info("%s: starting again, because the recording has changed", name)
        done = self._pieces.setdefault(sha256, [])
        if done:
            seconds = sum(piece.num_frames for piece in done) / FRAME_RATE
            log.info("%s: going on after %s", name, format_duration(seconds))
        if sha256 != self._current:
            self._write({"recording": name, "sha256": sha256})
            self._current = sha256
        return list(done)

    def add(self, piece: Found) -> None:
        """Write the next piece of the recording begun last. Raises OSError naming the file."""
        self._pieces[self._current].append(piece)
        self._write_line(piece.to_json())

    def remove(self) -> None:
        """Remove the file: everything in it has its output."""
        self.path.unlink(missing_ok=True)

    def _write(self, fields: Mapping[str, Any]) -> None:
        self._write_line(json.dumps(fields))

    def _write_line(self, line: str) -> None:
        view = memoryview(line.encode() + b"\n")
        with name_os_errors(self.path):
            while view:
                view = view[os.write(self._fd, view) :]

    def __enter__(self) -> "PartialFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)


def _open_locked(path: Path) -> int:
    """Open or create a file and lock it until it is closed."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            with contextlib.suppress(OSError):  # a file system without locks
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise VoxError(
                        "another process is writing this transcription",
                        where=path,
                        remedy="wait until it ends, or choose another --out",
                    ) from None
        except VoxError:
            os.close(fd)
            raise
        if os.fstat(fd).st_nlink:  # else another process removed it meanwhile
            return fd
        os.close(fd)
