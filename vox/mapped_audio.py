"""Long recordings: decoded block by block into a temporary file, which is mapped into memory.

Shape suffixes: S samples, C channels.
"""

import io
import logging
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import soundfile

from vox.audio import (
    CANCELLED_ENERGY,
    UNKNOWN_LENGTH,
    Source,
    check_size,
    open_sound,
    read_blocks,
    read_twice,
)
from vox.disk import name_os_errors
from vox.errors import AudioError
from vox.resample import resample_blocks
from vox.units import SAMPLE_RATE

log = logging.getLogger(__name__)

MAX_HELD_SAMPLES = 10 * 60 * SAMPLE_RATE  # 38 MB; more are written to a file


def map_audio(path: Path | str) -> np.ndarray:
    """Decode a recording as `vox.audio.read_audio` does, bit for bit, in memory that does not grow with it.

    Returns float32 [S]. If it is long, its samples are a map of a file without a name in the folder for
    temporary files (TMPDIR): 230 MB an hour, and while it is decoded from another rate 4 bytes for each
    sample of that rate. The file is gone when the array is, or when the process ends. A pipe's bytes are held
    in memory while they are decoded. Raises what `read_audio` raises, and OSError for a full disk.
    """
    mixed_S, rate = read_twice(lambda source: _decode(source, path), path)
    if rate == SAMPLE_RATE:
        return mixed_S
    return _collect(resample_blocks(mixed_S, rate, SAMPLE_RATE))


def _decode(source: Source, path: Path | str) -> tuple[np.ndarray, int]:
    """Return the mean of the channels, or the loudest where they cancel each other; and the file's rate."""
    energies = _Energies()
    with open_sound(source, path) as sound:
        mixed_S = _collect(energies.mix(block_SC) for block_SC in _read_checked(sound, source, path))
        num_channels, rate = sound.channels, sound.samplerate
    if num_channels > 1 and energies.cancel():
        loudest = int(energies.by_channel_C.argmax())
        log.warning(
            "%s: its channels cancel each other; channel %d (counted from 0) is used alone", path, loudest
        )
        if isinstance(source, io.BytesIO):
            source.seek(0)
        with open_sound(source, path) as sound:
            mixed_S = _collect(block_SC[:, loudest] for block_SC in _read_checked(sound, source, path))
    return mixed_S, rate


def _read_checked(sound: soundfile.SoundFile, source: Source, path: Path | str) -> Iterator[np.ndarray]:
    """Yield blocks [S, C]; raise AudioError for samples that are missing or not finite."""
    check_size(sound, source, path)
    count = None if sound.frames >= UNKNOWN_LENGTH else sound.frames
    for block_SC in read_blocks(sound, path, count=count):
        if not np.isfinite(block_SC).all():
            raise AudioError("samples that are NaN or infinite", where=path, remedy="write the file again")
        yield block_SC


class _Energies:
    """Sums of squares over the blocks of a recording: of each channel, and of the channels' mean."""

    def __init__(self) -> None:
        self.by_channel_C: np.ndarray = np.zeros(1)
        self.of_mean = 0.0

    def mix(self, block_SC: np.ndarray) -> np.ndarray:
        """Count a block and return the mean of its channels."""
        if block_SC.shape[1] == 1:
            return block_SC[:, 0]
        mixed_S: np.ndarray = block_SC.mean(axis=1)
        self.of_mean += float(np.square(mixed_S, dtype=np.float64).sum())
        self.by_channel_C = self.by_channel_C + np.square(block_SC, dtype=np.float64).sum(axis=0)
        return mixed_S

    def cancel(self) -> bool:
        """Say what `vox.audio.channels_cancel` says of the whole."""
        return self.of_mean < CANCELLED_ENERGY * self.by_channel_C.sum() / len(self.by_channel_C) ** 2


def _collect(blocks: Iterable[np.ndarray]) -> np.ndarray:
    """Return the blocks as one array, in memory or, if it is long, in a file."""
    held: list[np.ndarray] = []
    num_held = 0
    blocks = iter(blocks)
    for block_S in blocks:
        held.append(block_S)
        num_held += len(block_S)
        if num_held > MAX_HELD_SAMPLES:
            break
    else:
        return np.concatenate(held)
    with name_os_errors(tempfile.gettempdir()), tempfile.TemporaryFile() as file:
        while held:
            file.write(np.ascontiguousarray(held.pop(0)).data)
        for block_S in blocks:
            file.write(np.ascontiguousarray(block_S).data)
        file.flush()
        return np.asarray(np.memmap(file, np.float32, "r+"))
