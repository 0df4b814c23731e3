"""The sizes that headers state, compared with what is in the file."""

import io
import os
import struct
from pathlib import Path
from typing import BinaryIO

import soundfile

from vox.errors import AudioError

# A WAV writer that cannot go back to fill in the size (it writes to a pipe) leaves 0, or one of several sizes
# of about 2 or 4 GB (0x7FFFF000, 2,000,000,000, 0x80000000, 0xFFFFFFFF): then the file's end is the end.
_MIN_UNKNOWN_WAV_SIZE = 2_000_000_000
WAV_FORMATS = ("WAV", "WAVEX")

Source = Path | str | io.BytesIO  # what is decoded: a file, or the bytes of one


def open_bytes(source: Source) -> BinaryIO:
    """Open a file to read its bytes. The position in bytes that came from a pipe stays where it is."""
    return io.BytesIO(source.getvalue()) if isinstance(source, io.BytesIO) else Path(source).open("rb")


def check_size(sound: soundfile.SoundFile, source: Source, path: Path | str) -> None:
    """Raise AudioError for a file cut short, where its header shows it; libsndfile reads what is left."""
    if sound.format not in (*WAV_FORMATS, "RF64", "W64", "AIFF", "AU"):
        return
    with open_bytes(source) as file:
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
    data = _find_wav_data(file, file_size)
    if data is None or data[1] >= _MIN_UNKNOWN_WAV_SIZE:
        return None
    return sum(data)


def _find_wav_data(file: BinaryIO, file_size: int) -> tuple[int, int] | None:
    """Return where a WAV file's samples begin, and how many bytes their chunk says they are."""
    position = 12
    while position + 8 <= file_size:
        file.seek(position)
        name, size = struct.unpack("<4sI", file.read(8))
        position += 8
        if name == b"data":
            return position, size
        position += size + size % 2
    return None


def fill_in_wav_size(content: bytes) -> bytes:
    """Return a WAV file with the size of its data filled in, which its header gives as 0.

    A file whose own size is right was finished: its recording is empty, and what follows is something else.
    """
    if struct.unpack_from("<I", content, 4)[0] + 8 == len(content):
        return content
    data = _find_wav_data(io.BytesIO(content), len(content))
    if data is None:
        return content
    start, _ = data
    there = min(len(content) - start, _MIN_UNKNOWN_WAV_SIZE)
    return content[: start - 4] + struct.pack("<I", there) + content[start:]


def name_damage(path: Path | str, reason: str) -> AudioError:
    """Return the error for a recording of which a part is missing or wrong."""
    return AudioError(f"a damaged recording ({reason})", where=path, remedy="copy or encode it again")
