"""Recordings: their headers and their samples, converted to 16 kHz mono.

Shape suffixes: S samples, C channels.
"""

import contextlib
import errno
import hashlib
import io
import logging
import mmap
import os
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import soundfile

from vox.disk import hash_file
from vox.errors import AudioError, VoxError
from vox.ffmpeg import FFMPEG_SUFFIXES, decode_by_ffmpeg
from vox.resample import resample, resampled_length, resampling_rates
from vox.segment import WHOLE, Segment

log = logging.getLogger(__name__)

# What libsndfile reports where a header leaves the length open (a FLAC written to a pipe).
UNKNOWN_LENGTH = 2**62
BLOCK_SAMPLES = 2**20  # decoded at a time where the length is not known

# The first frame of an MP3 that counts its frames holds one of these; else the length is a guess.
_MP3_COUNTS = (b"Xing", b"Info", b"VBRI")
_MP3_SEARCH_BYTES = 8192

# Codings in which a sample does not depend on those before it (a FLAC file's are PCM as well).
_EXACTLY_SEEKABLE = frozenset(
    "PCM_S8 PCM_U8 PCM_16 PCM_24 PCM_32 FLOAT DOUBLE ULAW ALAW".split()  # noqa: SIM905
)

# Telephones have 8,000. A damaged header may have 1: at 16 kHz a small file would be hours.
MIN_SAMPLE_RATE = 1_000

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

Source = Path | str | io.BytesIO  # what is decoded: a file, or the bytes of one
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


def read_audio(path: Path | str, speed: float = 1.0, segment: Segment | None = None) -> np.ndarray:
    """Decode a recording to float32 [S], 16 kHz mono: channels averaged, other rates resampled.

    A segment is cut out first: the samples are those of a file that holds nothing else. Where its format can
    seek without loss (PCM, FLAC), nothing before it is decoded.

    Of channels that cancel each other (one is another's negative) the loudest is taken, with a warning.

    speed: of playing it, as a tape's: 1.1 is 1.1 times faster, shorter, and higher in pitch.

    S is `read_header(path, speed, segment).num_samples`. Raises AudioError if the file is missing,
    unreadable or empty, does not hold the segment, holds fewer samples than its header says, or holds NaN or
    infinite samples. What is not the file's fault (a disk or a network that fails, too many open files) is an
    OSError, and too little memory a VoxError.
    """
    try:
        return _read_audio(path, speed, segment or WHOLE)
    except MemoryError:
        remedy = "take fewer --workers, or leave this recording out"
        raise VoxError("too little memory to decode a recording", where=path, remedy=remedy) from None


def _read_audio(path: Path | str, speed: float, segment: Segment) -> np.ndarray:
    waveform_SC, rate = read_twice(lambda source: _decode(source, path, segment), path)
    if segment.channel is None:
        waveform_S = _mix_channels(waveform_SC, path)
    else:
        waveform_S = np.ascontiguousarray(waveform_SC[:, segment.channel])
    if not np.isfinite(waveform_S).all():
        raise AudioError("samples that are NaN or infinite", where=path, remedy="write the file again")
    return resample(waveform_S, *resampling_rates(rate, speed))


def read_channels(path: Path | str, segment: Segment | None = None) -> tuple[np.ndarray, int]:
    """Decode a recording or a segment as it is: float32 [S, C], and its rate. Raises as `read_audio`."""
    return read_twice(lambda source: _decode(source, path, segment or WHOLE), path)


def hash_recording(path: Path, segment: Segment | None = None) -> str:
    """Return the sha256 of a recording's file, as hex; empty where there is none that may be read.

    A segment's is the sha256 of its file's and of the segment. The file of many segments is hashed once as
    long as its size and time stay the same. Raises OSError naming it where that is not the file's fault.
    """
    try:
        if segment is None:
            return hash_file(path)
        status = path.stat()
        sha256 = _hash_file_once(path, status.st_size, status.st_mtime_ns)
        return hashlib.sha256(f"{sha256} {segment}".encode()).hexdigest()
    except OSError as error:
        if error.errno in _MENDABLE_ERRNOS:
            return ""
        raise OSError(error.errno, error.strerror, str(path)) from None


