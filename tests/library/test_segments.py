"""Segments: exactly the samples of the part, in every file format, and an error that names each wrong one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.speech import make_speech
from vox.audio import hash_recording, read_audio, read_header
from vox.corpus import load_split, probe_audio, read_split
from vox.errors import AudioError
from vox.segment import Segment, find_overlaps
from vox.units import SAMPLE_RATE


def write_long(path: Path, rate: int = SAMPLE_RATE, channels: int = 1, **how: Any) -> np.ndarray:
    """Write 3 s of speech, another in each channel; return it as it was coded, [S, C]."""
    speech_SC = np.stack([make_speech(3 * rate, seed) for seed in range(channels)], axis=1)
    soundfile.write(path, speech_SC, rate, **how)
    decoded_SC, _ = soundfile.read(path, dtype="float32", always_2d=True)
    return decoded_SC


@pytest.mark.parametrize("speed", [1.0, 1.1])
@pytest.mark.parametrize(
    ("name", "rate", "channels", "how"),
    [
        ("a.wav", 16_000, 1, {}),
        ("a.flac", 22_050, 2, {}),
        ("a.wav", 8_000, 1, {"subtype": "GSM610"}),
        ("a.ogg", 16_000, 1, {}),
        ("a.mp3", 16_000, 1, {}),
    ],
)
def test_a_segment_is_the_file_that_holds_nothing_else(
    tmp_path: Path, name: str, rate: int, channels: int, how: dict[str, str], speed: float
) -> None:
    whole_SC = write_long(tmp_path / name, rate, channels, **how)
    start, count = round(0.7 * rate), round(1.25 * rate)
    soundfile.write(tmp_path / "cut.wav", whole_SC[start : start + count], rate, subtype="FLOAT")
    segment = Segment(0.7, 1.25)
    samples_S = read_audio(tmp_path / name, speed, segment)
    # libmpg123 decodes one file twice with differences of 6e-8; everything else is exact.
    tolerance = 1e-6 if name.endswith("mp3") else 0
    np.testing.assert_allclose(samples_S, read_audio(tmp_path / "cut.wav", speed), rtol=0, atol=tolerance)
    assert len(samples_S) == read_header(tmp_path / name, speed, segment).num_samples


def test_a_channel_is_that_channel_and_a_segment_without_an_end_goes_to_the_file_s(tmp_path: Path) -> None:
    whole_SC = write_long(tmp_path / "a.wav", channels=2)
    samples_S = read_audio(tmp_path / "a.wav", segment=Segment(2.5, None, 1))
    np.testing.assert_array_equal(samples_S, whole_SC[40_000:, 1])


def test_nothing_before_a_segment_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    read = soundfile.SoundFile.read

    def count(self: soundfile.SoundFile, frames: int, **how: Any) -> np.ndarray:
        counts.append(frames)
        return read(self, frames, **how)

    write_long(tmp_path / "a.flac")
    monkeypatch.setattr(soundfile.SoundFile, "read", count)
    read_audio(tmp_path / "a.flac", segment=Segment(2.0, 0.5))
    assert counts == [8_000]


@pytest.mark.parametrize(
    ("segment", "reason"),
    [
        (Segment(2.0, 1.05), "a segment from 2 to 3.05 s in a recording of 3 s"),
        (Segment(3.0), "a segment from 3 to its end s in a recording of 3 s"),
        (Segment(1.0, 0.00001), "an empty segment"),
        (Segment(0.0, 1.0, 1), "no channel 1 in a recording of 1"),
    ],
)
def test_a_segment_that_is_not_in_its_file_is_refused(tmp_path: Path, segment: Segment, reason: str) -> None:
    write_long(tmp_path / "a.wav")
    for read in (read_header, read_audio):
        with pytest.raises(AudioError, match=reason):
            read(tmp_path / "a.wav", segment=segment)


def test_a_rounded_end_is_the_end_of_the_file(tmp_path: Path) -> None:
    write_long(tmp_path / "a.wav")
    assert len(read_audio(tmp_path / "a.wav", segment=Segment(2.5, 0.51))) == 8_000


def test_the_content_hash_of_a_segment_is_of_its_file_and_of_itself(tmp_path: Path) -> None:
    for name in ("a.wav", "b.wav"):
        write_long(tmp_path / name)
    one = hash_recording(tmp_path / "a.wav", Segment(0.5, 1.0))
    assert one == hash_recording(tmp_path / "b.wav", Segment(0.5, 1.0)) != hash_recording(tmp_path / "a.wav")
    others = [Segment(0.25, 1.0), Segment(0.5, 1.25), Segment(0.5), Segment(0.5, 1.0, 0)]
    assert len({one, *(hash_recording(tmp_path / "a.wav", other) for other in others)}) == 5
    soundfile.write(tmp_path / "a.wav", make_speech(50_000, 9), SAMPLE_RATE)
    assert hash_recording(tmp_path / "a.wav", Segment(0.5, 1.0)) != one


def write_manifest(root: Path, entries: list[dict[str, Any]]) -> None:
    (root / "s.jsonl").write_text("".join(f"{json.dumps({'text': 'go', **entry})}\n" for entry in entries))


def test_segments_of_a_manifest_are_numbered_and_probed(tmp_path: Path) -> None:
    write_long(tmp_path / "talk.wav", channels=2)
    write_long(tmp_path / "one.wav")
    write_manifest(
        tmp_path,
        [
            {"audio": "talk.wav", "offset": 1, "duration": 1.5},
            {"audio": "talk.wav", "duration": 1},
            {"audio": "talk.wav", "offset": 2.5, "id": "end"},
            {"audio": "one.wav", "duration": 3.0, "offset": None, "channel": None},
        ],
    )
    utterances, problems = probe_audio(load_split(tmp_path, "s"))
    assert problems == []
    assert [(u.id, str(u.segment), u.num_samples) for u in utterances] == [
        ("end", "2.5+", 8_000),
        ("one", "0.0+3.0", 48_000),
        ("talk-0000", "1.0+1.5", 24_000),
        ("talk-0001", "0.0+1.0", 16_000),
    ]


def test_wrong_segments_are_problems_by_name(tmp_path: Path) -> None:
    for name in ("a.wav", "b.wav", "c.wav"):
        write_long(tmp_path / name)
    write_manifest(
        tmp_path,
        [
            {"audio": "a.wav", "offset": -1.0},
            {"audio": "a.wav", "offset": "1"},
            {"audio": "a.wav", "duration": float("nan")},
            {"audio": "a.wav", "duration": 0},
            {"audio": "a.wav", "channel": True},
            {"audio": "https://example.org/a.wav"},
            {"audio": "b.wav", "id": "b0", "duration": 2.0},
            {"audio": "b.wav", "id": "b1", "offset": 1.5, "duration": 1.0},
            {"audio": "c.wav", "id": "c0", "duration": 2.0},
            {"audio": "c.wav", "id": "c1", "offset": 1.8, "duration": 1.0},
        ],
    )
    utterances, problems = read_split(tmp_path, "s")
    assert [u.id for u in utterances] == ["c0", "c1"]  # 0.2 s is a margin
    expected = {
        "s.jsonl line 1": "`offset` is not a number of seconds",
        "s.jsonl line 2": "`offset` is not a number of seconds",
        "s.jsonl line 3": "`duration` is not a number of seconds",
        "s.jsonl line 4": "an empty segment",
        "s.jsonl line 5": "`channel` is not the number of a channel",
        "s.jsonl line 6": "`audio` is an address",
        "b0": "overlaps b1 (0.50 s)",
        "b1": "overlaps b0 (0.50 s)",
    }
    assert {problem.name for problem in problems} == set(expected)
    for problem in problems:
        assert expected[problem.name] in problem.reason


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 20), st.one_of(st.none(), st.integers(1, 8)), st.sampled_from([None, None, 0, 1])
        ),
        max_size=6,
    )
)
def test_segments_overlap_as_a_comparison_of_all_pairs_finds(
    rows: list[tuple[int, int | None, int | None]],
) -> None:
    """A pair is found if and only if one exists, and every found pair overlaps."""
    segments = [
        (str(index), Segment(offset / 2, None if duration is None else duration / 2, channel))
        for index, (offset, duration, channel) in enumerate(rows)
    ]
    pairs = {
        frozenset((one, other))
        for one, a in segments
        for other, b in segments
        if one != other
        and min(a.end, b.end) - max(a.offset, b.offset) > 0.25
        and (a.channel is None or b.channel is None or a.channel == b.channel)
    }
    found = {frozenset(pair[:2]) for pair in find_overlaps(segments)}
    assert found <= pairs and bool(found) == bool(pairs)
    # Of each that overlaps one before it, one is found: with those left out, none overlaps.
    bad = {name for pair in found for name in pair}
    assert not any(pair.isdisjoint(bad) for pair in pairs)
