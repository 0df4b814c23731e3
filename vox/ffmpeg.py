"""Recordings that libsndfile does not read (M4A, WebM, video), decoded by ffmpeg where it is installed."""

import shutil
import subprocess
from pathlib import Path

from vox.errors import AudioError

# Only these: of a damaged FLAC ffmpeg would decode what is left, and the rest would be missing unnoticed.
FFMPEG_SUFFIXES = frozenset(
    ".m4a .mp4 .m4b .aac .mov .webm .mkv .mka .wma .amr .3gp .ac3 .wv .ape".split()  # noqa: SIM905
)
FFMPEG_SECONDS = 600.0  # of decoding one recording; an hour of AAC takes about 10


def decode_by_ffmpeg(path: Path) -> bytes:
    """Return a file's first audio stream as a WAV file of float32 samples, with its own rate and channels.

    Raises AudioError where there is no ffmpeg, where it fails or finds an error in the file, and where it
    takes longer than FFMPEG_SECONDS.
    """
    program = shutil.which("ffmpeg")
    if program is None:
        remedy = "install ffmpeg, or convert it to FLAC or WAV"
        raise AudioError(f"{path.suffix.lower()} needs ffmpeg, which is not here", where=path, remedy=remedy)
    # `file:` keeps a name with a colon from being taken for a protocol; -xerror: an error ends it.
    command = [program, "-v", "error", "-nostdin", "-xerror", "-protocol_whitelist", "file,pipe"]
    command += ["-i", f"file:{path}", "-map", "0:a:0", "-c:a", "pcm_f32le", "-f", "wav", "pipe:1"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=FFMPEG_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise _fail(path, f"it took longer than {FFMPEG_SECONDS:.0f} s") from None
    if done.returncode or not done.stdout:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise _fail(path, lines[-1].strip() if lines else "it found no audio")
    return done.stdout


def _fail(path: Path, reason: str) -> AudioError:
    return AudioError(f"ffmpeg cannot decode it ({reason})", where=path, remedy="convert it to FLAC or WAV")
