"""One shard: an HDF5 file with the features of consecutive utterances.

Any HDF5 tool opens it. Inside are `frames` [N, C] float16, contiguous and uncompressed, utterance after
utterance; `offsets` [U+1] int64, the first frame of each; `num_samples` [U] int64 at 16 kHz; `crc32` [U]
uint32 of each utterance's little-endian bytes; `ids` [U] and `skipped` [U], UTF-8 (a reason, or empty);
`audio_sha256` [U], hex, of the recordings' files (empty where it could not be read). The frames of a
skipped utterance are zeros and are never given out. Attributes: the fingerprint's parts, how the features
were computed, and a sha256 over the fingerprint and the small arrays.

HDF5 leaves a program free to put what it likes into a "user block" before its own first byte. Ours holds
the sha256 of everything after it, so that a change to any byte of the file, HDF5's own metadata included,
is found by `check_bytes`.

C channels, N frames of a shard, T frames of an utterance, U utterances.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vox.disk import name_os_errors
from vox.errors import CacheError
from vox.features.fingerprint import FORMAT_VERSION, Fingerprint
from vox.features.open_files import OPEN_FILES, OpenFile, Version

FEATURE_DTYPE = np.dtype("<f2")
FEATURE_BYTES = FEATURE_DTYPE.itemsize

USER_BLOCK_BYTES = 512  # the smallest that HDF5 allows
_SEAL = "VOX SHARD {version} sha256={sha256}\n"
_SEAL_PATTERN = re.compile(rb"VOX SHARD (\d{1,6}) sha256=[0-9a-f]{64}\n")
_HASH_BLOCK_BYTES = 1 << 22

_INDEX_DTYPES = {"offsets": "<i8", "num_samples": "<i8", "crc32": "<u4"}
_INDEX_TEXTS = ("ids", "skipped", "audio_sha256")

# What h5py raises for a file that is damaged; which one depends on where.
_HDF5_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError)
HDF5_ERRNO = re.compile(r"errno = (\d+)")  # in its messages, where the operating system gave a reason

# Reasons that say nothing about the file: of the machine, of a network file system, of a disk that fails.
_ENVIRONMENT_ERRNOS = {
    errno.EACCES,
    errno.EPERM,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.EIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.EINTR,
    errno.ENOTCONN,
    errno.EHOSTDOWN,
}


class Shard:
    """A shard opened for reading: its index in memory, its frames where they lie in the file.

    Safe to read from several threads, after fork, and after pickling (which carries the index and the
    path, never the descriptor).
    """

    def __init__(self, path: Path) -> None:
        """Read and check the index.

        Raises CacheError naming the shard when it is missing, truncated, no HDF5, of another format, or
        its index does not have its checksum; OSError naming it, or MemoryError, where that is not its fault.
        """
        self.path = path
        self._name = str(path)  # a Path is twice as slow to look at, for each utterance
        try:
            with path.open("rb") as file, name_os_errors(path):
                seal = file.read(USER_BLOCK_BYTES)
                self._status = os.fstat(file.fileno())
        except FileNotFoundError:
            raise CacheError("missing shard", where=path, remedy="run vox precompute again") from None
        version = _read_seal(seal)
        if version is None:
            raise damaged(path, "it does not begin as a Vox shard does")
        if version != FORMAT_VERSION:
            raise CacheError(
                f"shard of format version {version}, this Vox reads {FORMAT_VERSION}",
                where=path,
                remedy="run vox precompute again with this Vox",
            )
        with _hdf5_reading(path):
            self._read_index()
        self._checked: tuple[Version, np.ndarray] | None = None  # rows, in which version of the file
        self.retired: frozenset[str] = frozenset()  # ids that the cache's plan no longer counts

    def __len__(self) -> int:
        return len(self.ids)

    def live_rows(self) -> Iterator[tuple[int, str]]:
        """Yield row and id of the utterances that are not retired."""
        return ((row, name) for row, name in enumerate(self.ids) if name not in self.retired)

    def num_frames(self, row: int) -> int:
        """Count an utterance's frames."""
        return int(self.offsets.item(row + 1) - self.offsets.item(row))

    def audio_sha256(self, row: int) -> str:
        """Return the sha256 of an utterance's recording, as hex; empty where it could not be read."""
        return self._audio_sha256[row].decode()

    def read(self, row: int) -> np.ndarray:
        """Return the features of an utterance, [T, C] float16, after checking them.

        Raises CacheError naming shard and utterance when the bytes do not have their checksum, or the
        shard was deleted, shortened or replaced since it was opened.
        """
        features_TC = np.empty((self.num_frames(row), self.feature_dim), FEATURE_DTYPE)
        self._copy(self._look(), row, features_TC)
        self._check(row, features_TC)
        return features_TC

    def read_into(self, row: int, out_TC: np.ndarray) -> None:
        """Copy the features of an utterance into contiguous float16 memory of their shape.

        They are checked when a process reads them for the first time, and again once the file has changed
        (its times tell); after that they are taken as they are, which is twice as fast. Raises what `read`
        does; the memory's content is undefined then.
        """
        opened = self._look()
        is_checked_U = self._checked_rows(opened.version)
        self._copy(opened, row, out_TC)
        if not is_checked_U[row]:
            self._check(row, out_TC)
            is_checked_U[row] = True

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_checked": None}

    def _look(self) -> OpenFile:
        """Return the open file, after a look at what now has its name."""
        try:
            status = os.stat(self._name)  # noqa: PTH116
        except FileNotFoundError:
            raise CacheError("missing shard", where=self.path, remedy="run vox precompute again") from None
        if status.st_size < self._frames_end:
            raise damaged(self.path, "it is truncated")
        # By the time too: some network file systems give their files new numbers.
        if status.st_ino != self._status.st_ino and status.st_mtime_ns != self._status.st_mtime_ns:
            raise CacheError("shard replaced while it was in use", where=self.path, remedy="start again")
        return OPEN_FILES.get(self._name, (status.st_ino, status.st_mtime_ns, status.st_ctime_ns))

    def _checked_rows(self, version: Version) -> np.ndarray:
        """Return which rows were checked, [U] bool, in this version of the file."""
        checked = self._checked  # once: another thread may find the file changed, and start over
        if checked is None or checked[0] != version:
            self._checked = checked = (version, np.zeros(len(self.ids), np.bool_))
        return checked[1]

    def _copy(self, opened: OpenFile, row: int, out_TC: np.ndarray) -> None:
        # Read, not mapped: a map beyond the end of a file that shrinks, or over a disk that fails, kills the
        # process; it also counts as memory of each process that touches it.
        assert not self.skipped[row], f"{self.ids[row]} was skipped"
        assert out_TC.dtype == FEATURE_DTYPE and out_TC.shape == (self.num_frames(row), self.feature_dim)
        view = out_TC.data.cast("B")
        position = self._frames_at + self.offsets.item(row) * self.feature_dim * FEATURE_BYTES
        with name_os_errors(self._name):
            while (count := os.preadv(opened.fd, [view], position)) != len(view):
                if not count:
                    raise damaged(self.path, "it is truncated")
                view, position = view[count:], position + count

    def _check(self, row: int, features_TC: np.ndarray) -> None:
        """Check the bytes that are given out, not those in the file."""
        if zlib.crc32(features_TC.data.cast("B")) != self.crc32[row]:
            raise damaged(self.path, f"the features of {self.ids[row]} do not have their checksum")

    def _read_index(self) -> None:
        import h5py

        with h5py.File(self.path, "r", locking=False) as file:
            arrays = {name: file[name][:] for name in (*_INDEX_DTYPES, *_INDEX_TEXTS)}
            self.fingerprint = Fingerprint.from_dict(json.loads(_text(file.attrs["fingerprint"])))
            index_sha256 = _text(file.attrs["index_sha256"])
            self.notes = {key: _text(value) for key, value in file.attrs.items() if isinstance(value, bytes)}
            frames = file["frames"]
            shape, dtype, is_plain = frames.shape, frames.dtype, frames.chunks is None
            self._frames_at = frames.id.get_offset()
        if hash_index(self.fingerprint, arrays) != index_sha256:
            raise damaged(self.path, "its index does not have its checksum")
        if not is_plain or dtype != FEATURE_DTYPE or shape[0] != arrays["offsets"][-1]:
            raise damaged(self.path, "its frames are not laid out as its index says")
        self.feature_dim = int(shape[1])
        self._frames_end = self._frames_at + shape[0] * shape[1] * FEATURE_BYTES
        if self.path.stat().st_size < self._frames_end:
            raise damaged(self.path, "it is truncated")
        self.offsets: np.ndarray = arrays["offsets"]
        self.num_samples: np.ndarray = arrays["num_samples"]
        self.crc32: np.ndarray = arrays["crc32"]
        self.ids = [text.decode() for text in arrays["ids"]]
        self.skipped = [text.decode() for text in arrays["skipped"]]
        self._audio_sha256: np.ndarray = arrays["audio_sha256"]  # bytes: seldom asked for


