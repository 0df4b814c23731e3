"""`vox lm`: from text files to a model; several texts; unusable texts."""

import gzip
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.untrained import make_tokenizer
from vox.cli import main
from vox.lm.arpa import read_arpa
from vox.lm.estimate import estimate, join_sentences
from vox.lm.mix import fit_weights, make_machine, mix, score_words
from vox.lm.ngram import WordNgram, load_ngram

CPU = torch.device("cpu")
VOCABULARY = ["<s>", "</s>", "<unk>", "a", "b", "c"]


def tokens_of(*texts: str) -> np.ndarray:
    return join_sentences([[VOCABULARY.index(word) for word in text.split()] for text in texts], VOCABULARY)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A folder with the parts of a checkpoint that `vox lm` needs."""
    make_tokenizer().save(tmp_path / "run" / "tokenizer.model")
    return tmp_path / "run"


def test_a_model_over_pieces_is_a_scorer(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = make_tokenizer()
    (tmp_path / "one.txt").write_text("Go left!\n\nstop\n")
    (tmp_path / "two.txt.gz").write_bytes(gzip.compress(b"go left"))
    out = tmp_path / "models" / "lm.arpa"
    arguments = [
        "--text",
        str(tmp_path / "one.txt"),
        "--text",
        str(tmp_path / "two.txt.gz"),
        "--out",
        str(out),
    ]
    assert main(["lm", *arguments, "--checkpoint", str(checkpoint)]) == 0
    assert re.fullmatch(
        rf"{out}: {tokenizer.vocab_size - 1} 1-grams, \d+ 2-grams, .*\n", capsys.readouterr().out
    )
    model = load_ngram(out, tokenizer, CPU)
    rows_NV = model.scores(model.start(1, CPU))
    assert rows_NV.shape == (1, tokenizer.vocab_size)
    assert rows_NV.isfinite().all()
    left, right = model.score_sequences([tokenizer.encode("go left"), tokenizer.encode("left go")])
    assert left > right + 1


def test_a_model_over_words(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("Go left\ngo\n")
    arguments = [
        "--words",
        "--order",
        "2",
        "--text",
        str(tmp_path / "text"),
        "--out",
        str(tmp_path / "lm.arpa"),
    ]
    assert main(["lm", *arguments]) == 0
    assert read_arpa(tmp_path / "lm.arpa").vocabulary == ["<s>", "</s>", "<unk>", "go", "left"]
    known, unknown = WordNgram.load(tmp_path / "lm.arpa").score_texts(["go left", "go right"])
    assert known > unknown


def test_each_word_is_scored_after_its_own_sentence() -> None:
    tokens_L = tokens_of("a b a", "", "c", "a b b a")
    model = make_machine(estimate(tokens_L, VOCABULARY, 3), VOCABULARY)
    logps_T = score_words(model, tokens_L, VOCABULARY)
    places = {word: place for place, word in enumerate(VOCABULARY)}
    sentences = [[places[word] for word in text.split()] for text in ("a b a", "", "c", "a b b a")]
    assert len(logps_T) == 4 + 1 + 2 + 5
    assert logps_T.sum() == pytest.approx(sum(model.score_sequences(sentences)), abs=1e-5)


def test_weights_are_the_best_of_a_grid() -> None:
    logps_TI = np.log(np.random.default_rng(0).dirichlet([1, 1], size=40))
    grid = np.linspace(0, 1, 1001)[1:-1]
    totals = [np.log(np.exp(logps_TI) @ [weight, 1 - weight]).sum() for weight in grid]
    assert fit_weights(logps_TI)[0] == pytest.approx(grid[int(np.argmax(totals))], abs=2e-3)


def test_a_mixture_gives_the_mean_and_sums_to_one() -> None:
    texts = [["a b c", "a b", "a"], ["c c", "b c", "c b b", "a c"]]
    tables = [
        estimate(tokens_of(*lines), VOCABULARY, order) for lines, order in zip(texts, (3, 2), strict=True)
    ]
    models = [make_machine(one, VOCABULARY) for one in tables]
    mixed = mix(models, tables, np.array([0.25, 0.75]))
    assert sum(len(table.words_Mk) for table in mixed) > max(
        sum(len(t.words_Mk) for t in one) for one in tables
    )
    machine = make_machine(mixed, VOCABULARY)
    tokens_L = tokens_of("a b c", "c c", "b c")  # all their n-grams are in one of the two
    expected_T = 0.25 * np.exp(score_words(models[0], tokens_L, VOCABULARY))
    expected_T += 0.75 * np.exp(score_words(models[1], tokens_L, VOCABULARY))
    bigrams = tokens_L[:-1], tokens_L[1:]
    listed = {tuple(words) for words in mixed[1].words_Mk.tolist()}
    assert {pair for pair in zip(*bigrams, strict=True) if pair[1] != 0} <= listed
    np.testing.assert_allclose(np.exp(score_words(machine, tokens_L, VOCABULARY)), expected_T, atol=1e-5)
    sums_S = machine.scores(torch.arange(len(machine.backoffs_S))).double().exp()[:, 1:].sum(1)
    torch.testing.assert_close(sums_S, torch.ones_like(sums_S), rtol=0, atol=1e-5)


def test_held_out_text_weighs_the_texts(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "near").write_text("go left\nstop\n" * 5)
    (tmp_path / "far").write_text("open the door now\n" * 50)
    (tmp_path / "held").write_text("go left\nstop left\n")
    command = ["lm", "--checkpoint", str(checkpoint), "--out", str(tmp_path / "lm.arpa")]
    command += ["--text", str(tmp_path / "near"), "--text", str(tmp_path / "far")]
    assert main([*command, "--held-out", str(tmp_path / "held")]) == 0
    near, far, both, _ = capsys.readouterr().out.splitlines()
    perplexities = [float(line.rpartition(" ")[2]) for line in (near, far, both)]
    assert perplexities[2] <= min(perplexities) < perplexities[1]
    weights = re.search(r"weights ([\d.]+), ([\d.]+):", both)
    assert weights is not None and float(weights[1]) > 0.8


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"go\nlevel 9\n", r"a line that cannot be used: .*text:2; characters outside .*\(9\).*--skip-bad\)"),
        (b"go\njazz\n", r"a line that cannot be used: .*text:2; letters that .* cannot write \(a z\).*"),
        (b"\n...\n", r"a text without a line that can be used: .*text; give another"),
        (b"\xff\xfe", r"not a text in UTF-8: .*text; save it as UTF-8"),
    ],
)
def test_a_bad_text_is_one_line(
    tmp_path: Path, checkpoint: Path, content: bytes, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make_tokenizer(31).save(checkpoint / "tokenizer.model")
    (tmp_path / "text").write_bytes(content)
    command = ["lm", "--checkpoint", str(checkpoint), "--text", str(tmp_path / "text")]
    assert main([*command, "--out", str(tmp_path / "lm.arpa")]) == 2
    assert re.fullmatch(f"vox: error: {message}\n", capsys.readouterr().err)
    assert not list(tmp_path.glob("*.arpa*"))


def test_bad_lines_may_be_left_out(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_tokenizer(31).save(checkpoint / "tokenizer.model")
    (tmp_path / "text").write_text("go 9\nstop\njazz\n")
    command = ["lm", "--checkpoint", str(checkpoint), "--text", str(tmp_path / "text"), "--skip-bad"]
    assert main([*command, "--out", str(tmp_path / "lm.arpa")]) == 0
    assert "left out 2 lines: line 1: characters outside" in capsys.readouterr().err


def test_words_and_pieces_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lm", "--text", "x", "--out", "y", "--words", "--checkpoint", "z"]) == 2
    assert "no checkpoint: z" in capsys.readouterr().err


def test_a_missing_text_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lm", "--words", "--text", str(tmp_path / "x"), "--out", str(tmp_path / "y")]) == 2
    assert "no such text" in capsys.readouterr().err


def test_a_model_is_not_written_over_its_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("go left\n" * 20)
    assert main(["lm", "--words", "--text", str(text), "--out", str(tmp_path / "." / "text.txt")]) == 2
    assert "cannot be written over a text" in capsys.readouterr().err
    assert text.read_text() == "go left\n" * 20
