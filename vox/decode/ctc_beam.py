"""CTC prefix beam search (Graves 2014; Hannun et al. 2014), batched, on the device.

A hypothesis is a text. Its score is the sum (log-add) over all alignments that spell it. A search that keeps
only the best alignment of each text (max) is a different one: with a beam of 1 it is greedy decoding, while
this search may find a text whose many alignments together beat the single best alignment. Without scorers it
gains little over greedy decoding; its use is language models, hotwords and n-best lists.

No label is pruned before the scorers have scored it, and no frame is skipped.

Letters: B utterances, K hypotheses of each, U labels, V vocabulary, S scorers, N = K + K V candidates.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vox.decode.hypothesis import Hypothesis
from vox.decode.options import SearchOptions
from vox.decode.scorer import Scorers
from vox.decode.top import top_scores
from vox.text import BLANK_ID, BOS_ID, EOS_ID, PAD_ID, UNK_ID

NEVER = float("-inf")
_FIRST_CAPACITY = 32  # labels; doubled whenever full


@dataclass(frozen=True)
class PrefixBeam:
    """The hypotheses of a batch after `num_frames` frames. A dead one scores minus infinity and stays dead.

    blank_BK, label_BK: float32, log-probability of the alignments that end in blank, and in the last label.
    labels_BKU: int64; the first `num_labels_BK` of each are its text.
    last_BK: the last label; BLANK_ID for an empty text.
    is_prefix_BKK: [b, i, j] is True if text i is a proper prefix of text j.
    parts_BKS, states_BKS: the scorers' unweighted sums so far (float32), and their states (int64).
    """

    num_frames: int
    blank_BK: Tensor
    label_BK: Tensor
    labels_BKU: Tensor
    num_labels_BK: Tensor
    last_BK: Tensor
    is_prefix_BKK: Tensor
    parts_BKS: Tensor
    states_BKS: Tensor

    def select(self, rows_B: Tensor) -> "PrefixBeam":
        """Return a beam of these utterances."""
        return PrefixBeam(
            self.num_frames,
            self.blank_BK[rows_B],
            self.label_BK[rows_B],
            self.labels_BKU[rows_B],
            self.num_labels_BK[rows_B],
            self.last_BK[rows_B],
            self.is_prefix_BKK[rows_B],
            self.parts_BKS[rows_B],
            self.states_BKS[rows_B],
        )


@torch.no_grad()
def search_ctc(log_probs_BTV: Tensor, num_frames_B: Tensor, options: SearchOptions) -> list[list[Hypothesis]]:
    """Return each utterance's hypotheses, best first: at least one, at most the beam.

    log_probs_BTV: natural logs, float32 or float64; padded frames may hold anything. During the search, a
    score sums only the alignments that the beam kept. The returned hypotheses are scored and ordered by all
    their alignments.
    """
    scorers = Scorers(options.scorers)
    lengths = num_frames_B.tolist()
    found: list[list[Hypothesis]] = [[] for _ in lengths]
    for row, beam in run_beam(log_probs_BTV.float(), lengths, scorers, options.beam):
        found[row] = _finish(beam, log_probs_BTV[row, : lengths[row]].float(), scorers)
    return found


def run_beam(
    log_probs_BTV: Tensor, lengths: list[int], scorers: Scorers, width: int
) -> Iterator[tuple[int, PrefixBeam]]:
    """Yield each row with its beam (of one row) after its last frame. Finished rows leave the batch."""
    rows = list(range(len(lengths)))
    beam = start_beam(len(rows), scorers, log_probs_BTV.device)
    for frame in range(max(lengths) + 1):
        going = [position for position, row in enumerate(rows) if lengths[row] > frame]
        if len(going) < len(rows):
            for position in sorted(set(range(len(rows))) - set(going)):
                yield rows[position], beam.select(torch.tensor([position], device=log_probs_BTV.device))
            if not going:
                return
            rows_B = torch.tensor(going, device=log_probs_BTV.device)
            rows, beam, log_probs_BTV = [rows[i] for i in going], beam.select(rows_B), log_probs_BTV[rows_B]
        beam = advance_beam(beam, log_probs_BTV[:, frame], scorers, width)


def start_beam(batch: int, scorers: Scorers, device: torch.device) -> PrefixBeam:
    """Return a beam of one hypothesis an utterance: the empty text, with probability 1."""
    zeros_B1 = torch.zeros(batch, 1, device=device)
    none_B1 = torch.full((batch, 1), BLANK_ID, device=device)
    return PrefixBeam(
        num_frames=0,
        blank_BK=zeros_B1,
        label_BK=torch.full_like(zeros_B1, NEVER),
        labels_BKU=torch.full((batch, 1, _FIRST_CAPACITY), PAD_ID, device=device),
        num_labels_BK=torch.zeros_like(none_B1),
        last_BK=none_B1,
        is_prefix_BKK=torch.zeros(batch, 1, 1, dtype=torch.bool, device=device),
        parts_BKS=torch.zeros(batch, 1, len(scorers), device=device),
        states_BKS=scorers.start(batch, device)[:, None],
    )


def advance_beam(beam: PrefixBeam, log_probs_BV: Tensor, scorers: Scorers, width: int) -> PrefixBeam:
    """Process one frame: each hypothesis stays or is extended by one label; keep the best `width`."""
    num_old, vocab_size = beam.last_BK.shape[1], log_probs_BV.shape[1]
    blank_BK, label_BK, more_BKV = _align(beam, log_probs_BV)
    gains = scorers.scores(beam.states_BKS.flatten(0, 1))
    rank_BN = _rank(beam, torch.logaddexp(blank_BK, label_BK), more_BKV, gains, scorers.weights)
    best_BK, chosen_BK = top_scores(rank_BN, min(width, rank_BN.shape[1]))

    is_more_BK, is_dead_BK = chosen_BK >= num_old, best_BK == NEVER
    index_BK = (chosen_BK - num_old).clamp(min=0)
    parents_BK = torch.where(is_more_BK, index_BK // vocab_size, chosen_BK)
    last_BK = torch.where(is_more_BK, index_BK % vocab_size, beam.last_BK.gather(1, parents_BK))
    num_labels_BK = beam.num_labels_BK.gather(1, parents_BK) + is_more_BK
    labels_BKU = _append(beam, parents_BK, last_BK)
    parts_BKS, states_BKS = _advance_scorers(beam, scorers, gains, parents_BK, last_BK, is_more_BK)
    more_BK = more_BKV.flatten(1).gather(1, index_BK)
    return PrefixBeam(
        num_frames=beam.num_frames + 1,
        blank_BK=blank_BK.gather(1, parents_BK).masked_fill(is_more_BK | is_dead_BK, NEVER),
        label_BK=torch.where(is_more_BK, more_BK, label_BK.gather(1, parents_BK)).masked_fill(
            is_dead_BK, NEVER
        ),
        labels_BKU=labels_BKU,
        num_labels_BK=num_labels_BK,
        last_BK=last_BK,
        is_prefix_BKK=_relate(beam, labels_BKU, num_labels_BK, parents_BK, is_more_BK, is_dead_BK),
        parts_BKS=parts_BKS,
        states_BKS=states_BKS,
    )


def _align(beam: PrefixBeam, log_probs_BV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the log-probabilities after one more frame.

    They are: of each unchanged hypothesis, ending in blank and in its last label [B, K]; and of its extension
    by each label that begins in this frame [B, K, V].
    """
    total_BK = torch.logaddexp(beam.blank_BK, beam.label_BK)
    last_BK = log_probs_BV.gather(1, beam.last_BK)
    blank_BK, label_BK = total_BK + log_probs_BV[:, BLANK_ID, None], beam.label_BK + last_BK
    more_BKV = total_BK[:, :, None] + log_probs_BV[:, None, :]
    # To repeat the last label, a blank must come before it; without one the same label continues.
    more_BKV.scatter_(2, beam.last_BK[:, :, None], (beam.blank_BK + last_BK)[:, :, None])
    for never in (PAD_ID, BOS_ID, EOS_ID):
        more_BKV[:, :, never] = NEVER
    # A text must be one hypothesis only: a prefix that grows into another hypothesis is merged into it.
    is_parent_BKK = beam.is_prefix_BKK & (beam.num_labels_BK[:, None] == beam.num_labels_BK[:, :, None] + 1)
    child_BKK = beam.last_BK[:, None, :].expand(is_parent_BKK.shape)
    joining_BKK = more_BKV.gather(2, child_BKK).masked_fill(~is_parent_BKK, NEVER)
    more_BKV.scatter_add_(2, child_BKK, torch.zeros_like(joining_BKK).masked_fill(is_parent_BKK, NEVER))
    return blank_BK, torch.logaddexp(label_BK, joining_BKK.amax(1)), more_BKV


