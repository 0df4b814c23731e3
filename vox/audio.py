"""Recordings: their headers and their samples, converted to 16 kHz mono.

Shape suffixes: S samples, C channels, N output samples, K kernel values.
"""

import errno
import io
import math
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

import numpy as np
import soundfile

from vox.disk import hash_file
from vox.errors import AudioError, ConfigError, VoxError
from vox.units import SAMPLE_RATE

# torchaudio tabulates its resampling kernel for a ratio in lowest terms: above this many values (32 MB),
# which no usual rate reaches, each is computed where it is needed instead.
MAX_KERNEL_VALUES = 2**22
CHUNK_VALUES = 2**20  # of the kernel computed at once: 8 MB

MIN_PADDING = 64  # input samples: more than one at any output rate

# torchaudio's own: zero crossings of the sinc to each side, and the cut-off as a share of the lower rate's.
SINC_ZERO_CROSSINGS = 6
SINC_ROLLOFF = 0.99

# Speeds are exact: 0.9 is 9/10. This many decimals keep their ratios small integers.
SPEED_DECIMALS = 3
MIN_SPEED, MAX_SPEED = 0.5, 2.0

# What libsndfile reports where a header leaves the length open (a FLAC written to a pipe).
_UNKNOWN_LENGTH = 2**62

# Of a file that is not there or that nobody may read: the corpus's fault, and so an AudioError. Any other
# error of the operating system says nothing about the recording.
_MENDABLE_ERRNOS = {
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EACCES,
    errno.EPERM,
    errno.ELOOP,
    errno.ENAMETOOLONG,
}

# A longest FLAC frame, 65,535 equal samples, takes 14 bytes: a header that promises more is a wrong one.
MAX_SAMPLES_PER_BYTE = 5_000

_Source = Path | str | io.BytesIO  # what is decoded: a file, or the bytes of one
_Found = TypeVar("_Found")

# Sizes that a WAV writer leaves behind when it could not go back to fill them in (written to a pipe).
_UNKNOWN_WAV_SIZES = (0, 0x7FFFF000, 0x7FFFFFFF, 0xFFFFFFFF)


@dataclass(frozen=True)
class AudioHeader:
    """What a recording's header promises.

    num_samples: samples after conversion to 16 kHz mono, exactly what `read_audio` returns.
    sample_rate, channels: the file's own.
    """

    num_samples: int
    sample_rate: int
    channels: int


def read_header(path: Path | str, speed: float = 1.0) -> AudioHeader:
    """Read a recording's length (played at a speed), rate and channels without decoding it.

    Raises AudioError if the file is missing, unreadable or empty, or is a WAV file shorter than its
    header says (a FLAC file's truncation shows only when it is decoded), and OSError as `read_audio` does.
    """

    def read(source: _Source) -> AudioHeader:
        with _open_sound(source, path) as sound:
            _check_wav_size(sound, source, path)
            num_samples = resampled_length(sound.frames, *resampling_rates(sound.samplerate, speed))
            return AudioHeader(num_samples, sound.samplerate, sound.channels)

    return _read_twice(read, path)


def read_audio(path: Path | str, speed: float = 1.0) -> np.ndarray:
    """Decode a recording to float32 [S], 16 kHz mono: channels averaged, other rates resampled.

    speed: of playing it, as a tape's: 1.1 is 1.1 times faster, shorter, and higher in pitch.

    S is `read_header(path, speed).num_samples`. Raises AudioError if the file is missing, unreadable, empty,
    holds fewer samples than its header says, or holds NaN or infinite samples. What is not the file's fault
    (a disk or a network that fails, too many open files) is an OSError, and too little memory a VoxError.
    """
    try:
        return _read_audio(path, speed)
    except MemoryError:
        remedy = "take fewer --workers, or leave this recording out"
        raise VoxError("too little memory to decode a recording", where=path, remedy=remedy) from None


def _read_audio(path: Path | str, speed: float) -> np.ndarray:
    waveform_SC, rate = _read_twice(lambda source: _decode(source, path), path)
    waveform_S = waveform_SC[:, 0] if waveform_SC.shape[1] == 1 else waveform_SC.mean(axis=1)
    if not np.isfinite(waveform_S).all():
        raise AudioError("samples that are NaN or infinite", where=path, remedy="write the file again")
    from_rate, to_rate = resampling_rates(rate, speed)
    return waveform_S if from_rate == to_rate else _resample(waveform_S, from_rate, to_rate)


