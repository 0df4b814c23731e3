"""Corpora as other tools write them are imported completely, and unusable entries are named."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import soundfile

from tests.support.speech import make_speech
from vox.cli import main
from vox.corpus import read_split
from vox.units import SAMPLE_RATE

Row = tuple[str, str, str, str, str | None]


def write_audio(*paths: Path, seconds: int = 2) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, make_speech(seconds * SAMPLE_RATE, 0), SAMPLE_RATE)


def take_over(source: Path, root: Path) -> tuple[list[Row], dict[str, str]]:
    """Import, read the new split, and return its rows and the excluded entries."""
    assert main(["corpus", "import", str(source), "--split", "new", "--root", str(root)]) == 0
    utterances, problems = read_split(root, "new")
    assert problems == []
    rows = [
        (u.id, u.audio_path.name, u.text, u.speaker, None if u.segment is None else str(u.segment))
        for u in utterances
    ]
    path = root / "new.left-out.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    return rows, {line.split("\t")[0]: line.split("\t")[1] for line in lines}


def write_lines(path: Path, rows: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def test_kaldi_with_segments(tmp_path: Path) -> None:
    folder = tmp_path / "recipe" / "data" / "train"
    write_audio(tmp_path / "recipe" / "wav" / "talk.wav", tmp_path / "other.wav")
    write_lines(
        folder / "wav.scp",
        ["talk wav/talk.wav", f"other {tmp_path}/other.wav", "pipe flac -c -d -s x.flac |", "gone /no/x.wav"],
    )
    write_lines(
        folder / "segments",
        [
            "a-1 talk 0.00 0.75",
            "a-2 talk 0.75 -1",
            "b-1 other 0.5 1.25",
            "p pipe 0 1",
            "n talk 1",
            "g gone 0 1",
        ],
    )
    write_lines(folder / "text", ["a-1 ONE TWO", "a-2 THREE", "b-1 GO", "p GO", "n GO", "g GO", "z GO"])
    write_lines(folder / "utt2spk", ["a-1 anna", "a-2 anna", "b-1 bert"])
    rows, left_out = take_over(folder, tmp_path / "data")
    assert rows == [
        ("a-1", "talk.wav", "one two", "anna", "0.0+0.75"),
        ("a-2", "talk.wav", "three", "anna", "0.75+"),
        ("b-1", "other.wav", "go", "bert", "0.5+0.75"),
    ]
    assert left_out == {
        "p": "wav.scp has a command, not a file",
        "n": "a malformed line in segments: talk 1",
        "g": "no such recording: /no/x.wav",
        "z": "text without a segment",
    }


def test_kaldi_without_segments(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav")
    write_lines(tmp_path / "k" / "wav.scp", [f"a {tmp_path}/a.wav"])
    write_lines(tmp_path / "k" / "text", ["a GO"])
    assert take_over(tmp_path / "k", tmp_path / "data") == ([("a", "a.wav", "go", "", None)], {})


def test_nemo(tmp_path: Path) -> None:
    write_audio(tmp_path / "x" / "a.wav", tmp_path / "long.wav")
    rows = [
        {"audio_filepath": "x/a.wav", "duration": 2.0, "text": "one"},
        {"audio_filepath": "long.wav", "duration": 0.5, "text": "two", "offset": 1.0, "speaker": "s"},
        {"audio_filepath": "long.wav", "duration": 0.5, "text": "three"},
        {"audio_filepath": "x/a.wav", "text": "it costs 5", "duration": 1, "offset": 0.5},
        {"audio_filepath": "x/a.wav", "duration": 1},
        {"audio_filepath": "gone.wav", "text": "go"},
        "[1]",
    ]
    write_lines(tmp_path / "train.json", rows)
    taken, left_out = take_over(tmp_path / "train.json", tmp_path / "data")
    assert taken == [
        ("long-000000-000500", "long.wav", "three", "", "0.0+0.5"),
        ("long-001000-001500", "long.wav", "two", "s", "1.0+0.5"),
        ("x-a-000000-002000", "a.wav", "one", "", "0.0+2.0"),
    ]
    assert set(left_out) == {"x/a.wav", "train.json line 5", "gone.wav", "train.json line 7"}
    assert "write numbers as words, or " in left_out["x/a.wav"]


def test_a_duration_alone_is_the_whole_recording_s(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav")
    write_lines(tmp_path / "m.jsonl", [{"audio_filepath": "a.wav", "duration": 1.99, "text": "go"}])
    assert take_over(tmp_path / "m.jsonl", tmp_path / "data")[0] == [("a", "a.wav", "go", "", None)]


def recording(path: Path, channels: int = 1, **more: Any) -> dict[str, Any]:
    """Return a recording's entry as lhotse writes it."""
    source = {"type": "file", "channels": list(range(channels)), "source": str(path)}
    facts = {"sampling_rate": 16000, "num_samples": 32000, "duration": 2.0}
    return {"id": path.stem, "sources": [source], **facts, "channel_ids": list(range(channels)), **more}


