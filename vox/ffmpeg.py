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
    """Return a file's first audio stream as an AU file of float32 samples, with its own rate and channels.

    AU, because a WAV file from a pipe ends at 4 GB for its readers. Raises AudioError if there is no ffmpeg,
    if it fails or reports an error in the file, and if it takes longer than FFMPEG_SECONDS. It reports no
    error for a Matroska file (.webm, .mkv, .mka) that is cut short.
    """
    program = shutil.which("ffmpeg")
    if program is None:
        remedy = "install ffmpeg, or convert it to FLAC or WAV"
        raise AudioError(f"{path.suffix.lower()} needs ffmpeg, which is not here", where=path, remedy=remedy)
    # `file:` keeps a name with a colon from being taken for a protocol; -xerror: an error ends it.
    command = [program, "-v", "error", "-nostdin", "-xerror", "-protocol_whitelist", "file,pipe"]
    command += ["-i", f"file:{path}", "-map", "0:a:0", "-c:a", "pcm_f32be", "-f", "au", "pipe:1"]
    try:
        # In a session of its own: Ctrl-C would end it, and the recording would seem to be damaged.
        done = subprocess.run(
            command, capture_output=True, timeout=FFMPEG_SECONDS, check=False, start_new_session=True
        )
    except subprocess.TimeoutExpired:
        raise _fail(path, f"it took longer than {FFMPEG_SECONDS:.0f} s") from None
    if done.returncode or not done.stdout:
        errors = done.stderr.decode(errors="replace").strip()
        if not errors or "matches no streams" in errors:
            errors = "it has no audio"
        raise _fail(path, errors.splitlines()[0].strip())
    return done.stdout


def _fail(path: Path, reason: str) -> AudioError:
    return AudioError(f"ffmpeg cannot decode it ({reason})", where=path, remedy="convert it to FLAC or WAV")
