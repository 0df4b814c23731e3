"""Beam search over labels with the attention decoder, alone or jointly with CTC prefix scores.

At every step all hypotheses of a batch have the same number of labels, so they share the decoder's cache and
its label positions. An utterance leaves the batch when none of its live hypotheses can still enter its
n-best. Its result does not depend on the other utterances.

Letters: B utterances, K hypotheses of each, N = B K, V vocabulary, S parts of a score, P labels of the
pre-beam.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vox.decode.ctc_prefix import CtcPrefix
from vox.decode.hypothesis import Hypothesis
from vox.decode.options import SearchOptions
from vox.decode.scorer import Scorers
from vox.decode.top import top_scores
from vox.model.decoder import Decoder, DecoderCache
from vox.model.encoded import Encoded
from vox.text import BOS_ID, EOS_ID, PAD_ID, UNK_ID

NEVER = float("-inf")
Text = tuple[Any, ...]  # () or (the text before, the last label): longer texts share their prefixes


@dataclass
class _State:
    """State of the live hypotheses on the device."""

    cache: DecoderCache
    token_N: Tensor
    parts_BKS: Tensor  # float32, unweighted: attention, CTC if it has a weight, scorers
    is_live_BK: Tensor
    states_NS: Tensor  # of the scorers
    ctc: CtcPrefix | None


@dataclass
class _Step:
    """The best continuations of each utterance's hypotheses."""

    parents_BK: Tensor
    labels_BK: Tensor
    parts_BKS: Tensor
    is_live_BK: Tensor  # neither finished nor impossible


@dataclass
class _Utterance:
    """State on the host of an utterance whose search is not finished."""

    row: int
    limit: int  # maximum number of labels
    texts: list[Text | None]  # of its K hypotheses; None for one that is not live
    ended: list[Hypothesis]


@torch.no_grad()
def search_labels(
    decoder: Decoder, encoded: Encoded, max_labels_B: Tensor, options: SearchOptions, ctc_weight: float
) -> list[list[Hypothesis]]:
    """Return each utterance's hypotheses, best first: at least one, at most `options.nbest`.

    max_labels_B: int64, maximum number of labels of each utterance. ctc_weight: attention has the weight
    1 - ctc_weight; at 0, CTC is not computed. Eos competes with the labels for a place in the beam. A
    hypothesis of max_labels ends there with eos scored, and is truncated if eos had no place in the beam.

    A search ends when the best live hypothesis cannot overtake the n-th best finished one, even if every
    further label gained the maximum that the scorers can give. Without scorers that maximum is 0, because
    the model's own scores only fall.
    """
    scorers = Scorers(options.scorers)
    names, weights = ["attention"], [1 - ctc_weight]
    if ctc_weight:
        names, weights = [*names, "ctc"], [*weights, ctc_weight]
    weighted = dict(zip([*names, *scorers.names], [*weights, *scorers.weights], strict=True))
    most_gain = scorers.most_gain()
    going = [_Utterance(row, limit, [()], []) for row, limit in enumerate(max_labels_B.tolist())]
    results: list[list[Hypothesis]] = [[] for _ in going]
    state = _start(decoder, encoded, scorers, weighted)
    num_labels = 0
    while going:
        parts = _score_labels(decoder, state, scorers, options)
        step, rows, endings = _choose(parts, list(weighted.values()), state.is_live_BK, options.beam)
        kept = []
        for position, utterance in enumerate(going):
            is_last = utterance.limit == num_labels
            best = _grow(utterance, rows[position], weighted, is_last)
            if is_last:
                _cut_off(utterance, rows[position], endings[position].tolist(), weighted)
            if _is_over(utterance, best, most_gain, num_labels, options.nbest):
                results[utterance.row] = _sort(utterance.ended)[: options.nbest]
            else:
                kept.append(position)
        if kept:
            state = _go_on(state, step, kept, scorers)
        going = [going[position] for position in kept]
        num_labels += 1
    return results


