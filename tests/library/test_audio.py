"""Recordings: exact lengths, conversion, and every way in which a file can be bad."""

import os
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torchaudio
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.speech import make_speech
from vox.audio import read_audio, read_header
from vox.errors import AudioError
from vox.resample import interpolate
from vox.segment import Segment
from vox.units import SAMPLE_RATE

RATES = (7999, 8000, 11025, 16000, 22050, 24000, 44100, 44101, 48000)


@settings(deadline=None, max_examples=25)
@given(rate=st.sampled_from(RATES), num_samples=st.integers(1, 100_000))
# torchaudio's own length, rounded up in float32, is one short here: 90,569 x 320 / 441 = 65,719.002...
@example(rate=22050, num_samples=90_569)
def test_header_promises_exactly_what_decoding_returns(
    tmp_path_factory: pytest.TempPathFactory, rate: int, num_samples: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "length.wav"
    soundfile.write(path, np.zeros(num_samples, np.int16), rate)
    header = read_header(path)
    assert header.num_samples == -(-num_samples * SAMPLE_RATE // rate)
    assert read_audio(path).shape == (header.num_samples,)


@pytest.mark.parametrize("suffix", ["flac", "wav"])
def test_samples_at_16_khz_are_the_files_own(tmp_path: Path, suffix: str) -> None:
    samples_S = np.array([0, 1, -1, 32767, -32768] * 100, np.int16)
    soundfile.write(tmp_path / f"a.{suffix}", samples_S, SAMPLE_RATE)
    waveform_S = read_audio(tmp_path / f"a.{suffix}")
    assert waveform_S.dtype == np.float32
    np.testing.assert_array_equal(waveform_S, samples_S.astype(np.float32) / 32768)


def test_channels_are_averaged(tmp_path: Path) -> None:
    left_S, right_S = make_speech(1000, 0), make_speech(1000, 1)
    soundfile.write(tmp_path / "a.wav", np.stack([left_S, right_S], 1), SAMPLE_RATE, subtype="FLOAT")
    assert read_header(tmp_path / "a.wav").channels == 2
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav"), (left_S + right_S) / 2, atol=1e-7)


@pytest.mark.parametrize("rate", [8000, 22050, 48000, 7999, 44101, 100_003])
def test_resampling_keeps_a_tone_in_pitch_time_and_level(tmp_path: Path, rate: int) -> None:
    def tone(sample_rate: int) -> np.ndarray:
        time = np.arange(sample_rate) / sample_rate
        return (0.5 * np.sin(2 * np.pi * 1000 * time)).astype(np.float32)

    soundfile.write(tmp_path / "a.wav", tone(rate), rate, subtype="FLOAT")
    middle = slice(200, -200)  # the edges ring: there the filter sees zeros
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav")[middle], tone(SAMPLE_RATE)[middle], atol=5e-3)


@pytest.mark.parametrize("rate", [8000, 22050, 48000])
def test_interpolation_is_torchaudios_resampling(rate: int) -> None:
    waveform_S = make_speech(30_000, 5)
    expected_S = torchaudio.functional.resample(torch.from_numpy(waveform_S), rate, SAMPLE_RATE).numpy()
    np.testing.assert_allclose(interpolate(waveform_S, rate)[: len(expected_S)], expected_S, atol=5e-5)


@pytest.fixture(scope="module")
def flac_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("flac") / "a.flac"
    soundfile.write(path, make_speech(40_000, 3), SAMPLE_RATE)
    return path.read_bytes()


def flac_frame_starts(flac: bytes) -> list[int]:
    """Find the sync codes of FLAC frames that are followed by this file's own rate, size and channels."""
    first = flac.index(b"\xff\xf8")
    return [at for at in range(first, len(flac)) if flac[at : at + 4] == flac[first : first + 4]]


def test_flac_cut_anywhere_is_refused(tmp_path: Path, flac_bytes: bytes) -> None:
    boundaries = flac_frame_starts(flac_bytes)
    assert len(boundaries) >= 9  # 40,000 samples, 4,096 a frame
    cuts = [*boundaries, boundaries[4] + 1000, len(flac_bytes) // 2, len(flac_bytes) - 1]
    for cut in cuts:
        (tmp_path / "a.flac").write_bytes(flac_bytes[:cut])
        with pytest.raises(AudioError, match=r"damaged recording .*a\.flac"):
            read_audio(tmp_path / "a.flac")


def test_flac_with_a_flipped_byte_is_refused(tmp_path: Path, flac_bytes: bytes) -> None:
    damaged = bytearray(flac_bytes)
    damaged[len(damaged) // 2] ^= 0xFF
    (tmp_path / "a.flac").write_bytes(damaged)
    with pytest.raises(AudioError, match="damaged recording"):
        read_audio(tmp_path / "a.flac")


def test_flac_whose_header_promises_more_than_any_flac_holds_is_refused(
    tmp_path: Path, flac_bytes: bytes
) -> None:
    damaged = bytearray(flac_bytes)
    damaged[21:26] = bytes([damaged[21] | 0x0F]) + b"\xff" * 4  # 36 bits of STREAMINFO: the number of samples
    (tmp_path / "a.flac").write_bytes(damaged)
    with pytest.raises(AudioError, match=f"promises {2**36 - 1} samples, too many to hold"):
        read_audio(tmp_path / "a.flac")


def test_audio_that_decodes_without_error_to_too_little_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.mp3", make_speech(40_000, 3), SAMPLE_RATE)
    assert len(read_audio(tmp_path / "a.mp3")) == 40_000
    whole = (tmp_path / "a.mp3").read_bytes()
    (tmp_path / "a.mp3").write_bytes(whole[: len(whole) // 2])  # a format that ends wherever it is cut
    num_left = len(soundfile.read(tmp_path / "a.mp3")[0])
    assert 10_000 < num_left < 30_000
    for segment in (None, Segment(0.5), Segment(0.6, 1.4), Segment(2.2, 0.2)):  # some begin before the end
        reason = f"its header says 40000 samples, {num_left} can be decoded"
        with pytest.raises(AudioError, match=reason):
            read_audio(tmp_path / "a.mp3", segment=segment)


@pytest.mark.parametrize("kind", ["WAV", "WAVEX", "RF64", "W64", "AIFF", "AU"])
def test_a_file_cut_short_shows_in_its_header(tmp_path: Path, kind: str) -> None:
    soundfile.write(tmp_path / "a", make_speech(1000, 0), SAMPLE_RATE, format=kind, subtype="PCM_16")
    whole = (tmp_path / "a").read_bytes()
    (tmp_path / "cut").write_bytes(whole[:-2])
    for read in (read_header, read_audio):
        read(tmp_path / "a")
        sizes = rf"\(its header says {len(whole)} bytes, {len(whole) - 2} are there\): {tmp_path / 'cut'};"
        with pytest.raises(AudioError, match=sizes):
            read(tmp_path / "cut")


@pytest.mark.parametrize("size", [0, 2_000_000_000, 0x7FFFFF00, 0x80000000, 0xFFFFFFFF])
def test_wav_written_to_a_pipe_is_read_to_its_end(tmp_path: Path, size: int) -> None:
    """The sizes of RIFF and data were never filled in."""
    soundfile.write(tmp_path / "a.wav", make_speech(1000, 0), SAMPLE_RATE, subtype="PCM_16")
    piped = bytearray((tmp_path / "a.wav").read_bytes())
    piped[4:8] = piped[40:44] = struct.pack("<I", size)
    (tmp_path / "a.wav").write_bytes(piped)
    assert len(read_audio(tmp_path / "a.wav")) == read_header(tmp_path / "a.wav").num_samples == 1000


def test_an_empty_wav_with_something_behind_its_data_is_empty(tmp_path: Path) -> None:
    """The file's own size is right, so the writer finished it."""
    soundfile.write(tmp_path / "a.wav", np.zeros(0, np.int16), SAMPLE_RATE)
    content = (tmp_path / "a.wav").read_bytes() + b"iXML" + struct.pack("<I", 10_000) + bytes(10_000)
    (tmp_path / "a.wav").write_bytes(content[:4] + struct.pack("<I", len(content) - 8) + content[8:])
    with pytest.raises(AudioError, match="an empty recording"):
        read_header(tmp_path / "a.wav")


def test_a_pipe_without_audio_is_one_line(tmp_path: Path) -> None:
    """A pipe can be read only once: opening it again would block for ever."""
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=[b"no audio at all"])
    writer.start()
    with pytest.raises(AudioError, match="not a readable recording"):
        read_audio(tmp_path / "pipe")
    writer.join()


def test_an_mp3_that_does_not_count_its_frames_is_decoded_to_its_end(tmp_path: Path) -> None:
    """The first second has a high bit rate, so libsndfile guesses a quarter of the real length."""
    noise_S = np.random.default_rng(0).standard_normal(48_000).astype(np.float32) * 0.3
    quiet_S = np.zeros(144_000, np.float32)
    quiet_S[-8_000:] = make_speech(8_000, 0)
    path = tmp_path / "a.mp3"
    samples_S = np.concatenate([noise_S, quiet_S])
    soundfile.write(
        path, samples_S, SAMPLE_RATE, format="MP3", bitrate_mode="VARIABLE", compression_level=0.2
    )
    counted = path.read_bytes()
    assert len(read_audio(path)) == read_header(path).num_samples == 192_000
    mark = max(counted.find(b"Xing"), counted.find(b"Info"))
    path.write_bytes(b"ID3\x03\0\0\0\0\x02\0" + bytes(256) + counted[counted.find(counted[:2], mark) :])
    waveform_S = read_audio(path)
    assert len(waveform_S) == read_header(path).num_samples >= 192_000
    assert np.abs(waveform_S[-12_000:]).max() > 0.5 * np.abs(quiet_S).max()  # the end is there


def test_flac_without_a_length_is_decoded_to_its_end(tmp_path: Path, flac_bytes: bytes) -> None:
    (tmp_path / "a.flac").write_bytes(flac_bytes)
    (tmp_path / "b.flac").write_bytes(without_length(flac_bytes))
    assert read_header(tmp_path / "b.flac") == read_header(tmp_path / "a.flac")
    np.testing.assert_array_equal(read_audio(tmp_path / "b.flac"), read_audio(tmp_path / "a.flac"))


@pytest.mark.parametrize("subtype", ["GSM610", "ULAW", "IMA_ADPCM"])
def test_codecs_of_telephones_are_read(tmp_path: Path, subtype: str) -> None:
    soundfile.write(tmp_path / "a.wav", make_speech(8_000, 0), 8_000, subtype=subtype)
    waveform_S = read_audio(tmp_path / "a.wav")
    assert len(waveform_S) == read_header(tmp_path / "a.wav").num_samples >= 16_000
    assert np.abs(waveform_S).max() > 0


def test_a_pipe_is_read_once(tmp_path: Path, flac_bytes: bytes) -> None:
    (tmp_path / "a.flac").write_bytes(flac_bytes)
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=[flac_bytes])
    writer.start()
    np.testing.assert_array_equal(read_audio(tmp_path / "pipe"), read_audio(tmp_path / "a.flac"))
    writer.join()


def test_channels_that_cancel_each_other_are_not_mixed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    left_S, other_S = make_speech(8_000, 0), make_speech(8_000, 1)
    path = tmp_path / "a.wav"
    soundfile.write(path, np.stack([left_S, -0.9 * left_S], 1), SAMPLE_RATE, subtype="FLOAT")
    with caplog.at_level("WARNING"):
        np.testing.assert_allclose(read_audio(path), left_S, atol=1e-6)
    assert "a.wav: its channels cancel each other; channel 0 (counted from 0) is used alone" in caplog.text
    soundfile.write(path, np.stack([left_S, other_S], 1), SAMPLE_RATE, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(path), (left_S + other_S) / 2, atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rate", [SAMPLE_RATE, 8000])
def test_samples_that_are_not_finite_are_refused(tmp_path: Path, bad: float, rate: int) -> None:
    samples_S = make_speech(1000, 0)
    samples_S[500] = bad
    soundfile.write(tmp_path / "a.wav", samples_S, rate, subtype="FLOAT")
    with pytest.raises(AudioError, match="NaN or infinite"):
        read_audio(tmp_path / "a.wav")


def without_length(flac: bytes) -> bytes:
    """Zero the 36 bits of a FLAC header that count the samples, as an encoder on a pipe leaves them."""
    changed = bytearray(flac)
    changed[21] &= 0xF0
    changed[22:26] = bytes(4)
    return bytes(changed)


def test_a_rate_that_no_speech_has_is_refused(tmp_path: Path) -> None:
    """Converted to 16 kHz, these 4,000 samples would be 64 million: found by damaging headers at random."""
    soundfile.write(tmp_path / "a.wav", np.full(4_000, 0.1), 1)
    for read in (read_header, read_audio):
        with pytest.raises(AudioError, match="a sample rate of 1 Hz"):
            read(tmp_path / "a.wav")


def test_a_name_that_is_not_utf_8_is_read(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.full(4_000, 0.1), SAMPLE_RATE)
    path = (tmp_path / "a.wav").rename(tmp_path / os.fsdecode(b"caf\xe9.wav"))
    assert read_header(path).num_samples == len(read_audio(path)) == 4_000


def test_files_without_audio_are_named(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "no_samples.wav", np.zeros(0, np.int16), SAMPLE_RATE)
    (tmp_path / "no_bytes.flac").touch()
    (tmp_path / "text.flac").write_text("not audio at all, but long enough to look")
    (tmp_path / "folder.wav").mkdir()
    reasons = {
        "no_samples.wav": "an empty recording",
        "no_bytes.flac": "an empty file",
        "text.flac": "not a readable recording",
        "folder.wav": "cannot be opened",
        "nowhere.flac": "no such recording",
    }
    for name, reason in reasons.items():
        for read in (read_header, read_audio):
            with pytest.raises(AudioError, match=f"{reason}.*{name}"):
                read(tmp_path / name)


def test_torch_is_not_imported_for_16_khz(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", make_speech(1000, 0), SAMPLE_RATE)
    program = (
        "import sys; from vox.audio import read_audio; read_audio(sys.argv[1]); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "a.wav")], check=True)
