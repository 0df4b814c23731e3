"""Hotwords: every string of a small alphabet against a naive matcher, and invalid lists."""

import itertools
import logging
import random
import re
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tests.support.untrained import make_tokenizer
from vox.decode.hotwords import HotwordScorer, make_hotword_scorer
from vox.errors import TextError
from vox.hotword_list import (
    Hotword,
    HotwordMatcher,
    as_in_transcripts,
    parse_hotwords,
    read_hotwords,
)
from vox.text import BOS_ID, EOS_ID, PAD_ID, UNK_ID, Tokenizer

CPU = torch.device("cpu")
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]


class Pieces:
    """A fake tokenizer with given pieces."""

    def __init__(self, *pieces: str) -> None:
        self.pieces = [*SPECIAL, *(piece.replace("_", "\u2581") for piece in pieces)]
        self.vocab_size = len(self.pieces)

    def encode(self, text: str) -> list[int]:
        return [self.pieces.index(letter) if letter in self.pieces else UNK_ID for letter in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.pieces[i] for i in ids if i > UNK_ID).replace("\u2581", " ").strip()


ALPHABET = Pieces("_", "a", "b", "_a", "ab", "_ab")


def words(*phrases: str, weight: float = 1.0) -> list[Hotword]:
    return [Hotword(phrase, (phrase,), weight) for phrase in phrases]


def build(hotwords: Sequence[Hotword], tokenizer: Pieces | Tokenizer = ALPHABET) -> HotwordScorer:
    scorer = make_hotword_scorer(hotwords, tokenizer, CPU)  # type: ignore[arg-type]
    assert scorer is not None
    return scorer


def total_bonuses(scorer: HotwordScorer, ids_NL: torch.Tensor) -> torch.Tensor:
    """Return the sum of the bonuses of label sequences of one length, ends included, [N]."""
    states_N = scorer.start(len(ids_NL), CPU)
    totals_N = torch.zeros(len(ids_NL))
    for labels_N in ids_NL.T:
        totals_N += scorer.scores(states_N).gather(1, labels_N[:, None])[:, 0]
        states_N = scorer.advance(states_N, labels_N)
    return totals_N + scorer.scores(states_N)[:, EOS_ID]


def match_naively(text: str, hotwords: Sequence[Hotword]) -> float:
    """Add the weight of each hotword for each occurrence in a text as whole words."""
    padded = f" {' '.join(text.split())} "
    total = 0.0
    for hotword in hotwords:
        for spelling in hotword.spellings:
            total += hotword.weight * len(re.findall(f"(?= {spelling} )", padded))
    return total


@pytest.mark.parametrize(
    "hotwords",
    [
        words("a"),
        words("ab", "a"),
        words("a", "ab"),  # a beginning of another one, before it and after it
        words("a b", "b", "ab a"),
        words("a a", "aba", "b a b"),
        [Hotword("x", ("a", "b b"), 2.5), Hotword("ab b", ("ab b",), -1.5)],
    ],
)
def test_the_bonus_of_every_string_is_what_a_naive_matcher_counts(hotwords: list[Hotword]) -> None:
    scorer = build(hotwords)
    labels = [UNK_ID, *range(4, ALPHABET.vocab_size)]
    seen = set()
    for length in range(6):
        strings = list(itertools.product(labels, repeat=length))
        totals_N = total_bonuses(scorer, torch.tensor(strings, dtype=torch.int64))
        expected = [match_naively(ALPHABET.decode(string), hotwords) for string in strings]
        torch.testing.assert_close(totals_N, torch.tensor(expected), rtol=0, atol=1e-5)
        # Where nothing was earned, whatever was advanced has come back to the last bit.
        assert not totals_N[torch.tensor(expected) == 0].any() or any(h.weight < 0 for h in hotwords)
        seen |= set(expected)
        rows_NV = scorer.scores(torch.arange(len(scorer.shorter_S)))
        assert scorer.bounds[0] <= rows_NV.min() <= rows_NV.max() <= scorer.bounds[1] <= 5
    assert len(seen) > 2