def resampled_length(num_samples: int, from_rate: int, to_rate: int = SAMPLE_RATE) -> int:
    """Count the samples at one rate for a number of samples at another: exact, rounded up."""
    return -(-num_samples * to_rate // from_rate)


def resampling_rates(sample_rate: int, speed: float = 1.0) -> tuple[int, int]:
    """Return the two rates between which resampling plays a recording at a speed, at 16 kHz.

    At speed 1 they are the recording's own and 16 kHz; otherwise integers whose ratio is exactly
    `sample_rate * speed / 16000`. Raises ConfigError for a speed that `check_speed` refuses.
    """
    check_speed(speed)
    if speed == 1:
        return sample_rate, SAMPLE_RATE
    ratio = Fraction(sample_rate, SAMPLE_RATE) * Fraction(format_speed(speed))
    return ratio.numerator, ratio.denominator


def check_speed(speed: float) -> None:
    """Raise ConfigError unless a speed is from 0.5 to 2 and has three decimals at most."""
    if not MIN_SPEED <= speed <= MAX_SPEED or round(speed, SPEED_DECIMALS) != speed:
        raise ConfigError(
            "a speed that audio cannot be played at",
            where=speed,
            remedy=f"choose from {MIN_SPEED:g} to {MAX_SPEED:g}, {SPEED_DECIMALS} decimals at most",
        )


def format_speed(speed: float) -> str:
    """Write a speed as names and fingerprints have it: 0.9, 1.0."""
    return str(float(speed))


def hash_recording(path: Path) -> str:
    """Return the sha256 of a recording's file, as hex; empty where there is none that may be read.

    Raises OSError naming it where that is not the file's fault.
    """
    try:
        return hash_file(path)
    except OSError as error:
        if error.errno in _MENDABLE_ERRNOS:
            return ""
        raise OSError(error.errno, error.strerror, str(path)) from None


def _read_twice(read: Callable[[_Source], _Found], path: Path | str) -> _Found:
    """Return read(path); before that is called damaged, read the file plainly and try it on its bytes.

    libsndfile takes a read that fails for the end of the file. Raises OSError naming the file where that is
    the reason still; where it has passed, nothing was wrong.
    """
    try:
        return read(path)
    except AudioError:
        try:
            content = io.BytesIO(Path(path).read_bytes())
        except OSError as error:
            if error.errno not in _MENDABLE_ERRNOS:
                raise OSError(error.errno, error.strerror, os.fspath(path)) from None
            content = None
        if content is None:
            raise
        return read(content)


def _decode(source: _Source, path: Path | str) -> tuple[np.ndarray, int]:
    """Return a recording's samples, float32 [S, C], and its own rate."""
    with _open_sound(source, path) as sound:
        _check_wav_size(sound, source, path)
        num_promised, rate = sound.frames, sound.samplerate
        try:
            waveform_SC = sound.read(dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise _damaged(path, f"decoding fails: {error.error_string}") from None
        except (MemoryError, ValueError) as error:
            if (
                isinstance(error, MemoryError)
                and num_promised <= Path(path).stat().st_size * MAX_SAMPLES_PER_BYTE
            ):
                raise
            raise _damaged(path, f"its header promises {num_promised} samples, too many to hold") from None
    if len(waveform_SC) < num_promised:
        raise _damaged(path, f"its header says {num_promised} samples, {len(waveform_SC)} can be decoded")
    return waveform_SC, rate


def _resample(waveform_S: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    divisor = math.gcd(from_rate, to_rate)
    if (from_rate // divisor) * (to_rate // divisor) > MAX_KERNEL_VALUES:
        return interpolate(waveform_S, from_rate, to_rate)
    import torch  # a second or more, and needed only where the rate differs
    from torchaudio.functional import resample

    # torchaudio cuts its result to a length that it rounds up in float32: one sample too few from a few
    # seconds on. Zeros appended (what it pads with itself) give it room; the cut here is exact.
    padded_S = np.pad(waveform_S, (0, max(from_rate, MIN_PADDING)))
    resampled_S = resample(torch.from_numpy(padded_S), from_rate, to_rate).numpy()
    return np.ascontiguousarray(resampled_S[: resampled_length(len(waveform_S), from_rate, to_rate)])


def interpolate(waveform_S: np.ndarray, from_rate: int, to_rate: int = SAMPLE_RATE) -> np.ndarray:
    """Resample float32 [S] from any rate to another, in time and memory that the ratio does not change.

    The windowed sinc of torchaudio's `resample` (its default width and roll-off), evaluated where each
    output sample lies instead of tabulated for every fraction of a sample that can occur: 44,101 Hz has
    16,000 of them, a table of 5.6 GB.
    """
    bandwidth_hz = min(from_rate, to_rate) * SINC_ROLLOFF
    reach = math.ceil(SINC_ZERO_CROSSINGS * from_rate / bandwidth_hz)  # input samples to each side
    offsets_K = np.arange(-reach, reach + 1)
    padded_S = np.pad(waveform_S, (reach, reach + 1))
    num_out = resampled_length(len(waveform_S), from_rate, to_rate)
    resampled_N = np.empty(num_out, np.float32)
    step = max(1, CHUNK_VALUES // len(offsets_K))
    for start in range(0, num_out, step):
        # In integers, so that hours from the start a sample still lies where it should.
        numerators_N = np.arange(start, min(start + step, num_out), dtype=np.int64) * from_rate
        positions_N, remainders_N = np.divmod(numerators_N, to_rate)
        distances_NK = offsets_K - remainders_N[:, None] / to_rate
        phases_NK = np.clip(
            distances_NK * (bandwidth_hz / from_rate), -SINC_ZERO_CROSSINGS, SINC_ZERO_CROSSINGS
        )
        window_NK = np.cos(phases_NK * (np.pi / 2 / SINC_ZERO_CROSSINGS)) ** 2
        kernel_NK = np.sinc(phases_NK) * window_NK * (bandwidth_hz / from_rate)
        inputs_NK = padded_S[positions_N[:, None] + (offsets_K + reach)]
        resampled_N[start : start + step] = (inputs_NK * kernel_NK).sum(axis=1)
    return resampled_N


def _open_sound(source: _Source, path: Path | str) -> soundfile.SoundFile:
    try:
        sound = soundfile.SoundFile(source if isinstance(source, io.BytesIO) else os.fspath(source))
    except (soundfile.LibsndfileError, TypeError) as error:
        raise _explain_unopened(path, error) from None
    if 0 < sound.frames < _UNKNOWN_LENGTH:
        return sound
    sound.close()
    if sound.frames >= _UNKNOWN_LENGTH:
        raise AudioError("a header without a length", where=path, remedy="encode the recording again")
    raise AudioError("an empty recording", where=path, remedy="record it again or leave it out")


def _explain_unopened(path: Path | str, error: Exception) -> AudioError:
    """Find the operating system's reason, which libsndfile reports as `System error.`."""
    try:
        with Path(path).open("rb") as file:
            if not file.read(1):
                return AudioError("an empty file", where=path, remedy="record it again or leave it out")
    except FileNotFoundError:
        return AudioError("no such recording", where=path, remedy="correct the path")
    except OSError as os_error:
        return AudioError(f"a recording that cannot be opened ({os_error.strerror})", where=path)
    reason = error.error_string if isinstance(error, soundfile.LibsndfileError) else str(error)
    return AudioError(f"not a readable recording ({reason})", where=path, remedy="use FLAC or WAV")


def _check_wav_size(sound: soundfile.SoundFile, source: _Source, path: Path | str) -> None:
    """Raise AudioError for a WAV file cut short: libsndfile takes what is left for the whole."""
    if sound.format not in ("WAV", "WAVEX"):
        return
    with io.BytesIO(source.getvalue()) if isinstance(source, io.BytesIO) else Path(path).open("rb") as file:
        file_size = file.seek(0, os.SEEK_END)
        file.seek(0)
        if file.read(4) != b"RIFF":  # big-endian RIFX: rare, and read as libsndfile sees it
            return
        position = 12
        while position + 8 <= file_size:
            file.seek(position)
            name, size = struct.unpack("<4sI", file.read(8))
            position += 8
            if name == b"data":
                if size not in _UNKNOWN_WAV_SIZES and position + size > file_size:
                    raise _damaged(path, f"its header says {size} bytes, {file_size - position} are there")
                return
            position += size + size % 2


def _damaged(path: Path | str, reason: str) -> AudioError:
    return AudioError(f"a damaged recording ({reason})", where=path, remedy="copy or encode it again")