def _start(decoder: Decoder, encoded: Encoded, scorers: Scorers, weighted: dict[str, float]) -> _State:
    num_frames_B, device = encoded.num_frames_B, encoded.num_frames_B.device
    batch = len(num_frames_B)
    has_ctc = "ctc" in weighted
    return _State(
        cache=decoder.start(encoded),
        token_N=torch.full_like(num_frames_B, BOS_ID, dtype=torch.int64),
        parts_BKS=torch.zeros(batch, 1, len(weighted), device=device),
        is_live_BK=torch.ones(batch, 1, dtype=torch.bool, device=device),
        states_NS=scorers.start(batch, device),
        ctc=CtcPrefix.start(encoded.ctc_log_probs_BTV.float(), num_frames_B) if has_ctc else None,
    )


def _score_labels(decoder: Decoder, state: _State, scorers: Scorers, options: SearchOptions) -> list[Tensor]:
    """Return each score part of every hypothesis after every next label (eos: its end), float32 [B, K, V]."""
    shape = (*state.is_live_BK.shape, -1)
    log_probs_NV = decoder.step(state.token_N, state.cache).float().log_softmax(-1)
    gains = [gain.reshape(shape) for gain in (log_probs_NV, *scorers.scores(state.states_NS))]
    sums = list(state.parts_BKS.unbind(-1))
    before = [sums[0], *sums[len(sums) - len(scorers) :]]  # all but CTC's
    parts = [sum_BK[:, :, None] + gain_BKV for sum_BK, gain_BKV in zip(before, gains, strict=True)]
    if state.ctc is not None:
        guide_BKV = _weigh(gains, [1.0, *scorers.weights])
        parts.insert(1, _score_prefixes(state.ctc, guide_BKV, options.num_pre_beam))
    return parts


def _score_prefixes(ctc: CtcPrefix, guide_BKV: Tensor, num_pre_beam: int) -> Tensor:
    """Return CTC's part for the labels that the other parts rank best, and for the end; -inf for the rest.

    It replaces the previous CTC part and is not added to it: psi of the longer prefix covers all labels.
    """
    batch, num_hypotheses, vocab_size = guide_BKV.shape
    guide_BKV[:, :, EOS_ID] = NEVER
    _, labels_NP = top_scores(guide_BKV.flatten(0, 1), min(num_pre_beam, vocab_size))
    labels_BKP = labels_NP.view(batch, num_hypotheses, -1)
    part_BKV = torch.full_like(guide_BKV, NEVER).scatter(2, labels_BKP, ctc.scores(labels_BKP))
    part_BKV[:, :, EOS_ID] = ctc.end()
    return part_BKV


def _weigh(parts: list[Tensor], weights: list[float]) -> Tensor:
    """Return the weighted sum, -inf for pad and bos."""
    total_BKV = weights[0] * parts[0]
    for part_BKV, weight in zip(parts[1:], weights[1:], strict=True):
        total_BKV = total_BKV + weight * part_BKV
    for never in (PAD_ID, BOS_ID):
        total_BKV[:, :, never] = NEVER
    return total_BKV


def _choose(
    parts: list[Tensor], weights: list[float], is_live_BK: Tensor, width: int
) -> tuple[_Step, list[list[list[float]]], Tensor]:
    """Return the best continuations, their copies on the host, and the score parts [B, K, S] of ending here.

    On the host a continuation is its total, parent, label, and parts.
    """
    total_BKV = _weigh(parts, weights).masked_fill(~is_live_BK[:, :, None], NEVER)
    _, num_old, vocab_size = total_BKV.shape
    best_BK, index_BK = top_scores(total_BKV.flatten(1), min(width, num_old * vocab_size))
    parents_BK, labels_BK = index_BK // vocab_size, index_BK % vocab_size
    parts_BKS = torch.stack([part_BKV.flatten(1).gather(1, index_BK) for part_BKV in parts], -1)
    is_live_BK = (best_BK > NEVER) & (labels_BK != EOS_ID)
    # One copy to the host a step, in float64, which holds every float32 and every id.
    numbers = torch.stack((best_BK.double(), parents_BK.double(), labels_BK.double()), -1)
    rows = torch.cat((numbers, parts_BKS.double()), -1).tolist()
    endings_BKS = torch.stack([part_BKV[:, :, EOS_ID] for part_BKV in parts], -1)
    return _Step(parents_BK, labels_BK, parts_BKS, is_live_BK), rows, endings_BKS


