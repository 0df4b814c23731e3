"""CTC searches against enumeration: prefix beam, prefix scores, and the order among equals."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support.oracles import PairScorer, WordScorer, collapse, ctc_forward, enumerate_ctc
from tests.support.tiny_model import pad
from vox.decode.ctc import greedy_ctc
from vox.decode.ctc_beam import run_beam, search_ctc
from vox.decode.ctc_prefix import CtcPrefix
from vox.decode.options import SearchOptions
from vox.decode.scorer import LengthBonus, Scorers
from vox.decode.top import top_scores
from vox.text import BLANK_ID, BOS_ID, EOS_ID

LABELS = (3, 4, 5)
VOCAB_SIZE = 6  # with blank, bos and eos, which have their share of the probability too
UNBOUNDED = 400  # three labels have 364 texts of at most 5
NEVER = -math.inf


def random_log_probs(
    lengths: list[int], seed: int, vocab_size: int = VOCAB_SIZE, sharp: float = 1.5
) -> Tensor:
    """Draw [B, T, V] of these lengths; padded frames are NaN."""
    generator = torch.Generator().manual_seed(seed)
    rows = [(sharp * torch.randn(n, vocab_size, generator=generator)).log_softmax(-1) for n in lengths]
    return pad(rows, max(lengths), math.nan)


@pytest.mark.parametrize("seed", range(6))
def test_without_bound_every_text_is_found_with_all_its_alignments(seed: int) -> None:
    """Check the beam's own sums, not the score that is computed afterwards."""
    lengths = [5, 1, 3, 4, 2]
    log_probs_BTV = random_log_probs(lengths, seed)
    beams = dict(run_beam(log_probs_BTV, lengths, Scorers(()), UNBOUNDED))
    assert sorted(beams) == list(range(5))
    for row, beam in beams.items():
        expected = enumerate_ctc(log_probs_BTV[row, : lengths[row]], LABELS)
        totals = torch.logaddexp(beam.blank_BK, beam.label_BK)[0].tolist()
        texts = [
            tuple(labels[:count])
            for labels, count in zip(beam.labels_BKU[0].tolist(), beam.num_labels_BK[0].tolist(), strict=True)
        ]
        live = [(text, total) for text, total in zip(texts, totals, strict=True) if total > NEVER]
        assert len(live) == len(expected)  # none twice
        assert dict(live) == pytest.approx(expected, abs=1e-4)


def scorers_of_tests() -> tuple[tuple[PairScorer | WordScorer | LengthBonus, float], ...]:
    return (
        (PairScorer(VOCAB_SIZE, seed=1), 0.7),
        (WordScorer(VOCAB_SIZE, (4, 5), budget=3.0), 1.2),
        (LengthBonus(VOCAB_SIZE), -0.4),
    )


@pytest.mark.parametrize("seed", range(3))
def test_the_n_best_are_those_of_enumeration_with_scorers(seed: int) -> None:
    lengths = [4, 1, 5]
    log_probs_BTV = random_log_probs(lengths, seed)
    (pairs, pair_weight), (word, word_weight), (_, bonus) = scorers_of_tests()
    options = SearchOptions(beam=UNBOUNDED, scorers=scorers_of_tests())
    for row, found in enumerate(search_ctc(log_probs_BTV, torch.tensor(lengths), options)):
        expected = {
            text: score + pair_weight * pairs.score(text) + word_weight * word.score(text) + bonus * len(text)
            for text, score in enumerate_ctc(log_probs_BTV[row, : lengths[row]], LABELS).items()
        }
        assert [hypothesis.score for hypothesis in found] == pytest.approx(
            sorted(expected.values(), reverse=True), abs=1e-4
        )
        assert {tuple(h.ids): h.score for h in found} == pytest.approx(expected, abs=1e-4)


def prefix_beam_by_hand(log_probs_TV: Tensor, width: int) -> tuple[dict[tuple[int, ...], float], int]:
    """Search one utterance with a dictionary of texts: log-add, the best `width` after each frame.

    Also returns how often a pruned prefix came back while a longer text was in the beam.
    """
    beam = {(): (1.0, 0.0)}  # text: probability of ending in blank, and in its last label
    num_regrown = 0
    for row in log_probs_TV.double().exp().tolist():
        grown: dict[tuple[int, ...], tuple[float, float]] = {}

        def add(text: tuple[int, ...], blank: float, label: float, grown: dict = grown) -> None:
            before = grown.get(text, (0.0, 0.0))
            grown[text] = (before[0] + blank, before[1] + label)

        for text, (blank, label) in beam.items():
            add(text, (blank + label) * row[BLANK_ID], label * row[text[-1]] if text else 0.0)
            for new in range(3, len(row)):
                is_again = text[-1:] == (new,)
                add((*text, new), 0.0, (blank if is_again else blank + label) * row[new])
        best = sorted(grown, key=lambda text: -sum(grown[text]))[:width]
        num_regrown += sum(
            text not in beam and any(len(other) > len(text) and other[: len(text)] == text for other in beam)
            for text in best
        )
        beam = {text: grown[text] for text in best}
    return {text: math.log(sum(pair)) for text, pair in beam.items()}, num_regrown


