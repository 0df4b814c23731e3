"""Kneser-Ney: counts and probabilities computed by hand, agreement with a slow estimate, sums of 1."""

import math
import random
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from vox.lm.arpa import Arpa, NgramTable
from vox.lm.estimate import FALLBACK_DISCOUNTS, _choose_discounts, _count, estimate, join_sentences
from vox.lm.ngram import Ngram

VOCABULARY = ["<s>", "</s>", "<unk>", "a", "b", "c", "d"]
Gram = tuple[str, ...]


def tokens_of(*texts: str) -> np.ndarray:
    return join_sentences([[VOCABULARY.index(word) for word in text.split()] for text in texts], VOCABULARY)


def by_words(table: NgramTable) -> dict[Gram, tuple[float, float]]:
    """Return n-grams with their probability and back-off weight."""
    columns = (table.words_Mk.tolist(), 10**table.log10_probs_M, 10**table.log10_backoffs_M)
    return {tuple(VOCABULARY[i] for i in ids): (p, b) for ids, p, b in zip(*columns, strict=True)}


def draw_texts(seed: int, count: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices("abcc", k=draw.randint(0, 6))) for _ in range(count)]


def test_counts_by_hand() -> None:
    """`a b a`, `a b`: bigrams count occurrences; unigrams count the different words before them."""
    first, second, third = (
        dict(
            zip([" ".join(VOCABULARY[i] for i in ids) for ids in level.words_Mk], level.counts_M, strict=True)
        )
        for level in _count(tokens_of("a b a", "a b"), VOCABULARY, 3)
    )
    # Before a: <s>, b. Before b: a. Before </s>: a, b.
    assert first == {"<s>": 0, "</s>": 2, "<unk>": 0, "a": 2, "b": 1, "c": 0, "d": 0}
    # With <s> they count as they are: 2. Before `a b`: <s>. Before `b a`: a. Before `a </s>`: b. `b </s>`: a.
    assert second == {"<s> a": 2, "a b": 1, "b a": 1, "a </s>": 1, "b </s>": 1}
    assert third == {"<s> a b": 2, "a b a": 1, "a b </s>": 1, "b a </s>": 1}


def test_probabilities_by_hand() -> None:
    """The discounts of such a small text are 0.5, 1 and 1.5; six words can follow."""
    first, second = (by_words(table) for table in estimate(tokens_of("a b", "a"), VOCABULARY, 2))
    # Unigrams: a 1, b 1, </s> 2 of 4; left over 0.5 + 0.5 + 1 of 4, a sixth of it to each.
    share = 2 / 4 / 6
    assert first["a",][0] == pytest.approx(0.5 / 4 + share)
    assert first["</s>",][0] == pytest.approx(1 / 4 + share)
    assert first["<unk>",][0] == first["d",][0] == pytest.approx(share)
    # After a: b 1, </s> 1 of 2; left over 0.5 + 0.5 of 2.
    assert first["a",][1] == pytest.approx(1 / 2)
    assert second["a", "b"][0] == pytest.approx(0.5 / 2 + 1 / 2 * first["b",][0])
    # After <s>: a 2 of 2; left over 1 of 2. Nothing follows </s>, c, d.
    assert second["<s>", "a"][0] == pytest.approx(1 / 2 + 1 / 2 * first["a",][0])
    assert first["<s>",][1] == pytest.approx(1 / 2)
    assert first["c",][1] == first["</s>",][1] == 1


def test_discounts_by_hand() -> None:
    counts = np.repeat([1, 2, 3, 4, 9], [10, 5, 3, 2, 7])
    y = 10 / 20
    expected = (1 - 2 * y * 5 / 10, 2 - 3 * y * 3 / 5, 3 - 4 * y * 2 / 3)
    assert _choose_discounts(counts, 2) == pytest.approx(expected)
    assert _choose_discounts(np.repeat([1, 2, 4], [10, 5, 2]), 2) == FALLBACK_DISCOUNTS  # none of 3
    assert _choose_discounts(np.repeat([1, 2, 3, 4], [10, 1, 9, 2]), 2) == FALLBACK_DISCOUNTS  # less than 0


def estimate_slowly(texts: Sequence[str], order: int) -> dict[Gram, float]:
    """Return the probability of the last word of every n-gram of the texts, by the textbook definition."""
    raw: Counter[Gram] = Counter()
    for text in texts:
        words = ["<s>", *text.split(), "</s>"]
        for k in range(1, order + 1):
            raw.update(tuple(words[i : i + k]) for i in range(len(words) - k + 1))
    before: dict[Gram, set[str]] = defaultdict(set)
    for gram in raw:
        before[gram[1:]].add(gram[0])
    counts = {g: n if len(g) == order or g[0] == "<s>" else len(before[g]) for g, n in raw.items()}
    del counts["<s>",]
    after: dict[Gram, list[Gram]] = defaultdict(list)
    for gram in counts:
        after[gram[:-1]].append(gram)

    def discount(gram: Gram) -> float:
        level = Counter(n for g, n in counts.items() if len(g) == len(gram))
        kinds = np.repeat(list(level), list(level.values()))
        return _choose_discounts(kinds, len(gram))[min(counts[gram], 3) - 1]

    def probability(gram: Gram) -> float:
        if not gram:
            return 1 / (len(VOCABULARY) - 1)
        grams = after[gram[:-1]]
        if not grams:
            return probability(gram[1:])
        total = sum(counts[g] for g in grams)
        own = counts[gram] - discount(gram) if gram in counts else 0.0
        return own / total + sum(map(discount, grams)) / total * probability(gram[1:])

    return {gram: probability(gram) for gram in counts}


@pytest.mark.parametrize(("order", "num_texts"), [(1, 3), (2, 30), (4, 30)])
def test_a_slow_estimate_agrees(order: int, num_texts: int) -> None:
    texts = draw_texts(order, num_texts)
    tables = estimate(tokens_of(*texts), VOCABULARY, order)
    expected = estimate_slowly(texts, order)
    found = {gram: entry[0] for table in tables for gram, entry in by_words(table).items()}
    seen = {gram: prob for gram, prob in found.items() if gram in expected}
    assert seen == pytest.approx(expected, rel=1e-9)
    assert {gram[0] for gram in found.keys() - expected.keys()} <= {*VOCABULARY}


@pytest.mark.parametrize(("seed", "num_texts"), [(0, 1), (1, 40), (2, 400)])
def test_after_every_context_the_words_sum_to_one(seed: int, num_texts: int) -> None:
    tables = estimate(tokens_of(*draw_texts(seed, num_texts)), VOCABULARY, 4)
    label_of = {word: label for label, word in enumerate(VOCABULARY)}
    model = Ngram.build(Arpa("", VOCABULARY, tables), label_of)
    rows_SV = model.scores(torch.arange(len(model.backoffs_S)))
    sums_S = rows_SV.double().exp()[:, label_of["</s>"] :].sum(1)  # all but <s>
    torch.testing.assert_close(sums_S, torch.ones_like(sums_S), rtol=0, atol=1e-5)
    assert model.bounds == (-math.inf, pytest.approx(float(rows_SV.max()), abs=1.0))


def test_short_sentences_give_a_lower_order(caplog: pytest.LogCaptureFixture) -> None:
    assert len(estimate(tokens_of("a", "b"), VOCABULARY, 5)) == 3
    assert "no sentence has 2 words: a model of order 3" in caplog.text