def test_random_phrases_over_a_real_tokenizer() -> None:
    """For any split of the text: random pieces."""
    tokenizer = make_tokenizer()
    pieces = tokenizer.pieces
    draw = random.Random(0)
    vocabulary = ["go", "stop", "left", "to", "the", "door", "o", "lef"]
    known = [word for word in vocabulary if UNK_ID not in tokenizer.encode(word)]
    hotwords = words(*{" ".join(draw.choices(known, k=draw.randint(1, 3))) for _ in range(12)})
    scorer, matcher = build(hotwords, tokenizer), HotwordMatcher(hotwords)
    num_matches = 0
    for _ in range(60):
        rest = "\u2581" + "\u2581".join(draw.choices(known, k=6))
        text, ids = rest.replace("\u2581", " "), []
        while rest:
            fitting = [i for i in range(4, len(pieces)) if rest.startswith(pieces[i])]
            ids.append(draw.choice(fitting))
            rest = rest[len(pieces[ids[-1]]) :]
        expected = match_naively(text, hotwords)
        assert total_bonuses(scorer, torch.tensor([ids])).item() == pytest.approx(expected, abs=1e-5)
        assert len(matcher.match(text.split())) == expected
        assert matcher.count(text).total() == expected
        num_matches += int(expected)
    assert num_matches > 20


def test_a_phrase_is_worth_as_much_however_long_and_its_word_mark_nothing() -> None:
    tokenizer = Pieces("_", "a", "b", "c", "_a")
    scorer = build(words("a", "bc bc"), tokenizer)

    def steps(*names: str) -> list[float]:
        ids = [tokenizer.pieces.index(name.replace("_", "\u2581")) for name in names]
        state_N, bonuses = scorer.start(1, CPU), []
        for label in [*ids, EOS_ID]:
            bonuses.append(round(scorer.scores(state_N)[0, label].item(), 3))
            state_N = scorer.advance(state_N, torch.tensor([label]))
        return bonuses

    assert steps("_", "b", "c", "_", "b", "c") == [0, 0.25, 0.25, 0, 0.25, 0.25, 0]
    assert steps("_", "b", "c", "_", "b", "b") == [0, 0.25, 0.25, 0, 0.25, -0.75, 0]
    assert steps("_", "b", "c", "_", "b") == [0, 0.25, 0.25, 0, 0.25, -0.75]
    assert steps("_a", "_", "b") == [1, 0, 0.25, -0.25]
    assert steps("_a", "a") == [1, -1, 0]
    assert steps("b", "_a") == [0.25, 0.75, 0]


def test_what_is_given_back_leaves_nothing() -> None:
    """Not even rounding of thirds and sevenths, summed over many partial matches that were abandoned."""
    hotwords = words("abababa", "aab", "bba bbb bbbbb")
    scorer, draw = build(hotwords), random.Random(0)
    strings = [[draw.randrange(4, ALPHABET.vocab_size) for _ in range(30)] for _ in range(200)]
    totals_N = total_bonuses(scorer, torch.tensor(strings))
    is_plain_N = torch.tensor([match_naively(ALPHABET.decode(ids), hotwords) == 0 for ids in strings])
    assert is_plain_N.sum() > 50
    assert not totals_N[is_plain_N].any()


def test_special_tokens_change_nothing() -> None:
    scorer = build(words("ab"))
    state_N = scorer.advance(scorer.start(1, CPU), torch.tensor([ALPHABET.pieces.index("\u2581a")]))
    assert scorer.scores(state_N)[0, [PAD_ID, BOS_ID, UNK_ID]].tolist() == [0, 0, 0]
    for label in (PAD_ID, BOS_ID, UNK_ID):
        assert torch.equal(scorer.advance(state_N, torch.tensor([label])), state_N)


def test_no_phrase_is_no_scorer() -> None:
    assert make_hotword_scorer([], make_tokenizer(), CPU) is None


def test_letters_that_the_tokenizer_lacks_are_refused_by_name() -> None:
    with pytest.raises(TextError, match=r"cannot write \(j z\): jazz; leave it out"):
        make_hotword_scorer(words("ab", "jazz"), ALPHABET, CPU)  # type: ignore[arg-type]