@pytest.mark.parametrize("width", [1, 2, 3, 12])
def test_a_bounded_beam_is_the_dictionary_s(width: int) -> None:
    """Few labels and many frames: pruned prefixes come back and grow into hypotheses in the beam."""
    lengths = [60, 9, 45, 1, 55]
    log_probs_BTV = random_log_probs(lengths, seed=width, sharp=1.0)
    num_regrown = 0
    for row, beam in run_beam(log_probs_BTV, lengths, Scorers(()), width):
        expected, count = prefix_beam_by_hand(log_probs_BTV[row, : lengths[row]], width)
        num_regrown += count
        totals = torch.logaddexp(beam.blank_BK, beam.label_BK)[0].tolist()
        labels = beam.labels_BKU[0].tolist()
        counts = beam.num_labels_BK[0].tolist()
        found = {tuple(labels[k][: counts[k]]): total for k, total in enumerate(totals) if total > NEVER}
        assert found == pytest.approx(expected, abs=1e-3)
    assert num_regrown > 2 or width < 12


def test_what_a_bounded_beam_returns_is_scored_by_all_alignments() -> None:
    lengths = [30, 12]
    log_probs_BTV = random_log_probs(lengths, seed=5, vocab_size=9, sharp=1.0)
    for row, found in enumerate(search_ctc(log_probs_BTV, torch.tensor(lengths), SearchOptions(beam=4))):
        expected = [ctc_forward(log_probs_BTV[row, : lengths[row]], h.ids) for h in found]
        assert [h.parts["ctc"] for h in found] == pytest.approx(expected, abs=1e-4)
        assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)
        assert len({tuple(h.ids) for h in found}) == len(found) == 4


def test_many_alignments_beat_the_best_one() -> None:
    """The known case in which log-add with a beam of 1 is not greedy decoding."""
    probabilities = torch.full((1, 3, VOCAB_SIZE), 1e-9)
    probabilities[0, :, BLANK_ID] = torch.tensor([0.2, 0.6, 0.2])
    probabilities[0, :, 3] = torch.tensor([0.8, 0.4, 0.8])
    num_frames_B = torch.tensor([3])
    assert greedy_ctc(probabilities.log(), num_frames_B) == [[3, 3]]
    for width in (1, 2, UNBOUNDED):
        ((best, *_),) = search_ctc(probabilities.log(), num_frames_B, SearchOptions(beam=width))
        assert best.ids == [3]


def test_frames_of_blank_alone_give_an_empty_text() -> None:
    log_probs_BTV = torch.full((2, 6, VOCAB_SIZE), NEVER)
    log_probs_BTV[:, :, BLANK_ID] = 0.0
    for found in search_ctc(log_probs_BTV, torch.tensor([6, 1]), SearchOptions(beam=3)):
        assert [(h.ids, h.score) for h in found] == [([], 0.0)]


def test_planted_labels_come_back_however_wide_the_beam() -> None:
    """A repeat with a blank between, one without; more labels than fit the buffers, which double twice."""
    alignment = [0, 3, 3, 0, 3, 4, 4, 5, 0, *[3, 4] * 40]
    log_probs_BTV = torch.full((1, len(alignment), VOCAB_SIZE), NEVER)
    log_probs_BTV[0, range(len(alignment)), alignment] = 0.0
    for width in (1, 4, 50):
        (found,) = search_ctc(log_probs_BTV, torch.tensor([len(alignment)]), SearchOptions(beam=width))
        assert [(h.ids, h.score) for h in found] == [(list(collapse(alignment)), 0.0)]


def test_specials_are_never_labels() -> None:
    log_probs_BTV = torch.zeros(1, 4, VOCAB_SIZE)
    log_probs_BTV[:, :, [BOS_ID, EOS_ID]] = 9.0
    (found,) = search_ctc(log_probs_BTV.log_softmax(-1), torch.tensor([4]), SearchOptions(beam=50))
    assert {label for hypothesis in found for label in hypothesis.ids} == set(LABELS)


def test_a_scorer_is_heard_before_labels_are_left_out() -> None:
    """A label that CTC ranks last of 40 is chosen if a scorer gives it a large bonus."""
    log_probs_BTV = torch.zeros(1, 2, 40)
    log_probs_BTV[0, :, 39] = -3.0
    scorer = PairScorer(40, seed=0, scale=0.0)
    scorer.table_VV[:, 39] = 4.0
    options = SearchOptions(beam=2, scorers=((scorer, 1.0),))
    ((best, *_),) = search_ctc(log_probs_BTV.log_softmax(-1), torch.tensor([2]), options)
    assert 39 in best.ids


