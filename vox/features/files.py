"""Files that exist whole or not at all: written under another name, put on disk, renamed.

A live writer holds a lock on its unfinished file, so that what a dead one left can be told apart, on a
shared disk too.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

_PART_NAME = re.compile(r"\..+-\d+-[0-9a-f]+\.part")


def create_part(path: Path) -> tuple[Path, int]:
    """Create an unfinished file beside its final place; return its path and a descriptor.

    It is locked for as long as the descriptor is open. Raises OSError.
    """
    while True:
        unique = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        part_path = path.with_name(f".{path.name}.{unique}.part")
        fd = os.open(part_path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        # Whoever holds it just now is looking whether its writer is dead, and removes it in that moment or
        # never: so wait, and do not go on with a file that has been removed.
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(fd, fcntl.LOCK_EX)
        if os.fstat(fd).st_nlink:
            return part_path, fd
        os.close(fd)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file at once or not at all; raise OSError."""
    part_path, fd = create_part(path)
    try:
        with name_os_errors(part_path):
            view = memoryview(content)
            while view:
                view = view[os.write(fd, view) :]
            os.fsync(fd)
        part_path.replace(path)
        sync_folder(path.parent)
    except BaseException:
        part_path.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)


def add_checksum(content: bytes) -> bytes:
    """Put a line with its sha256 before a file's content."""
    return json.dumps({"sha256": hashlib.sha256(content).hexdigest()}).encode() + b"\n" + content


def strip_checksum(whole: bytes) -> bytes | None:
    """Return what `add_checksum` was given; None if any byte has changed since."""
    content = whole.partition(b"\n")[2]
    return content if whole == add_checksum(content) else None


def is_part(path: Path) -> bool:
    """Say whether a path is an unfinished file of ours: one that `create_part` could have made."""
    return _PART_NAME.fullmatch(path.name) is not None and stat.S_ISREG(path.lstat().st_mode)


def remove_leftovers(folder: Path) -> list[str]:
    """Remove unfinished files that no process is writing any more; return their names."""
    removed = []
    for path in sorted(folder.glob(".*.part")):
        with contextlib.suppress(OSError):  # it cannot be told, or removed: vox cache verify says why
            if is_part(path) and is_abandoned(path, remove=True):
                removed.append(path.name)
    return removed


def is_abandoned(part_path: Path, *, remove: bool = False) -> bool:
    """Say whether the writer of an unfinished file is dead: a live one holds a lock on it.

    remove: also remove it if so, while nobody can begin to write to it. Raises OSError where that cannot be
    told: the file has gone, belongs to somebody else, or is on a file system without locks.
    """
    # For writing too: NFS keeps such a lock as one of a range of bytes, which asks for that.
    with part_path.open("r+b") as file:
        try:
            with name_os_errors(part_path):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if remove:
            part_path.unlink()
        return True


def sync_folder(folder: Path) -> None:
    """Make renames in a folder last through a loss of power."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def name_os_errors(path: Path | str) -> Iterator[None]:
    """Name the file in errors of calls that know only its descriptor."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