@lru_cache(maxsize=64)
def _hash_file_once(path: Path, num_bytes: int, mtime_ns: int) -> str:
    return hash_file(path)


def channels_cancel(waveform_SC: np.ndarray) -> bool:
    """Say whether the mean of channels [S, C] loses nearly all that is in them: one is another's negative.

    The mean of unrelated channels has their summed energy over the square of their number.
    """
    mixed = np.square(waveform_SC.mean(axis=1), dtype=np.float64).sum()
    energy = np.square(waveform_SC, dtype=np.float64).sum()
    return bool(mixed < CANCELLED_ENERGY * energy / waveform_SC.shape[1] ** 2)


def _mix_channels(waveform_SC: np.ndarray, path: Path | str) -> np.ndarray:
    """Return the mean of the channels, or the loudest where the mean would cancel it."""
    if waveform_SC.shape[1] == 1:
        return waveform_SC[:, 0]
    if not channels_cancel(waveform_SC):
        return waveform_SC.mean(axis=1)
    loudest = int(np.square(waveform_SC, dtype=np.float64).sum(axis=0).argmax())
    log.warning(
        "%s: its channels cancel each other; channel %d (counted from 0) is used alone", path, loudest
    )
    return np.ascontiguousarray(waveform_SC[:, loudest])


def read_twice(read: Callable[[Source], _Found], path: Path | str) -> _Found:
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
        if _is_for_ffmpeg(path):
            raise  # ffmpeg reads the file itself
        try:
            content = io.BytesIO(Path(path).read_bytes())
        except OSError as error:
            if error.errno not in _MENDABLE_ERRNOS:
                raise OSError(error.errno, error.strerror, os.fspath(path)) from None
            content = None
        if content is None:
            raise
        return read(content)


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
        if count > MAX_SAMPLES_PER_BYTE * _count_bytes(source):
            raise name_damage(path, f"its header promises {count} samples, too many to hold")
        blocks = list(read_blocks(sound, path, start, count, block_samples=count))
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks), rate


def read_blocks(
    sound: soundfile.SoundFile,
    path: Path | str,
    start: int = 0,
    count: int | None = None,
    block_samples: int | None = None,
) -> Iterator[np.ndarray]:
    """Yield blocks, [S, C] float32, of so many samples from a start on; of all that come for None.

    Nothing before the start is decoded where the format can seek without loss. block_samples: at most in a
    block; None for BLOCK_SAMPLES. Raises AudioError if the samples end too early, or cannot be decoded.
    """
    size, num_read = block_samples or BLOCK_SAMPLES, 0
    try:
        if start and sound.subtype in _EXACTLY_SEEKABLE:
            sound.seek(start)
        elif start:
            for _ in read_blocks(sound, path, count=start):
                pass
        while count is None or num_read < count:
            num_wanted = size if count is None else min(size, count - num_read)
            block_SC = sound.read(num_wanted, dtype="float32", always_2d=True)
            if len(block_SC) == 0:
                break
            num_read += len(block_SC)
            yield block_SC
    except soundfile.LibsndfileError as error:
        raise name_damage(path, f"decoding fails: {error.error_string}") from None
    if count is not None and num_read < count:
        reason = f"its header says {sound.frames} samples, {start + num_read} can be decoded"
        raise name_damage(path, reason)
    if num_read == 0:
        raise AudioError("an empty recording", where=path, remedy="record it again or leave it out")


class _Sound(soundfile.SoundFile):
    """A file that is read forwards only: soundfile would seek after each block, which some formats refuse."""

    def seekable(self) -> bool:
        """Return False."""
        return False


