"""Recordings: their headers and their samples, converted to 16 kHz mono.

Shape suffixes: S samples, C channels, N output samples, K kernel values.
"""

import contextlib
import errno
import io
import logging
import math
import os
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import soundfile

from vox.disk import hash_file
from vox.errors import AudioError, ConfigError, VoxError
from vox.units import SAMPLE_RATE

log = logging.getLogger(__name__)

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
BLOCK_SAMPLES = 2**20  # decoded at a time where the length is not known

# The first frame of an MP3 that counts its frames holds one of these; else the length is a guess.
_MP3_COUNTS = (b"Xing", b"Info", b"VBRI")
_MP3_SEARCH_BYTES = 8192

# Channels whose mean has less than this share of the louder one's energy cancel each other (20 dB).
CANCELLED_ENERGY = 0.01

# Of a file that is missing or not readable: the corpus's fault, and so an AudioError. Any other
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

# A WAV writer that cannot go back to fill in the size (it writes to a pipe) leaves 0, or one of several sizes
# of about 2 or 4 GB (0x7FFFF000, 2,000,000,000, 0x80000000, 0xFFFFFFFF): then the file's end is the end.
_MIN_UNKNOWN_WAV_SIZE = 2_000_000_000
_WAV_FORMATS = ("WAV", "WAVEX")


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
    """Read a recording's length (played at a speed), rate and channels.

    Decodes nothing but files whose header does not say how long they are (MP3 without a count of frames,
    streamed FLAC). Raises AudioError if the file is missing, unreadable or empty, or is shorter than its
    header says (WAV, RF64, W64, AIFF, AU; a FLAC file's truncation shows only when it is decoded), and
    OSError as `read_audio` does.
    """

    def read(source: _Source) -> AudioHeader:
        with _open_sound(source, path) as sound:
            _check_size(sound, source, path)
            num_samples = sound.frames
            if num_samples >= _UNKNOWN_LENGTH:
                num_samples = sum(len(block_SC) for block_SC in _read_blocks(sound, path))
            num_samples = resampled_length(num_samples, *resampling_rates(sound.samplerate, speed))
            return AudioHeader(num_samples, sound.samplerate, sound.channels)

    return _read_twice(read, path)


def read_audio(path: Path | str, speed: float = 1.0) -> np.ndarray:
    """Decode a recording to float32 [S], 16 kHz mono: channels averaged, other rates resampled.

    Of channels that cancel each other (one is another's negative) the loudest is taken, with a warning.

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
    waveform_S = _mix_channels(waveform_SC, path)
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


def _mix_channels(waveform_SC: np.ndarray, path: Path | str) -> np.ndarray:
    """Return the mean of the channels, or the loudest where the mean would cancel it."""
    if waveform_SC.shape[1] == 1:
        return waveform_SC[:, 0]
    mean_S = waveform_SC.mean(axis=1)
    energy_C = np.square(waveform_SC, dtype=np.float64).sum(axis=0)
    if np.square(mean_S, dtype=np.float64).sum() >= CANCELLED_ENERGY * energy_C.max():
        return mean_S
    loudest = int(energy_C.argmax())
    if energy_C.max() > 0:
        log.warning("%s: its channels cancel each other; channel %d is used alone", path, loudest + 1)
    return np.ascontiguousarray(waveform_SC[:, loudest])


def _read_twice(read: Callable[[_Source], _Found], path: Path | str) -> _Found:
    """Return read(path); before that is called damaged, read the file plainly and try it on its bytes.

    libsndfile takes a read that fails for the end of the file. Raises OSError naming the file where that is
    the reason still; where it has passed, nothing was wrong. What is not a regular file (a pipe) can be read
    only once, so its bytes are.
    """
    if Path(path).is_fifo():
        return read(io.BytesIO(Path(path).read_bytes()))
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
        _check_size(sound, source, path)
        num_promised, rate = sound.frames, sound.samplerate
        if num_promised >= _UNKNOWN_LENGTH:
            return np.concatenate(list(_read_blocks(sound, path))), rate
        try:
            waveform_SC = sound.read(num_promised, dtype="float32", always_2d=True)
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


def _read_blocks(sound: soundfile.SoundFile, path: Path | str) -> Iterator[np.ndarray]:
    """Yield [S, C] float32 until the file ends: the way where its header does not know the length."""
    num_read = 0
    try:
        while len(block_SC := sound.read(BLOCK_SAMPLES, dtype="float32", always_2d=True)):
            num_read += len(block_SC)
            yield block_SC
    except soundfile.LibsndfileError as error:
        raise _damaged(path, f"decoding fails: {error.error_string}") from None
    if num_read == 0:
        raise AudioError("an empty recording", where=path, remedy="record it again or leave it out")


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


class _Sound(soundfile.SoundFile):
    """A file that is read forwards only: soundfile would seek after each block, which some formats refuse."""

    def seekable(self) -> bool:
        """Return False."""
        return False


def _open_sound(source: _Source, path: Path | str) -> soundfile.SoundFile:
    try:
        sound = _Sound(source if isinstance(source, io.BytesIO) else os.fspath(source))
        if sound.format == "MP3" and not _counts_frames(source):
            sound.close()
            sound = _Sound(_make_pipe(_read_bytes(source)))
        elif sound.format in _WAV_FORMATS and sound.frames == 0:
            sound.close()
            sound = _Sound(io.BytesIO(_fill_in_wav_size(_read_bytes(source))))
    except (soundfile.LibsndfileError, TypeError) as error:
        raise _explain_unopened(path, error) from None
    if sound.frames > 0:
        return sound
    sound.close()
    raise AudioError("an empty recording", where=path, remedy="record it again or leave it out")


def _read_bytes(source: _Source) -> bytes:
    return source.getvalue() if isinstance(source, io.BytesIO) else Path(source).read_bytes()


def _counts_frames(source: _Source) -> bool:
    """Say whether an MP3's first frame tells how many there are."""
    with io.BytesIO(source.getvalue()) if isinstance(source, io.BytesIO) else Path(source).open("rb") as file:
        head = file.read(10)
        is_tagged = head.startswith(b"ID3") and len(head) == 10
        file.seek(10 + sum((head[6 + k] & 0x7F) << 7 * (3 - k) for k in range(4)) if is_tagged else 0)
        first = file.read(_MP3_SEARCH_BYTES)
    return any(mark in first for mark in _MP3_COUNTS)


