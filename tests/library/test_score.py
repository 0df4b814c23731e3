"""Error rates: cases counted by hand, and agreement with a slow edit distance."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vox.score import score


def test_counts_and_rates_of_a_hand_counted_set() -> None:
    references = ["go left now", "jump up", "open the door", "stop"]
    hypotheses = ["go lift now", "jump", "open up the door", ""]
    result = score(references, hypotheses)
    # left>lift, -up, +up, -stop: four errors in nine words.
    assert (result.substitutions, result.deletions, result.insertions, result.hits) == (1, 2, 1, 6)
    assert result.num_words == 9
    assert result.num_utterances == 4
    assert result.wer == pytest.approx(4 / 9)
    # e>i, " up" deleted, " up" inserted, "stop" deleted; 11 + 7 + 13 + 4 characters.
    assert result.cer == pytest.approx((1 + 3 + 3 + 4) / 35)
    assert [(u.num_errors, u.num_words) for u in result.utterances] == [(1, 3), (1, 2), (1, 3), (1, 1)]
    assert [(u.num_character_errors, u.num_characters) for u in result.utterances] == [
        (1, 11),
        (3, 7),
        (3, 13),
        (4, 4),
    ]
    assert [u.alignment for u in result.utterances] == [
        "go {left>lift} now",
        "jump {-up}",
        "open {+up} the door",
        "{-stop}",
    ]


def test_long_utterances_weigh_more_than_short_ones() -> None:
    # The mean of the utterances' rates would be 0.5.
    assert score(["a b c d e f g h i", "j"], ["a b c d e f g h i", "k"]).wer == pytest.approx(0.1)


def test_more_errors_than_words_is_a_rate_above_one() -> None:
    assert score(["go"], ["are you are you"]).wer == pytest.approx(4.0)


def edit_distance(reference: list[str], hypothesis: list[str]) -> int:
    """Count edits by the textbook recursion, row by row."""
    row = list(range(len(hypothesis) + 1))
    for i, said in enumerate(reference, start=1):
        above = row
        row = [i]
        for j, heard in enumerate(hypothesis, start=1):
            row.append(min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (said != heard)))
    return row[-1]


words = st.lists(st.sampled_from(["go", "stop", "left", "a"]), min_size=1, max_size=8)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(words, words | st.just([])), min_size=1, max_size=4))
def test_every_utterance_has_its_edit_distance(pairs: list[tuple[list[str], list[str]]]) -> None:
    result = score([" ".join(said) for said, _ in pairs], [" ".join(heard) for _, heard in pairs])
    distances = [edit_distance(said, heard) for said, heard in pairs]
    assert [utterance.num_errors for utterance in result.utterances] == distances
    assert result.wer == pytest.approx(sum(distances) / sum(len(said) for said, _ in pairs))
    for kind in ("substitutions", "deletions", "insertions"):
        assert getattr(result, kind) == sum(getattr(utterance, kind) for utterance in result.utterances)
    assert result.substitutions + result.deletions + result.insertions == sum(distances)
    for (said, heard), utterance in zip(pairs, result.utterances, strict=True):
        assert [word for word, _ in utterance.pairs if word is not None] == said
        assert [word for _, word in utterance.pairs if word is not None] == heard
