"""Slow and obvious references for searches: enumeration, and recursions for one text at a time."""

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from vox.model.decoder import Decoder
from vox.model.encoded import Encoded
from vox.text import BLANK_ID, BOS_ID, EOS_ID, UNK_ID


def all_texts(labels: Sequence[int], longest: int) -> Iterator[tuple[int, ...]]:
    """Yield every text up to a number of labels, shorter ones first."""
    for length in range(longest + 1):
        yield from itertools.product(labels, repeat=length)


def collapse(alignment: Sequence[int]) -> tuple[int, ...]:
    """Merge repeats, then drop blanks."""
    return tuple(label for label, _ in itertools.groupby(alignment) if label != BLANK_ID)


def enumerate_ctc(log_probs_TV: Tensor, labels: Sequence[int]) -> dict[tuple[int, ...], float]:
    """Return the log-probability of every text, summed over all alignments one by one, in float64."""
    rows = log_probs_TV.double().tolist()
    sums: dict[tuple[int, ...], float] = {}
    for alignment in itertools.product([BLANK_ID, *labels], repeat=len(rows)):
        probability = math.exp(sum(row[label] for row, label in zip(rows, alignment, strict=True)))
        text = collapse(alignment)
        sums[text] = sums.get(text, 0.0) + probability
    return {text: math.log(total) for text, total in sums.items()}


def ctc_forward(log_probs_TV: Tensor, text: Sequence[int]) -> float:
    """Return the log-probability of one text by Graves's forward recursion (2006, equations 6 to 8)."""
    rows = log_probs_TV.double().exp().tolist()
    states = [BLANK_ID, *itertools.chain.from_iterable((label, BLANK_ID) for label in text)]
    alpha = [rows[0][label] if index < 2 else 0.0 for index, label in enumerate(states)]
    log_scale = 0.0
    for row in rows[1:]:
        total = sum(alpha) or 1.0
        alpha, log_scale = [value / total for value in alpha], log_scale + math.log(total)
        before = alpha
        alpha = []
        for index, label in enumerate(states):
            value = before[index] + (before[index - 1] if index > 0 else 0.0)
            if index > 1 and label not in (BLANK_ID, states[index - 2]):
                value += before[index - 2]
            alpha.append(value * row[label])
    end = sum(alpha[-2:])
    return log_scale + math.log(end) if end > 0 else -math.inf


def teacher_forced(decoder: Decoder, encoded: Encoded, text: Sequence[int]) -> float:
    """Return the decoder's log-probability of one text and its end; encoded has one utterance."""
    with torch.no_grad():
        logits_UV = decoder(torch.tensor([[BOS_ID, *text]]), encoded)[0].double()
    log_probs_UV = logits_UV.log_softmax(-1)
    return sum(float(log_probs_UV[index, label]) for index, label in enumerate([*text, EOS_ID]))


class PairScorer:
    """Scores each label by the one before it, with a table: a bigram model without words."""

    def __init__(self, vocab_size: int, seed: int, name: str = "pairs", scale: float = 1.0) -> None:
        self.name = name
        generator = torch.Generator().manual_seed(seed)
        self.table_VV = scale * torch.randn(vocab_size, vocab_size, generator=generator)
        self.bounds = (float(self.table_VV.min()), float(self.table_VV.max()))

    def start(self, count: int, device: torch.device) -> Tensor:
        return torch.full((count,), BOS_ID, device=device)

    def scores(self, states_N: Tensor) -> Tensor:
        return self.table_VV[states_N]

    def advance(self, states_N: Tensor, labels_N: Tensor) -> Tensor:
        assert bool((labels_N >= UNK_ID).all()), "only labels may be given to a scorer"
        return labels_N

    def score(self, text: Sequence[int]) -> float:
        """Return the score of a whole text and its end."""
        return sum(float(self.table_VV[pair]) for pair in itertools.pairwise([BOS_ID, *text, EOS_ID]))


class WordScorer:
    """A hotword without refinement: a sum for each time that a text holds the phrase; a state is a match."""

    name = "word"

    def __init__(self, vocab_size: int, phrase: tuple[int, int], budget: float) -> None:
        self.vocab_size, self.phrase, self.budget = vocab_size, phrase, budget

    def start(self, count: int, device: torch.device) -> Tensor:
        return torch.zeros(count, dtype=torch.int64, device=device)

    def scores(self, states_N: Tensor) -> Tensor:
        """Pay half for each of the two labels of the phrase; take the first half back without the second."""
        scores_NV = torch.zeros(len(states_N), self.vocab_size)
        scores_NV[:, self.phrase[0]] = self.budget / 2
        scores_NV[states_N == 1] -= self.budget / 2
        scores_NV[states_N == 1, self.phrase[1]] = self.budget / 2
        return scores_NV

    def advance(self, states_N: Tensor, labels_N: Tensor) -> Tensor:
        return (labels_N == self.phrase[0]).long()

    def score(self, text: Sequence[int]) -> float:
        """Count the phrase in a text (its two labels differ, so it cannot overlap itself)."""
        return self.budget * sum(pair == self.phrase for pair in itertools.pairwise(text))
