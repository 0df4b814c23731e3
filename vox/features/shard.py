"""One shard: an HDF5 file with the features of consecutive utterances.

Any HDF5 tool opens it. Inside are `frames` [N, C] float16, contiguous and uncompressed, utterance after
utterance; `offsets` [U+1] int64, the first frame of each; `num_samples` [U] int64 at 16 kHz; `crc32` [U]
uint32 of each utterance's little-endian bytes; `ids` [U] and `skipped` [U], UTF-8 (a reason, or empty);
`audio_sha256` [U], hex, of the recordings' files (empty where there was none to be had). The frames of a
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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vox.errors import CacheError
from vox.features.files import create_part, name_os_errors, sync_folder
from vox.features.fingerprint import FORMAT_VERSION, Fingerprint

FEATURE_DTYPE = np.dtype("<f2")
FEATURE_BYTES = FEATURE_DTYPE.itemsize

USER_BLOCK_BYTES = 512  # the smallest that HDF5 allows
_SEAL = "VOX SHARD {version} sha256={sha256}\n"
_SEAL_PATTERN = re.compile(rb"VOX SHARD (\d{1,6}) sha256=[0-9a-f]{64}\n")
_HASH_BLOCK_BYTES = 1 << 22

_INDEX_DTYPES = {"offsets": "<i8", "num_samples": "<i8", "crc32": "<u4"}
_INDEX_TEXTS = ("ids", "skipped", "audio_sha256")

# What h5py raises for a file that is damaged; which one depends on where.
_HDF5_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, MemoryError)


class ShardWriter:
    """Writes a shard under another name; `finish` puts it in place whole, `abort` leaves nothing."""

    def __init__(
        self,
        path: Path,
        *,
        ids: Sequence[str],
        num_samples: Sequence[int],
        num_frames: Sequence[int],
        feature_dim: int,
        fingerprint: Fingerprint,
        notes: Mapping[str, str],
    ) -> None:
        """Allocate the file in full.

        The notes say how the features were computed; they become attributes and are compared with
        nothing. Raises OSError when the folder cannot be written or the disk is full.
        """
        self.path = path
        self._ids = list(ids)
        self._num_samples = np.asarray(num_samples, "<i8")
        self._offsets = np.concatenate([[0], np.cumsum(num_frames)]).astype("<i8")
        self._feature_dim = feature_dim
        self._fingerprint = fingerprint
        self._notes = dict(notes)
        self._skipped = [""] * len(self._ids)
        self._audio_sha256 = [""] * len(self._ids)
        self._crc32 = np.zeros(len(self._ids), "<u4")
        self._is_written = [False] * len(self._ids)
        self._part_path, self._part_fd = create_part(path)
        try:
            self._frames_at = self._allocate_frames()
        except BaseException:
            self.abort()
            raise

    @property
    def is_complete(self) -> bool:
        """Say whether every utterance has been written or skipped."""
        return all(self._is_written)

    def write(self, row: int, features_TC: np.ndarray, *, audio_sha256: str = "") -> None:
        """Write the features of an utterance (float16, exactly its frames), and its recording's sha256."""
        num_frames = int(self._offsets[row + 1] - self._offsets[row])
        assert features_TC.dtype == FEATURE_DTYPE and features_TC.shape == (num_frames, self._feature_dim)
        payload = np.ascontiguousarray(features_TC).data.cast("B")
        self._crc32[row] = zlib.crc32(payload)
        self._audio_sha256[row] = audio_sha256
        self._is_written[row] = True
        self._write_at(self._frames_at + int(self._offsets[row]) * self._feature_dim * FEATURE_BYTES, payload)

    def skip(self, row: int, reason: str, *, audio_sha256: str = "") -> None:
        """Record why an utterance has no features; its frames stay zero."""
        assert reason
        self._audio_sha256[row] = audio_sha256
        self._skipped[row] = " ".join(reason.split())
        self._is_written[row] = True

    def finish(self) -> None:
        """Write the index, seal the file, and rename it into place, all of it on disk first."""
        assert self.is_complete
        try:
            self._write_index()
            self._write_at(0, _seal(_hash_after_user_block(self._part_fd)))
            os.fsync(self._part_fd)
            self._part_path.replace(self.path)
            sync_folder(self.path.parent)
        except BaseException:
            self.abort()
            raise
        self._close()

    def abort(self) -> None:
        """Remove what has been written so far."""
        self._part_path.unlink(missing_ok=True)
        self._close()

    def _close(self) -> None:
        if self._part_fd >= 0:
            os.close(self._part_fd)
        self._part_fd = -1

    def _allocate_frames(self) -> int:
        """Lay out the file up to the end of `frames`; return where in the file they begin, in bytes."""
        import h5py

        creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        creation.set_obj_track_times(False)
        space = h5py.h5s.create_simple((int(self._offsets[-1]), self._feature_dim))
        with (
            _hdf5_writing(self._part_path),
            h5py.File(self._part_path, "w", userblock_size=USER_BLOCK_BYTES, locking=False) as file,
        ):
            frames = h5py.h5d.create(file.id, b"frames", h5py.h5t.IEEE_F16LE, space, creation)
            frames_at = frames.get_offset()
        # Take the blocks now: a full disk is met before the work, not after it.
        with name_os_errors(self._part_path):
            try:
                os.posix_fallocate(self._part_fd, 0, os.fstat(self._part_fd).st_size)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    raise
        return frames_at

    def _write_index(self) -> None:
        import h5py

        arrays: dict[str, np.ndarray] = {
            "offsets": self._offsets,
            "num_samples": self._num_samples,
            "crc32": self._crc32,
            "ids": _text_array(self._ids),
            "skipped": _text_array(self._skipped),
            "audio_sha256": _text_array(self._audio_sha256),
        }
        attributes = {
            "fingerprint": json.dumps(self._fingerprint.to_dict(), sort_keys=True),
            "index_sha256": _hash_index(self._fingerprint, arrays),
            "weights_sha256": self._fingerprint.weights_sha256,
            "layers": np.asarray(self._fingerprint.layers, "<i8"),
            **{f"preprocessing_{key}": value for key, value in self._fingerprint.preprocessing.items()},
            "format_version": np.int64(self._fingerprint.format_version),
            **self._notes,
        }
        with _hdf5_writing(self._part_path), h5py.File(self._part_path, "r+", locking=False) as file:
            for name, array in arrays.items():
                file.create_dataset(name, data=array, track_times=False)
            for key, value in sorted(attributes.items()):
                if isinstance(value, str):
                    dtype = h5py.string_dtype("utf-8", max(1, len(value.encode())))
                    file.attrs.create(key, value, dtype=dtype)
                else:
                    file.attrs[key] = value

    def _write_at(self, position: int, payload: bytes | memoryview) -> None:
        view = memoryview(payload)
        with name_os_errors(self._part_path):
            while view:
                written = os.pwrite(self._part_fd, view, position)
                view, position = view[written:], position + written