def check_bytes(path: Path) -> bool:
    """Say whether every byte of a shard is what was written; raise OSError where it cannot be read."""
    with path.open("rb") as file, name_os_errors(path):
        seal = file.read(USER_BLOCK_BYTES)
        return seal == make_seal(hash_after_user_block(file.fileno()))


def damaged(path: Path, how: str) -> CacheError:
    """Make the error for a shard that cannot be trusted."""
    return CacheError(
        f"damaged shard ({how})", where=path, remedy="delete this file and run vox precompute again"
    )


def make_seal(sha256: str, version: int = FORMAT_VERSION) -> bytes:
    """Make a user block: of the sha256 of everything after it."""
    return _SEAL.format(version=version, sha256=sha256).encode().ljust(USER_BLOCK_BYTES, b"\0")


def _read_seal(user_block: bytes) -> int | None:
    """Return the format version in a user block, or None when it is not ours."""
    match = _SEAL_PATTERN.match(user_block)
    return None if match is None else int(match[1])


def hash_after_user_block(fd: int) -> str:
    """Return the sha256 of everything after a shard's user block, as hex; raise OSError."""
    sha256, position = hashlib.sha256(), USER_BLOCK_BYTES
    while block := os.pread(fd, _HASH_BLOCK_BYTES, position):
        sha256.update(block)
        position += len(block)
    return sha256.hexdigest()