def _make_pipe(content: bytes) -> int:
    """Return the end of a pipe from which these bytes can be read: libsndfile then decodes to the end.

    In a file it believes a length guessed from the first frame's bit rate.
    """
    read_end, write_end = os.pipe()

    def feed() -> None:
        with contextlib.suppress(BrokenPipeError), open(write_end, "wb") as file:  # noqa: PTH123 - a descriptor
            file.write(content)

    threading.Thread(target=feed, daemon=True).start()
    return read_end


def _fill_in_wav_size(content: bytes) -> bytes:
    """Return a WAV file whose data chunk says 0 bytes with the size that is there."""
    position = 12
    while position + 8 <= len(content):
        name, size = struct.unpack_from("<4sI", content, position)
        position += 8
        if name == b"data":
            there = min(len(content) - position, _MIN_UNKNOWN_WAV_SIZE)
            return content[: position - 4] + struct.pack("<I", there) + content[position:]
        position += size + size % 2
    return content


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


def _check_size(sound: soundfile.SoundFile, source: _Source, path: Path | str) -> None:
    """Raise AudioError for a file cut short, where its header shows it; libsndfile reads what is left."""
    if sound.format not in (*_WAV_FORMATS, "RF64", "W64", "AIFF", "AU"):
        return
    with io.BytesIO(source.getvalue()) if isinstance(source, io.BytesIO) else Path(path).open("rb") as file:
        file_size = file.seek(0, os.SEEK_END)
        file.seek(0)
        promised = _promised_size(file, file_size)
    if promised is not None and promised > file_size:
        raise _damaged(path, f"its header says {promised} bytes, {file_size} are there")


def _promised_size(file: BinaryIO, file_size: int) -> int | None:
    """Return the size that a file's own header gives it, in bytes; None where it gives none."""
    head = file.read(40)
    match head[:4]:
        case b"RIFF":
            return _promised_wav_size(file, file_size)
        case b"RF64" | b"BW64" if head[12:16] == b"ds64":
            return int.from_bytes(head[20:28], "little") + 8
        case b"riff":  # W64: a GUID of 16 bytes, then the size of everything
            return int.from_bytes(head[16:24], "little")
        case b"FORM":  # AIFF
            return int.from_bytes(head[4:8], "big") + 8
        case b".snd":  # AU: where the data begin, and how many bytes they are
            size = int.from_bytes(head[8:12], "big")
            return None if size == 0xFFFFFFFF else int.from_bytes(head[4:8], "big") + size
    return None


def _promised_wav_size(file: BinaryIO, file_size: int) -> int | None:
    position = 12
    while position + 8 <= file_size:
        file.seek(position)
        name, size = struct.unpack("<4sI", file.read(8))
        position += 8
        if name == b"data":
            return None if size >= _MIN_UNKNOWN_WAV_SIZE else position + size
        position += size + size % 2
    return None


def _damaged(path: Path | str, reason: str) -> AudioError:
    return AudioError(f"a damaged recording ({reason})", where=path, remedy="copy or encode it again")
