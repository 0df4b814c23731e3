"""Long recordings: decoded block by block into a temporary file, which is mapped into memory.

Shape suffixes: S samples, C channels.
"""

import io
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import soundfile

from vox.audio.channels import Energies, warn_once
from vox.audio.header_sizes import Source, check_size
from vox.audio.sound_file import UNKNOWN_LENGTH, check_finite, open_sound, read_blocks, read_twice
from vox.disk import name_os_errors
from vox.resample import resample_blocks
from vox.units import SAMPLE_RATE

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
    energies = Energies()
    with open_sound(source, path) as sound:
        mixed_S = _collect(energies.mix(block_SC) for block_SC in _read_checked(sound, source, path))
        num_channels, rate = sound.channels, sound.samplerate
    if num_channels > 1 and energies.cancel():
        loudest = energies.pick_loudest(path, warn_once)
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
        check_finite(block_SC, path)
        yield block_SC


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