def hash_index(fingerprint: Fingerprint, arrays: Mapping[str, np.ndarray]) -> str:
    """Return the sha256 of a fingerprint and a shard's small arrays, as hex."""
    sha256 = hashlib.sha256(fingerprint.digest.encode())
    for name in (*_INDEX_DTYPES, *_INDEX_TEXTS):
        array = np.ascontiguousarray(arrays[name])
        sha256.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        sha256.update(array.tobytes())
    return sha256.hexdigest()


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


@contextlib.contextmanager
def _hdf5_reading(path: Path) -> Iterator[None]:
    """Turn whatever h5py raises for a damaged file into one CacheError.

    An error that is not the file's fault is raised as it is: it is no reason to delete the shard.
    """
    try:
        yield
    except MemoryError:
        if check_bytes(path):  # memory is short, or the file asks for too much of it
            raise
        raise damaged(path, "its bytes do not have their checksum") from None
    except _HDF5_ERRORS as error:
        found = HDF5_ERRNO.search(str(error))
        number = int(found[1]) if found else getattr(error, "errno", None)
        if number in _ENVIRONMENT_ERRNOS:
            raise OSError(number, os.strerror(number), str(path)) from None
        raise damaged(path, f"HDF5 cannot read it: {str(error)[:80]}") from None