def test_the_end_is_scored_and_the_list_sorted_again() -> None:
    """CTC and the label scores prefer 3; the cost of its end outweighs that."""
    log_probs_BTV = torch.full((1, 2, VOCAB_SIZE), -9.0)
    log_probs_BTV[0, :, 3], log_probs_BTV[0, :, 4] = -0.5, -1.0
    scorer = PairScorer(VOCAB_SIZE, seed=0, scale=0.0)
    scorer.table_VV[3, EOS_ID] = -5.0
    options = SearchOptions(beam=8, scorers=((scorer, 1.0),))
    ((best, *others),) = search_ctc(log_probs_BTV, torch.tensor([2]), options)
    assert best.ids[-1] == 4 and best.parts["pairs"] == 0.0
    ended = [hypothesis for hypothesis in others if hypothesis.ids[-1:] == [3]]
    assert ended and all(hypothesis.parts["pairs"] == -5.0 for hypothesis in ended)


# Prefix scores


def prefix_by_enumeration(texts: dict[tuple[int, ...], float], prefix: tuple[int, ...]) -> float:
    total = sum(math.exp(score) for text, score in texts.items() if text[: len(prefix)] == prefix)
    return math.log(total) if total else NEVER


def follow(log_probs_BTV: Tensor, num_frames_B: Tensor, prefix: tuple[int, ...]) -> CtcPrefix:
    """Return the state after a prefix, one hypothesis an utterance."""
    state = CtcPrefix.start(log_probs_BTV, num_frames_B)
    parents_B1 = torch.zeros(len(num_frames_B), 1, dtype=torch.int64)
    for label in prefix:
        state = state.advance(None, parents_B1, torch.full_like(parents_B1, label))
    return state


@pytest.mark.parametrize("seed", range(4))
def test_prefix_scores_are_those_of_enumeration(seed: int) -> None:
    """Repeated labels, texts too long for the frames, lengths mixed. No mass is on bos and eos here."""
    lengths = [5, 2, 1, 4]
    logits_BTV = random_log_probs(lengths, seed)
    logits_BTV[:, :, [BOS_ID, EOS_ID]] = NEVER
    log_probs_BTV, num_frames_B = logits_BTV.log_softmax(-1), torch.tensor(lengths)
    texts = [enumerate_ctc(log_probs_BTV[row, :n], LABELS) for row, n in enumerate(lengths)]
    for prefix in itertools.chain([()], [(3,), (4, 4), (3, 4), (4, 3, 3), (3, 4, 5), (3, 3, 3)]):
        state = follow(log_probs_BTV, num_frames_B, prefix)
        scores_BKP = state.scores(torch.tensor(LABELS).expand(4, 1, -1))
        for row, known in enumerate(texts):
            assert float(state.end()[row, 0]) == pytest.approx(known.get(prefix, NEVER), abs=1e-4)
            expected = [prefix_by_enumeration(known, (*prefix, label)) for label in LABELS]
            assert scores_BKP[row, 0].tolist() == pytest.approx(expected, abs=1e-4)


def test_prefix_scores_are_finite_and_exact_over_1500_peaked_frames() -> None:
    """Running sums reach 30,000 nats, while the scores of the planted text and similar ones are near 0."""
    generator = torch.Generator().manual_seed(0)
    alignment = [3 + (frame // 30) % 3 if frame % 30 == 7 else BLANK_ID for frame in range(1500)]
    logits_TV = torch.randn(1500, VOCAB_SIZE, generator=generator)
    logits_TV[range(1500), alignment] += 20.0
    log_probs_BTV = logits_TV.log_softmax(-1)[None]
    text = collapse(alignment)
    with torch.autocast("cpu", torch.bfloat16):
        for planted in (text, text[:-1], (*text[:20], 3, *text[20:])):
            found = follow(log_probs_BTV, torch.tensor([1500]), planted).end()
            assert found.dtype is torch.float32
            assert float(found) == pytest.approx(ctc_forward(log_probs_BTV[0], planted), abs=2e-5)


# Order among equals


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.sampled_from([0.0, -0.0, 1.5, -1.5, -2.0, NEVER, math.inf, 2.0**-126, -(2.0**127)]),
        min_size=1,
        max_size=12,
    ),
    st.integers(1, 12),
)
def test_top_scores_are_those_of_a_stable_sort(row: list[float], count: int) -> None:
    count = min(count, len(row))
    expected = sorted(range(len(row)), key=lambda index: -row[index])[:count]
    best_BK, chosen_BK = top_scores(torch.tensor([row]), count)
    assert chosen_BK.tolist() == [expected]
    assert best_BK.tolist() == [[row[index] for index in expected]]


def test_among_equal_hypotheses_the_lowest_ids_win() -> None:
    log_probs_BTV = torch.full((1, 1, VOCAB_SIZE), math.log(1 / VOCAB_SIZE))
    (found,) = search_ctc(log_probs_BTV, torch.tensor([1]), SearchOptions(beam=3))
    assert [hypothesis.ids for hypothesis in found] == [[], [3], [4]]


def test_half_precision_around_changes_nothing() -> None:
    lengths = [20, 7]
    log_probs_BTV = random_log_probs(lengths, seed=2)
    options = SearchOptions(beam=4, scorers=scorers_of_tests())
    plain = search_ctc(log_probs_BTV, torch.tensor(lengths), options)
    with torch.autocast("cpu", torch.bfloat16):
        assert search_ctc(log_probs_BTV, torch.tensor(lengths), options) == plain
