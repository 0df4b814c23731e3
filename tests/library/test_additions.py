"""Language models and hotwords on the command line: what they change and what they must not change."""

import json
import math
import re
from pathlib import Path

import pytest
import torch

from tests.support.speech import write_split
from tests.support.untrained import make_tokenizer, save_arbitrary_checkpoint
from vox.additions import Additions, read_additions
from vox.cli import main
from vox.decode.ctc_beam import search_ctc
from vox.decode.hotwords import make_hotword_scorer
from vox.decode.options import SearchOptions
from vox.hotword_list import Hotword, HotwordMatcher
from vox.lm.ngram import load_ngram
from vox.transcribe import show_hotwords
from vox.transcript import Alternative, SpottedHotword, Transcript, Word, to_ctm

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkpoint(tiny_wavlm_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a checkpoint with arbitrary outputs that depend on the audio."""
    return save_arbitrary_checkpoint(tmp_path_factory.mktemp("run") / "arbitrary", tiny_wavlm_dir)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a data root: three utterances in split `own`."""
    folder = tmp_path_factory.mktemp("data")
    write_split(folder, "own", 3, speaker=8, first_seed=100)
    return folder


@pytest.fixture(scope="module")
def lm(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a language model of a text that contains only `go left`."""
    folder = tmp_path_factory.mktemp("lm")
    (folder / "text").write_text("go left\n" * 20)
    out = folder / "lm.arpa"
    assert (
        main(["lm", "--text", str(folder / "text"), "--checkpoint", str(checkpoint), "--out", str(out)]) == 0
    )
    return out


def draw_log_probs(batch: int, num_frames: int, seed: int = 0) -> torch.Tensor:
    size = make_tokenizer().vocab_size
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, num_frames, size, generator=generator).log_softmax(-1)


def test_totals_are_sums_that_others_compute(lm: Path) -> None:
    """CTC over all alignments, the model's own score of the whole text, and phrases counted in the text."""
    tokenizer = make_tokenizer()
    words = sorted({tokenizer.decode([label]) for label in range(4, tokenizer.vocab_size)})
    hotwords = [Hotword(word, (word,), 0.5) for word in words if len(word) == 1 and word.isalpha()]
    ngram, scorer = load_ngram(lm, tokenizer, CPU), make_hotword_scorer(hotwords, tokenizer, CPU)
    assert scorer is not None
    # The model twice: once more with a weight below zero, as for a density ratio.
    training = load_ngram(lm, tokenizer, CPU, name="training")
    options = SearchOptions(beam=6, scorers=((ngram, 0.7), (scorer, 3.0), (training, -0.4)))
    log_probs_BTV, num_found = draw_log_probs(4, 12), 0
    for row, hypotheses in enumerate(search_ctc(log_probs_BTV, torch.full((4,), 12), options)):
        for found in hypotheses:
            targets = torch.tensor([found.ids])
            ctc = -torch.nn.functional.ctc_loss(
                log_probs_BTV[row, :, None], targets, [12], [len(found.ids)], reduction="sum"
            )
            (whole,) = ngram.score_sequences([found.ids])
            said = tokenizer.decode(found.ids).split()
            bonus = 0.5 * sum(said.count(hotword.phrase) for hotword in hotwords)
            assert found.parts == pytest.approx(
                {"ctc": ctc.item(), "lm": whole, "hotwords": bonus, "training": whole}, abs=1e-3
            )
            assert found.score == pytest.approx(ctc.item() + 0.3 * whole + 3.0 * bonus, abs=1e-3)
            num_found += bonus > 0
    assert num_found > 4


def test_weights_of_zero_change_no_bit(lm: Path) -> None:
    tokenizer = make_tokenizer()
    additions = Additions(lm, 0.0, (Hotword("go", ("go",)),), 0.0)
    plain, weightless = (
        search_ctc(draw_log_probs(3, 20), torch.tensor([20, 3, 1]), SearchOptions(scorers=scorers))
        for scorers in ((), additions.make_scorers(tokenizer, CPU))
    )
    assert plain == weightless
    assert len(additions.make_scorers(tokenizer, CPU)) == 2


def test_a_hotword_and_a_model_win_where_the_audio_does_not_tell(lm: Path) -> None:
    tokenizer = make_tokenizer()
    log_probs_BTV = draw_log_probs(1, 10) * 0.1

    def best(additions: Additions) -> str:
        options = SearchOptions(scorers=additions.make_scorers(tokenizer, CPU))
        return tokenizer.decode(search_ctc(log_probs_BTV, torch.tensor([10]), options)[0][0].ids)

    assert best(Additions(hotwords=(Hotword("stop", ("stop",)),), hotword_weight=9)).split()[0] == "stop"
    assert best(Additions(lm=lm, lm_weight=3)).startswith("go left")


def test_options_reach_the_search_and_the_report(
    checkpoint: Path, root: Path, lm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--checkpoint", str(checkpoint), "--decoder", "ctc_beam", "--beam", "4"]
    boost = ["--hotword", "Nyx: stop, go", "--hotword-weight", "60"]
    split = ["--split", "own", "--root", str(root), "--workers", "0", "--out", str(tmp_path / "out")]
    assert main(["evaluate", *arguments, *split, *boost, "--lm", str(lm), "--lm-weight", "0.1"]) == 0
    table = capsys.readouterr().out
    figures = json.loads((tmp_path / "out" / "report.json").read_text())["decoders"]["ctc_beam"]
    assert figures["weights"] == {"lm": 0.1, "hotwords": 60.0}
    assert figures["hotwords"]["found"] > 2
    assert figures["hotwords"]["errors"] + figures["hotwords"]["other_errors"] == round(
        figures["wer"] * figures["words"]
    )
    line = next(line for line in table.splitlines() if line.startswith("hotwords"))
    assert line.split() == [
        "hotwords",
        "WER",
        "%",
        "other",
        "%",
        "recall",
        "%",
        "precision",
        "%",
        "false",
        "alarms",
    ]
    rows = (tmp_path / "out" / "hypotheses-ctc_beam.jsonl").read_text()
    assert "nyx" in rows

    recording = str(next(root.rglob("*.flac")))
    assert main(["transcribe", recording, *arguments, *boost, "--format", "json"]) == 0
    transcript = json.loads(capsys.readouterr().out)
    assert transcript["text"].split() == [word["text"] for word in transcript["words"]]
    shown = [word for word in transcript["words"] if word["text"] == "Nyx"]
    assert len(shown) == len(transcript["hotwords"]) > 0
    for word, spotted in zip(shown, transcript["hotwords"], strict=True):
        assert (spotted["start"], spotted["end"]) == (word["start"], word["end"])
        assert spotted["phrase"] == "Nyx" and spotted["spelling"] in ("go", "stop")


def test_a_phrase_of_other_words_is_one_word_with_their_times() -> None:
    words = (Word("the", 0.1, 0.2, 0.9), Word("mind", 0.2, 0.4, 0.5), Word("flare", 0.4, 0.8, 0.7))
    alternatives = (Alternative("the mind flare", -1.0), Alternative("mind flare the", -2.0))
    plain = Transcript("a.wav", 1.0, "ctc_beam", "the mind flare", words, 0.7, alternatives)
    shown = show_hotwords(
        plain, HotwordMatcher([Hotword("Mind Flayer", ("mind flare",)), Hotword("X", ("flare",))])
    )
    assert shown.text == "the Mind Flayer"
    assert shown.words == (words[0], Word("Mind Flayer", 0.2, 0.8, 0.5))
    assert [found.text for found in shown.alternatives] == ["the Mind Flayer", "Mind Flayer the"]
    assert shown.hotwords == (
        SpottedHotword("Mind Flayer", "mind flare", 0.2, 0.8),
        SpottedHotword("X", "flare", 0.4, 0.8),
    )
    assert to_ctm(shown).splitlines()[1] == "a.wav 1 0.200 0.600 Mind_Flayer 0.500"


def test_an_empty_list_changes_no_byte(
    checkpoint: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").write_text("\n")
    recordings = [str(path) for path in sorted(root.rglob("*.flac"))]
    command = ["transcribe", *recordings, "--checkpoint", str(checkpoint), "--decoder", "ctc_beam"]
    outputs = []
    for more in ([], ["--hotwords", str(tmp_path / "empty")]):
        assert main([*command, *more]) == 0
        outputs.append(capsys.readouterr())
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lm", "LM"], "no such language model: LM; make one with `vox lm`"),
        (
            ["--decoder", "ctc", "--hotword", "go"],
            "--hotword is for a search, and these decoders are greedy; add --decoder .*",
        ),
        (["--lm-weight", "1"], "--lm-weight without a language model; add --lm FILE"),
        (["--hotword-weight", "1"], "--hotword-weight without hotwords; add .*"),
        (
            ["--hotword", "level 9"],
            r"the hotword 'level 9'; .* \(9\); write numbers as words",
        ),
        (["--decoder", "ctc_beam", "--lm", "/nowhere.arpa"], "no such language model: /nowhere.arpa; .*"),
    ],
)
def test_wrong_options_are_one_line(
    checkpoint: Path, root: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recording = str(next(root.rglob("*.flac")))
    assert main(["transcribe", recording, "--checkpoint", str(checkpoint), *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(f"vox: error: {message}\n", captured.err)


@pytest.mark.parametrize("weight", ["nan", "inf", "1e9", "much"])
def test_weights_out_of_range_are_usage_errors(weight: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["transcribe", "x.wav", "--hotword", "go", "--hotword-weight", weight]) == 2
    assert capsys.readouterr().err.startswith("vox transcribe: error: invalid value for '--hotword-weight'")


def test_a_phrase_on_the_command_line_joins_those_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("go\nstop\n")
    additions = read_additions(None, None, tmp_path / "list", ["go", "left @3"], None)
    assert [(h.phrase, h.weight) for h in additions.hotwords] == [("go", 1), ("stop", 1), ("left", 3)]
    assert math.isfinite(additions.hotword_weight)
    assert additions.options == ["--hotwords"]
    assert read_additions(None, None, None, ["go"], None).options == ["--hotword"]
