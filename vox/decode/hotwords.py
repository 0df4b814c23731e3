"""Hotwords as a scorer: an Aho-Corasick automaton (1975) over letters that is read piece by piece.

The states are the prefixes of phrases, letter by letter, with a word mark before each word. A piece is an arc
over several letters, so every way to split a phrase into pieces passes through these states. The state after
some labels is the longest suffix of their text that is a prefix of a phrase.

A phrase that is complete at the end of a word earns its weight, once per occurrence, also inside a longer
phrase. Until then the search receives an advance, the share of the phrase's letters matched so far. The
advance is taken back in the step that leaves the phrase, or at the end. So the total over a text is the sum
of the weights of the phrases in it and nothing else, for any split into pieces and any length.

Letters: N states of a query, V labels, S states, A arcs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vox.decode.arcs import Arcs
from vox.errors import TextError
from vox.hotword_list import Hotword
from vox.text import EOS_ID, NUM_SPECIAL_IDS, UNK_ID, WORD_MARK, Tokenizer

# Advances are multiples of this, so that paying and taking back adds up to exactly 0 in float32.
ADVANCE_STEP = 1 / 1024


@dataclass(eq=False)
class HotwordScorer:
    """The automaton of a list of phrases over a tokenizer's pieces. In state 0 no prefix matches."""

    name: str
    start_state: int  # at the beginning of a word
    max_failures: int  # from any state to state 0
    root_targets_V: Tensor  # int64: the state after each label from state 0
    begins_word_V: Tensor  # float32, 1 or 0
    arcs: Arcs
    shorter_S: Tensor  # int64: failure link to the next shorter suffix that is a prefix; state 0: itself
    advances_S: Tensor  # float32: the advance paid so far
    complete_S: Tensor  # float32: the weights of the phrases that end here if the word does

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the most that `scores` may return."""
        most_advanced = float(self.advances_S.max())
        least, most = torch.aminmax(self.complete_S)
        return min(0.0, float(least)) - most_advanced, max(0.0, float(most)) + most_advanced

    def to(self, device: torch.device) -> "HotwordScorer":
        """Return the same automaton on a device."""
        moved: dict[str, Any] = {
            key: value.to(device) for key, value in vars(self).items() if isinstance(value, Tensor | Arcs)
        }
        return replace(self, **moved)

    def start(self, count: int, device: torch.device) -> Tensor:
        """Return the state before the first label, int64 [count]. The automaton must be on that device."""
        return torch.full((count,), self.start_state, dtype=torch.int64, device=device)

    def scores(self, states_N: Tensor) -> Tensor:
        """Return the bonus of every label, float32 [N, V]: negative where an advance is taken back.

        Special tokens are not part of the text: except for eos, they score 0 and keep the state.
        """
        rows_NV = self.advances_S[self.root_targets_V].repeat(len(states_N), 1)
        for state_N in reversed(self._shorter_ends(states_N)):
            rows_K, places_K = self.arcs.list_all(state_N)
            rows_NV[rows_K, self.arcs.labels_A[places_K]] = self.advances_S[self.arcs.targets_A[places_K]]
        rows_NV -= self.advances_S[states_N][:, None]
        complete_N = self.complete_S[states_N]
        rows_NV += complete_N[:, None] * self.begins_word_V
        rows_NV[:, :NUM_SPECIAL_IDS] = 0.0
        rows_NV[:, EOS_ID] = complete_N - self.advances_S[states_N]
        return rows_NV

    def advance(self, states_N: Tensor, labels_N: Tensor) -> Tensor:
        """Return the states after one label each, int64 [N]."""
        next_N = self.root_targets_V[labels_N]
        for state_N in reversed(self._shorter_ends(states_N)):
            places_N, is_found_N = self.arcs.find(state_N, labels_N)
            next_N = torch.where(is_found_N, self.arcs.targets_A[places_N], next_N)
        return torch.where(labels_N < NUM_SPECIAL_IDS, states_N, next_N)

    def _shorter_ends(self, states_N: Tensor) -> list[Tensor]:
        """Return each state and all its shorter suffixes, longest first."""
        ends = [states_N]
        for _ in range(self.max_failures):
            ends.append(self.shorter_S[ends[-1]])
        return ends


def make_hotword_scorer(
    hotwords: Sequence[Hotword], tokenizer: Tokenizer, device: torch.device, *, name: str = "hotwords"
) -> HotwordScorer | None:
    """Build the scorer of a list of phrases on a device; None for an empty list.

    Raises TextError naming a phrase with a letter that the tokenizer does not have.
    """
    weights = {spelling: hotword.weight for hotword in hotwords for spelling in hotword.spellings}
    if not weights:
        return None
    _check_letters(weights, tokenizer)
    return _Trie(weights).build(tokenizer.pieces, name).to(device)


def _check_letters(spellings: dict[str, float], tokenizer: Tokenizer) -> None:
    known = {letter for letter in set("".join(spellings)) - {" "} if UNK_ID not in tokenizer.encode(letter)}
    for spelling in spellings:
        missing = sorted(set(spelling) - known - {" "})
        if missing:
            raise TextError(
                f"a hotword with letters that the recogniser cannot write ({' '.join(missing)})",
                where=spelling,
                remedy="leave it out, or spell it otherwise",
            )


class _Trie:
    """The trie of all phrases: node 0 is the empty prefix, node 1 the word mark alone."""

    def __init__(self, weights: dict[str, float]) -> None:
        self.children: list[dict[str, int]] = [{}]
        self.texts = [""]
        self.advances = [0.0]
        self.complete = [0.0]
        self.shorter = [0]
        self.num_failures = [0]  # to node 0
        self._add_letter(0, WORD_MARK)
        for phrase, weight in weights.items():
            self._add_phrase(phrase, weight)
        self._link_shorter_ends()

    def _add_letter(self, node: int, letter: str) -> int:
        child = self.children[node].get(letter)
        if child is None:
            child = self.children[node][letter] = len(self.texts)
            self.texts.append(self.texts[node] + letter)
            self.children.append({})
            self.advances.append(0.0)
            self.complete.append(0.0)
        return child

    def _add_phrase(self, phrase: str, weight: float) -> None:
        num_letters = len(phrase) - phrase.count(" ")
        node, num_read = 1, 0
        for letter in phrase:
            node = self._add_letter(node, WORD_MARK if letter == " " else letter)
            num_read += letter != " "
            advance = weight * num_read / num_letters // ADVANCE_STEP * ADVANCE_STEP
            self.advances[node] = max(self.advances[node], advance)
        self.complete[node] += weight

    def _link_shorter_ends(self) -> None:
        """Link each node to its longest proper suffix; sum the weights of complete phrases, by length."""
        self.shorter = [0] * len(self.texts)
        self.num_failures = [0] * len(self.texts)
        level = [1]
        self.num_failures[1] = 1
        while level:
            level = [self._link_child(node, letter) for node in level for letter in self.children[node]]

    def _link_child(self, node: int, letter: str) -> int:
        child = self.children[node][letter]
        end = self.shorter[node]
        while end and letter not in self.children[end]:
            end = self.shorter[end]
        end = self.shorter[child] = self.children[end].get(letter, 0)
        self.num_failures[child] = self.num_failures[end] + 1
        self.complete[child] += self.complete[end]
        self.advances[child] = max(self.advances[child], self.advances[end])
        return child

    def _find(self, node: int, letters: str) -> int | None:
        for letter in letters:
            if letter not in self.children[node]:
                return None
            node = self.children[node][letter]
        return node

    def _list_arcs(self, label_of: dict[str, int]) -> Iterator[tuple[int, int, int]]:
        """Yield the arcs of all nodes but node 0: node, label, target.

        A word mark after a word mark adds nothing to the text, so a piece that begins with one skips it.
        """
        longest = max(map(len, label_of))
        path = [0] * (1 + max(map(len, self.texts)))
        for target in self._walk(path):
            text = self.texts[target]
            for first in range(max(1, len(text) - longest), len(text)):
                label = label_of.get(text[first:])
                if label is not None:
                    yield path[first], label, target
                if text[first - 1] == WORD_MARK:
                    label = label_of.get(WORD_MARK + text[first:])
                    if label is not None:
                        yield path[first], label, target
            if text[-1] == WORD_MARK and WORD_MARK in label_of:
                yield target, label_of[WORD_MARK], target

    def _walk(self, path: list[int]) -> Iterator[int]:
        """Yield every node below node 0, depth first; path[i] is its prefix of i letters."""
        stack = [1]
        while stack:
            node = stack.pop()
            path[len(self.texts[node])] = node
            yield node
            stack += self.children[node].values()

    def build(self, pieces: Sequence[str], name: str) -> HotwordScorer:
        label_of = {piece: label for label, piece in enumerate(pieces) if label >= NUM_SPECIAL_IDS}
        assert not any(WORD_MARK in piece[1:] for piece in label_of), "a word mark is at a piece's beginning"
        arcs = np.array(sorted(self._list_arcs(label_of)), dtype=np.int64).reshape(-1, 3)
        root_targets = [self._find(0, piece) or 0 for piece in pieces]
        return HotwordScorer(
            name=name,
            start_state=1,
            max_failures=max(self.num_failures) - 1,
            root_targets_V=torch.tensor(root_targets),
            begins_word_V=torch.tensor([float(piece.startswith(WORD_MARK)) for piece in pieces]),
            arcs=Arcs.build(
                *np.ascontiguousarray(arcs.T), num_states=len(self.texts), num_labels=len(pieces)
            ),
            shorter_S=torch.tensor(self.shorter),
            advances_S=torch.tensor(self.advances, dtype=torch.float32),
            complete_S=torch.tensor(self.complete, dtype=torch.float32),
        )