class _OpenShard:
    """A shard's descriptor, closed with the last use of this, and which rows were checked through it."""

    def __init__(self, path: Path, version: tuple[int, int, int], num_utterances: int) -> None:
        self.fd = -1
        with name_os_errors(path):
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        # Reading ahead of an utterance would fetch others that are not next.
        os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_RANDOM)
        self.version = version
        self.is_checked_U = np.zeros(num_utterances, np.bool_)

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


class Shard:
    """A shard opened for reading: its index in memory, its frames where they lie in the file.

    Safe to read from several threads, after fork, and after pickling (which carries the index and the
    path, never the descriptor).
    """

    def __init__(self, path: Path) -> None:
        """Read and check the index.

        Raises CacheError naming the shard when it is missing, truncated, no HDF5, of another format, or
        its index does not have its checksum.
        """
        self.path = path
        self._opened: _OpenShard | None = None
        try:
            with path.open("rb") as file:
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

    def __len__(self) -> int:
        return len(self.ids)

    def audio_sha256(self, row: int) -> str:
        """Return the sha256 of an utterance's recording, as hex; empty where it was not to be had."""
        return self._audio_sha256[row].decode()

    def read(self, row: int) -> np.ndarray:
        """Return the features of an utterance, [T, C] float16, after checking them.

        Raises CacheError naming shard and utterance when the bytes do not have their checksum, or the
        shard has gone, shrunk or been replaced since it was opened.
        """
        num_frames = int(self.offsets[row + 1] - self.offsets[row])
        features_TC = np.empty((num_frames, self.feature_dim), FEATURE_DTYPE)
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
        self._copy(opened, row, out_TC)
        if not opened.is_checked_U[row]:
            self._check(row, out_TC)
            opened.is_checked_U[row] = True

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}

    def _look(self) -> "_OpenShard":
        """Return the open file, after a look at what now has its name."""
        try:
            status = self.path.stat()
        except FileNotFoundError:
            raise CacheError("missing shard", where=self.path, remedy="run vox precompute again") from None
        if status.st_size < self._frames_end:
            raise damaged(self.path, "it is truncated")
        # By the time too: some network file systems number their files anew.
        if status.st_ino != self._status.st_ino and status.st_mtime_ns != self._status.st_mtime_ns:
            raise CacheError("shard replaced while it was in use", where=self.path, remedy="start again")
        version = (status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
        opened = self._opened
        if opened is None or opened.version != version:
            # Two threads may both come here; either's is as good, and one is let go.
            self._opened = opened = _OpenShard(self.path, version, len(self.ids))
        return opened

    def _copy(self, opened: "_OpenShard", row: int, out_TC: np.ndarray) -> None:
        # Read, not mapped: a map beyond the end of a file that shrinks, or over a disk that fails, kills the
        # process; it also counts as memory of each process that touches it.
        assert not self.skipped[row], f"{self.ids[row]} was skipped"
        num_frames = int(self.offsets[row + 1] - self.offsets[row])
        assert out_TC.dtype == FEATURE_DTYPE and out_TC.shape == (num_frames, self.feature_dim)
        view = out_TC.data.cast("B")
        position = self._frames_at + int(self.offsets[row]) * self.feature_dim * FEATURE_BYTES
        while view:
            with name_os_errors(self.path):
                count = os.preadv(opened.fd, [view], position)
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
        if _hash_index(self.fingerprint, arrays) != index_sha256:
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
    """Say whether every byte of a shard is what was written."""
    with path.open("rb") as file:
        seal = file.read(USER_BLOCK_BYTES)
        return seal == _seal(_hash_after_user_block(file.fileno()))


def damaged(path: Path, how: str) -> CacheError:
    """Make the error for a shard that cannot be trusted."""
    return CacheError(
        f"damaged shard ({how})", where=path, remedy="delete this file and run vox precompute again"
    )


def _seal(sha256: str, version: int = FORMAT_VERSION) -> bytes:
    return _SEAL.format(version=version, sha256=sha256).encode().ljust(USER_BLOCK_BYTES, b"\0")


def _read_seal(user_block: bytes) -> int | None:
    """Return the format version that a user block tells, or None when it is not ours."""
    match = _SEAL_PATTERN.match(user_block)
    return None if match is None else int(match[1])


def _hash_after_user_block(fd: int) -> str:
    sha256, position = hashlib.sha256(), USER_BLOCK_BYTES
    while block := os.pread(fd, _HASH_BLOCK_BYTES, position):
        sha256.update(block)
        position += len(block)
    return sha256.hexdigest()


def _hash_index(fingerprint: Fingerprint, arrays: Mapping[str, np.ndarray]) -> str:
    sha256 = hashlib.sha256(fingerprint.digest.encode())
    for name in (*_INDEX_DTYPES, *_INDEX_TEXTS):
        array = np.ascontiguousarray(arrays[name])
        sha256.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        sha256.update(array.tobytes())
    return sha256.hexdigest()


def _text_array(texts: Sequence[str]) -> np.ndarray:
    import h5py

    encoded = [text.encode() for text in texts]
    return np.array(encoded, h5py.string_dtype("utf-8", max(1, *map(len, encoded))))


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


@contextlib.contextmanager
def _hdf5_writing(path: Path) -> Iterator[None]:
    """Turn h5py's errors into plain ones of the operating system."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        found = re.search(r"errno = (\d+)", str(error))
        number = (found and int(found[1])) or getattr(error, "errno", None) or errno.EIO
        raise OSError(number, os.strerror(number), str(path)) from None


@contextlib.contextmanager
def _hdf5_reading(path: Path) -> Iterator[None]:
    """Turn whatever h5py raises for a damaged file into one CacheError."""
    try:
        yield
    except PermissionError:
        raise
    except _HDF5_ERRORS as error:
        raise damaged(path, f"HDF5 cannot read it: {str(error)[:80]}") from None