def test_ten_thousand_phrases_are_built_in_seconds() -> None:
    tokenizer = make_tokenizer()
    letters = sorted({letter for piece in tokenizer.pieces[4:] for letter in piece} - {"\u2581"})
    draw = random.Random(0)
    phrases = {
        " ".join("".join(draw.choices(letters, k=draw.randint(2, 9))) for _ in range(draw.randint(1, 3)))
        for _ in range(10_000)
    }
    started = time.perf_counter()
    scorer = build(words(*phrases), tokenizer)
    assert time.perf_counter() - started < 30
    first = min(phrases)
    ids = torch.tensor([tokenizer.encode(first)])
    assert total_bonuses(scorer, ids).item() == pytest.approx(match_naively(first, words(*phrases)), abs=1e-4)


def test_a_file_with_all_that_it_may_have(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "hotwords.txt"
    path.write_bytes(
        "\ufeffMind  Flayer\r\n\n  \nNyx: nicks, Nix @2.5\nmind flayer\n2B: two bee\ncaf\u00e9@ -1\n"
        "# a whole line\nC#: see sharp # 12 times, @3\n".encode()
    )
    with caplog.at_level(logging.WARNING):
        assert read_hotwords(path) == [
            Hotword("mind flayer", ("mind flayer",)),
            Hotword("Nyx", ("nicks", "nix"), 2.5),
            Hotword("2B", ("two bee",)),
            Hotword("cafe", ("cafe",), -1.0),
            Hotword("C#", ("see sharp",)),
        ]
    assert [record.getMessage() for record in caplog.records] == ["repeated hotwords count once: mind flayer"]
    path.write_bytes(b"\xef\xbb\xbf\n \n")
    assert read_hotwords(path) == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "level 9",
            r"the hotword 'level 9': .*:2; characters outside the alphabet \(9\); write numbers as words",
        ),
        ("...", "an empty hotword: .*:2; write a phrase, or delete the line"),
        ("Nyx:", "an empty hotword: .*:2; write a phrase, or delete the line"),
        ("Nyx: nicks,", "an empty hotword: .*:2; .*"),
        (": nicks", "an empty hotword: .*:2; write a phrase before the colon"),
        ("go @much", "'much' is not a hotword weight: .*:2; write a number .*"),
        ("go @nan", "'nan' is not a hotword weight.*"),
        ("go @1e9", "'1e9' is not a hotword weight.*"),
        ("go @3", "the hotword 'go' occurs twice, with different phrases or weights: .*:2; .*"),
        ("Go!: stop, go", "the hotword 'go' occurs twice, .*:2; .*"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "hotwords.txt"
    path.write_text(f"go\n{line}\n")
    with pytest.raises(TextError) as caught:
        read_hotwords(path)
    assert re.fullmatch(message, str(caught.value)), caught.value


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(TextError, match=r"no such file of hotwords: .*nothing"):
        read_hotwords(tmp_path / "nothing")
    (tmp_path / "latin").write_bytes("caf\u00e9".encode("latin-1"))
    with pytest.raises(TextError, match="not a text in UTF-8"):
        read_hotwords(tmp_path / "latin")


def test_spellings_are_replaced_by_their_phrase() -> None:
    hotwords = parse_hotwords([("", "Nyx: nicks, nix"), ("", "New Nyx: new nix"), ("", "go")])
    replace = HotwordMatcher(hotwords).replace_spellings
    assert replace("nicks went new nix go knicks nix") == "Nyx went New Nyx go knicks Nyx"
    assert replace("") == ""
    assert HotwordMatcher([]).replace_spellings("as it is") == "as it is"


def test_phrases_as_transcripts_have_them() -> None:
    lines = ["New  Nyx: nicks", "2B: two bee, two b", "go @2"]
    phrases = [
        hotword.phrase for hotword in as_in_transcripts(parse_hotwords([("", line) for line in lines]))
    ]
    assert phrases == ["new nyx", "two bee", "go"]


def test_where_hotwords_are() -> None:
    hotwords = [Hotword("X", ("a", "ab a")), Hotword("b", ("b",))]
    assert HotwordMatcher(hotwords).match(["ab", "a", "b"]) == [("X", 0, 2), ("X", 1, 2), ("b", 2, 3)]
