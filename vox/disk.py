"""Files on disk: atomic writes with a chosen durability, links, hashes, free space.

Two processes may write the same file at once. A live writer holds a lock on its unfinished file, so that
the leftovers of a dead one can be told apart, on a shared disk too.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from vox.errors import DISK_FULL_ERRNOS, VoxError

BYTES_PER_GB = 1_000_000_000
CHUNK_BYTES = 4 << 20  # what is read at once from a file that may be remote

_PART_NAME = re.compile(r"\..+-\d+-[0-9a-f]+\.part")


def create_part(path: Path) -> tuple[Path, int]:
    """Create an unfinished file beside its final path; return its path and an open descriptor.

    It is locked for as long as the descriptor is open. Raises OSError.
    """
    while True:
        unique = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        part_path = path.with_name(f".{path.name}.{unique}.part")
        with name_os_errors(path):
            fd = os.open(part_path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        # Another process may hold the lock to check for a dead writer, and may delete the file. Wait for it,
        # then check that the file still exists.
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(fd, fcntl.LOCK_EX)
        if os.fstat(fd).st_nlink:
            return part_path, fd
        os.close(fd)


def write_whole(path: Path, content: bytes, *, is_durable: bool = True) -> None:
    """Write a file atomically: after a crash it holds the old content or the new one. Raises OSError.

    is_durable: return only when content and name are on disk. Without it a loss of power may undo the write
    or leave an empty file: enough for what is soon written again, and readers must accept a damaged file.
    """
    with replacing(path, is_durable=is_durable) as (_, fd), name_os_errors(path):
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]


@contextlib.contextmanager
def replacing(path: Path, *, is_durable: bool = True) -> Iterator[tuple[Path, int]]:
    """Yield an unfinished file's path and descriptor to write to; afterwards, give it its final name.

    An error inside leaves the old file as it was. is_durable: as in `write_whole`. Raises OSError.
    """
    part_path, fd = create_part(path)
    try:
        yield part_path, fd
        with name_os_errors(path):
            if is_durable:
                os.fsync(fd)
            part_path.replace(path)
        if is_durable:
            sync(path.parent)
    except BaseException:
        part_path.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)


def replace_link(link: Path, target: Path) -> None:
    """Make `link` a relative symbolic link to `target`, atomically replacing an old one.

    It is on disk when this returns, so what it pointed to before may be deleted. Raises OSError.
    """
    partial = link.with_name(f".{link.name}.partial")
    partial.unlink(missing_ok=True)
    partial.symlink_to(os.path.relpath(target, link.parent))
    partial.replace(link)
    sync(link.parent)


def sync(path: Path) -> None:
    """Return when a file's content, or a folder's list of names, is on disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def add_checksum(content: bytes) -> bytes:
    """Put a line with its sha256 before a file's content."""
    return json.dumps({"sha256": hashlib.sha256(content).hexdigest()}).encode() + b"\n" + content


def strip_checksum(whole: bytes) -> bytes | None:
    """Return what `add_checksum` was given; None if any byte has changed since."""
    content = whole.partition(b"\n")[2]
    return content if whole == add_checksum(content) else None


def hash_file(path: Path) -> str:
    """Return the sha256 of a file, as hex. Raises OSError."""
    return digest_file(path).hexdigest()


def digest_file(path: Path) -> Any:
    """Return the running sha256 of a file (hashlib's object), to be updated with what follows it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256")


def hash_stream(stream: BinaryIO, write: Callable[[bytes], object] = lambda chunk: None) -> str:
    """Read a stream to its end and return its sha256, as hex; pass each chunk to `write`."""
    content = hashlib.sha256()
    while chunk := stream.read(CHUNK_BYTES):
        content.update(chunk)
        write(chunk)
    return content.hexdigest()


def is_part(path: Path) -> bool:
    """Say whether a path is an unfinished file of ours: one that `create_part` could have made."""
    return _PART_NAME.fullmatch(path.name) is not None and stat.S_ISREG(path.lstat().st_mode)


def remove_leftovers(folder: Path) -> list[str]:
    """Remove unfinished files that no process is writing any more; return their names."""
    removed = []
    for path in sorted(folder.glob(".*.part")):
        with contextlib.suppress(OSError):  # cannot be checked or removed: vox cache verify reports it
            if is_part(path) and is_abandoned(path, remove=True):
                removed.append(path.name)
    return removed


def is_abandoned(part_path: Path, *, remove: bool = False) -> bool:
    """Say whether the writer of an unfinished file is dead: a live one holds a lock on it.

    remove: also remove it if so, while no process can begin to write to it. Raises OSError where this cannot
    be found out: the file does not exist any more, belongs to another user, or is on a file system without
    locks.
    """
    # Opened for writing too: NFS turns this lock into a byte-range lock, which needs that.
    with part_path.open("r+b") as file:
        try:
            with name_os_errors(part_path):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if remove:
            part_path.unlink()
        return True


def take_blocks(descriptor: int) -> None:
    """Allocate all blocks of an open file now, so that a full disk is found before the work. Raises OSError.

    Does nothing on a file system that cannot allocate ahead.
    """
    try:
        os.posix_fallocate(descriptor, 0, os.fstat(descriptor).st_size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise


def nearest_folder(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    return next(place for place in (folder, *folder.absolute().parents) if place.exists())


def check_writable(path: Path | str, option: str, folder: Path | None = None) -> None:
    """Raise VoxError unless files can be made in a folder, which need not exist yet; leave no trace.

    path: the folder, as the option gave it. folder: that of a path which is a file.
    """
    try:
        with tempfile.TemporaryFile(dir=nearest_folder(folder or Path(path))):
            pass
    except OSError as error:
        if error.errno in DISK_FULL_ERRNOS:
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise VoxError(
            f"cannot be written ({error.strerror})", where=path, remedy=f"choose another {option}"
        ) from None


def free_bytes(folder: Path) -> int:
    """Return the free bytes of the disk that a folder is on, or will be on."""
    return shutil.disk_usage(nearest_folder(folder)).free


def check_space(folder: Path, num_bytes: int, error: type[VoxError], *, what: str, remedy: str) -> None:
    """Raise `error` unless `num_bytes` fit on the disk of a folder, which need not exist yet."""
    free = free_bytes(folder)
    if num_bytes > free:
        sizes = f"{format_gb(num_bytes)} needed, {format_gb(free)} free"
        raise error(f"too little disk space for {what}: {sizes}", where=folder, remedy=remedy)


def format_gb(num_bytes: int) -> str:
    """Write a size in GB, 10^9 bytes."""
    return f"{num_bytes / BYTES_PER_GB:.{2 if num_bytes >= BYTES_PER_GB else 4}f} GB"


@contextlib.contextmanager
def name_os_errors(path: Path | str) -> Iterator[None]:
    """Add the file's name to errors of calls that know only its descriptor."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
