"""Interpolate several n-gram models over one vocabulary, with weights fitted on held-out text.

Letters: L words of a text with <s> and </s>, T the same without <s>, I models, M n-grams of one order,
k that order, V vocabulary.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from vox.lm.arpa import BOS, Arpa, NgramTable
from vox.lm.ngram import Ngram

MAX_ITERATIONS = 200
SMALLEST_CHANGE = 1e-5  # EM stops when no weight changes by more
SMALLEST_MASS = 1e-9  # left to backed-off words by a context; anything below is rounding

Floats = NDArray[np.float64]
Words = NDArray[np.int32]


def make_machine(tables: Sequence[NgramTable], vocabulary: Sequence[str]) -> Ngram:
    """Return the automaton of tables over a vocabulary; its labels are indices into the vocabulary."""
    arpa = Arpa("", list(vocabulary), list(tables))
    return Ngram.build(arpa, {word: place for place, word in enumerate(vocabulary)})


def score_words(model: Ngram, tokens_L: Words, vocabulary: Sequence[str]) -> Floats:
    """Return the natural log-probability of each word of a text given its sentence so far, [T]."""
    is_bos_L = torch.from_numpy(tokens_L == vocabulary.index(BOS))
    labels_L = torch.from_numpy(tokens_L.astype(np.int64))
    sentence_L = is_bos_L.cumsum(0)
    states_L = torch.zeros_like(labels_L)
    for distance in range(model.max_backoffs, 0, -1):
        if distance < len(labels_L):
            is_same_L = sentence_L[distance:] == sentence_L[:-distance]
            next_L = model.advance(states_L[distance:], labels_L[:-distance])
            states_L[distance:] = torch.where(is_same_L, next_L, states_L[distance:])
    return model.step(states_L, labels_L)[0][~is_bos_L].double().numpy()


def fit_weights(logps_TI: Floats) -> Floats:
    """Return the weights [I] with which the mixture of models gives a text the highest probability (EM)."""
    probs_TI = np.exp(logps_TI)
    weights_I = np.full(probs_TI.shape[1], 1.0 / probs_TI.shape[1])
    for _ in range(MAX_ITERATIONS):
        shares_TI = probs_TI * weights_I
        shares_TI /= shares_TI.sum(axis=1, keepdims=True)
        before_I, weights_I = weights_I, shares_TI.mean(axis=0)
        if np.abs(weights_I - before_I).max() < SMALLEST_CHANGE:
            break
    return weights_I


def mix(
    models: Sequence[Ngram], tables: Sequence[Sequence[NgramTable]], weights_I: Floats
) -> list[NgramTable]:
    """Return one model with the n-grams of all the models.

    The probability of each n-gram is the weighted mean over the models. The back-off weights make the words
    after each context sum to 1. tables: those that `make_machine` built the models from.
    """
    order = max(map(len, tables))
    vocabulary_size = len(tables[0][0].words_Mk)
    mixed: list[NgramTable] = []
    keys: list[NDArray[np.int64]] = []  # of each order's n-grams: index of the context * V + word
    lower_M = np.empty(0)
    for k in range(1, order + 1):
        words_Mk = np.unique(np.concatenate([t[k - 1].words_Mk for t in tables if len(t) >= k]), axis=0)
        probs_M = np.exp(np.column_stack([_score_ngrams(model, words_Mk) for model in models])) @ weights_I
        if k > 1:
            contexts_M = _find_places(words_Mk[:, :-1], keys, vocabulary_size)
            suffixes_M = _find_places(words_Mk[:, 1:], keys, vocabulary_size)
            _fill_backoffs(mixed[-1], contexts_M, probs_M, lower_M[suffixes_M])
            keys.append(contexts_M * vocabulary_size + words_Mk[:, -1])
        mixed.append(NgramTable(words_Mk, np.log10(probs_M), np.zeros(len(probs_M))))
        lower_M = probs_M
    return mixed


def _score_ngrams(model: Ngram, words_Mk: Words) -> Floats:
    """Return the natural log-probability of each n-gram's last word given the others."""
    labels_Mk = torch.from_numpy(words_Mk.astype(np.int64))
    states_M = torch.zeros(len(labels_Mk), dtype=torch.int64)
    for labels_M in labels_Mk[:, :-1].T:
        states_M = model.advance(states_M, labels_M)
    return model.step(states_M, labels_Mk[:, -1])[0].double().numpy()


def _find_places(words_Mk: Words, keys: Sequence[NDArray[np.int64]], size: int) -> NDArray[np.int64]:
    places_M = words_Mk[:, 0].astype(np.int64)
    for column, keys_of_order in enumerate(keys, start=1):
        places_M = np.searchsorted(keys_of_order, places_M * size + words_Mk[:, column])
    return places_M


def _fill_backoffs(
    table: NgramTable, contexts_M: NDArray[np.int64], probs_M: Floats, lower_probs_M: Floats
) -> None:
    count = len(table.words_Mk)
    left_H = 1.0 - np.bincount(contexts_M, probs_M, minlength=count)
    lower_left_H = 1.0 - np.bincount(contexts_M, lower_probs_M, minlength=count)
    is_context_H = np.bincount(contexts_M, minlength=count) > 0
    ratio_H = np.maximum(left_H, SMALLEST_MASS) / np.maximum(lower_left_H, SMALLEST_MASS)
    table.log10_backoffs_M[is_context_H] = np.log10(ratio_H[is_context_H])
