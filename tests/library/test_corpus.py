"""Splits: both layouts, and every problem with the utterance's name."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.support.speech import make_speech, write_split
from vox.audio import read_audio
from vox.corpus import LIBRISPEECH_SPLITS, load_split, probe_audio, read_split
from vox.download import librispeech_checksums
from vox.errors import CorpusError
from vox.units import SAMPLE_RATE


def write_audio(path: Path, num_samples: int = 8000, rate: int = SAMPLE_RATE, channels: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples_SC = np.repeat(make_speech(num_samples, 0)[:, None], channels, axis=1)
    soundfile.write(path, samples_SC, rate)


def write_chapter(root: Path, lines: list[str], audio_names: list[str], chapter: str = "1") -> Path:
    chapter_dir = root / "LibriSpeech" / "s" / "7" / chapter
    for name in audio_names:
        write_audio(chapter_dir / name)
    (chapter_dir / f"7-{chapter}.trans.txt").write_text("".join(f"{line}\n" for line in lines))
    return chapter_dir


def write_manifest(root: Path, entries: list[dict[str, Any] | str]) -> None:
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
    (root / "s.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def problems_of(root: Path) -> dict[str, str]:
    _, problems = read_split(root, "s")
    assert len({problem.name for problem in problems}) == len(problems)
    return {problem.name: problem.reason for problem in problems}


def test_librispeech_layout_is_read_sorted_and_normalised(tmp_path: Path) -> None:
    write_chapter(
        tmp_path, ["7-2-0001 GO LEFT", "7-2-0000 DON'T  STOP\r"], ["7-2-0000.flac", "7-2-0001.wav"], "2"
    )
    chapter_dir = write_chapter(tmp_path, ["7-1-0000\tUP"], ["7-1-0000.flac"], "1")
    (chapter_dir / "._7-1-0000.flac").write_bytes(b"left by macOS")
    (chapter_dir / "notes.txt").write_text("not a transcript")
    utterances, problems = read_split(tmp_path, "s")
    assert problems == []
    assert [(u.id, u.text, u.speaker, u.audio_path.name, u.num_samples) for u in utterances] == [
        ("7-1-0000", "up", "7", "7-1-0000.flac", None),
        ("7-2-0000", "don't stop", "7", "7-2-0000.flac", None),
        ("7-2-0001", "go left", "7", "7-2-0001.wav", None),
    ]


def test_recordings_are_found_at_any_depth_and_in_any_format(tmp_path: Path) -> None:
    split_dir = tmp_path / "LibriSpeech" / "s"
    for name in ("1/1-1-0.flac", "2/a/b/2-1-0.ogg", "3-1-0.wav"):
        write_audio(split_dir / name)
        path = split_dir / name
        (path.parent / f"{path.stem[:3]}.trans.txt").write_text(f"{path.stem} GO\n")
    (split_dir / "2" / "a" / "up").symlink_to("..")  # no end of folders
    write_audio(split_dir / "4" / "lost.flac")
    utterances, problems = read_split(tmp_path, "s")
    assert [(u.id, u.speaker) for u in utterances] == [("1-1-0", "1"), ("2-1-0", "2"), ("3-1-0", "")]
    assert [problem.name for problem in problems] == ["lost"]


def test_a_recording_under_several_texts_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_audio(tmp_path / "a.wav")
    write_manifest(tmp_path, [{"audio": "a.wav", "text": text, "id": text} for text in ("go", "stop")])
    with caplog.at_level("WARNING"):
        load_split(tmp_path, "s")
    assert f"more than one text for 1 recording: {tmp_path / 'a.wav'}" in caplog.text


@pytest.mark.parametrize("key", ["start", "end", "channel_selector", "speed"])
def test_what_a_manifest_asks_for_and_vox_does_not_do_is_refused(tmp_path: Path, key: str) -> None:
    write_audio(tmp_path / "a.wav")
    write_manifest(tmp_path, [{"audio": "a.wav", "text": "go", key: 2}])
    assert f"`{key}` is not understood" in problems_of(tmp_path)["s.jsonl line 1"]


def test_a_manifest_with_the_keys_of_nemo_is_read(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav")
    write_manifest(tmp_path, [{"audio_filepath": "a.wav", "text": "go", "duration": 0.5, "offset": 0}])
    assert [utterance.audio_path for utterance in read_split(tmp_path, "s")[0]] == [tmp_path / "a.wav"]


def test_probing_fills_in_the_lengths_that_decoding_returns(tiny_root: Path) -> None:
    utterances = load_split(tiny_root, "train-tiny")
    assert len(utterances) == 12
    for utterance in utterances:
        assert utterance.num_samples == len(read_audio(utterance.audio_path))


def test_librispeech_problems_are_named(tmp_path: Path) -> None:
    lines = [
        "7-1-0000 GO",
        "7-1-0001",
        "7-1-0002 GO 2",
        "7-1-0003 NO AUDIO",
        "7-1-0005 TWICE",
        "7-1-0005 TWICE",
    ]
    names = [f"7-1-000{i}.flac" for i in (0, 1, 2, 4, 5, 6)]
    chapter_dir = write_chapter(tmp_path, [*lines, "7-1-0006 WHICH"], [*names, "7-1-0006.wav"])
    (chapter_dir / "old.trans.txt").write_bytes(b"7-1-0007 \xff\xfe")
    found = problems_of(tmp_path)
    transcript_file = str(chapter_dir / "old.trans.txt")
    assert set(found) == {*(f"7-1-000{i}" for i in (1, 2, 3, 4, 5, 6)), transcript_file}
    assert found["7-1-0001"] == "empty transcript"
    assert "write numbers as words" in found["7-1-0002"]
    assert "transcript without audio" in found["7-1-0003"]
    assert "audio without transcript" in found["7-1-0004"]
    assert found["7-1-0005"] == "the id occurs 2 times"
    assert "two recordings (7-1-0006.flac and 7-1-0006.wav)" in found["7-1-0006"]
    assert "not UTF-8" in found[transcript_file]
    assert [u.id for u in read_split(tmp_path, "s")[0]] == ["7-1-0000"]


def test_an_id_in_two_chapters_is_used_in_neither(tmp_path: Path) -> None:
    write_chapter(tmp_path, ["a GO", "b GO"], ["a.flac", "b.flac"], "1")
    write_chapter(tmp_path, ["a STOP"], ["a.flac"], "2")
    assert problems_of(tmp_path) == {"a": "the id occurs 2 times"}
    assert [u.id for u in read_split(tmp_path, "s")[0]] == ["b"]


def test_manifest_is_read_with_its_defaults(tmp_path: Path) -> None:
    write_audio(tmp_path / "clips" / "x.wav")
    write_audio(tmp_path / "elsewhere" / "y.flac")
    write_manifest(
        tmp_path,
        [
            {"audio": "clips/x.wav", "text": "Caf\u00e9, please!", "speaker": 12, "id": None},
            "",
            {"audio": str(tmp_path / "elsewhere" / "y.flac"), "text": "go", "id": "first", "more": [1]},
        ],
    )
    utterances, problems = read_split(tmp_path, "s")
    assert problems == []
    assert [(u.id, u.text, u.speaker) for u in utterances] == [
        ("first", "go", ""),
        ("x", "cafe please", "12"),
    ]
    assert utterances[1].audio_path == tmp_path / "clips" / "x.wav"
    assert [u.num_samples for u in probe_audio(utterances)[0]] == [8000, 8000]


def test_a_manifest_marks_recordings_without_speech(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav")
    lines: list[dict[str, object] | str] = [
        {"audio": "a.wav", "speech": False, "id": "noise"},
        {"audio": "a.wav", "speech": False, "text": "", "id": "music"},
        {"audio": "a.wav", "speech": True, "text": "go", "id": "spoken"},
        {"audio": "a.wav", "speech": None, "text": "go", "id": "unmarked"},
    ]
    write_manifest(tmp_path, lines)
    utterances, problems = read_split(tmp_path, "s")
    assert problems == []
    assert {u.id: u.text for u in utterances} == {"noise": "", "music": "", "spoken": "go", "unmarked": "go"}
    write_manifest(
        tmp_path,
        [{"audio": "a.wav", "speech": False, "text": "go"}, {"audio": "a.wav", "speech": "no", "text": "go"}],
    )
    found = problems_of(tmp_path)
    assert "`speech` is false, and `text` is not empty" in found["s.jsonl line 1"]
    assert "`speech` is not true or false" in found["s.jsonl line 2"]


def test_manifest_problems_are_named(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav")
    write_audio(tmp_path / "b" / "a.wav")
    write_manifest(
        tmp_path,
        [
            "{not json",
            "[1]",
            {"text": "no audio key"},
            {"audio": "a.wav"},
            {"audio": "a.wav", "text": 5},
            {"audio": "a.wav", "text": "go", "id": ""},
            {"audio": "gone.wav", "text": "go"},
            {"audio": "a.wav", "text": "go"},
            {"audio": "b/a.wav", "text": "stop"},
            {"audio": "a.wav", "text": " ", "id": "blank"},
            {"audio": "a.wav", "text": "fine", "id": "fine"},
        ],
    )
    found = problems_of(tmp_path)
    expected = {
        "s.jsonl line 1": "not JSON",
        "s.jsonl line 2": "a JSON array",
        "s.jsonl line 3": "no `audio`",
        "s.jsonl line 4": "no `text`",
        "s.jsonl line 5": "`text` is not a string",
        "s.jsonl line 6": "no `id`",
        "gone": "transcript without audio",
        "a": "the id occurs 2 times",
        "blank": "empty transcript",
    }
    assert set(found) == set(expected)
    for name, reason in expected.items():
        assert reason in found[name]
    assert [u.id for u in read_split(tmp_path, "s")[0]] == ["fine"]


def test_transcripts_are_enough_where_no_audio_is_needed(tmp_path: Path) -> None:
    chapter_dir = write_split(tmp_path, "s", 2)
    (chapter_dir / "7-1-0001.flac").rename(chapter_dir / "7-1-0009.flac")
    (tmp_path / "m.jsonl").write_text('{"audio": "gone.wav", "text": "five"}')
    utterances, problems = read_split(tmp_path, "s", needs_audio=False)
    assert [u.audio_path for u in utterances] == [chapter_dir / f"7-1-000{index}.flac" for index in (0, 1)]
    assert [problem.name for problem in problems] == ["7-1-0009"]  # audio without a transcript still is one
    assert [u.text for u in read_split(tmp_path, "m", needs_audio=False)[0]] == ["five"]


def test_probe_names_recordings_that_cannot_be_used(tmp_path: Path) -> None:
    names = [f"7-1-000{i}" for i in range(6)]
    chapter_dir = write_chapter(tmp_path, [f"{name} GO" for name in names], [f"{n}.flac" for n in names])
    write_audio(chapter_dir / f"{names[1]}.flac", 399)
    write_audio(chapter_dir / f"{names[2]}.flac", 400)
    (chapter_dir / f"{names[3]}.flac").write_bytes(b"")
    (chapter_dir / f"{names[4]}.flac").write_bytes(b"text")
    utterances, _ = read_split(tmp_path, "s")
    (chapter_dir / f"{names[5]}.flac").unlink()
    probed, problems = probe_audio(utterances, workers=3)
    assert [(u.id, u.num_samples) for u in probed] == [(names[0], 8000), (names[2], 400)]
    reasons = {problem.name: problem.reason for problem in problems}
    assert list(reasons) == [names[1], names[3], names[4], names[5]]
    expected = (
        "shorter than one frame: 399 samples of 400",
        "an empty file",
        "not a readable",
        "no such recording",
    )
    for reason, start in zip(reasons.values(), expected, strict=True):
        assert reason.startswith(start)


def test_load_split_refuses_or_skips_and_lists_every_problem(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chapter_dir = write_split(tmp_path, "s", 6)
    for index in range(5):
        (chapter_dir / f"7-1-000{index}.flac").write_bytes(b"")
    with pytest.raises(CorpusError) as refused:
        load_split(tmp_path, "s")
    message = str(refused.value)
    assert re.search(r"5 problems in split s: 7-1-0000 \(an empty file.* and 2 more; .*--skip-bad", message)
    assert len(load_split(tmp_path, "s", needs_audio=False)) == 6  # the text is fine, and no audio was opened
    left = load_split(tmp_path, "s", skip_bad=True)
    assert [u.id for u in left] == ["7-1-0005"]
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warnings[0] == "s: 5 problems; 1 utterance left"
    assert [line.split()[3].rstrip(":") for line in warnings[1:]] == [f"7-1-000{i}" for i in range(5)]
    (chapter_dir / "7-1-0005.flac").write_bytes(b"")
    with pytest.raises(CorpusError, match="nothing in split s can be used"):
        load_split(tmp_path, "s", skip_bad=True)


def test_conversions_are_said_once_with_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    write_audio(tmp_path / "a.wav", 22050, rate=22050, channels=2)
    write_audio(tmp_path / "b.wav", 8001, rate=8000)
    write_audio(tmp_path / "c.wav")
    texts = {"a": "Go, now!", "b": "GO  NOW", "c": "go now."}
    write_audio(tmp_path / "d.wav", channels=2)
    one_channel = {"audio": "d.wav", "text": "go now", "channel": 1}
    write_manifest(
        tmp_path, [one_channel, *({"audio": f"{name}.wav", "text": text} for name, text in texts.items())]
    )
    assert [u.num_samples for u in load_split(tmp_path, "s")] == [16000, 16002, 8000, 8000]
    assert [record.message for record in caplog.records] == [
        "s: 2 recordings resampled to 16000 Hz (from 8000 Hz, 22050 Hz)",
        "s: several channels read as one in 1 recording: their mean, or the loudest if they cancel",
        "s: punctuation or accents (text.alphabet=letters keeps accents) removed from 2 transcripts",
    ]
    caplog.clear()
    load_split(write_split(tmp_path, "plain", 2).parents[3], "plain")
    assert caplog.records == []


def test_missing_split_names_what_is_there_and_what_to_do(tmp_path: Path) -> None:
    write_split(tmp_path, "dev-here", 1)
    write_manifest(tmp_path, [])
    with pytest.raises(
        CorpusError, match=r"dev-here, s\).*`vox download --split dev-clean --root"
    ) as missing:
        read_split(tmp_path, "dev-clean")
    assert "\n" not in str(missing.value)
    with pytest.raises(CorpusError, match=r"run `vox download --split dev-clean`$"):
        read_split("data", "dev-clean")
    with pytest.raises(CorpusError, match=r"; did you mean dev-here\?$"):
        read_split(tmp_path, "dev-hear")
    with pytest.raises(CorpusError, match=r"; put it there, or make it with `vox corpus import`$"):
        read_split(tmp_path, "game")


def test_the_splits_of_librispeech_are_those_that_can_be_fetched() -> None:
    assert librispeech_checksums().keys() == LIBRISPEECH_SPLITS


def test_empty_split_is_an_error_in_both_layouts(tmp_path: Path) -> None:
    (tmp_path / "LibriSpeech" / "bare" / "7" / "1").mkdir(parents=True)
    write_manifest(tmp_path, ["", "  "])
    for split in ("bare", "s"):
        with pytest.raises(CorpusError, match=f"split {split} is empty"):
            read_split(tmp_path, split)


def test_a_split_in_both_layouts_is_refused(tmp_path: Path) -> None:
    write_split(tmp_path, "s", 1)
    write_manifest(tmp_path, [])
    with pytest.raises(CorpusError, match=r"split s exists twice.*rename one"):
        read_split(tmp_path, "s")


@pytest.mark.parametrize("split", ["", "..", "a/b", "/abs"])
def test_a_split_is_a_name_and_no_path(tmp_path: Path, split: str) -> None:
    with pytest.raises(CorpusError, match="not the name of a split"):
        read_split(tmp_path, split)


def test_manifest_names_that_cannot_be_written_down_are_problems(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav")
    ids = ["\ud800", "a\0b", "two\nlines", "\x1b[2J", "\u2028"]
    entries: list[dict[str, Any] | str] = [{"audio": "a.wav", "text": "go", "id": name} for name in ids]
    write_manifest(
        tmp_path, [*entries, "[" * 100_000, {"audio": "a.wav", "text": "go", "id": "Zo\u00eb \u4e2d"}]
    )
    found = problems_of(tmp_path)
    assert set(found) == {*map(ascii, ids), "s.jsonl line 6"}
    assert all("control characters" in found[ascii(name)] for name in ids)
    with pytest.raises(CorpusError) as caught:
        load_split(tmp_path, "s")
    str(caught.value).encode()
    assert "nested too deeply" in found["s.jsonl line 6"]
    assert [u.id for u in read_split(tmp_path, "s")[0]] == ["Zo\u00eb \u4e2d"]


def test_file_names_that_are_not_utf8_can_be_reported(tmp_path: Path) -> None:
    chapter_dir = write_chapter(tmp_path, ["a GO"], ["a.flac"])
    shutil.copy(chapter_dir / "a.flac", os.fsencode(chapter_dir) + b"/\xff.flac")
    ((name, reason),) = problems_of(tmp_path).items()
    assert name == "\\udcff" and "audio without transcript" in reason
    reason.encode()
