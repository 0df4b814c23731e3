"""Two-pass decoding: CTC's n-best and the decoder's greedy text, then both models' scores of each.

Where CTC is uncertain, its n-best may lack the text that the decoder finds. With that text added, the best
text by both scores is seldom worse than the better of the two decoders alone.

Letters: B utterances, K hypotheses of each, N = B K, U labels, V vocabulary.
"""

import torch
from torch import Tensor

from vox.decode.attention import greedy_attention, label_limits
from vox.decode.ctc import min_ctc_frames
from vox.decode.ctc_beam import search_ctc, sum_alignments
from vox.decode.hypothesis import Hypothesis
from vox.decode.options import SearchOptions
from vox.decode.scorer import Scorers
from vox.model.decoder import Decoder
from vox.model.encoded import Encoded
from vox.text import BOS_ID, EOS_ID


def rescore(decoder: Decoder, encoded: Encoded, options: SearchOptions) -> list[list[Hypothesis]]:
    """Return the best of `rescore_all` for each utterance, at most `options.nbest`."""
    return [hypotheses[: options.nbest] for hypotheses in rescore_all(decoder, encoded, options)]


@torch.no_grad()
def rescore_all(decoder: Decoder, encoded: Encoded, options: SearchOptions) -> list[list[Hypothesis]]:
    """Return the hypotheses of the CTC beam and of greedy attention, sorted by the weighted sum of all parts.

    One pass of the decoder scores every hypothesis (Hwang and Sung 2016; Zhang et al. 2020, "U2").
    """
    found = search_ctc(encoded.ctc_log_probs_BTV, encoded.num_frames_B, options)
    _add_greedy_texts(found, decoder, encoded, Scorers(options.scorers))
    texts = [[hypothesis.ids for hypothesis in hypotheses] for hypotheses in found]
    attention = score_texts(decoder, encoded, texts)
    weights = dict(zip((scorers := Scorers(options.scorers)).names, scorers.weights, strict=True))
    weights |= {"ctc": options.ctc_weight, "attention": 1 - options.ctc_weight}
    results = []
    for hypotheses, scores in zip(found, attention, strict=True):
        rescored = []
        for hypothesis, score in zip(hypotheses, scores, strict=True):
            parts = {**hypothesis.parts, "attention": score}
            total = sum(weights[name] * part for name, part in parts.items())
            rescored.append(Hypothesis(hypothesis.ids, hypothesis.is_truncated, score=total, parts=parts))
        rescored.sort(key=lambda hypothesis: -(hypothesis.score or 0.0))
        results.append(rescored)
    return results


def _add_greedy_texts(
    found: list[list[Hypothesis]], decoder: Decoder, encoded: Encoded, scorers: Scorers
) -> None:
    """Add the greedy decoder's text to each utterance's hypotheses, if it is new and CTC can align it."""
    texts, is_cut = greedy_attention(decoder, encoded, label_limits(encoded.num_frames_B))
    lengths = encoded.num_frames_B.tolist()
    for row, (hypotheses, ids) in enumerate(zip(found, texts, strict=True)):
        if any(hypothesis.ids == ids for hypothesis in hypotheses) or min_ctc_frames(ids) > lengths[row]:
            continue
        log_probs_TV = encoded.ctc_log_probs_BTV[row, : lengths[row]].float()
        (ctc,) = sum_alignments(log_probs_TV, [ids])
        others = scorers.score_text(ids, log_probs_TV.device)
        hypotheses.append(
            Hypothesis(ids, is_cut[row], parts={"ctc": ctc, **dict(zip(scorers.names, others, strict=True))})
        )


@torch.no_grad()
def score_texts(decoder: Decoder, encoded: Encoded, texts: list[list[list[int]]]) -> list[list[float]]:
    """Return the decoder's log-probability of each text of each utterance, eos included, in float32."""
    count = max(map(len, texts))
    targets_NU, is_target_NU = _pad_targets(texts, count, encoded.hidden_BTD.device)
    tokens_NU = torch.cat((torch.full_like(targets_NU[:, :1], BOS_ID), targets_NU[:, :-1]), 1)
    log_probs_NUV = decoder(tokens_NU, encoded).float().log_softmax(-1)
    chosen_NU = log_probs_NUV.gather(2, targets_NU[:, :, None])[:, :, 0]
    sums_BK = chosen_NU.masked_fill(~is_target_NU, 0.0).sum(1).view(-1, count)
    return [sums[: len(row)] for sums, row in zip(sums_BK.tolist(), texts, strict=True)]


def _pad_targets(texts: list[list[list[int]]], count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return [N, U] labels followed by eos, and a mask (True: no padding); `count` rows an utterance."""
    rows = [[*text, EOS_ID] for group in texts for text in [*group, *[[]] * (count - len(group))]]
    width = max(map(len, rows))
    targets_NU = torch.tensor([row + [EOS_ID] * (width - len(row)) for row in rows])
    lengths_N1 = torch.tensor([[len(row)] for row in rows])
    return targets_NU.to(device), (torch.arange(width) < lengths_N1).to(device)
