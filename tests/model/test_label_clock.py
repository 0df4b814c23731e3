"""The label clock: positions of frames, counted in labels."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.tiny_model import FEATURE_DIM, make_recogniser, pad
from vox.decode.ctc import greedy_ctc
from vox.masks import lengths_to_mask
from vox.model.label_clock import count_labels_begun
from vox.text import BLANK_ID

VOCAB_SIZE = 5


def count_by_hand(probs_TV: torch.Tensor) -> list[float]:
    """Sum over frames and labels, one term at a time."""
    counts, total = [], 0.0
    for frame in range(len(probs_TV)):
        for label in range(VOCAB_SIZE):
            if label != BLANK_ID:
                before = float(probs_TV[frame - 1, label]) if frame else 0.0
                total += float(probs_TV[frame, label]) * (1 - before)
        counts.append(total)
    return counts


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_counts_are_those_of_the_slow_sum_and_do_not_depend_on_the_batch(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = [
        (3 * torch.randn(n, VOCAB_SIZE, generator=generator, dtype=dtype)).log_softmax(1) for n in (9, 1, 30)
    ]
    is_valid_BT = lengths_to_mask(torch.tensor([9, 1, 30]), 33)
    counts_BT = count_labels_begun(pad(rows, 33, float("nan")), is_valid_BT)
    assert counts_BT.dtype == dtype
    for counts_T, log_probs_TV in zip(counts_BT, rows, strict=True):
        expected = count_by_hand(log_probs_TV.exp())
        assert counts_T[: len(expected)].tolist() == pytest.approx(expected, abs=1e-5)
        assert (counts_T[len(expected) :] == counts_T[len(expected) - 1]).all()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=20))
def test_of_a_certain_path_the_clock_is_the_number_of_labels_that_ctc_has_written(path: list[int]) -> None:
    one_hot_1TV = torch.nn.functional.one_hot(torch.tensor([path]), VOCAB_SIZE).float()
    counts_T = count_labels_begun(one_hot_1TV.log(), torch.ones(1, len(path), dtype=torch.bool))[0]
    for frame in range(len(path)):
        written = greedy_ctc(one_hot_1TV, torch.tensor([frame + 1]))[0]
        assert counts_T[frame] == pytest.approx(len(written), abs=1e-6)


def test_silence_and_an_untrained_head_give_finite_positions() -> None:
    all_blank_1TV = torch.full((1, 7, VOCAB_SIZE), float("-inf"))
    all_blank_1TV[:, :, BLANK_ID] = 0.0
    is_valid_BT = torch.ones(1, 7, dtype=torch.bool)
    assert count_labels_begun(all_blank_1TV, is_valid_BT).tolist() == [[0.0] * 7]
    equal_1TV = torch.zeros(1, 7, VOCAB_SIZE).log_softmax(-1)
    steps_T = count_labels_begun(equal_1TV, is_valid_BT)[0].diff()
    assert steps_T.tolist() == pytest.approx([0.8 * 0.8] * 6)  # 4 labels of 0.2, each with 1 - 0.2


@torch.no_grad()
def test_positions_reach_the_decoder_and_the_plain_kind_has_none() -> None:
    recogniser = make_recogniser(seed=2)
    features_BTC, num_frames_B = torch.randn(1, 20, FEATURE_DIM), torch.tensor([20])
    encoded = recogniser.encode(features_BTC, num_frames_B)
    positions_BT = encoded.label_positions_BT
    assert positions_BT is not None
    tokens_BU = torch.tensor([[1, 5, 6, 7]])
    scores_BUV = recogniser.decoder(tokens_BU, encoded)
    shifted = replace(encoded, label_positions_BT=positions_BT * 2)
    assert (recogniser.decoder(tokens_BU, shifted) - scores_BUV).abs().max() > 0.01
    plain = make_recogniser(seed=2, cross_attention="plain").encode(features_BTC, num_frames_B)
    assert plain.label_positions_BT is None
    assert torch.equal(plain.hidden_BTD, encoded.hidden_BTD)


def test_no_gradient_flows_through_the_clock() -> None:
    """The CTC head learns from the CTC loss alone."""
    recogniser = make_recogniser(seed=2)
    encoded = recogniser.encode(torch.randn(1, 20, FEATURE_DIM), torch.tensor([20]))
    recogniser.decoder(torch.tensor([[1, 5, 6, 7]]), encoded).square().sum().backward()
    assert recogniser.ctc_head.weight.grad is None
