"""`vox evaluate --whole`: recordings transcribed whole and scored against their segments' texts."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

import vox.transcribe
from tests.support.speech import make_speech
from tests.support.untrained import save_arbitrary_checkpoint
from vox.cli import main
from vox.units import SAMPLE_RATE


@pytest.fixture(scope="module")
def checkpoint(tiny_wavlm_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a checkpoint with arbitrary outputs that depend on the audio."""
    return save_arbitrary_checkpoint(tmp_path_factory.mktemp("run") / "arbitrary", tiny_wavlm_dir)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Write a split with a recording of two segments, and one of two channels; lines out of order."""
    talk, call = make_speech(8 * SAMPLE_RATE, 1), make_speech(4 * SAMPLE_RATE, 2)
    soundfile.write(tmp_path / "talk.wav", talk, SAMPLE_RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "call.wav", np.stack([call, call[::-1]], 1), SAMPLE_RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "left.wav", call, SAMPLE_RATE, subtype="FLOAT")
    write_manifest(
        tmp_path,
        [
            {"audio": "talk.wav", "text": "go left", "offset": 10.5 - 6, "duration": 2},
            {"audio": "call.wav", "text": "stop", "offset": 1, "duration": 1, "channel": 1},
            {"audio": "talk.wav", "text": "Now STOP", "offset": 1, "duration": 2.5},
            {"audio": "talk.wav", "speech": False, "offset": 3.75, "duration": 0.5},
            {"audio": "call.wav", "text": "up", "offset": 1, "duration": 1, "channel": 0},
        ],
    )
    return tmp_path


def write_manifest(root: Path, lines: list[dict[str, object]]) -> None:
    """Write the manifest of split `own`."""
    (root / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_recordings_are_scored_whole_by_the_text_that_transcribe_writes(
    root: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(vox.transcribe, "DEFAULT_LONGEST_SAMPLES", 3 * SAMPLE_RATE)
    common = ["--checkpoint", str(checkpoint), "--device", "cpu", "--decoder", "ctc"]
    split = ["--split", "own", "--root", str(root), "--out", str(root / "report")]
    assert main(["evaluate", *split, "--whole", *common]) == 0
    capsys.readouterr()
    rows = {
        row["id"]: row
        for row in map(json.loads, (root / "report" / "hypotheses-ctc.jsonl").read_text().splitlines())
    }
    assert {name: row["reference"] for name, row in rows.items()} == {
        "talk": "now stop go left",
        "call@0": "up",
        "call@1": "stop",
    }
    for name, file in {"talk": "talk.wav", "call@0": "left.wav"}.items():
        assert main(["transcribe", str(root / file), *common]) == 0
        assert capsys.readouterr().out == rows[name]["hypothesis"] + "\n"
    report = json.loads((root / "report" / "report.json").read_text())
    assert report["split"] == "own-whole" and report["audio_seconds"] == 8 + 4 + 4
    assert report["decoders"]["ctc"]["words"] == 6


def test_one_recording_has_a_report_and_a_segment_without_text_is_refused(
    root: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "evaluate",
        "--split",
        "own",
        "--root",
        str(root),
        "--whole",
        "--checkpoint",
        str(checkpoint),
    ]
    arguments += ["--device", "cpu", "--out", str(root / "report")]
    line = {"audio": "talk.wav", "text": "go left", "offset": 1, "duration": 2}
    write_manifest(root, [line])
    assert main(arguments) == 0
    assert (root / "report" / "report.html").is_file()
    write_manifest(root, [line, {**line, "offset": 4, "text": ""}])
    capsys.readouterr()
    assert main([*arguments, "--skip-bad"]) == 2
    assert "--whole needs every segment's text" in capsys.readouterr().err
