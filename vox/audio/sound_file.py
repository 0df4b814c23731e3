"""A recording's file, opened and decoded by libsndfile, or by ffmpeg before it.

Shape suffixes: S samples, C channels.
"""

import contextlib
import errno
import io
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import soundfile

from vox.audio.header_sizes import WAV_FORMATS, Source, fill_in_wav_size, name_damage, open_bytes
from vox.errors import AudioError
from vox.ffmpeg import FFMPEG_SUFFIXES, decode_by_ffmpeg

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

# Of a file that is missing or not readable: the corpus's fault, and so an AudioError. Any other
# error of the operating system says nothing about the recording.
UNUSABLE_FILE_ERRNOS = {
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EACCES,
    errno.EPERM,
    errno.ELOOP,
    errno.ENAMETOOLONG,
}

_Found = TypeVar("_Found")


def read_twice(read: Callable[[Source], _Found], path: Path | str) -> _Found:
    """Return read(path); if it raises AudioError, try again with the file's bytes.

    libsndfile mistakes a read that fails for the end of the file, so a faulty disk looks like a damaged
    recording. If the fault is still there, the second try raises OSError, which names the file; if it has
    passed, the recording is fine. A pipe can be read only once: its bytes are read at the start.
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
            if error.errno not in UNUSABLE_FILE_ERRNOS:
                raise OSError(error.errno, error.strerror, os.fspath(path)) from None
            content = None
        if content is None:
            raise
        return read(content)


def read_blocks(
    sound: soundfile.SoundFile,
    path: Path | str,
    start: int = 0,
    count: int | None = None,
    block_samples: int | None = None,
) -> Iterator[np.ndarray]:
    """Yield `count` samples from `start` on, in blocks of float32 [S, C]. count: None for all to the end.

    What is before the start is decoded only in formats that cannot seek exactly. block_samples: the most in a
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


def check_finite(waveform_SC: np.ndarray, path: Path | str) -> None:
    """Raise AudioError if a sample is NaN or infinite."""
    if not np.isfinite(waveform_SC).all():
        raise AudioError("samples that are NaN or infinite", where=path, remedy="write the file again")


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
        elif sound.format in WAV_FORMATS and sound.frames == 0:
            sound.close()
            sound = _Sound(io.BytesIO(fill_in_wav_size(_read_bytes(source))))
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


def count_bytes(source: Source) -> int:
    """Return how many bytes a file has."""
    return source.getbuffer().nbytes if isinstance(source, io.BytesIO) else Path(source).stat().st_size


def _counts_frames(source: Source) -> bool:
    """Say whether an MP3's first frame tells how many there are."""
    with open_bytes(source) as file:
        head = file.read(10)
        is_tagged = head.startswith(b"ID3") and len(head) == 10
        file.seek(10 + sum((head[6 + k] & 0x7F) << 7 * (3 - k) for k in range(4)) if is_tagged else 0)
        first = file.read(_MP3_SEARCH_BYTES)
    return any(mark in first for mark in _MP3_COUNTS)


def _make_pipe(content: bytes) -> int:
    """Return the end of a pipe from which these bytes can be read: libsndfile then decodes to the end.

    Of a file it uses a length that it guesses from the first frame's bit rate.
    """
    read_end, write_end = os.pipe()

    def feed() -> None:
        with contextlib.suppress(BrokenPipeError), open(write_end, "wb") as file:  # noqa: PTH123 - a descriptor
            file.write(content)

    threading.Thread(target=feed, daemon=True).start()
    return read_end


def _explain_unopened(source: Source, path: Path | str, error: Exception) -> AudioError:
    """Find the operating system's reason, which libsndfile reports as `System error.`."""
    try:
        with open_bytes(source) as file:
            if file.seek(0, os.SEEK_END) == 0:
                return AudioError("an empty file", where=path, remedy="record it again or leave it out")
    except FileNotFoundError:
        return AudioError("no such recording", where=path, remedy="correct the path")
    except OSError as os_error:
        return AudioError(f"a recording that cannot be opened ({os_error.strerror})", where=path)
    reason = error.error_string if isinstance(error, soundfile.LibsndfileError) else str(error)
    return AudioError(f"not a readable recording ({reason})", where=path, remedy="convert it to FLAC or WAV")