def _rank(
    beam: PrefixBeam, stay_BK: Tensor, more_BKV: Tensor, gains: list[Tensor], weights: list[float]
) -> Tensor:
    """Return the ranking scores of the candidates, [B, N]: unchanged hypotheses first, then extended ones."""
    for parts_BK, gain_NV, weight in zip(beam.parts_BKS.unbind(-1), gains, weights, strict=True):
        gain_BKV = parts_BK[:, :, None] + gain_NV.view(more_BKV.shape)
        stay_BK, more_BKV = stay_BK + weight * parts_BK, more_BKV + weight * gain_BKV
    return torch.cat((stay_BK, more_BKV.flatten(1)), 1)


def _append(beam: PrefixBeam, parents_BK: Tensor, last_BK: Tensor) -> Tensor:
    """Append the last label to the parents' labels; it is ignored for hypotheses that were not extended."""
    labels_BKU, capacity = beam.labels_BKU, beam.labels_BKU.shape[2]
    labels_BKU = labels_BKU.gather(1, parents_BK[:, :, None].expand(-1, -1, capacity))
    if beam.num_frames == capacity:  # there is at most one label a frame
        labels_BKU = F.pad(labels_BKU, (0, capacity), value=PAD_ID)
    index_BK1 = beam.num_labels_BK.gather(1, parents_BK)[:, :, None]
    return labels_BKU.scatter(2, index_BK1, last_BK[:, :, None])