def supervision(name: str, of: str, start: float, duration: float, **more: Any) -> dict[str, Any]:
    """Return a supervision's entry as lhotse writes it."""
    facts = {"channel": 0, "text": "GO", "language": "English", "speaker": "s1"}
    return {"id": name, "recording_id": of, "start": start, "duration": duration, **facts, **more}


def test_lhotse_cuts(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav")
    mono = recording(tmp_path / "a.wav")
    cut = {"start": 0.5, "duration": 1.5, "channel": 0, "recording": mono, "type": "MonoCut"}
    two = [supervision("s1", "a", 0.1, 0.2), supervision("s2", "a", 0.5, 0.9, text=None)]
    fast = {**mono, "transforms": [{"name": "Speed", "kwargs": {"factor": 1.1}}]}
    memory = {**mono, "sources": [{"type": "memory", "channels": [0], "source": "AAAA"}]}
    rows = [
        {"id": "c1", **cut, "supervisions": two},
        {"id": "c2", "tracks": [], "type": "MixedCut"},
        {"id": "c3", **cut, "supervisions": []},
        {"id": "c4", **cut, "recording": fast, "supervisions": [supervision("s4", "a", 0.0, 1.0)]},
        {"id": "c5", **cut, "recording": memory, "supervisions": [supervision("s5", "a", 0.0, 1.0), "?"]},
    ]
    write_lines(tmp_path / "l" / "cuts_train.jsonl.gz", rows)
    taken, left_out = take_over(tmp_path / "l" / "cuts_train.jsonl.gz", tmp_path / "data")
    assert (taken, left_out) == take_over(tmp_path / "l", tmp_path / "from-the-folder")
    assert taken == [("s1", "a.wav", "go", "s1", "0.6+0.2")]
    assert left_out == {
        "s2": "no text",
        "c2": "a MixedCut: it is no part of one recording",
        "c3": "a cut without a supervision",
        "s4": "its recording is transformed (speed, volume, …)",
        "s5": "its recording is a memory, not a file",
        "a supervision": "a malformed supervision",
    }


def test_lhotse_recordings_and_supervisions(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav", tmp_path / "b.wav")
    recordings = [recording(tmp_path / "a.wav"), recording(tmp_path / "b.wav", 2)]
    rows = [
        supervision("whole", "a", 0.0, 2.0),
        supervision("left", "b", 0.0, 1.0),
        supervision("right", "b", 0.0, 1.0, channel=1),
        supervision("both", "b", 1.0, 1.0, channel=[0, 1]),
        supervision("lost", "c", 0.0, 1.0),
    ]
    write_lines(tmp_path / "l" / "x_recordings_train.jsonl.gz", recordings)
    write_lines(tmp_path / "l" / "x_supervisions_train.jsonl.gz", rows)
    taken, left_out = take_over(tmp_path / "l", tmp_path / "data")
    assert taken == [
        ("left", "b.wav", "go", "s1", "0.0+1.0@0"),
        ("right", "b.wav", "go", "s1", "0.0+1.0@1"),
        ("whole", "a.wav", "go", "s1", None),
    ]
    assert set(left_out) == {"both", "lost"}


def test_common_voice(tmp_path: Path) -> None:
    write_audio(tmp_path / "clips" / "common_voice_en_1.mp3", tmp_path / "clips" / "common_voice_en_2.mp3")
    columns = "client_id\tpath\tsentence\tup_votes\tdown_votes\tage\tgender\taccents\tlocale\tsegment"
    rows = [
        'c0ffee\tcommon_voice_en_1.mp3\t"Go" left, he said.\t2\t0\t\t\t\ten\t',
        "beef\tcommon_voice_en_2.mp3\tStop!\t2\t0\ttwenties\tmale\t\ten\t",
        "beef\tcommon_voice_en_3.mp3\tStop!\t2\t0\t\t\t\ten\t",
    ]
    write_lines(tmp_path / "train.tsv", [columns, *rows])
    taken, left_out = take_over(tmp_path / "train.tsv", tmp_path / "data")
    assert taken == [
        ("common_voice_en_1", "common_voice_en_1.mp3", "go left he said", "c0ffee", None),
        ("common_voice_en_2", "common_voice_en_2.mp3", "stop", "beef", None),
    ]
    assert set(left_out) == {"common_voice_en_3.mp3"}


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "mine.csv"])
def test_hugging_face_audio_folder(tmp_path: Path, name: str) -> None:
    write_audio(tmp_path / "hf" / "x" / "a.wav", tmp_path / "hf" / "y" / "a.wav")
    rows = [("x/a.wav", "Go, left"), ("y/a.wav", "stop"), ("y/b.wav", "stop")]
    if name.endswith(".csv"):
        lines: list[Any] = ["file_name,transcription", *(f'{name},"{text}"' for name, text in rows)]
    else:
        lines = [{"file_name": name, "transcription": text} for name, text in rows]
    write_lines(tmp_path / "hf" / name, lines)
    source = tmp_path / "hf" / name if name.startswith("mine") else tmp_path / "hf"
    taken, left_out = take_over(source, tmp_path / "data")
    assert taken == [("x-a", "a.wav", "go left", "", None), ("y-a", "a.wav", "stop", "", None)]
    assert set(left_out) == {"y/b.wav"}


