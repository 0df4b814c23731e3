"""Recordings that libsndfile does not read (M4A, WebM, video), decoded by ffmpeg where it is installed."""

import errno
import os
import shutil
import subprocess
import tempfile
import threading
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from vox.errors import AudioError

# Only these: of a damaged FLAC ffmpeg would decode what is left, and the rest would be missing unnoticed.
FFMPEG_SUFFIXES = frozenset(
    ".m4a .mp4 .m4b .aac .mov .webm .mkv .mka .wma .amr .3gp .ac3 .wv .ape".split()  # noqa: SIM905
)
FFMPEG_SECONDS = 600.0  # of decoding one recording; an hour of AAC takes about 10
MAX_DECODED = 2  # files kept, by each process; an hour of stereo at 48 kHz is 1.4 GB
_LOCKS = tuple(threading.Lock() for _ in range(16))


def decode_by_ffmpeg(path: Path) -> BinaryIO:
    """Return a file's first audio stream as an AU file of float32 samples, with its own rate and channels.

    The AU file has no name and lies in the folder for temporary files. Those of the last MAX_DECODED
    recordings are kept, so that many segments of one recording cost one run of ffmpeg. AU, because a WAV file
    from a pipe ends at 4 GB for its readers.

    Raises AudioError if there is no ffmpeg, if it fails or reports an error in the file, and if it takes
    longer than FFMPEG_SECONDS, and OSError if the disk is full. It reports no error for a Matroska file
    (.webm, .mkv, .mka) that is cut short.
    """
    status = path.stat()
    with _LOCKS[hash(path) % len(_LOCKS)]:  # threads that want one recording wait for one run of ffmpeg
        return _decode(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=MAX_DECODED)
def _decode(path: Path, num_bytes: int, mtime_ns: int) -> BinaryIO:
    program = shutil.which("ffmpeg")
    if program is None:
        remedy = "install ffmpeg, or convert it to FLAC or WAV"
        raise AudioError(f"{path.suffix.lower()} needs ffmpeg, which is not here", where=path, remedy=remedy)
    # `file:` keeps a name with a colon from being taken for a protocol; -xerror: an error ends it.
    command = [program, "-v", "error", "-nostdin", "-xerror", "-protocol_whitelist", "file,pipe"]
    command += ["-i", f"file:{path}", "-map", "0:a:0", "-c:a", "pcm_f32be", "-f", "au", "pipe:1"]
    decoded = tempfile.TemporaryFile()  # noqa: SIM115 - it stays open
    try:
        # In a session of its own: Ctrl-C would end it, and the recording would seem to be damaged.
        done = subprocess.run(
            command,
            stdout=decoded,
            stderr=subprocess.PIPE,
            timeout=FFMPEG_SECONDS,
            check=False,
            start_new_session=True,
        )
        if done.returncode or not os.fstat(decoded.fileno()).st_size:
            if b"No space left" in done.stderr:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), tempfile.gettempdir())
            raise _fail(path, _first_error(done.stderr))
    except subprocess.TimeoutExpired:
        decoded.close()
        raise _fail(path, f"it took longer than {FFMPEG_SECONDS:.0f} s") from None
    except BaseException:
        decoded.close()
        raise
    return decoded


def _first_error(stderr: bytes) -> str:
    errors = stderr.decode(errors="replace").strip()
    if not errors or "matches no streams" in errors:
        return "it has no audio"
    return errors.splitlines()[0].strip()


def _fail(path: Path, reason: str) -> AudioError:
    return AudioError(f"ffmpeg cannot decode it ({reason})", where=path, remedy="convert it to FLAC or WAV")