def _relate(
    beam: PrefixBeam,
    labels_BKU: Tensor,
    num_labels_BK: Tensor,
    parents_BK: Tensor,
    is_more_BK: Tensor,
    is_dead_BK: Tensor,
) -> Tensor:
    """Compute is_prefix_BKK of the new hypotheses exactly, from that of their parents."""
    width = parents_BK.shape[1]
    rows_BKK = beam.is_prefix_BKK.gather(1, parents_BK[:, :, None].expand(-1, -1, beam.last_BK.shape[1]))
    is_prefix_BKK = rows_BKK.gather(2, parents_BK[:, None, :].expand(-1, width, -1))
    is_same_BKK = parents_BK[:, :, None] == parents_BK[:, None, :]
    is_prefix_BKK = is_prefix_BKK | (is_same_BKK & is_more_BK[:, None, :])
    # An extended hypothesis is still a prefix of j if j is longer and its next label is the one added.
    next_BK1 = (num_labels_BK - 1).clamp(min=0)
    next_BKK = labels_BKU.gather(2, next_BK1[:, None, :].expand(-1, width, -1)).transpose(1, 2)
    taken_BK1 = labels_BKU.gather(2, next_BK1[:, :, None])
    goes_on_BKK = (next_BKK == taken_BK1) & (num_labels_BK[:, None, :] > num_labels_BK[:, :, None])
    is_prefix_BKK = is_prefix_BKK & (goes_on_BKK | ~is_more_BK[:, :, None])
    return is_prefix_BKK & ~is_dead_BK[:, :, None] & ~is_dead_BK[:, None, :]


