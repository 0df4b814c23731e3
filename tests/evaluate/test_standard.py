"""`vox evaluate --normalise whisper-english`: Whisper's rules, and what is scored, shown and compared."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from evaluate.standard import WHISPER_ENGLISH, load_standard
from evaluate.tally import Tally, add_words, score_tally
from tests.support.speech import write_split
from tests.support.untrained import make_tokenizer, save_go_checkpoint
from vox.cli import main
from vox.config import TextConfig
from vox.corpus import Utterance
from vox.decode import SearchOptions
from vox.errors import ConfigError, CorpusError
from vox.hotword_list import Hotword
from vox.text import ENGLISH, Normaliser
from vox.units import SAMPLE_RATE

# What OpenAI's own code (openai-whisper 20250625, whisper/normalizers) makes of them.
KNOWN = {
    "Mr. Park saw twenty one colour plates, um, didn't he?": "mister park saw 21 color plates did not he",
    "He's got $20 and ten thousand dollars": "he has got $20 and $10000",
    "I'd've gone; she won't": "i would have gone she will not",
    "[noise] Um, (laughs) hmm": "",
    "one oh one": "101",
    "kinda": "kinda",  # whisper-normalizer's own rules write `kind of`
}


@pytest.fixture
def root(tmp_path: Path, tiny_wavlm_dir: Path) -> Path:
    """Write a data root with a checkpoint that hears `go` in everything, and the splits `own` and `um`."""
    write_split(tmp_path / "speech", "four", 4, speaker=8, first_seed=100)
    save_go_checkpoint(tmp_path / "go", tiny_wavlm_dir)
    recordings = sorted((tmp_path / "speech").rglob("*.flac"))
    for split, texts in {"own": ["Go!", "[noise] Um", "Go 20", "stop GO"], "um": ["Um"]}.items():
        entries = [
            {"audio": str(path), "text": text, "id": f"u{number}", "speaker": f"s{number}"}
            for number, (path, text) in enumerate(zip(recordings, texts, strict=False))
        ]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return tmp_path


def evaluate(root: Path, *options: str, split: str = "own", out: str = "out") -> int:
    """Run the command by the CTC decoder; return the exit status."""
    arguments = ["--split", split, "--checkpoint", str(root / "go"), "--root", str(root), "--workers", "0"]
    return main(["evaluate", *arguments, "--decoder", "ctc", "--out", str(root / out), *options])


def test_texts_become_what_openais_code_makes_of_them() -> None:
    pytest.importorskip("whisper_normalizer")
    standard = load_standard(WHISPER_ENGLISH, ENGLISH)
    assert {text: standard.apply(text) for text in KNOWN} == KNOWN


def test_both_sides_are_scored_by_whispers_rules_and_kept_as_they_were(
    root: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("whisper_normalizer")
    words = root / "words.txt"
    words.write_text("go\num\n")
    assert evaluate(root, "--normalise", WHISPER_ENGLISH, "--words", str(words)) == 0
    # References: go; nothing; go 20; stop go. Heard: go, four times.
    report = json.loads((root / "out" / "report.json").read_text())
    figures = report["decoders"]["ctc"]
    assert {key: figures[key] for key in ("substitutions", "deletions", "insertions", "words")} == {
        "substitutions": 0,
        "deletions": 2,
        "insertions": 1,
        "words": 5,
    }
    assert (figures["wer"], report["normalise"], report["num_excluded"]) == (3 / 5, WHISPER_ENGLISH, 0)
    assert report["split"] == "own-whisper-english"  # which names the folder, where no other is given
    assert report["words"]["go"]["decoders"]["ctc"] == {"found": 4, "right": 3}
    assert report["words"]["um"]["said"] == 0
    rows = [json.loads(line) for line in (root / "out" / "hypotheses-ctc.jsonl").read_text().splitlines()]
    assert [(row["reference"], row["scored_reference"], row["errors"]) for row in rows] == [
        ("Go!", "go", 0),
        ("[noise] Um", "", 1),
        ("Go 20", "go 20", 1),
        ("stop GO", "stop go", 1),
    ]
    assert {(row["hypothesis"], row["scored_hypothesis"]) for row in rows} == {("go", "go")}
    page = (root / "out" / "report.html").read_text()
    assert "<dt>texts scored after</dt><dd>--normalise whisper-english</dd>" in page
    assert "as written: [noise] Um" in page
    assert "scored after --normalise whisper-english" in capsys.readouterr().out
    assert "punctuation" not in caplog.text  # nothing was removed from the transcripts

    # Compared with itself: alike. With a report of the transcripts as for training: refused.
    (root / "first").mkdir()
    for path in (root / "out").iterdir():
        path.rename(root / "first" / path.name)
    assert evaluate(root, "--normalise", WHISPER_ENGLISH, "--against", str(root / "first")) == 0
    (compared,) = json.loads((root / "out" / "report.json").read_text())["against"]["decoders"]
    assert (compared["first_wer"], compared["second_wer"], compared["utterances"]) == (3 / 5, 3 / 5, 4)
    capsys.readouterr()
    assert evaluate(root, "--skip-bad", "--against", str(root / "first"), out="plain") == 2
    assert "was made with --normalise whisper-english, this one is without" in capsys.readouterr().err
    assert not (root / "plain").exists()


def test_a_hypothesis_and_a_hotword_become_what_the_reference_becomes() -> None:
    pytest.importorskip("whisper_normalizer")
    heard = {"a/1": "i'm twenty one um", "b/1": "colour plate"}
    spoken = {"a/1": "I am 21.", "b/1": "Color plates"}
    utterances = [Utterance(name, Path(), text, "", split=name[0]) for name, text in spoken.items()]
    tally = Tally(
        texts={"ctc": heard},
        truncated={"ctc": []},
        seconds={"": 0.0, "ctc": 1.0},
        num_samples=SAMPLE_RATE,
        standard=load_standard(WHISPER_ENGLISH, ENGLISH),
    )
    hotwords = [Hotword("twenty one", ("twenty one",)), Hotword("colour", ("colour",))]
    evaluation = score_tally("a+b", utterances, tally, {}, SearchOptions(), hotwords)
    (result,) = evaluation.decoders.values()
    assert [(one.hypothesis, one.num_errors) for one in result.score.utterances] == [
        ("i am 21", 0),
        ("color plate", 1),
    ]
    assert result.hypotheses == list(heard.values())
    assert evaluation.by_split["a"]["ctc"].wer == 0
    assert result.hotwords is not None and result.hotwords.recall == 1
    silent = [replace(each, text="Um") for each in utterances]
    with pytest.raises(CorpusError, match=r"no transcript has a word left.*: a;"):
        score_tally("a+b", silent, tally, {}, SearchOptions())


def test_listed_words_that_become_equal_are_counted_together(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pytest.importorskip("whisper_normalizer")
    words = [Hotword(word, (word,)) for word in ("colour", "color", "um", "uh", "plate")]
    utterance = Utterance("u", Path(), "colour plate, color, colour", "")
    tally = Tally(
        texts={"ctc": {"u": "color plate colour"}},
        truncated={"ctc": []},
        seconds={"": 0.0, "ctc": 1.0},
        num_samples=SAMPLE_RATE,
        standard=load_standard(WHISPER_ENGLISH, ENGLISH),
    )
    evaluation = score_tally("s", [utterance], tally, {}, SearchOptions())
    listed = add_words(evaluation, words, make_tokenizer(), ENGLISH)
    counts = listed.decoders["ctc"].words
    assert {word: (c.num_said, c.num_found, c.num_right) for word, c in counts.items()} == {
        "colour": (3, 2, 2),
        "um": (0, 0, 0),
        "uh": (0, 0, 0),
        "plate": (1, 1, 1),
    }
    assert list(listed.word_pieces) == list(counts)
    assert "counted as colour" in caplog.text


def test_a_split_without_a_word_is_found_before_the_work(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("whisper_normalizer")
    assert evaluate(root, "--normalise", WHISPER_ENGLISH, split="um") == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert "no transcript has a word left after --normalise whisper-english" in line
    assert not (root / "out").exists()


def test_without_the_package_one_line_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "whisper_normalizer", None)
    with pytest.raises(ConfigError, match=re.escape("pip install whisper-normalizer==0.1.15")):
        load_standard(WHISPER_ENGLISH, ENGLISH)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (TextConfig(alphabet="letters", language="tr"), "text.language=tr"),
        (TextConfig(alphabet="characters"), "text.alphabet=characters"),
    ],
)
def test_a_checkpoint_of_another_language_is_refused(config: TextConfig, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        load_standard(WHISPER_ENGLISH, Normaliser(config))
