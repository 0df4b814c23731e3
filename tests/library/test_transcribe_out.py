"""`vox transcribe --out`: files instead of the standard output, and going on after a kill."""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click
import pytest
import soundfile

import vox.long.recognise
import vox.transcribe
from tests.support.speech import make_speech
from tests.support.untrained import make_tokenizer, save_arbitrary_checkpoint
from vox.cli import main
from vox.commands.transcribe import plan_outputs
from vox.decode.found import Found, find_nothing
from vox.decode.hypothesis import Hypothesis
from vox.errors import VoxError
from vox.partial import PartialFile
from vox.units import SAMPLE_RATE

Transcribe = Callable[..., int]


@pytest.fixture(scope="module")
def checkpoint(tiny_wavlm_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a checkpoint with arbitrary outputs that depend on the audio."""
    return save_arbitrary_checkpoint(tmp_path_factory.mktemp("run") / "arbitrary", tiny_wavlm_dir)


@pytest.fixture
def talk(tmp_path: Path) -> Path:
    """Write a recording of three windows and several pieces."""
    soundfile.write(tmp_path / "talk.wav", make_speech(20 * SAMPLE_RATE, 1), SAMPLE_RATE)
    return tmp_path / "talk.wav"


@pytest.fixture
def transcribe(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Transcribe:
    """Return a function that runs `vox transcribe` with pieces of at most 3 s."""
    monkeypatch.setattr(vox.transcribe, "DEFAULT_LONGEST_SAMPLES", 3 * SAMPLE_RATE)
    options = ["--checkpoint", str(checkpoint), "--device", "cpu", "--format", "json"]
    return lambda *arguments: main(["transcribe", *map(str, arguments), *options])


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the first frame of every piece that is decoded."""
    first_frames: list[int] = []
    decode = vox.long.recognise._decode_piece
    monkeypatch.setattr(
        vox.long.recognise, "_decode_piece", lambda *a: first_frames.append(a[-1]) or decode(*a)
    )
    return first_frames


def stop_after(num_pieces: int, stop: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Call `stop` when so many pieces are written."""
    left = [num_pieces]
    add = PartialFile.add

    def add_and_stop(self: PartialFile, piece: Found) -> None:
        add(self, piece)
        left[0] -= 1
        if left[0] == 0:
            stop()

    monkeypatch.setattr(PartialFile, "add", add_and_stop)


def interrupt() -> None:
    """Do what Ctrl-C does."""
    raise KeyboardInterrupt


@pytest.mark.parametrize(("decoder", "num_pieces"), [("ctc", 1), ("rescore", 4), ("rescore", 99)])
def test_killed_and_started_again_it_writes_the_same_bytes(
    decoder: str,
    num_pieces: int,
    talk: Path,
    transcribe: Transcribe,
    decoded: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = ["--decoder", decoder, *(["--nbest", "2", "--beam", "2"] if decoder == "rescore" else [])]
    whole, out = talk.with_name("whole.json"), talk.with_name("talk.json")
    assert transcribe(talk, "--out", whole, *options) == 0
    pieces = decoded[:]
    assert len(pieces) >= 7 and not talk.with_name("whole.json.partial").exists()
    num_pieces = min(num_pieces, len(pieces))
    child = os.fork()
    if child == 0:
        stop_after(num_pieces, lambda: os.kill(os.getpid(), signal.SIGKILL), monkeypatch)
        transcribe(talk, "--out", out, *options)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not out.exists()
    with talk.with_name("talk.json.partial").open("ab") as file:
        file.write(b'{"num_frames": 150, "hypo')  # a line that was being written
    decoded.clear()
    assert transcribe(talk, "--out", out, *options) == 0
    assert decoded == pieces[num_pieces:]
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in talk.parent.iterdir()) == ["talk.json", "talk.wav", "whole.json"]


def test_an_interrupt_keeps_what_is_decoded_and_a_change_starts_again(
    talk: Path,
    transcribe: Transcribe,
    decoded: list[int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, partial = talk.with_name("talk.json"), talk.with_name("talk.json.partial")
    for change in ("option", "recording", "nothing"):
        with monkeypatch.context() as patch:
            stop_after(2, interrupt, patch)
            assert transcribe(talk, "--decoder", "ctc", "--out", out) == 130
        shown = capsys.readouterr()
        assert f"{partial} keeps what is decoded; the same command goes on from there" in shown.err
        assert shown.err.endswith("vox: interrupted\n") and shown.out == ""
        if change == "recording":
            soundfile.write(talk, make_speech(20 * SAMPLE_RATE, 2), SAMPLE_RATE)
        decoded.clear()
        assert transcribe(talk, "--decoder", "attention" if change == "option" else "ctc", "--out", out) == 0
        assert (decoded[0] == 0) == (change != "nothing")
        shown = capsys.readouterr()
        assert shown.out == ""
        assert {
            "option": f"{partial}: starting again, because of another decoder",
            "recording": f"{talk}: starting again, because the recording has changed",
            "nothing": f"{talk}: going on after ",
        }[change] in shown.err
        kept = out.read_bytes()
        assert transcribe(talk, "--decoder", "attention" if change == "option" else "ctc", "--out", out) == 0
        assert out.read_bytes() == kept
        capsys.readouterr()


def test_several_recordings_go_to_a_folder_and_finished_ones_are_not_decoded_again(
    talk: Path, transcribe: Transcribe, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    short, bad = talk.with_name("short.wav"), talk.with_name("bad.wav")
    soundfile.write(short, make_speech(2 * SAMPLE_RATE, 1), SAMPLE_RATE)
    bad.write_bytes(b"not audio")
    folder = talk.with_name("texts")
    arguments = (short, bad, talk, "--decoder", "ctc", "--out", folder)
    with monkeypatch.context() as patch:
        stop_after(3, interrupt, patch)
        assert transcribe(*arguments) == 130
    assert sorted(path.name for path in folder.iterdir()) == ["short.json", "transcribe.partial"]
    monkeypatch.setattr(vox.transcribe, "_recognise_whole", None)  # calling it fails the test
    assert transcribe(*arguments) == 2  # one of them is not audio
    assert decoded.count(0) == 1
    assert sorted(path.name for path in folder.iterdir()) == ["short.json", "talk.json"]
    assert json.loads((folder / "talk.json").read_bytes())["audio"] == str(talk)


def test_outputs_that_cannot_be_are_one_line(
    talk: Path, transcribe: Transcribe, capsys: pytest.CaptureFixture[str]
) -> None:
    before = talk.read_bytes()
    for arguments, reason in [
        ((talk, "--out", talk), "it would replace the recording"),
        ((talk, "--out", talk.parent / "no" / "a.txt"), "there is no folder"),
        ((talk, talk, "--out", talk.parent / "texts"), "would both be"),
    ]:
        assert transcribe(*arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert reason in line and line.startswith("vox transcribe: error: ")
    (talk.parent / "file").touch()
    for out in ("/proc/a.txt", "/proc/a/", f"{talk.parent}/file/b/"):
        assert transcribe(talk, "--out", out) == 2
        error = capsys.readouterr().err
        assert (
            error.startswith("vox: error: cannot be written (") and f": {out}; choose another --out" in error
        )
    assert talk.read_bytes() == before
    with PartialFile(talk.with_name("a.json.partial"), {}):
        assert transcribe(talk, "--out", talk.with_name("a.json")) == 2
    assert "another process is writing this transcription" in capsys.readouterr().err


def test_what_is_no_output_of_ours_is_left_alone(tmp_path: Path) -> None:
    """A pipe, and a file that has the name of a partial one; a link's file is written."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(click.UsageError, match="not a regular file"):
        plan_outputs([tmp_path / "talk.wav"], str(tmp_path / "pipe"), "text")
    (tmp_path / "notes").write_text("mine\n")
    with pytest.raises(VoxError, match="which it is not"):
        PartialFile(tmp_path / "notes", {})
    assert (tmp_path / "notes").read_text() == "mine\n"


def test_what_an_older_file_does_not_say_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.partial"
    PartialFile(path, {"decoder": "ctc"}).__exit__(None, None, None)
    with caplog.at_level("INFO"):
        PartialFile(path, {"decoder": "ctc", "speech": None}).__exit__(None, None, None)
    assert [record.message for record in caplog.records] == [
        f"{path}: starting again, because of another speech"
    ]


def test_a_line_without_its_end_is_decoded_again(tmp_path: Path) -> None:
    """Its content may be whole: what is written next must not be appended to it."""
    path, identity = tmp_path / "a.partial", {"decoder": "ctc"}
    with PartialFile(path, identity) as partial:
        partial.begin("talk", "sha")
        partial.add(find_nothing(3))
    path.write_bytes(path.read_bytes()[:-1])
    with PartialFile(path, identity) as partial:
        assert partial.begin("talk", "sha") == []
        partial.add(find_nothing(3))
    with PartialFile(path, identity) as partial:
        assert partial.begin("talk", "sha") == [find_nothing(3)]


def test_a_result_without_words_is_as_sure_as_its_silence() -> None:
    tokenizer = make_tokenizer()
    assert find_nothing(5, silence=0.75).list_words(tokenizer) == ((), 0.75)
    unaligned = replace(find_nothing(5, silence=0.75), hypotheses=[Hypothesis([1])], times=[None])
    assert unaligned.list_words(tokenizer)[1] is None
