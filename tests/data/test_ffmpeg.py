"""Formats that only ffmpeg reads. The ffmpeg here is a script that copies a file to its output."""

import errno
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile

from vox.audio import read_audio, read_header
from vox.corpus import load_split
from vox.errors import AudioError, CorpusError
from vox.segment import Segment

RATE = 22_050


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """A file that libsndfile cannot read, with a name that looks like a protocol and an option."""
    path = tmp_path / "-i pipe:x.m4a"
    path.write_bytes(b"\0\0\0\x20ftypM4A " + bytes(100))
    return path


def install_ffmpeg(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Put a Python script named ffmpeg first on the PATH; `asked` is the file that it is to decode."""
    script = folder / "bin" / "ffmpeg"
    script.parent.mkdir()
    count = f"open({str(folder / 'calls')!r}, 'a').write('x')"
    asked = "asked = sys.argv[sys.argv.index('-i') + 1].removeprefix('file:')"
    script.write_text(f"#!{sys.executable}\nimport sys, time\n{count}\n{asked}\n{body}\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(script.parent))


def test_what_ffmpeg_decodes_is_read_as_any_recording(
    tmp_path: Path, recording: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples_SC = np.random.default_rng(0).uniform(-0.5, 0.5, (RATE, 2)).astype(np.float32)
    soundfile.write(tmp_path / "as.wav", samples_SC, RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "piped.au", samples_SC, RATE, subtype="FLOAT", format="AU", endian="BIG")
    content = bytearray((tmp_path / "piped.au").read_bytes())
    content[8:12] = b"\xff\xff\xff\xff"  # a pipe's size
    (tmp_path / "piped.au").write_bytes(content)
    body = f"open(asked); sys.stdout.buffer.write(open({str(tmp_path / 'piped.au')!r}, 'rb').read())"
    install_ffmpeg(tmp_path, monkeypatch, body)
    waveform_S = read_audio(recording)
    assert np.array_equal(waveform_S, read_audio(tmp_path / "as.wav"))
    header = read_header(recording)
    assert (header.num_samples, header.sample_rate, header.channels) == (len(waveform_S), RATE, 2)

    # Segments are read from what was decoded once, also by threads, until the recording changes.
    segments = [Segment(k / 10, 0.1, k % 2) for k in range(8)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda segment: read_audio(recording, segment=segment), segments))
    for segment, part_S in zip(segments, found, strict=True):
        assert np.array_equal(part_S, read_audio(tmp_path / "as.wav", segment=segment))
    assert (tmp_path / "calls").read_text() == "x"
    os.utime(recording, (1, 1))
    read_header(recording)
    assert (tmp_path / "calls").read_text() == "xx"
    os.utime(recording, (2, 2))
    with ThreadPoolExecutor(4) as pool:  # at once, with nothing decoded before
        list(pool.map(lambda segment: read_audio(recording, segment=segment), segments))
    assert (tmp_path / "calls").read_text() == "xxx"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("sys.stderr.write('moov atom not found\\n'); sys.exit(1)", "moov atom not found"),
        ("", "it has no audio"),
        ("time.sleep(60)", r"it took longer than 0 s"),
    ],
)
def test_what_ffmpeg_cannot_decode_is_one_line(
    tmp_path: Path, recording: Path, monkeypatch: pytest.MonkeyPatch, body: str, reason: str
) -> None:
    monkeypatch.setattr("vox.ffmpeg.FFMPEG_SECONDS", 0.3)
    install_ffmpeg(tmp_path, monkeypatch, body)
    with pytest.raises(AudioError, match=rf"ffmpeg cannot decode it \({reason}\).*x\.m4a"):
        read_audio(recording)
    assert (tmp_path / "calls").read_text() == "x"  # it is not tried again


def test_without_ffmpeg_it_is_named(tmp_path: Path, recording: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AudioError, match=r"\.m4a needs ffmpeg, which is not here.*install ffmpeg"):
        read_header(recording)
    folder = tmp_path / "LibriSpeech" / "own" / "1" / "1"
    folder.mkdir(parents=True)
    (folder / "1-1.trans.txt").write_text("1-1-0 GO\n")
    recording.rename(folder / "1-1-0.m4a")
    with pytest.raises(CorpusError, match=r"1-1-0 \(\.m4a needs ffmpeg.*install ffmpeg"):
        load_split(tmp_path, "own")


def test_ffmpeg_is_not_asked_about_a_damaged_flac(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would decode what is left of it, and the rest would be missing without a word."""
    install_ffmpeg(tmp_path, monkeypatch, "sys.exit('asked')")
    (tmp_path / "x.flac").write_bytes(b"fLaC" + bytes(100))
    with pytest.raises(AudioError, match="not a readable recording"):
        read_audio(tmp_path / "x.flac")


def test_a_full_disk_is_not_the_recordings_fault(
    tmp_path: Path, recording: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_ffmpeg(tmp_path, monkeypatch, "sys.exit('pipe:1: No space left on device')")
    with pytest.raises(OSError, match="No space left") as caught:
        read_audio(recording)
    assert caught.value.errno == errno.ENOSPC
