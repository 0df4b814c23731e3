"""Hotwords in evaluation: cases counted by hand, and sums that agree with the plain error rate."""

import random

import pytest

from vox.hotword_list import Hotword
from vox.score import score
from vox.score_hotwords import score_hotwords

HOTWORDS = [Hotword("mind flayer", ("mind flayer",)), Hotword("Nyx", ("nicks", "nix"))]


def test_a_hand_counted_set() -> None:
    references = ["the mind flayer comes", "nicks and nix", "never mind", "go on", ""]
    hypotheses = ["the mind layer comes", "nicks and nicks nix", "never mind flayer", "nix go off", "nix"]
    # 1: flayer > layer is a hotword's. 2: one of the hypothesis's three is too many: both spellings are Nyx.
    # 3: flayer is inserted, inside a phrase. 4: nix inserted; on > off another word's. 5: nix inserted.
    result = score_hotwords(references, hypotheses, HOTWORDS)
    assert (result.hotword_errors, result.hotword_words) == (5, 4)
    assert (result.other_errors, result.other_words) == (1, 7)
    assert (result.num_said, result.num_found, result.num_right) == (3, 6, 2)
    assert result.false_alarms == 4
    assert result.hotword_wer == pytest.approx(5 / 4)
    assert result.other_wer == pytest.approx(1 / 7)
    assert result.recall == pytest.approx(2 / 3)
    assert result.precision == pytest.approx(2 / 6)


def test_without_hotwords_all_words_are_others() -> None:
    result = score_hotwords(["go left"], ["go lift"], [])
    assert (result.other_errors, result.other_words) == (1, 2)
    assert (result.hotword_wer, result.recall, result.precision) == (None, None, None)


def test_both_kinds_together_are_the_plain_error_rate() -> None:
    draw = random.Random(0)
    vocabulary = ["mind", "flayer", "nicks", "nix", "go", "the"]
    references = [" ".join(draw.choices(vocabulary, k=draw.randint(1, 6))) for _ in range(60)]
    hypotheses = [" ".join(draw.choices(vocabulary, k=draw.randint(0, 6))) for _ in range(60)]
    result = score_hotwords(references, hypotheses, HOTWORDS)
    plain = score(references, hypotheses)
    assert (
        result.hotword_errors + result.other_errors
        == plain.substitutions + plain.deletions + plain.insertions
    )
    assert result.hotword_words + result.other_words == plain.num_words
    assert 0 < result.hotword_errors < plain.num_words


def test_each_phrase_is_counted_by_itself() -> None:
    references = ["nyx sees nyx", "the mind flayer", "go"]
    hypotheses = ["nyx sees nix", "the mind flayer nyx", "mind flayer go nyx"]
    words = [Hotword(word, (word,)) for word in ("nyx", "mind flayer", "go", "never")]
    counts = score_hotwords(references, hypotheses, words).by_phrase
    assert {word: (c.num_said, c.num_right, c.false_alarms) for word, c in counts.items()} == {
        "nyx": (2, 1, 2),
        "mind flayer": (1, 1, 1),
        "go": (1, 1, 0),
        "never": (0, 0, 0),
    }
    assert (counts["nyx"].recall, counts["never"].recall) == (0.5, None)
