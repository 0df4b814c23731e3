"""Confidence of a text: the CTC head's probability of each label at the frames where it is aligned.

The probabilities come from the model alone. They exclude the bonus of a language model or of hotwords, so a
word that appears only because it was boosted has a low confidence.

A word's confidence is the minimum over its labels, because one wrong letter makes a wrong word.

Letters: T frames, U labels, V vocabulary, W words.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vox.decode.align import Span
from vox.text import BLANK_ID

# The search range of `fit_temperature`: natural logarithms of the temperature.
LOG_TEMPERATURES = np.linspace(-1.5, 2.0, 141)
SMALLEST = 1e-4  # probabilities are clamped to this distance from 0 and 1 before their logarithm is taken


@torch.no_grad()
def label_rows(log_probs_TV: Tensor, labels: Sequence[int], spans: Sequence[Span]) -> Tensor:
    """Return [U, V] float32 log-probabilities: for each label, at its likeliest frame in its span."""
    log_probs_TV = log_probs_TV.float()
    frames = [
        span.start + int(log_probs_TV[span.start : span.end, label].argmax())
        for label, span in zip(labels, spans, strict=True)
    ]
    return log_probs_TV[frames]


@torch.no_grad()
def label_confidences(rows_UV: Tensor, labels: Sequence[int], temperature: float = 1.0) -> Tensor:
    """Return [U] the probability of each label at its own frame (`label_rows`).

    temperature: above 1 flattens the distribution, below 1 sharpens it (`fit_temperature`).
    """
    labels_U = torch.tensor(list(labels), dtype=torch.int64, device=rows_UV.device)
    return (rows_UV / temperature).softmax(dim=-1).gather(1, labels_U[:, None])[:, 0]


@torch.no_grad()
def silence_confidence(log_probs_TV: Tensor, temperature: float = 1.0) -> float:
    """Return the confidence that nothing was said: the smallest probability of a blank."""
    return float((log_probs_TV.float() / temperature).softmax(dim=-1)[:, BLANK_ID].min())


def fit_temperature(
    rows_UV: Tensor, labels: Sequence[int], words: Sequence[int], is_right: Sequence[bool]
) -> float:
    """Return the temperature at which word confidences best match how often words are correct.

    words: for each label, the index of its word, from 0; every word has a label. is_right: for each word.
    Minimizes the mean cross-entropy. Returns 1.0 if all words are right or all are wrong: then there is
    nothing to fit.
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
