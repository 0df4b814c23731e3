"""N-gram models from text: interpolated modified Kneser-Ney (Chen and Goodman 1999; Heafield et al. 2013).

Each sentence is <s>, its words, </s>. In the highest order and for n-grams that begin with <s>, a count is
the number of occurrences; for the others it is the number of different words before the n-gram. The
probability of a word after a context is its count minus a discount, divided by the sum of the context's
counts, plus a share of the discounted mass. That mass, the context's back-off weight, is distributed by the
context without its first word, and in the end uniformly over all words.

Letters: L words of the text with <s> and </s>, M n-grams of one order, k that order, V vocabulary.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vox.errors import name_count
from vox.lm.arpa import BOS, EOS, NEVER_LOG10, NgramTable

log = logging.getLogger(__name__)

# Discounts of n-grams that occur once, twice, and more often, for a text with too few to estimate them.
FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class _Counts:
    """The n-grams of one order, sorted by context and word."""

    words_Mk: NDArray[np.int32]
    contexts_M: Integers  # index in the order below of the n-gram without its last word
    suffixes_M: Integers  # index in the order below of the n-gram without its first word
    counts_M: Integers  # Kneser-Ney counts, as described above


def estimate(tokens_L: NDArray[np.int32], vocabulary: Sequence[str], order: int) -> list[NgramTable]:
    """Return the tables of a model, order 1 first; fewer than `order` if no sentence is long enough.

    tokens_L: from `join_sentences`, not empty. vocabulary: all words of the model, with <s>, </s> and <unk>;
    words that are not in the text get a probability too.
    """
    tables: list[NgramTable] = []
    lower_M = np.full(1, 1.0 / (len(vocabulary) - 1))  # uniform, without <s>: never predicted
    for k, level in enumerate(_count(tokens_L, vocabulary, order), start=1):
        discounts = np.array([0.0, *_choose_discounts(level.counts_M, k)])[np.minimum(level.counts_M, 3)]
        totals_H = np.bincount(level.contexts_M, level.counts_M, minlength=len(lower_M))
        left_H = np.bincount(level.contexts_M, discounts, minlength=len(lower_M)) / np.maximum(totals_H, 1)
        probs_M = (level.counts_M - discounts) / totals_H[level.contexts_M]
        probs_M += left_H[level.contexts_M] * lower_M[level.suffixes_M]
        if k > 1:
            is_context_H = totals_H > 0
            tables[-1].log10_backoffs_M[is_context_H] = np.log10(left_H[is_context_H])
        tables.append(NgramTable(level.words_Mk, np.log10(probs_M), np.zeros(len(probs_M))))
        lower_M = probs_M
    tables[0].log10_probs_M[vocabulary.index(BOS)] = NEVER_LOG10
    return tables


def join_sentences(sentences: Iterable[Sequence[int]], vocabulary: Sequence[str]) -> NDArray[np.int32]:
    """Concatenate all sentences, each between <s> and </s>, int32 [L].

    sentences: indices into the vocabulary.
    """
    bos, eos = vocabulary.index(BOS), vocabulary.index(EOS)
    parts = [np.array([bos, *sentence, eos], dtype=np.int32) for sentence in sentences]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int32)


def _count(tokens_L: NDArray[np.int32], vocabulary: Sequence[str], order: int) -> list[_Counts]:
    bos, eos, size = vocabulary.index(BOS), vocabulary.index(EOS), len(vocabulary)
    words_Mk = np.arange(size, dtype=np.int32)[:, None]
    contexts_M = suffixes_M = np.zeros(size, dtype=np.int64)
    raw_M = np.bincount(tokens_L, minlength=size)
    raw_M[bos] = 0
    grams_L = tokens_L  # index of the n-gram of this order that begins here; -1: the sentence is too short
    levels = []
    for k in range(2, order + 1):
        is_begun = (grams_L[: 1 - k] >= 0) & (tokens_L[k - 2 : -1] != eos)
        begins = np.flatnonzero(is_begun)
        if len(begins) == 0:
            log.warning("no sentence has %s: a model of order %d", name_count(k - 2, "word"), k - 1)
            break
        keys = grams_L[begins].astype(np.int64) * size + tokens_L[begins + k - 1]
        keys_M, firsts_M, grams, new_raw_M = np.unique(
            keys, return_index=True, return_inverse=True, return_counts=True
        )
        new_suffixes_M = grams_L[begins[firsts_M] + 1].astype(np.int64)
        kinds_before_M = np.bincount(new_suffixes_M, minlength=len(words_Mk))
        counts_M = np.where(words_Mk[:, 0] == bos, raw_M, kinds_before_M)
        levels.append(_Counts(words_Mk, contexts_M, suffixes_M, counts_M))
        contexts_M, suffixes_M, raw_M = keys_M // size, new_suffixes_M, new_raw_M
        words_Mk = np.column_stack([words_Mk[contexts_M], (keys_M % size).astype(np.int32)])
        grams_L = np.full(len(tokens_L), -1, dtype=np.int32)
        grams_L[begins] = grams
    return [*levels, _Counts(words_Mk, contexts_M, suffixes_M, raw_M)]


def _choose_discounts(counts_M: Integers, order: int) -> tuple[float, float, float]:
    """Return the discounts for counts of 1, of 2, and of 3 or more (Chen and Goodman's estimate)."""
    once, twice, thrice, four_times = np.bincount(counts_M, minlength=5)[1:5].tolist()
    if once and twice and thrice:
        y = once / (once + 2 * twice)
        discounts = (1 - 2 * y * twice / once, 2 - 3 * y * thrice / twice, 3 - 4 * y * four_times / thrice)
        if all(0 < discount <= count for count, discount in enumerate(discounts, start=1)):
            return discounts
    log.info("order %d: too few n-grams to estimate discounts; using %g, %g, %g", order, *FALLBACK_DISCOUNTS)
    return FALLBACK_DISCOUNTS
