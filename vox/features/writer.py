"""Writing a shard: under another name, put on disk, sealed, renamed. The format is vox.features.shard's.

T frames, C channels.
"""

import contextlib
import errno
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from vox.disk import create_part, name_os_errors, sync, take_blocks
from vox.features.fingerprint import Fingerprint
from vox.features.shard import (
    FEATURE_BYTES,
    FEATURE_DTYPE,
    HDF5_ERRNO,
    USER_BLOCK_BYTES,
    hash_after_user_block,
    hash_index,
    make_seal,
)


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
            self._write_at(0, make_seal(hash_after_user_block(self._part_fd)))
            os.fsync(self._part_fd)
            self._part_path.replace(self.path)
            sync(self.path.parent)
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
        with name_os_errors(self._part_path):
            take_blocks(self._part_fd)
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
            "index_sha256": hash_index(self._fingerprint, arrays),
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


def _text_array(texts: Sequence[str]) -> np.ndarray:
    import h5py

    encoded = [text.encode() for text in texts]
    return np.array(encoded, h5py.string_dtype("utf-8", max(1, *map(len, encoded))))


@contextlib.contextmanager
def _hdf5_writing(path: Path) -> Iterator[None]:
    """Turn h5py's errors into plain ones of the operating system."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        found = HDF5_ERRNO.search(str(error))
        number = (found and int(found[1])) or getattr(error, "errno", None) or errno.EIO
        raise OSError(number, os.strerror(number), str(path)) from None