def open_sound(source: Source, path: Path | str) -> soundfile.SoundFile:
    """Open a recording to be read forwards. Raises AudioError if it is unreadable or empty."""
    try:
        sound = _Sound(source if isinstance(source, io.BytesIO) else os.fsencode(source))
        if sound.format == "MP3" and not _counts_frames(source):
            sound.close()
            sound = _Sound(_make_pipe(_read_bytes(source)))
        elif sound.format in _WAV_FORMATS and sound.frames == 0:
            sound.close()
            sound = _Sound(io.BytesIO(_fill_in_wav_size(_read_bytes(source))))
    except (soundfile.LibsndfileError, TypeError) as error:
        trouble = _explain_unopened(source, path, error)
        if not isinstance(error, soundfile.LibsndfileError) or not _is_for_ffmpeg(path):
            raise trouble from None
        decoded = decode_by_ffmpeg(Path(path))
        # A map of its own for each reader: they share the file, not the position in it.
        sound = _Sound(mmap.mmap(decoded.fileno(), 0, access=mmap.ACCESS_READ))
    if sound.frames > 0 and sound.samplerate >= MIN_SAMPLE_RATE:
        return sound
    rate, num_samples = sound.samplerate, sound.frames
    sound.close()
    if num_samples > 0:
        raise AudioError(
            f"a sample rate of {rate} Hz, too low for speech", where=path, remedy="correct the file's header"
        )
    raise AudioError("an empty recording", where=path, remedy="record it again or leave it out")


def _is_for_ffmpeg(path: Path | str) -> bool:
    """Say whether a file that libsndfile cannot open has a format that ffmpeg reads."""
    path = Path(path)
    return path.suffix.lower() in FFMPEG_SUFFIXES and path.is_file() and path.stat().st_size > 0


def _read_bytes(source: Source) -> bytes:
    return source.getvalue() if isinstance(source, io.BytesIO) else Path(source).read_bytes()


def _count_bytes(source: Source) -> int:
    return source.getbuffer().nbytes if isinstance(source, io.BytesIO) else Path(source).stat().st_size


def _counts_frames(source: Source) -> bool:
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
    """Return a WAV file whose data chunk says 0 bytes with the size that is there.

    A file whose own size is right was finished: its recording is empty, and what follows is something else.
    """
    if struct.unpack_from("<I", content, 4)[0] + 8 == len(content):
        return content
    position = 12
    while position + 8 <= len(content):
        name, size = struct.unpack_from("<4sI", content, position)
        position += 8
        if name == b"data":
            there = min(len(content) - position, _MIN_UNKNOWN_WAV_SIZE)
            return content[: position - 4] + struct.pack("<I", there) + content[position:]
        position += size + size % 2
    return content


def _explain_unopened(source: Source, path: Path | str, error: Exception) -> AudioError:
    """Find the operating system's reason, which libsndfile reports as `System error.`."""
    try:
        # Bytes that came from a pipe cannot be read from there again.
        with source if isinstance(source, io.BytesIO) else Path(path).open("rb") as file:
            if file.seek(0, os.SEEK_END) == 0:
                return AudioError("an empty file", where=path, remedy="record it again or leave it out")
    except FileNotFoundError:
        return AudioError("no such recording", where=path, remedy="correct the path")
    except OSError as os_error:
        return AudioError(f"a recording that cannot be opened ({os_error.strerror})", where=path)
    reason = error.error_string if isinstance(error, soundfile.LibsndfileError) else str(error)
    return AudioError(f"not a readable recording ({reason})", where=path, remedy="convert it to FLAC or WAV")


def check_size(sound: soundfile.SoundFile, source: Source, path: Path | str) -> None:
    """Raise AudioError for a file cut short, where its header shows it; libsndfile reads what is left."""
    if sound.format not in (*_WAV_FORMATS, "RF64", "W64", "AIFF", "AU"):
        return
    with io.BytesIO(source.getvalue()) if isinstance(source, io.BytesIO) else Path(path).open("rb") as file:
        file_size = file.seek(0, os.SEEK_END)
        file.seek(0)
        promised = _promised_size(file, file_size)
    if promised is not None and promised > file_size:
        raise name_damage(path, f"its header says {promised} bytes, {file_size} are there")


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


def name_damage(path: Path | str, reason: str) -> AudioError:
    """Return the error for a recording of which a part is missing or wrong."""
    return AudioError(f"a damaged recording ({reason})", where=path, remedy="copy or encode it again")
