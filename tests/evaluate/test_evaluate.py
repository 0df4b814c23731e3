"""`vox evaluate`, alone and beside `vox transcribe`, on a checkpoint of random weights."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile
import torch

from evaluate.intervals import read_earlier
from evaluate.report import default_out_dir
from evaluate.tally import Tally, score_tally
from tests.support.speech import write_split
from tests.support.untrained import save_arbitrary_checkpoint, save_go_checkpoint
from vox.audio import read_header
from vox.cli import main
from vox.corpus import Utterance
from vox.decode import DECODERS, SearchOptions
from vox.decode.ctc import greedy_ctc
from vox.errors import ReportError
from vox.model.decoder import Decoder
from vox.model.recogniser import Recogniser
from vox.units import SAMPLE_RATE

Lines = list[dict[str, object]]


@pytest.fixture(scope="module")
def checkpoint(tiny_wavlm_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a checkpoint with arbitrary outputs that depend on the audio."""
    return save_arbitrary_checkpoint(tmp_path_factory.mktemp("run") / "arbitrary", tiny_wavlm_dir)


@pytest.fixture(scope="module")
def go_checkpoint(tiny_wavlm_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a checkpoint whose CTC head writes `go` for every recording."""
    return save_go_checkpoint(tmp_path_factory.mktemp("run") / "checkpoints" / "update-1", tiny_wavlm_dir)


@pytest.fixture
def own_root(tmp_path: Path) -> Path:
    """Write a data root for one test: four utterances in split `own`."""
    write_split(tmp_path / "data", "own", 4, speaker=8, first_seed=100)
    return tmp_path / "data"


def read_json_lines(path: Path) -> Lines:
    """Read a hypotheses file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_earlier_report(folder: Path, texts: list[tuple[str, str, str]]) -> None:
    """Write the parts of a report that `--against` reads: ids, references and hypotheses of CTC."""
    folder.mkdir()
    rows = [dict(zip(("id", "reference", "hypothesis"), row, strict=True)) for row in texts]
    (folder / "hypotheses-ctc.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "report.json").write_text(json.dumps({"decoders": {"ctc": {}}}))


def test_figures_of_a_hand_counted_split(
    go_checkpoint: Path, own_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recordings = sorted(own_root.rglob("*.flac"))
    texts = ["Go!", "go stop", "left, right", "stop go up"]
    entries = [
        {"audio": str(path), "text": text, "id": f"u{number}"}
        for number, (path, text) in enumerate(zip(recordings, texts, strict=True))
    ]
    (own_root / "known.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    out_dir = own_root / "out"
    earlier_dir = own_root / "earlier"
    write_earlier_report(
        earlier_dir,
        [
            ("u0", "go", ""),
            ("u1", "go stop", "go stop"),
            ("u2", "left", "left"),
            ("u3", "stop go up", "stop go"),
        ],
    )
    arguments = ["--split", "known", "--checkpoint", str(go_checkpoint), "--root", str(own_root)]
    arguments += ["--decoder", "ctc", "--out", str(out_dir), "--workers", "0", "--against", str(earlier_dir)]
    out_dir.mkdir()
    former = {"date": "2026-01-02T03:04:05+00:00", "checkpoint": {"resolved": "/runs/a/checkpoints/7"}}
    (out_dir / "report.json").write_text(json.dumps(former))
    assert main(["evaluate", *arguments]) == 0

    # Heard: "go", four times. Errors: none; stop; left>go and right; stop and up.
    report = json.loads((out_dir / "report.json").read_text())
    figures = report["decoders"].pop("ctc")
    assert not report["decoders"]
    assert {key: figures[key] for key in ("substitutions", "deletions", "insertions", "hits", "words")} == {
        "substitutions": 1,
        "deletions": 4,
        "insertions": 0,
        "hits": 3,
        "words": 8,
    }
    assert figures["wer"] == 5 / 8
    # Without speakers, utterances are drawn: the best has no error, the worst two for two words.
    assert report["bootstrap"] == {"level": 0.95, "draws": 1000, "over": "utterances", "units": 4}
    low, high = figures["wer_interval"]
    assert 0 < low < 5 / 8 < high <= 1
    assert figures["cer_interval"][0] < figures["cer"] < figures["cer_interval"][1]
    # Earlier, of the three with the same reference: 1, 0 and 1 errors in six words; now 0, 1 and 2.
    (compared,) = report["against"]["decoders"]
    assert compared["utterances"] == 3
    assert (compared["first_wer"], compared["second_wer"]) == (2 / 6, 3 / 6)
    assert compared["difference"] == pytest.approx(1 / 6)
    assert compared["interval"][0] < 0 < compared["interval"][1]
    page = (out_dir / report["page"]).read_text()
    assert "62.50<small> % WER" in page
    assert "ctc, earlier" in page
    assert report["checkpoint"]["state"] == {"update": 1}
    assert report["audio_seconds"] == pytest.approx(sum(soundfile.info(path).duration for path in recordings))
    rows = read_json_lines(out_dir / "hypotheses-ctc.jsonl")
    assert [(row["id"], row["hypothesis"], row["errors"], row["words"]) for row in rows] == [
        ("u0", "go", 0, 1),
        ("u1", "go", 1, 2),
        ("u2", "go", 2, 2),
        ("u3", "go", 2, 3),
    ]
    table = (out_dir / "report.txt").read_text()
    printed = capsys.readouterr().out
    assert table in printed
    (line,) = [line for line in table.splitlines() if line.startswith("ctc")]
    assert line.split()[:2] == ["ctc", "62.50"]
    low, high = (100 * bound for bound in compared["interval"])
    assert (
        "ctc, earlier -> ctc, now: WER 33.33 -> 50.00 %, difference +16.67 points "
        f"(95 % interval {low:+.2f} to {high:+.2f}), 3 utterances: no clear difference\n"
    ) in printed
    assert printed.endswith("replaced the report of 2026-01-02T03:04:05+00:00, of /runs/a/checkpoints/7\n")
    assert line.split()[3:7] == ["1", "4", "0", "8"]


def test_each_word_of_a_file_is_counted(
    go_checkpoint: Path, own_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every recording is heard as `go`: of the four, two say it once and one twice."""
    texts = ["go", "go stop", "left", "go go"]
    entries = [
        {"audio": str(path), "text": text, "id": f"u{number}"}
        for number, (path, text) in enumerate(zip(sorted(own_root.rglob("*.flac")), texts, strict=True))
    ]
    (own_root / "known.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    (tmp_path / "words.txt").write_text("go\nstop\nzarn\n")
    command = ["evaluate", "--split", "known", "--checkpoint", str(go_checkpoint), "--decoder", "ctc"]
    command += ["--root", str(own_root), "--device", "cpu", "--workers", "0", "--out", str(tmp_path / "out")]
    assert main([*command, "--words", str(tmp_path / "words.txt")]) == 0
    table = capsys.readouterr().out
    assert re.search(r"^go +4 +75.0 +1 +\u2581go$", table, re.MULTILINE)
    assert re.search(r"^zarn +0 +- +0 +\S+", table, re.MULTILINE)
    words = json.loads((tmp_path / "out" / "report.json").read_text())["words"]
    assert words["go"]["decoders"]["ctc"] == {"found": 4, "right": 3}
    assert (words["go"]["said"], words["stop"]["said"], words["zarn"]["said"]) == (4, 1, 0)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<tr><td>go</td><td>4</td><td>75.0</td><td>1</td>" in page
    (tmp_path / "words.txt").write_text("# nothing\n")
    assert main([*command, "--words", str(tmp_path / "words.txt")]) == 2
    assert "a file without a word" in capsys.readouterr().err


def test_digits_are_no_matter_for_settings_that_the_command_lacks(
    go_checkpoint: Path, own_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = {"audio": str(next(own_root.rglob("*.flac"))), "text": "go 5"}
    (own_root / "digits.jsonl").write_text(json.dumps(entry) + "\n")
    (tmp_path / "words.txt").write_text("level 9\n")
    command = ["evaluate", "--checkpoint", str(go_checkpoint), "--root", str(own_root), "--device", "cpu"]
    assert main([*command, "--split", "own", "--words", str(tmp_path / "words.txt")]) == 2
    assert capsys.readouterr().err.endswith("(9); write numbers as words\n")
    assert main([*command, "--split", "digits"]) == 2
    error = capsys.readouterr().err
    assert "(5); write numbers as words, or score with --normalise whisper-english)" in error


def test_several_splits_have_a_row_each_and_a_total(
    go_checkpoint: Path, own_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Heard: "go", every time. Both splits have an utterance `u0`, and one has no other."""
    recordings = sorted(map(str, own_root.rglob("*.flac")))
    for split, texts in (("easy", ["go"]), ("hard", ["go stop", "left right up"])):
        entries = [
            {"audio": recordings[number], "text": text, "id": f"u{number}"}
            for number, text in enumerate(texts)
        ]
        (own_root / f"{split}.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    arguments = ["--checkpoint", str(go_checkpoint), "--root", str(own_root), "--workers", "0"]
    arguments += ["--split", "hard", "--split", "easy", "--decoder", "ctc", "--out", str(own_root / "out")]
    assert main(["evaluate", *arguments]) == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["hard", "5", "80.00"] in table and ["easy", "1", "0.00"] in table
    assert ["total", "6", f"{400 / 6:.2f}"] in table
    report = json.loads((own_root / "out" / "report.json").read_text())
    assert report["decoders"]["ctc"]["wer"] == pytest.approx(4 / 6)
    wers = {
        split: (each["num_utterances"], each["decoders"]["ctc"]["wer"])
        for split, each in report["splits"].items()
    }
    assert wers == {"hard": (2, 4 / 5), "easy": (1, 0.0)}
    rows = read_json_lines(own_root / "out" / "hypotheses-ctc.jsonl")
    assert [(row["id"], row["reference"]) for row in rows] == [
        ("easy/u0", "go"),
        ("hard/u0", "go stop"),
        ("hard/u1", "left right up"),
    ]


def test_words_that_are_heard_where_nothing_is_spoken_are_counted(
    go_checkpoint: Path, own_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Heard: "go", every time; so it is an insertion in the total, and no rate of the split."""
    recordings = sorted(map(str, own_root.rglob("*.flac")))
    lines = {
        "spoken": [{"text": "go stop", "speaker": "ann"}, {"text": "go", "speaker": "bob"}],
        "noise": [{"speech": False}],
    }
    for split, some in lines.items():
        rows = [{"audio": recordings[0], "id": f"u{k}", **line} for k, line in enumerate(some)]
        (own_root / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["evaluate", "--checkpoint", str(go_checkpoint), "--root", str(own_root), "--workers", "0"]
    arguments += ["--decoder", "ctc", "--out", str(own_root / "heard")]
    assert main([*arguments, "--split", "spoken", "--split", "noise"]) == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["noise", "0", "1", "heard"] in table and ["total", "3", "66.67"] in table
    report = json.loads((own_root / "heard" / "report.json").read_text())
    bootstrap = report["bootstrap"]  # a recording without speech does not count as a speaker
    assert (bootstrap["over"], bootstrap["units"]) == ("speakers", 2)
    assert report["splits"]["noise"]["decoders"]["ctc"]["wer"] is None
    write_earlier_report(own_root / "earlier", [("noise/u0", "", "go"), ("other/u9", "go", "go")])
    both = [*arguments, "--split", "spoken", "--split", "noise", "--against", str(own_root / "earlier")]
    assert main(both) == 2
    assert "no utterance in common" in capsys.readouterr().err
    for command in (arguments, ["tune", *arguments[1:5]]):
        assert main([*command, "--split", "noise"]) == 2
        assert "nothing is spoken in this split" in capsys.readouterr().err


def test_evaluate_and_transcribe_hear_the_same(
    checkpoint: Path, tiny_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Compare padded batches of a split, decoded by worker processes, with each file alone."""
    arguments = ["--split", "dev-tiny", "--checkpoint", str(checkpoint), "--root", str(tiny_root)]
    assert main(["evaluate", *arguments, "--out", str(tmp_path), "--workers", "1"]) == 0
    searches = ["--decoder", "rescore", "--decoder", "joint", "--beam", "3"]
    assert main(["evaluate", *arguments, *searches, "--out", str(tmp_path), "--workers", "1"]) == 0
    figures = json.loads((tmp_path / "report.json").read_text())["decoders"]
    assert {name: figures[name]["beam"] for name in figures} == {"rescore": 3, "joint": 3}
    capsys.readouterr()
    files = [str(path) for path in sorted((tiny_root / "LibriSpeech" / "dev-tiny").rglob("*.flac"))]
    for decoder, *beam in (["ctc"], ["attention"], ["rescore", "--beam", "3"], ["joint", "--beam", "3"]):
        options = ["--checkpoint", str(checkpoint), "--decoder", decoder, *beam]
        assert main(["transcribe", *files, *options]) == 0
        alone = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
        assert [path for path, _ in alone] == files
        rows = read_json_lines(tmp_path / f"hypotheses-{decoder}.jsonl")
        assert [row["hypothesis"] for row in rows] == [text for _, text in alone]
        assert len({row["hypothesis"] for row in rows}) > 1, "the recogniser does not listen"


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_everything_computes_in_the_precision_chosen_for_the_device(
    precision: torch.dtype,
    go_checkpoint: Path,
    tiny_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a GPU, where `auto` is bfloat16 or float16. The words are the same in each."""
    seen = set()

    def note_precision(call: Callable) -> Callable:
        def noted(*arguments: object) -> object:
            is_half = torch.is_autocast_enabled("cpu")
            seen.add((call.__name__, torch.get_autocast_dtype("cpu") if is_half else torch.float32))
            return call(*arguments)

        return noted

    for module in ("evaluate.tally", "vox.transcribe"):
        monkeypatch.setattr(f"{module}.pick_precision", lambda name, device: precision)
    monkeypatch.setattr(Recogniser, "encode", note_precision(Recogniser.encode))
    monkeypatch.setattr("vox.decode.ctc.greedy_ctc", note_precision(greedy_ctc))
    monkeypatch.setattr(Decoder, "step", note_precision(Decoder.step))
    expected = {("encode", precision), ("greedy_ctc", precision), ("step", precision)}
    arguments = ["--split", "dev-tiny", "--checkpoint", str(go_checkpoint), "--root", str(tiny_root)]
    assert main(["evaluate", *arguments, "--out", str(tmp_path), "--workers", "0"]) == 0
    assert seen == expected
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["precision"] == str(precision).removeprefix("torch.")
    assert {row["hypothesis"] for row in read_json_lines(tmp_path / "hypotheses-ctc.jsonl")} == {"go"}
    seen.clear()
    path = min((tiny_root / "LibriSpeech" / "dev-tiny").rglob("*.flac"))
    for decoder in ("ctc", "attention"):
        capsys.readouterr()
        assert main(["transcribe", str(path), "--checkpoint", str(go_checkpoint), "--decoder", decoder]) == 0
        assert decoder == "attention" or capsys.readouterr().out == "go\n"
    assert seen == expected


def test_an_unreadable_recording_is_excluded_and_said(
    checkpoint: Path,
    own_root: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A truncated FLAC has a complete header and fails only when decoded. Headers are read once."""
    headers: list[Path] = []
    monkeypatch.setattr("vox.corpus.load.read_header", lambda *a: (headers.append(a[0]), read_header(*a))[1])
    broken, empty, *_ = sorted(own_root.rglob("*.flac"))
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    empty.write_bytes(b"")
    out_dir = own_root / "out"
    arguments = ["--split", "own", "--checkpoint", str(checkpoint), "--root", str(own_root), "--workers", "0"]
    arguments += ["--decoder", "ctc", "--out", str(out_dir)]
    assert main(["evaluate", *arguments]) == 2  # the empty one shows in its header, before any work
    assert empty.stem in capsys.readouterr().err
    assert not out_dir.exists()

    headers.clear()
    assert main(["evaluate", *arguments, "--skip-bad"]) == 0
    assert sorted(headers) == sorted(own_root.rglob("*.flac"))
    captured = capsys.readouterr()
    report = json.loads((out_dir / "report.json").read_text())
    assert set(report["excluded"]) == {broken.stem, empty.stem}
    assert report["num_utterances"] == 2
    assert {row["id"] for row in read_json_lines(out_dir / "hypotheses-ctc.jsonl")}.isdisjoint(
        report["excluded"]
    )
    assert "excluded from all figures above: 2 unusable utterances" in captured.out
    assert f"warning: excluded {broken.stem}" in captured.err


def test_a_split_of_unreadable_recordings_is_an_error(
    checkpoint: Path, own_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in own_root.rglob("*.flac"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    arguments = ["--split", "own", "--checkpoint", str(checkpoint), "--root", str(own_root), "--workers", "0"]
    assert main(["evaluate", *arguments, "--out", str(own_root / "out")]) == 2
    assert "vox: error: no recording could be read" in capsys.readouterr().err


def test_without_options_the_newest_best_is_evaluated_and_reported_beside_it(
    go_checkpoint: Path, own_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = own_root.parent / "runs" / "stage1"
    shutil.copytree(go_checkpoint, run_dir / "checkpoints" / "update-1")
    (run_dir / "best").symlink_to(Path("checkpoints") / "update-1")
    monkeypatch.chdir(own_root.parent)
    assert main(["evaluate", "--split", "own", "--workers", "0"]) == 0
    report = json.loads((run_dir / "evaluate" / "best-own" / "report.json").read_text())
    assert set(report["decoders"]) == {"ctc", "attention"}
    assert report["checkpoint"]["path"] == "runs/stage1/best"
    assert report["checkpoint"]["resolved"] == str(run_dir / "checkpoints" / "update-1")


def test_a_report_never_goes_among_the_checkpoints() -> None:
    # Training deletes what it does not know there.
    wanted = Path("runs/a/evaluate/update-1-dev")
    assert default_out_dir(Path("runs/a/checkpoints/update-1"), "dev") == wanted
    assert default_out_dir(Path("runs/a/update-1"), "dev") == wanted


def test_a_beam_for_greedy_decoders_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["evaluate", "--split", "own"], ["transcribe", __file__]):
        assert main([*command, "--decoder", "ctc", "--beam", "4"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(
            "vox: error: --beam is for a search, and these decoders are greedy; add --decoder"
        )


@pytest.mark.parametrize("command", [["evaluate", "--split", "own"], ["transcribe", __file__]])
def test_wrong_choices_are_one_line(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--decoder", "beam"]) == 2
    assert (
        capsys.readouterr().err == f"vox: error: unknown decoder: beam; use {' or '.join(sorted(DECODERS))}\n"
    )
    assert main([*command, "--checkpoint", str(tmp_path / "none")]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"vox: error: no checkpoint: {tmp_path / 'none'}")
    assert len(shown.splitlines()) == 1


@pytest.mark.parametrize("seconds", ["nan", "inf", "0", "-1"])
def test_batch_seconds_is_a_positive_number(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--split", "own", "--batch-seconds", seconds]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "'--batch-seconds'" in line


def test_an_unwritable_output_folder_is_found_before_the_work(
    checkpoint: Path, own_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = own_root / "taken"
    taken.write_text("a file")
    arguments = ["--split", "own", "--checkpoint", str(checkpoint), "--root", str(own_root)]
    assert main(["evaluate", *arguments, "--out", str(taken)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    reason = f"cannot be written (Not a directory): {taken}; choose another --out"
    assert captured.err == f"vox: error: {reason}\n"


def test_a_wrong_earlier_report_is_found_before_the_work(
    checkpoint: Path, own_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--split", "own", "--checkpoint", str(checkpoint), "--root", str(own_root)]
    arguments += ["--out", str(own_root / "out"), "--against", str(own_root)]
    assert main(["evaluate", *arguments]) == 2
    error = f"vox: error: no report.json of an earlier evaluation: {own_root}; name a folder that `vox"
    assert capsys.readouterr().err.startswith(error)
    assert not (own_root / "out").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("report.json", "{", "cannot be read"),
        ("report.json", "[]", "cannot be read"),
        ("report.json", '{"decoders": {"beam": {}}}', r"no decoder in common \(it has beam\)"),
        ("hypotheses-ctc.jsonl", '{"id": "u"}\n', "cannot be read"),
        ("hypotheses-ctc.jsonl", "3\n", "cannot be read"),
        ("hypotheses-ctc.jsonl", '{"id": "u", "reference": "go", "hypothesis": 3}\n', "cannot be read"),
        ("hypotheses-ctc.jsonl", "", "no utterance in common"),
        (
            "hypotheses-ctc.jsonl",
            '{"id": "u", "reference": "up", "hypothesis": ""}\n',
            "no utterance in",
        ),
    ],
)
def test_an_earlier_report_that_cannot_be_compared_is_an_error(
    name: str, content: str, message: str, tmp_path: Path
) -> None:
    write_earlier_report(tmp_path / "earlier", [("u", "go", "")])
    utterances = [Utterance("u", tmp_path / "u.wav", "go", "")]
    assert read_earlier(tmp_path / "earlier", ["ctc"], utterances).texts == {"ctc": {"u": ("go", "")}}
    (tmp_path / "earlier" / name).write_text(content)
    with pytest.raises(ReportError, match=message):
        read_earlier(tmp_path / "earlier", ["ctc"], utterances)


def test_the_encoder_is_counted_to_every_decoder() -> None:
    tally = Tally(texts={"a": {"u": "go"}, "b": {"u": "go"}}, truncated={"a": [], "b": ["u"]})
    tally.seconds |= {"": 1.0, "a": 0.5, "b": 2.0}
    tally.num_samples = 10 * SAMPLE_RATE
    utterance = Utterance("u", Path("u.wav"), "go", "", 160_000)
    evaluation = score_tally("s", [utterance], tally, {}, SearchOptions())
    assert evaluation.decoders["a"].real_time_factor == pytest.approx(0.15)
    assert evaluation.decoders["b"].real_time_factor == pytest.approx(0.3)
    assert evaluation.decoders["b"].truncated_ids == ["u"]
