"""Long recordings in a temporary file: the samples of `read_audio`, and nothing left behind.

S samples, C channels.
"""

import logging
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile

import vox.audio.mapped
import vox.audio.sound_file
import vox.resample
from vox.audio import read_audio
from vox.audio.mapped import map_audio
from vox.errors import AudioError
from vox.resample import resample, resample_blocks
from vox.units import SAMPLE_RATE


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Make a second of audio long, and return the folder for temporary files."""
    monkeypatch.setattr(vox.audio.sound_file, "BLOCK_SAMPLES", 5_000)
    monkeypatch.setattr(vox.resample, "BLOCK_SAMPLES", 7_000)
    monkeypatch.setattr(vox.audio.mapped, "MAX_HELD_SAMPLES", 12_000)
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def make_channels(num_samples: int, channels: int) -> np.ndarray:
    """Return noise, float32 [S, C]."""
    return np.random.default_rng(0).uniform(-0.5, 0.5, (num_samples, channels)).astype(np.float32)


def is_mapped(waveform_S: np.ndarray) -> bool:
    """Say whether an array is a map of a file."""
    base = waveform_S
    while base is not None and not isinstance(base, np.memmap):
        base = base.base
    return base is not None


@pytest.mark.parametrize("rate", [SAMPLE_RATE, 8_000, 44_100, 48_000])
@pytest.mark.parametrize(("name", "channels"), [("a.wav", 1), ("a.flac", 2), ("cancelling.wav", 2)])
def test_a_long_recording_has_the_samples_of_read_audio(
    name: str, channels: int, rate: int, tmp_path: Path, small_blocks: Path, caplog: pytest.LogCaptureFixture
) -> None:
    waveform_SC = make_channels(2 * rate + 123, channels)
    if name == "cancelling.wav":
        waveform_SC[:, 1] = -0.9 * waveform_SC[:, 0]
    soundfile.write(tmp_path / name, waveform_SC, rate)
    with caplog.at_level(logging.WARNING):
        found_S = map_audio(tmp_path / name)
    assert len(caplog.records) == (name == "cancelling.wav")
    assert is_mapped(found_S) and found_S.dtype == np.float32
    assert np.array_equal(found_S, read_audio(tmp_path / name))
    assert not list(small_blocks.iterdir())  # the file has no name

    soundfile.write(tmp_path / name, waveform_SC[:5_000], rate)
    found_S = map_audio(tmp_path / name)
    assert not is_mapped(found_S) and np.array_equal(found_S, read_audio(tmp_path / name))


def test_a_pipe_whose_channels_cancel_is_read_once(tmp_path: Path) -> None:
    waveform_SC = make_channels(30_000, 1) * np.array([[1, -1]], np.float32)
    soundfile.write(tmp_path / "a.wav", waveform_SC, SAMPLE_RATE)
    os.mkfifo(tmp_path / "pipe")
    content = (tmp_path / "a.wav").read_bytes()
    threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(content,), daemon=True).start()
    assert np.array_equal(map_audio(tmp_path / "pipe"), read_audio(tmp_path / "a.wav"))


def test_damage_is_found_in_blocks(tmp_path: Path, small_blocks: Path) -> None:
    waveform_SC = make_channels(40_000, 1)
    waveform_SC[35_000] = np.nan
    soundfile.write(tmp_path / "nan.wav", waveform_SC, SAMPLE_RATE, subtype="FLOAT")
    with pytest.raises(AudioError, match="NaN or infinite"):
        map_audio(tmp_path / "nan.wav")
    soundfile.write(tmp_path / "cut.flac", make_channels(40_000, 1), SAMPLE_RATE)
    content = (tmp_path / "cut.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(content[: len(content) // 2])
    with pytest.raises(AudioError, match="a damaged recording"):
        map_audio(tmp_path / "cut.flac")
    soundfile.write(tmp_path / "cut.mp3", make_channels(40_000, 1), SAMPLE_RATE)
    content = (tmp_path / "cut.mp3").read_bytes()
    (tmp_path / "cut.mp3").write_bytes(content[: len(content) // 2])  # a format that ends wherever it is cut
    with pytest.raises(AudioError, match=r"its header says 40000 samples, \d+ can be decoded"):
        map_audio(tmp_path / "cut.mp3")
    assert not list(small_blocks.iterdir())


@pytest.mark.parametrize(
    ("from_rate", "to_rate"), [(44_100, 16_000), (8_000, 16_000), (48_000, 16_000), (44_101, 16_000)]
)
def test_resampled_blocks_are_the_resampled_whole(
    from_rate: int, to_rate: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    waveform_S = make_channels(100_003, 1)[:, 0]
    blocks = list(resample_blocks(waveform_S, from_rate, to_rate))
    assert len(blocks) >= 3
    monkeypatch.setattr(vox.resample, "BLOCK_SAMPLES", 10**9)
    whole_S = resample(waveform_S, from_rate, to_rate)
    assert len(np.concatenate(blocks)) == len(whole_S)
    assert np.abs(np.concatenate(blocks) - whole_S).max() <= 1e-6
