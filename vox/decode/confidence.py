"""How sure the model is of a text: the CTC head's own probability of each label where it was aligned.

The probabilities are those of the model alone. What a search added for a language model or for hotwords
is left out, so a word that is only there because it was boosted has a low confidence.

A word's confidence is the smallest of its labels': one wrong letter makes a wrong word.

Letters: T frames, U labels, V vocabulary, W words.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vox.decode.align import Span
from vox.text import BLANK_ID

# Where `fit_temperature` looks: natural logarithms of the temperature.
LOG_TEMPERATURES = np.linspace(-1.5, 2.0, 141)
SMALLEST = 1e-4  # probabilities are kept this far from 0 and 1 where their logarithm is taken


@torch.no_grad()
def label_rows(log_probs_TV: Tensor, labels: Sequence[int], spans: Sequence[Span]) -> Tensor:
    """Return [U, V] float32 log-probabilities: for each label, the frame of its span that gives it most."""
    log_probs_TV = log_probs_TV.float()
    frames = [
        span.start + int(log_probs_TV[span.start : span.end, label].argmax())
        for label, span in zip(labels, spans, strict=True)
    ]
    return log_probs_TV[frames]


@torch.no_grad()
def label_confidences(rows_UV: Tensor, labels: Sequence[int], temperature: float = 1.0) -> Tensor:
    """Return [U] the probability of each label at its own frame (`label_rows`).

    temperature: above 1 the probabilities move towards equal ones, below 1 apart (`fit_temperature`).
    """
    labels_U = torch.tensor(list(labels), dtype=torch.int64, device=rows_UV.device)
    return (rows_UV / temperature).softmax(dim=-1).gather(1, labels_U[:, None])[:, 0]


@torch.no_grad()
def silence_confidence(log_probs_TV: Tensor, temperature: float = 1.0) -> float:
    """Return how sure the model is that nothing was said: the smallest probability of a blank."""
    return float((log_probs_TV.float() / temperature).softmax(dim=-1)[:, BLANK_ID].min())


def fit_temperature(
    rows_UV: Tensor, labels: Sequence[int], words: Sequence[int], is_right: Sequence[bool]
) -> float:
    """Return the temperature at which words' confidences agree best with how often words are right.

    words: the number of the word that each label belongs to, from 0, every word with a label.
    is_right: for each word. The measure is the mean cross-entropy; 1.0 where all words are right or all are
    wrong, which tells nothing.
    """
    right_W = np.asarray(is_right, bool)
    if right_W.all() or not right_W.any():
        return 1.0

    def cross_entropy(log_temperature: float) -> float:
        label_U = label_confidences(rows_UV, labels, float(np.exp(log_temperature))).numpy()
        word_W = np.ones(len(right_W))
        np.minimum.at(word_W, np.asarray(words), label_U)
        word_W = word_W.clip(SMALLEST, 1 - SMALLEST)
        return float(-np.log(np.where(right_W, word_W, 1 - word_W)).mean())

    return float(np.exp(min(LOG_TEMPERATURES, key=cross_entropy)))
