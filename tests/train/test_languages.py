"""From transcripts in other alphabets to a checkpoint that keeps its alphabet, and its evaluation."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from evaluate.cli import evaluate
from tests.support.speech import write_split
from tests.support.training import stage1_options, stage2_options
from train.build import _adopt_text
from train.run import run_training
from vox.checkpoint.files import load_recogniser
from vox.cli import main
from vox.config import TextConfig
from vox.corpora.check import check_split, describe
from vox.corpora.check_page import render_check
from vox.errors import CheckpointError, CorpusError
from vox.text import Normaliser

TEXTS = {"letters": "GROẞ ÜBER Straßen", "characters": "我 爱 北京。"}


def write_corpus(root: Path, text: str) -> Path:
    for split, count in (("train-tiny", 4), ("dev-tiny", 2)):
        folder = write_split(root, split, count)
        lines = [f"7-1-{number:04d} {text}\n" for number in range(count)]
        (folder / "7-1.trans.txt").write_text("".join(lines), encoding="utf-8")
    return root


def settings(alphabet: str) -> tuple[str, ...]:
    return (f"text.alphabet={alphabet}", "model.vocab_size=auto", "train.max_updates=1", "train.epochs=1")


def test_a_checkpoint_keeps_its_alphabet(tiny_wavlm_dir: Path, tmp_path: Path) -> None:
    root = write_corpus(tmp_path / "data", TEXTS["letters"])
    options = stage1_options(root, tiny_wavlm_dir, tmp_path / "run", overrides=settings("letters"))
    run_training(options)
    loaded = load_recogniser(tmp_path / "run" / "last")
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("straße über")) == "straße über"
    assert loaded.normaliser("GROẞE Straße") == "große straße"
    assert (root / "tokenizers").exists() and "letters" in next((root / "tokenizers").iterdir()).name

    following = stage2_options(root, tmp_path / "run2", tmp_path / "run" / "last")
    turkish = (*following.overrides, "text.alphabet=letters", "text.language=tr")
    with pytest.raises(CheckpointError, match=r"another alphabet than the config.*leave text.alphabet"):
        run_training(replace(following, overrides=turkish))


def test_characters_lead_in_what_is_reported(
    tiny_wavlm_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    root = write_corpus(tmp_path / "data", TEXTS["characters"])
    options = stage1_options(root, tiny_wavlm_dir, tmp_path / "run", overrides=settings("characters"))
    run_training(options)
    best = tmp_path / "run" / "last"
    assert sorted(load_recogniser(best).tokenizer.pieces[4:]) == sorted("我爱北京")
    arguments = ["--split", "dev-tiny", "--root", root, "--checkpoint", best, "--device", "cpu"]
    evaluate.main(
        [str(each) for each in (*arguments, "--workers", 0, "--out", tmp_path)], standalone_mode=False
    )
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["rate"] == "CER" and report["decoders"]["ctc"]["words"] == 2 * 4
    assert "CER ctc" in caplog.text and "WER" not in (tmp_path / "report.txt").read_text() + caplog.text
    page = (tmp_path / "report.html").read_text()
    assert "WER" not in page and "words/s" not in page and "Most confused characters" in page
    capsys.readouterr()
    assert main(["status", str(tmp_path / "run")]) == 0
    status = capsys.readouterr().out
    assert "best dev CER" in status and "WER" not in status
    text = tmp_path / "domain.txt"
    text.write_text("北京\n", encoding="utf-8")
    assert main(["adapt", "--text", str(text), "--out", str(tmp_path / "d"), "--checkpoint", str(best)]) == 2
    assert "vox adapt is about words" in capsys.readouterr().err
    assert main(["transcribe", __file__, "--checkpoint", str(best), "--hotword", "北京"]) == 2
    assert "hotwords are words" in capsys.readouterr().err


def test_a_script_without_words_has_not_too_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_corpus(tmp_path / "data", TEXTS["characters"])
    monkeypatch.setattr("vox.corpora.check.MIN_WORDS_A_SECOND", 100.0)
    for alphabet, expected in (("characters", False), ("letters", True)):
        checked = check_split(root, "dev-tiny", 1, Normaliser(TextConfig(alphabet=alphabet)))
        assert ("too few words" in {finding.kind for finding in checked.findings}) == expected
        assert ("words/s" in dict(describe(checked))) == expected
        assert ("words a second" in render_check([checked], [])) == expected


def test_a_corpus_in_another_script_is_refused_with_the_remedy(
    tiny_wavlm_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_corpus(tmp_path / "data", "привет")
    with pytest.raises(CorpusError, match=r"--set text.alphabet=letters"):
        run_training(stage1_options(root, tiny_wavlm_dir, tmp_path / "run"))
    common = ["precompute", "--root", str(root), "--split", "dev-tiny", "--wavlm", str(tiny_wavlm_dir)]
    command = [*common, "--layers", "3,4", "--dry-run", "--device", "cpu", "--workers", "0"]
    assert main(command) == 2
    assert "--set text.alphabet=letters" in capsys.readouterr().err
    assert main([*command, "--set", "text.alphabet=letters"]) == 0
    assert main([*command, "--set", "train.epochs=3"]) == 2
    check = ["corpus", "check", "--root", str(root), "--split", "dev-tiny"]
    assert main(check) == 2
    capsys.readouterr()
    assert main([*check, "--set", "text.alphabet=letters"]) == 0
    assert "п:2" in capsys.readouterr().out


def test_numbers_are_not_spelled_in_a_language_that_nobody_named() -> None:
    """The checkpoints of such a run could not be loaded."""
    with pytest.raises(CheckpointError, match="the checkpoint has none"):
        _adopt_text(TextConfig(numbers="spell"), TextConfig(alphabet="letters"))
    german = TextConfig(alphabet="letters", language="de")
    assert _adopt_text(TextConfig(numbers="spell"), german).numbers == "spell"