def test_a_folder_of_recordings_and_texts(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    write_audio(folder / "anna" / "a.wav", folder / "anna" / "b.flac", folder / "c.WAV")
    write_lines(folder / "anna" / "a.txt", ["Go", "left"])
    write_lines(folder / "c.lab", ["STOP"])
    write_lines(folder / "readme.txt", ["about"])
    taken, left_out = take_over(folder, tmp_path / "data")
    assert taken == [("anna-a", "a.wav", "go left", "anna", None), ("c", "c.WAV", "stop", "", None)]
    assert left_out == {
        "anna/b.flac": "a recording without a text",
        "readme.txt": "a text without a recording",
    }


def test_texts_of_a_folder_may_have_suffixes_in_capitals(tmp_path: Path) -> None:
    write_audio(tmp_path / "f" / "a.WAV", tmp_path / "f" / "b.wav")
    write_lines(tmp_path / "f" / "a.TXT", ["GO"])
    write_lines(tmp_path / "f" / "b.Lab", ["STOP"])
    write_lines(tmp_path / "f" / "c.TXT", ["about"])
    write_lines(tmp_path / "f" / "a.lab", ["LEFT"])
    taken, left_out = take_over(tmp_path / "f", tmp_path / "data")
    assert [row[:3] for row in taken] == [("a", "a.WAV", "go"), ("b", "b.wav", "stop")]
    assert left_out == {"a.lab": "a second text of its recording", "c.TXT": "a text without a recording"}


def test_texts_that_are_not_utf8_are_left_out_and_listed(tmp_path: Path) -> None:
    folder, librispeech = tmp_path / "f", tmp_path / "l"
    write_audio(folder / "a.wav", folder / "b.wav", librispeech / "1" / "a.wav", librispeech / "2" / "b.wav")
    write_lines(folder / "a.txt", ["GO"])
    (folder / "b.txt").write_bytes("caf\xe9".encode("latin-1"))
    taken, left_out = take_over(folder, tmp_path / "data")
    assert ([row[0] for row in taken], left_out) == (
        ["a"],
        {"b.wav": f"not UTF-8 text: {folder / 'b.txt'}; convert it to UTF-8"},
    )
    write_lines(librispeech / "1" / "1.trans.txt", ["a GO"])
    (librispeech / "2" / "2.trans.txt").write_bytes("b caf\xe9".encode("latin-1"))
    taken, left_out = take_over(librispeech, tmp_path / "data-l")
    assert [row[0] for row in taken] == ["a"]
    assert left_out == {
        "2/2.trans.txt": f"not UTF-8 text: {librispeech / '2' / '2.trans.txt'}; convert it to UTF-8",
        "b": "a recording without a transcript: 2/b.wav",
    }


def test_a_folder_of_recordings_without_speech(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "musan"
    write_audio(folder / "noise" / "a.wav", folder / "music" / "b.flac")
    write_lines(folder / "music" / "b.txt", ["a song"])
    arguments = ["corpus", "import", str(folder), "--no-speech", "--split", "noise", "--root", str(tmp_path)]
    assert main(arguments) == 0
    assert "folder without speech: 1 utterance" in capsys.readouterr().out
    utterances, problems = read_split(tmp_path, "noise")
    assert problems == []
    assert [(u.id, u.text, u.speaker) for u in utterances] == [("noise-a", "", "")]
    left_out = (tmp_path / "noise.left-out.txt").read_text()
    assert left_out == "music/b.flac\ta text is beside it: remove the text if nothing is spoken\n"


def test_ids_stay_when_a_corpus_grows(tmp_path: Path) -> None:
    folder, talks = tmp_path / "f", tmp_path / "lists" / "talks.json"
    write_audio(folder / "anna" / "a.wav", folder / "b.wav", tmp_path / "wav" / "talk.wav")
    for path in (folder / "anna" / "a.txt", folder / "b.txt"):
        write_lines(path, ["GO"])
    rows = [
        {"audio_filepath": "../wav/talk.wav", "offset": start, "duration": 0.5, "text": "go"}
        for start in (1.0, 0.5)
    ]
    write_lines(talks, rows)
    before = [row[0] for source in (folder, talks) for row in take_over(source, tmp_path / source.name)[0]]
    assert before == ["anna-a", "b", "wav-talk-000500-001000", "wav-talk-001000-001500"]
    write_audio(folder / "bert" / "a.wav")
    write_lines(folder / "bert" / "a.txt", ["GO"])
    write_lines(talks, [{**rows[0], "offset": 0}, *rows])
    after = [
        row[0] for source in (folder, talks) for row in take_over(source, tmp_path / "2" / source.name)[0]
    ]
    assert set(after) == {*before, "bert-a", "wav-talk-000000-000500"}


def test_a_second_recording_of_an_id_is_left_out_and_listed(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    write_audio(folder / "x.flac", folder / "x.wav", folder / "a" / "b-c.wav", folder / "a-b" / "c.wav")
    for path in (folder / "x.txt", folder / "a" / "b-c.txt", folder / "a-b" / "c.txt"):
        write_lines(path, ["GO"])
    taken, left_out = take_over(folder, tmp_path / "data")
    assert [row[:2] for row in taken] == [("a-b-c", "b-c.wav"), ("x", "x.flac")]
    assert {Path(name).name: reason.split(":")[0] for name, reason in left_out.items()} == {
        "c.wav": f"its id a-b-c is also that of {folder / 'a' / 'b-c.wav'}",
        "x.wav": f"its id x is also that of {folder / 'x.flac'}",
    }


def test_librispeech_at_any_depth(tmp_path: Path) -> None:
    folder = tmp_path / "train"
    write_audio(folder / "7" / "1" / "7-1-0.flac", folder / "7" / "1" / "7-1-1.wav", folder / "9-0.flac")
    write_audio(folder / "7" / "1" / "7-1-3.wav", folder / "7" / "1" / "7-1-3.flac", folder / "8" / "8-0.wav")
    write_lines(folder / "7" / "1" / "7-1.trans.txt", ["7-1-0 GO LEFT", "7-1-2 STOP"])
    write_lines(folder / "7" / "1" / "more.trans.txt", ["7-1-3 GO"])
    write_lines(folder / "9.trans.txt", ["9-0 JUMP"])
    taken, left_out = take_over(folder, tmp_path / "data")
    assert taken == [("7-1-0", "7-1-0.flac", "go left", "7", None), ("9-0", "9-0.flac", "jump", "", None)]
    assert left_out == {
        "7-1-2": f"a transcript without a recording: {folder / '7' / '1' / '7-1.trans.txt'}",
        "7-1-1": "a recording without a transcript: 7/1/7-1-1.wav",
        "7-1-3": f"two recordings (7-1-3.flac and 7-1-3.wav): {folder / '7' / '1' / 'more.trans.txt'}",
        "8-0": "a recording without a transcript: 8/8-0.wav",
    }


def test_what_is_no_corpus_or_exists_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    write_lines(tmp_path / "cv" / "train.tsv", ["path\tsentence"])
    write_lines(tmp_path / "bad.tsv", ["path\ttext", "a\tb"])
    write_lines(tmp_path / "text.jsonl", [{"text": "go"}])
    (tmp_path / "latin.tsv").write_bytes(b"path\tsentence\nx\t\xff\n")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"id": 1}\n' * 999)[:40])
    expected = {
        "empty": "not a corpus that Vox knows",
        "cv": "give one of them, as",
        "bad.tsv": "its columns are path, text: there must be path, and one of sentence",
        "text.jsonl": "not a corpus that Vox knows",
        "latin.tsv": "not UTF-8 text",
        "cut.jsonl.gz": "a damaged gzip file",
        "nowhere": "no such file or folder",
    }
    for name, message in expected.items():
        command = [
            "corpus",
            "import",
            str(tmp_path / name),
            "--split",
            "new",
            "--root",
            str(tmp_path / "data"),
        ]
        assert main(command) == 2, name
        assert message in capsys.readouterr().err
    assert not (tmp_path / "data").exists()
    write_lines(tmp_path / "data" / "new.jsonl", [])
    assert main(command) == 2 and "the split exists" in capsys.readouterr().err


@pytest.mark.parametrize("root", ["/proc", "/proc/nowhere", "file/data"])
def test_a_root_that_cannot_be_written_is_named_as_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], root: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_audio(tmp_path / "f" / "a.wav")
    write_lines(tmp_path / "f" / "a.txt", ["GO"])
    (tmp_path / "file").touch()
    assert main(["corpus", "import", "f", "--split", "new", "--root", root]) == 2
    error = capsys.readouterr().err
    assert "cannot be written" in error and error.endswith(f": {root}; choose another --root\n")