def _grow(
    utterance: _Utterance, continuations: list[list[float]], weighted: dict[str, float], is_last: bool
) -> float:
    """Record the finished hypotheses, extend the others, and return the best total of the live ones."""
    texts: list[Text | None] = []
    best = NEVER
    for total, parent, label, *parts in continuations:
        text = utterance.texts[int(parent)] if total > NEVER else None
        if text is not None and label == EOS_ID:
            utterance.ended.append(_make_hypothesis(text, parts, weighted, is_truncated=False))
        if text is None or label == EOS_ID or is_last:
            texts.append(None)
        else:
            texts.append((text, int(label)))
            best = max(best, total)
    if not is_last:
        utterance.texts = texts
    return best


def _cut_off(
    utterance: _Utterance,
    continuations: list[list[float]],
    endings: list[list[float]],
    weighted: dict[str, float],
) -> None:
    """End the hypotheses that reached the maximum number of labels without a place for eos in the beam."""
    has_ended = {int(parent) for _, parent, label, *_ in continuations if label == EOS_ID}
    for index, (text, parts) in enumerate(zip(utterance.texts, endings, strict=True)):
        if text is not None and index not in has_ended:
            utterance.ended.append(_make_hypothesis(text, parts, weighted, is_truncated=True))


def _make_hypothesis(
    text: Text, parts: list[float], weighted: dict[str, float], is_truncated: bool
) -> Hypothesis:
    ids: list[int] = []
    while text:
        text, label = text
        ids.append(label)
    score = sum(weight * part for weight, part in zip(weighted.values(), parts, strict=True))
    return Hypothesis(ids[::-1], is_truncated, score, dict(zip(weighted, parts, strict=True)))


def _sort(hypotheses: list[Hypothesis]) -> list[Hypothesis]:
    return sorted(hypotheses, key=lambda hypothesis: -(hypothesis.score or 0.0))


def _is_over(utterance: _Utterance, best: float, most_gain: float, num_labels: int, nbest: int) -> bool:
    """Return whether no hypothesis is live, or none can overtake the n-th best finished one.

    best: total of the best live hypothesis, of num_labels + 1 labels. most_gain: maximum of one label or of
    the end.
    """
    if best == NEVER:
        return True
    if len(utterance.ended) < nbest:
        return False
    if most_gain > 0:  # infinity times 0 is not a number
        best += most_gain * (utterance.limit - num_labels)
    worst = _sort(utterance.ended)[nbest - 1].score
    return worst is not None and best <= worst


def _go_on(state: _State, step: _Step, kept: list[int], scorers: Scorers) -> _State:
    """Return the state of the utterances that remain, with their best continuations as hypotheses."""
    batch, num_old = state.is_live_BK.shape
    device = state.token_N.device
    rows_B = None if len(kept) == batch else torch.tensor(kept, device=device)
    parents_BK, labels_BK = step.parents_BK, step.labels_BK
    parts_BKS, is_live_BK = step.parts_BKS, step.is_live_BK
    first_B1 = torch.arange(batch, device=device)[:, None] * num_old
    if rows_B is not None:
        parents_BK, labels_BK, first_B1 = parents_BK[rows_B], labels_BK[rows_B], first_B1[rows_B]
        parts_BKS, is_live_BK = parts_BKS[rows_B], is_live_BK[rows_B]
    labels_BK = labels_BK.masked_fill(~is_live_BK, UNK_ID)  # a dead hypothesis may get any label
    index_N, labels_N = (first_B1 + parents_BK).flatten(), labels_BK.flatten()
    return _State(
        cache=state.cache.select_hypotheses(index_N, rows_B),
        token_N=labels_N,
        parts_BKS=parts_BKS,
        is_live_BK=is_live_BK,
        states_NS=scorers.advance(state.states_NS[index_N], labels_N),
        ctc=None if state.ctc is None else state.ctc.advance(rows_B, parents_BK, labels_BK),
    )
