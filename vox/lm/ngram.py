"""N-gram models as finite-state machines over label ids.

A state is a context: a sequence of words that begins a longer n-gram of the model, or the empty one
(state 0). Histories with the same context share a state. If a context has no n-gram with the next word, its
back-off weight is added and the context without its first word is used.

Letters: N states of a query, V labels, S states, A arcs, M n-grams of one order, k that order.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vox.decode.arcs import Arcs
from vox.errors import LanguageModelError
from vox.lm.arpa import BOS, EOS, UNK, Arpa, NgramTable, read_arpa
from vox.text import BOS_ID, EOS_ID, UNK_ID, Tokenizer

LN_10 = math.log(10.0)
NO_UNK_LOG10 = -100.0  # for unknown words of a model without <unk>; finite, so that a weight of 0 gives 0

Integers = NDArray[np.int64]


@dataclass(eq=False)
class Ngram:
    """An n-gram model over labels; over a tokenizer's pieces, it is a scorer for the searches."""

    name: str
    eos: int
    max_backoffs: int  # from any state to the empty context
    unk: int
    labels_V: Tensor  # int64 [V]: each label itself, or <unk> if the model does not have it
    missing_labels: Tensor  # int64: labels that the model does not have
    root_logps_V: Tensor  # float32, natural log of each label's unigram
    root_targets_V: Tensor  # int64: the state after each label from the empty context
    arcs: Arcs
    logps_A: Tensor  # float32, natural log
    shorter_S: Tensor  # int64: the state to back off to; state 0 to itself
    backoffs_S: Tensor  # float32, natural log of the back-off weight; 0 for state 0
    begin: int  # the state after <s>

    @property
    def bounds(self) -> tuple[float, float]:
        """Minimum (unknown) and maximum of what `scores` can return: the maximum is 0 for a normal model."""
        most = max(float(self.logps_A.max()), float(self.root_logps_V.max()))
        return -math.inf, most + self.max_backoffs * max(0.0, float(self.backoffs_S.max()))

    @classmethod
    def build(cls, arpa: Arpa, label_of: Mapping[str, int], *, name: str = "lm") -> "Ngram":
        """Build the automaton of a model; label_of gives the label of <s>, </s>, <unk> and every word.

        Labels that the model does not have are scored as <unk>. Raises LanguageModelError for a word without
        a label, and for an n-gram that occurs twice or whose context is missing.
        """
        return _Builder(arpa, label_of).build(name)

    def to(self, device: torch.device) -> "Ngram":
        """Return the same model on a device."""
        moved: dict[str, Any] = {
            key: value.to(device) for key, value in vars(self).items() if isinstance(value, Tensor | Arcs)
        }
        return replace(self, **moved)

    def start(self, count: int, device: torch.device) -> Tensor:
        """Return the state after <s>, int64 [count]. The model must be on that device (`to`)."""
        return torch.full((count,), self.begin, dtype=torch.int64, device=device)

    def scores(self, states_N: Tensor) -> Tensor:
        """Return the natural log-probability of every label, float32 [N, V]."""
        contexts = self._back_off(states_N)
        rows_NV = self.root_logps_V + contexts[-1][1][:, None]
        for context_N, paid_N in reversed(contexts):
            rows_K, places_K = self.arcs.list_all(context_N)
            rows_NV[rows_K, self.arcs.labels_A[places_K]] = self.logps_A[places_K] + paid_N[rows_K]
        rows_NV[:, self.missing_labels] = rows_NV[:, self.unk].clone()[:, None]
        return rows_NV

    def advance(self, states_N: Tensor, labels_N: Tensor) -> Tensor:
        """Return the states after one label each, int64 [N]."""
        return self.step(states_N, labels_N)[1]

    def step(self, states_N: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
        """Return the natural log-probability of one label each, float32 [N], and the state after it."""
        labels_N = self.labels_V[labels_N]
        contexts = self._back_off(states_N)
        logps_N = self.root_logps_V[labels_N] + contexts[-1][1]
        next_N = self.root_targets_V[labels_N]
        for context_N, paid_N in reversed(contexts):
            places_N, is_found_N = self.arcs.find(context_N, labels_N)
            logps_N = torch.where(is_found_N, self.logps_A[places_N] + paid_N, logps_N)
            next_N = torch.where(is_found_N, self.arcs.targets_A[places_N], next_N)
        return logps_N, next_N

    def score_sequences(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """Return the natural log-probability of each label sequence, including its end."""
        ended = [[*sequence, self.eos] for sequence in sequences]
        device = self.root_logps_V.device
        totals_N = torch.zeros(len(ended), dtype=torch.float64, device=device)
        states_N = self.start(len(ended), device)
        for position in range(max(map(len, ended), default=0)):
            rows = [row for row, labels in enumerate(ended) if position < len(labels)]
            labels_N = torch.tensor([ended[row][position] for row in rows], device=device)
            rows_N = torch.tensor(rows, device=device)
            logps_N, states_N[rows_N] = self.step(states_N[rows_N], labels_N)
            totals_N[rows_N] += logps_N
        return totals_N.tolist()

    def _back_off(self, states_N: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return each state's contexts, longest first, and the sum of back-off weights to reach each."""
        contexts = [(states_N, torch.zeros_like(self.backoffs_S[states_N]))]
        for _ in range(self.max_backoffs):
            state_N, paid_N = contexts[-1]
            contexts.append((self.shorter_S[state_N], paid_N + self.backoffs_S[state_N]))
        return contexts


class _Builder:
    """Numbers the nodes of the trie of n-grams; the nodes with a continuation become states.

    Node 0 is the empty context, node 1 + v the unigram of label v, even if the model does not have it. The
    longer n-grams follow, order by order, each order sorted by context and word.
    """

    def __init__(self, arpa: Arpa, label_of: Mapping[str, int]) -> None:
        self.arpa, self.label_of = arpa, label_of
        self.num_labels = max(label_of.values()) + 1
        self.to_label = np.array([self._label(i, word) for i, word in enumerate(arpa.vocabulary)])
        num_nodes = 1 + self.num_labels
        self.keys = np.empty(
            0, dtype=np.int64
        )  # of the nodes beyond the unigrams: context * num_labels + word
        self.suffixes = np.zeros(num_nodes, dtype=np.int64)  # the node without the first word
        self.logps = np.full(num_nodes, np.nan)
        self.backoffs = np.zeros(num_nodes)

    def build(self, name: str) -> Ngram:
        for order, table in enumerate(self.arpa.tables, start=1):
            if order == 1:
                self._fill_unigrams(table)
            else:
                self._add_order(table)
        known = ~np.isnan(self.logps[1 : 1 + self.num_labels])
        unk = self.label_of[UNK]
        if not known[unk]:
            self.logps[1 + unk] = NO_UNK_LOG10 * LN_10
        labels = np.where(known, np.arange(self.num_labels), unk)
        return self._make_machine(name, labels)

    def _label(self, place: int, word: str) -> int:
        if word not in self.label_of:
            line = self.arpa.tables[0].first_line + place
            raise LanguageModelError(
                f"a language model of another vocabulary ({word!r} is not one of the recogniser's pieces)",
                where=f"{self.arpa.where}:{line}",
                remedy="make one with `vox lm --checkpoint DIR`",
            )
        return self.label_of[word]

    def _fill_unigrams(self, table: NgramTable) -> None:
        nodes = 1 + self.to_label[table.words_Mk[:, 0]]
        self.logps[nodes] = table.log10_probs_M * LN_10
        self.backoffs[nodes] = table.log10_backoffs_M * LN_10

    def _add_order(self, table: NgramTable) -> None:
        labels_Mk = self.to_label[table.words_Mk]
        contexts_M = 1 + labels_Mk[:, 0]
        for column in range(1, labels_Mk.shape[1] - 1):
            contexts_M, is_found_M = self._find(contexts_M, labels_Mk[:, column])
            self._check(is_found_M, table, "an n-gram whose context is not listed")
        keys_M = contexts_M * self.num_labels + labels_Mk[:, -1]
        order_M = np.argsort(keys_M, kind="stable")
        keys_M = keys_M[order_M]
        is_new_M = np.ones(len(keys_M), dtype=bool)
        is_new_M[order_M[1:]] = keys_M[1:] != keys_M[:-1]
        self._check(is_new_M, table, "an n-gram that occurs twice")
        suffixes_M = self._find_suffixes(contexts_M[order_M], labels_Mk[order_M, -1])
        self.keys = np.concatenate([self.keys, keys_M])
        self.suffixes = np.concatenate([self.suffixes, suffixes_M])
        self.logps = np.concatenate([self.logps, table.log10_probs_M[order_M] * LN_10])
        self.backoffs = np.concatenate([self.backoffs, table.log10_backoffs_M[order_M] * LN_10])

    def _find(self, contexts_M: Integers, labels_M: Integers) -> tuple[Integers, NDArray[np.bool_]]:
        """Return the nodes of contexts extended by a word (orders above 1), and whether they exist."""
        wanted_M = contexts_M * self.num_labels + labels_M
        places_M = np.searchsorted(self.keys, wanted_M)
        keys = np.append(self.keys, -1)
        return places_M + 1 + self.num_labels, keys[places_M] == wanted_M

    def _find_suffixes(self, contexts_M: Integers, labels_M: Integers) -> Integers:
        """Return, for each n-gram, the node of its longest proper suffix that is in the model."""
        suffixes_M = np.zeros(len(contexts_M), dtype=np.int64)
        is_open_M = np.ones(len(contexts_M), dtype=bool)
        while is_open_M.any():
            contexts_M = self.suffixes[contexts_M]
            nodes_M, is_found_M = self._find(contexts_M, labels_M)
            is_root_M = contexts_M == 0
            nodes_M = np.where(is_root_M, 1 + labels_M, nodes_M)
            suffixes_M = np.where(is_open_M & (is_found_M | is_root_M), nodes_M, suffixes_M)
            is_open_M &= ~(is_found_M | is_root_M)
        return suffixes_M

    def _check(self, is_good_M: NDArray[np.bool_], table: NgramTable, reason: str) -> None:
        if not is_good_M.all():
            line = table.first_line + int(np.argmin(is_good_M))
            raise LanguageModelError(reason, where=f"{self.arpa.where}:{line}", remedy="make the model again")

    def _make_machine(self, name: str, labels: Integers) -> Ngram:
        num_unigrams = self.num_labels
        parents = self.keys // self.num_labels
        is_state = self.backoffs != 0
        is_state[0] = True
        is_state[parents] = True
        nearest = np.arange(len(is_state))  # the longest suffix that is a state; suffixes have lower numbers
        for first, last in self._order_bounds():
            nodes = np.arange(first, last)
            nearest[nodes] = np.where(is_state[nodes], nodes, nearest[self.suffixes[nodes]])
        number = np.cumsum(is_state) - 1
        state_of = number[nearest]
        nodes_S = np.flatnonzero(is_state)
        arcs = Arcs.build(
            number[parents],
            self.keys % self.num_labels,
            state_of[1 + num_unigrams :],
            num_states=len(nodes_S),
            num_labels=self.num_labels,
        )
        unigrams = slice(1, 1 + num_unigrams)
        root_logps = np.where(labels == np.arange(num_unigrams), self.logps[unigrams], 0.0)
        return Ngram(
            name=name,
            eos=self.label_of[EOS],
            max_backoffs=len(self.arpa.tables) - 1,
            unk=self.label_of[UNK],
            labels_V=torch.from_numpy(labels),
            missing_labels=torch.from_numpy(np.flatnonzero(labels != np.arange(num_unigrams))),
            root_logps_V=torch.from_numpy(root_logps.astype(np.float32)),
            root_targets_V=torch.from_numpy(state_of[unigrams]),
            arcs=arcs,
            logps_A=torch.from_numpy(np.append(self.logps[1 + num_unigrams :], 0.0).astype(np.float32)),
            shorter_S=torch.from_numpy(state_of[self.suffixes[nodes_S]]),
            backoffs_S=torch.from_numpy(self.backoffs[nodes_S].astype(np.float32)),
            begin=int(state_of[1 + self.label_of[BOS]]),
        )

    def _order_bounds(self) -> list[tuple[int, int]]:
        sizes = [self.num_labels, *(len(table.words_Mk) for table in self.arpa.tables[1:])]
        ends = np.cumsum([1, *sizes]).tolist()
        return list(pairwise(ends))


def load_ngram(path: Path | str, tokenizer: Tokenizer, device: torch.device, *, name: str = "lm") -> Ngram:
    """Read the ARPA file of a model over a tokenizer's pieces, as a scorer on a device.

    Raises LanguageModelError as `read_arpa` and `Ngram.build` do, in particular for a model over words.
    """
    label_of = {piece: label for label, piece in enumerate(tokenizer.pieces)}
    assert (label_of[BOS], label_of[EOS], label_of[UNK]) == (BOS_ID, EOS_ID, UNK_ID)
    return Ngram.build(read_arpa(path), label_of, name=name).to(device)


@dataclass(frozen=True)
class WordNgram:
    """A model over words. It scores whole texts only: a search over pieces has no words to score."""

    ngram: Ngram
    label_of: dict[str, int]

    @classmethod
    def load(cls, path: Path | str) -> "WordNgram":
        """Read an ARPA file over words; raises LanguageModelError as `read_arpa` and `Ngram.build` do."""
        arpa = read_arpa(path)
        words = dict.fromkeys([*arpa.vocabulary, BOS, EOS, UNK])
        label_of = {word: label for label, word in enumerate(words)}
        return cls(Ngram.build(arpa, label_of), label_of)

    def score_texts(self, texts: Sequence[str]) -> list[float]:
        """Return the natural log-probability of each text, including its end."""
        unk = self.label_of[UNK]
        return self.ngram.score_sequences(
            [[self.label_of.get(word, unk) for word in text.split()] for text in texts]
        )