def _advance_scorers(
    beam: PrefixBeam,
    scorers: Scorers,
    gains: list[Tensor],
    parents_BK: Tensor,
    last_BK: Tensor,
    is_more_BK: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the scorers' sums and states of the new hypotheses; unchanged hypotheses keep theirs."""
    if not gains:
        return beam.parts_BKS[:, :1].expand(*parents_BK.shape, 0), beam.states_BKS[:, :1].expand(
            *parents_BK.shape, 0
        )
    index_BKS = parents_BK[:, :, None].expand(-1, -1, len(gains))
    parts_BKS, states_BKS = beam.parts_BKS.gather(1, index_BKS), beam.states_BKS.gather(1, index_BKS)
    vocab_size = gains[0].shape[1]
    index_BK = parents_BK * vocab_size + last_BK
    gain_BKS = torch.stack([g.view(len(parents_BK), -1).gather(1, index_BK) for g in gains], -1)
    # Blank stands for the last label of an empty text: scorers know real labels only.
    after_NS = scorers.advance(states_BKS.flatten(0, 1), last_BK.clamp(min=UNK_ID).flatten())
    is_more_BK1 = is_more_BK[:, :, None]
    return (
        torch.where(is_more_BK1, parts_BKS + gain_BKS, parts_BKS),
        torch.where(is_more_BK1, after_NS.view_as(states_BKS), states_BKS),
    )


def _finish(beam: PrefixBeam, log_probs_TV: Tensor, scorers: Scorers) -> list[Hypothesis]:
    """Score the end, and return the hypotheses of one utterance's beam, best first."""
    ends = [gain_KV[:, EOS_ID] for gain_KV in scorers.scores(beam.states_BKS[0])]
    parts = (beam.parts_BKS[0] + torch.stack(ends, -1) if ends else beam.parts_BKS[0]).tolist()
    is_live = (torch.logaddexp(beam.blank_BK[0], beam.label_BK[0]) > NEVER).tolist()
    labels = [
        row[:n] for row, n in zip(beam.labels_BKU[0].tolist(), beam.num_labels_BK[0].tolist(), strict=True)
    ]
    kept = [index for index, live in enumerate(is_live) if live] or [0]
    ctc = sum_alignments(log_probs_TV, [labels[index] for index in kept])
    found = []
    for index, score in zip(kept, ctc, strict=True):
        named = dict(zip(scorers.names, parts[index], strict=True))
        total = score + sum(weight * part for weight, part in zip(scorers.weights, parts[index], strict=True))
        found.append(Hypothesis(labels[index], score=total, parts={"ctc": score, **named}))
    return sorted(found, key=lambda hypothesis: -(hypothesis.score or 0.0))


def sum_alignments(log_probs_TV: Tensor, labels: list[list[int]]) -> list[float]:
    """Return the log-probability of each of one utterance's texts, summed over all its alignments.

    log_probs_TV: float32, without padding.
    """
    if len(log_probs_TV) == 0:
        return [NEVER if text else 0.0 for text in labels]
    count, width = len(labels), max(1, *map(len, labels))
    padded_NU = torch.tensor([text + [UNK_ID] * (width - len(text)) for text in labels])
    log_probs_TNV = log_probs_TV[:, None].expand(-1, count, -1)
    loss_N = F.ctc_loss(
        log_probs_TNV,
        padded_NU.to(log_probs_TV.device),
        [len(log_probs_TV)] * count,  # type: ignore[arg-type]
        [len(text) for text in labels],  # type: ignore[arg-type]
        blank=BLANK_ID,
        reduction="none",
    )
    return (-loss_N).tolist()
