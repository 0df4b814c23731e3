"""`vox transcribe` and `vox.load`, on a checkpoint of a tiny recogniser that was never trained."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import vox
import vox.transcribe
from tests.support.speech import make_speech
from tests.support.untrained import save_go_checkpoint
from vox.checkpoint.files import load_recogniser
from vox.cli import main
from vox.decode import DECODERS, Hypothesis
from vox.decode.found import Found
from vox.decoder_names import VALIDATION_DECODERS
from vox.errors import AudioError, ConfigError
from vox.transcribe import Transcriber
from vox.units import SAMPLE_RATE


@pytest.fixture(scope="module")
def go_checkpoint(tiny_wavlm_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a checkpoint whose CTC head hears `go` in every recording."""
    return save_go_checkpoint(tmp_path_factory.mktemp("run") / "checkpoints" / "update-1", tiny_wavlm_dir)


def test_transcribe_does_the_others_when_some_cannot_be_read(
    go_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, stereo, short, missing = (
        tmp_path / f"{name}.wav" for name in ("good", "stereo", "short", "missing")
    )
    speech = make_speech(20_000, 1)
    soundfile.write(good, speech, SAMPLE_RATE)
    soundfile.write(stereo, np.stack([speech, speech], axis=1), 44_100)
    soundfile.write(short, speech[:300], SAMPLE_RATE)
    files = [str(path) for path in (missing, good, short, stereo)]
    arguments = ["--checkpoint", str(go_checkpoint), "--decoder", "ctc"]
    assert main(["transcribe", *files, *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == f"{good}\tgo\n{stereo}\tgo\n"
    assert "shorter than one frame" in captured.err
    *warnings, error = captured.err.splitlines()
    assert [line.split(":")[0] for line in warnings] == ["warning"] * 2
    assert [path for path in map(str, (missing, short)) for line in warnings if path in line] == files[::2]
    assert error == (
        f"vox: error: 2 of 4 recordings could not be transcribed: {missing}, {short}; see the reasons above; "
        "the others were transcribed"
    )

    # Alone, each is one line: a warning would repeat it.
    assert main(["transcribe", str(missing), *arguments]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("vox: error: ") and str(missing) in error
    assert main(["transcribe", str(tmp_path), *arguments]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error == f"vox: error: a folder: {tmp_path}; give files, or a glob such as {tmp_path}/*.flac"

    assert main(["transcribe", str(good), *arguments]) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("go\n", "")


def test_transcribe_cuts_recordings_longer_than_those_trained_on_without_a_warning(
    go_checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = load_recogniser(go_checkpoint)
    paths = [tmp_path / f"{name}.wav" for name in "ab"]
    for path, seconds in zip(paths, (2, 3), strict=True):
        soundfile.write(path, make_speech(seconds * SAMPLE_RATE, 1), SAMPLE_RATE)
    trained = replace(loaded, state={"longest_train_samples": 2 * SAMPLE_RATE})
    with caplog.at_level("WARNING"):
        found = list(Transcriber(trained, "ctc").transcribe(paths))
    assert [transcript.seconds for transcript in found] == [2.0, 3.0] and not caplog.records


def test_a_long_recording_is_cut_before_the_tokenizer_s_words(
    go_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, seen = load_recogniser(go_checkpoint), list[object]()
    recognise = vox.transcribe.recognise_long

    def spy(*arguments: Any, **options: Any) -> Found:
        seen.append(options["tokenizer"])
        return recognise(*arguments, **options)

    monkeypatch.setattr(vox.transcribe, "recognise_long", spy)
    trained = replace(loaded, state={"longest_train_samples": SAMPLE_RATE})
    list(Transcriber(trained, "ctc").transcribe([make_speech(2 * SAMPLE_RATE, 1)]))
    assert seen == [loaded.tokenizer]


def test_transcribe_warns_where_the_decoders_differ_in_length(
    go_checkpoint: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, make_speech(SAMPLE_RATE, 1), SAMPLE_RATE)
    (go,) = load_recogniser(go_checkpoint).tokenizer.encode("go")  # what CTC finds, once
    for num_labels, is_warned in ((1, False), (5, False), (6, True), (0, True)):
        found = [[Hypothesis([go] * num_labels)]]
        monkeypatch.setitem(DECODERS, "attention", lambda *_, found=found: found)
        caplog.clear()
        list(Transcriber(load_recogniser(go_checkpoint), "attention").transcribe([path]))
        assert [f"found {num_labels} labels and CTC 1" in r.getMessage() for r in caplog.records] == (
            [True] if is_warned else []
        )


@pytest.mark.parametrize(
    ("wer", "expected"),
    [
        ({"ctc": 0.3, "attention": 0.2}, "attention"),
        ({"ctc": 0.1, "attention": 0.2}, "ctc"),
        ({"ctc": 0.1, "attention": 0.1}, "ctc"),
        ({}, "ctc"),
    ],
)
def test_one_answer_comes_from_the_decoder_with_the_lower_dev_wer(
    wer: dict[str, float],
    expected: str,
    go_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, make_speech(SAMPLE_RATE, 1), SAMPLE_RATE)
    loaded = load_recogniser(go_checkpoint)
    for name in VALIDATION_DECODERS:
        ids = loaded.tokenizer.encode("go" if name == "ctc" else "left")
        monkeypatch.setitem(DECODERS, name, lambda *_, ids=ids: [[Hypothesis(ids)]])
    loaded = replace(loaded, state={"dev": {"wer": wer}} if wer else {})
    (transcript,) = Transcriber(loaded).transcribe([path])
    assert (transcript.decoder, transcript.text) == (expected, "go" if expected == "ctc" else "left")


def test_load_transcribes_files_and_arrays_alike(go_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, make_speech(SAMPLE_RATE, 1), SAMPLE_RATE, subtype="FLOAT")
    transcriber = vox.load(go_checkpoint, decoder="ctc_beam", nbest=3, device="cpu")  # two are "go"
    from_file, from_array = transcriber.transcribe([path, make_speech(SAMPLE_RATE, 1)])
    assert replace(from_array, audio=str(path)) == from_file
    assert (from_file.text, from_file.decoder, from_file.seconds) == ("go", "ctc_beam", 1.0)
    (word,) = from_file.words
    assert word.start is not None and word.end is not None and word.confidence is not None
    assert 0 <= word.start < word.end <= 1.0 and 0 < word.confidence <= 1
    first, second = from_file.alternatives
    assert first.text == "go" and first.score is not None and second.score is not None
    assert first.score > second.score and first.parts == {"ctc": pytest.approx(first.score)}
    with pytest.raises(AudioError, match=r"float32 \[2, 8000\]: array 1; give float32 \[samples\], one"):
        list(transcriber.transcribe([np.zeros((2, 8_000), np.float32)]))
    with pytest.raises(AudioError, match="a number that is not finite"):
        list(transcriber.transcribe([np.full(8_000, np.nan, np.float32)]))
    with pytest.raises(ConfigError, match="hotwords='go' is one text"):  # not a list of letters
        vox.load(go_checkpoint, hotwords="go")


def test_alternatives_are_different_texts(
    go_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One text may be several sequences of pieces, and a hotword several spellings: the best counts."""
    transcriber = vox.load(
        go_checkpoint, decoder="ctc_beam", nbest=4, hotwords=["Nyx: left, stop"], device="cpu"
    )
    tokenizer = transcriber.loaded.tokenizer
    whole, spelled = tokenizer.encode("go"), [tokenizer.pieces.index(piece) for piece in ("\u2581", "g", "o")]
    assert whole != spelled and tokenizer.decode(spelled) == "go"
    texts = [tokenizer.encode("left"), spelled, tokenizer.encode("stop"), whole]
    hypotheses = [Hypothesis(ids, score=-float(k)) for k, ids in enumerate(texts)]
    found = Found(9, hypotheses, hypotheses[0], [None] * len(hypotheses[0].ids), 0.0)
    monkeypatch.setattr(transcriber, "recognise", lambda *_: found)
    (transcript,) = transcriber.transcribe(make_speech(SAMPLE_RATE, 1))
    assert [(each.text, each.score) for each in transcript.alternatives] == [("Nyx", 0.0), ("go", -1.0)]


def test_transcribe_writes_formats_and_several_texts(
    go_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, make_speech(SAMPLE_RATE, 1), SAMPLE_RATE)
    arguments = ["transcribe", str(path), "--checkpoint", str(go_checkpoint), "--device", "cpu"]
    assert main([*arguments, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["words"][0]["text"] == "go"
    assert main([*arguments, "--format", "srt"]) == 0
    assert capsys.readouterr().out.endswith("\ngo\n")
    assert main([*arguments, "--decoder", "ctc_beam", "--nbest", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[0].endswith("\tgo")
    assert main([*arguments, "--nbest", "2"]) == 0  # by rescoring
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert main([*arguments, "--decoder", "ctc", "--nbest", "2"]) == 2
    assert "--nbest is for a search" in capsys.readouterr().err
    assert main([*arguments, str(path), "--format", "vtt"]) == 2
    assert "--format vtt is for one FILE" in capsys.readouterr().err
