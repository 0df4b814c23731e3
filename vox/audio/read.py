"""Recordings: their headers and their samples, converted to 16 kHz mono.

Shape suffixes: S samples, C channels.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from vox.audio.channels import mix_channels, warn_once
from vox.audio.header_sizes import Source, check_size, name_damage
from vox.audio.sound_file import (
    UNKNOWN_LENGTH,
    UNUSABLE_FILE_ERRNOS,
    check_finite,
    count_bytes,
    open_sound,
    read_blocks,
    read_twice,
)
from vox.disk import hash_file
from vox.errors import VoxError
from vox.resample import resample, resampled_length, resampling_rates
from vox.segment import WHOLE, Segment

# A longest FLAC frame, 65,535 equal samples, takes 14 bytes: a header that promises more is a wrong one.
MAX_SAMPLES_PER_BYTE = 5_000


@dataclass(frozen=True)
class AudioHeader:
    """What a recording's header promises.

    num_samples: samples after conversion to 16 kHz mono, exactly what `read_audio` returns.
    sample_rate, channels: the file's own.
    """

    num_samples: int
    sample_rate: int
    channels: int


def read_header(path: Path | str, speed: float = 1.0, segment: Segment | None = None) -> AudioHeader:
    """Read the length of a recording or of a segment (played at a speed), its rate and channels.

    Decodes nothing but files whose header does not say how long they are (MP3 without a count of frames,
    streamed FLAC). Raises AudioError if the file is missing, unreadable or empty, or is shorter than its
    header says (WAV, RF64, W64, AIFF, AU; a FLAC file's truncation shows only when it is decoded), or does
    not hold the segment, and OSError as `read_audio` does.
    """

    def read(source: Source) -> AudioHeader:
        with open_sound(source, path) as sound:
            check_size(sound, source, path)
            num_samples = sound.frames
            if num_samples >= UNKNOWN_LENGTH:
                num_samples = sum(len(block_SC) for block_SC in read_blocks(sound, path))
            if segment is not None:
                _, num_samples = segment.locate(sound.samplerate, num_samples, sound.channels, path)
            num_samples = resampled_length(num_samples, *resampling_rates(sound.samplerate, speed))
            return AudioHeader(num_samples, sound.samplerate, sound.channels)

    return read_twice(read, path)


def read_audio(
    path: Path | str,
    speed: float = 1.0,
    segment: Segment | None = None,
    warn: Callable[[str], None] = warn_once,
) -> np.ndarray:
    """Decode a recording to float32 [S], 16 kHz mono: channels averaged, other rates resampled.

    A segment is cut out first: the samples are those of a file that holds nothing else. Where its format can
    seek without loss (PCM, FLAC), nothing before it is decoded.

    Of channels that cancel each other (one is another's negative) the loudest is taken, with a warning.

    warn: gets that warning; by default it is logged, once for each file.

    speed: of playing it, as a tape's: 1.1 is 1.1 times faster, shorter, and higher in pitch.

    S is `read_header(path, speed, segment).num_samples`. Raises AudioError if the file is missing,
    unreadable or empty, does not hold the segment, holds fewer samples than its header says, or holds NaN or
    infinite samples. What is not the file's fault (a disk or a network that fails, too many open files) is an
    OSError, and too little memory a VoxError.
    """
    try:
        return _read_audio(path, speed, segment or WHOLE, warn)
    except MemoryError:
        remedy = "take fewer --workers, or leave this recording out"
        raise VoxError("too little memory to decode a recording", where=path, remedy=remedy) from None


def _read_audio(path: Path | str, speed: float, segment: Segment, warn: Callable[[str], None]) -> np.ndarray:
    waveform_SC, rate = read_twice(lambda source: _decode(source, path, segment), path)
    if segment.channel is None:
        waveform_S = mix_channels(waveform_SC, path, warn)
    else:
        waveform_S = np.ascontiguousarray(waveform_SC[:, segment.channel])
    check_finite(waveform_S, path)
    return resample(waveform_S, *resampling_rates(rate, speed))


def read_channels(path: Path | str, segment: Segment | None = None) -> tuple[np.ndarray, int]:
    """Decode a recording or a segment as it is: float32 [S, C], and its rate. Raises as `read_audio`."""
    return read_twice(lambda source: _decode(source, path, segment or WHOLE), path)


def _decode(source: Source, path: Path | str, segment: Segment) -> tuple[np.ndarray, int]:
    """Return a segment's samples, float32 [S, C], and the recording's own rate."""
    with open_sound(source, path) as sound:
        check_size(sound, source, path)
        rate = sound.samplerate
        if sound.frames >= UNKNOWN_LENGTH:
            whole_SC = np.concatenate(list(read_blocks(sound, path)))
            start, count = segment.locate(rate, len(whole_SC), sound.channels, path)
            return whole_SC[start : start + count], rate
        start, count = segment.locate(rate, sound.frames, sound.channels, path)
        if count > MAX_SAMPLES_PER_BYTE * count_bytes(source):
            raise name_damage(path, f"its header promises {count} samples, too many to hold")
        blocks = list(read_blocks(sound, path, start, count, block_samples=count))
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks), rate


def hash_recording(path: Path, segment: Segment | None = None) -> str:
    """Return the sha256 of a recording's file, as hex; "" if the file is missing or may not be read.

    A segment's is the sha256 of its file's and of the segment. The file of many segments is hashed once as
    long as its size and time stay the same. Other errors of the system are an OSError that names it.
    """
    try:
        if segment is None:
            return hash_file(path)
        status = path.stat()
        sha256 = _hash_file_once(path, status.st_size, status.st_mtime_ns)
        return hashlib.sha256(f"{sha256} {segment}".encode()).hexdigest()
    except OSError as error:
        if error.errno in UNUSABLE_FILE_ERRNOS:
            return ""
        raise OSError(error.errno, error.strerror, str(path)) from None


@lru_cache(maxsize=64)
def _hash_file_once(path: Path, num_bytes: int, mtime_ns: int) -> str:
    return hash_file(path)
