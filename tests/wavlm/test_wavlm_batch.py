"""An utterance's hidden states do not depend on its batch, and every length is exact.

B batch, S samples, T frames, C channels.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support.wavlm_models import (
    SHAPES,
    copy_to_ours,
    make_reference,
    make_waveform,
    relative_l2,
    run_reference,
)
from vox.wavlm.extractor import FeatureExtractor
from vox.wavlm.mix import LayerMix
from vox.wavlm.model import WavLM
from vox.wavlm.stem import fold_group_norm

LIMIT = 1e-5
GARBAGE = (0.0, 1.0, -3e4, float("nan"), float("inf"))


def pad(lengths: list[int], extra_samples: int, garbage: float) -> Tensor:
    """Make a batch [B, S] of different utterances with nonzero padding."""
    waveforms_BS = torch.full((len(lengths), max(lengths) + extra_samples), garbage)
    for index, length in enumerate(lengths):
        waveforms_BS[index, :length] = make_waveform(length, index)[0]
    return waveforms_BS


@pytest.fixture(scope="module", params=[("base", False), ("large", True)], ids=str)
def pair(request: pytest.FixtureRequest) -> tuple:
    shape, do_normalize = request.param
    reference = make_reference(shape)
    return reference, copy_to_ours(reference, do_normalize)


@settings(deadline=None, max_examples=5)
@given(
    lengths=st.lists(st.integers(400, 16_000), min_size=2, max_size=3),
    extra_samples=st.sampled_from((0, 1, 5_000)),
    garbage=st.sampled_from(GARBAGE),
)
def test_every_hidden_state_is_that_of_the_utterance_alone(
    pair: tuple, lengths: list[int], extra_samples: int, garbage: float
) -> None:
    reference, wavlm = pair
    states, num_frames_B = wavlm(pad(lengths, extra_samples, garbage), torch.tensor(lengths))
    assert all(state.isfinite().all() for state in states)
    for index, length in enumerate(lengths):
        waveform_1S = make_waveform(length, index)
        if wavlm.do_normalize:
            expected = [state[0] for state in wavlm(waveform_1S, torch.tensor([length]))[0]]
        else:
            expected = run_reference(reference, waveform_1S)
        num_frames = int(num_frames_B[index])
        errors = [relative_l2(s[index, :num_frames], e) for s, e in zip(states, expected, strict=True)]
        assert max(errors) <= LIMIT, (length, errors)


@pytest.mark.parametrize("trainable", [(), (3,)], ids=str)
def test_features_are_zero_on_padded_frames_and_without_a_frame(trainable: tuple[int, ...]) -> None:
    """In both attention kernels: with and without gradients."""
    lengths = [399, 0, 5_000, 12_000]  # the first two are too short for a frame
    extractor = FeatureExtractor(copy_to_ours(make_reference("base")), LayerMix.mean_of((2, 4), 4))
    extractor.wavlm.freeze_except(trainable)
    features_BTC, num_frames_B = extractor(pad(lengths, 640, float("nan")), torch.tensor(lengths))
    assert num_frames_B.tolist() == [0, 0, 15, 37]
    assert features_BTC.shape == (4, 39, 32)
    for features_TC, num_frames in zip(features_BTC, num_frames_B.tolist(), strict=True):
        assert (features_TC[:num_frames] != 0).all()
        assert (features_TC[num_frames:] == 0).all()
    features_BTC.square().sum().backward()
    gradients = [p.grad for p in extractor.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.fixture(scope="module")
def stems() -> list[WavLM]:
    """The published convolutions and others: the numbers of the configuration must be used."""
    odd = {"conv_kernel": (9, 4, 3, 2, 3, 2, 1), "conv_stride": (4, 3, 1, 2, 2, 3, 1)}
    return [copy_to_ours(make_reference("base")), copy_to_ours(make_reference("base", **odd))]


@settings(deadline=None, max_examples=25)
@given(num_samples=st.integers(0, 4_000), which=st.integers(0, 1))
def test_frame_count_is_what_convolutions_return(stems: list[WavLM], num_samples: int, which: int) -> None:
    wavlm = stems[which]
    try:
        expected = wavlm.feature_extractor(torch.zeros(1, num_samples), torch.tensor([num_samples])).shape[1]
    except RuntimeError:  # a convolution refuses an input shorter than its kernel
        expected = 0
    assert wavlm.num_frames(num_samples) == expected
    assert wavlm.num_frames(torch.tensor([num_samples])).tolist() == [expected]
    assert wavlm.num_frames(np.array([num_samples])).tolist() == [expected]


@pytest.mark.parametrize("shape", SHAPES)
def test_hidden_states_stay_float32_under_autocast(shape: str) -> None:
    with torch.autocast("cpu", torch.float16):
        states, _ = copy_to_ours(make_reference(shape))(make_waveform(4_000), torch.tensor([4_000]))
    assert {state.dtype for state in states} == {torch.float32}


def test_group_norm_statistics_are_exact_under_autocast() -> None:
    """The convolution's variance over this second of audio is far above the largest float16."""
    torch.manual_seed(0)
    conv, norm = torch.nn.Conv1d(1, 2, 10, 5, bias=False), torch.nn.GroupNorm(2, 2)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    waveforms_BS = 3_000.0 + 2_000.0 * torch.randn(1, 16_000)
    expected_BCT = norm(conv(waveforms_BS[:, None]))
    with torch.autocast("cpu", torch.float16), torch.no_grad():
        weight_BKC, bias_BC = fold_group_norm(waveforms_BS, torch.tensor([3_199]), conv, norm)
    actual_BTC = waveforms_BS.unfold(1, 10, 5) @ weight_BKC + bias_BC[:, None]
    torch.testing.assert_close(actual_BTC.transpose(1, 2), expected_BCT, rtol=1e-4, atol=1e-4)


def test_attention_gates_are_float32_under_autocast() -> None:
    attention = copy_to_ours(make_reference("base")).encoder.layers[1].attention
    heads_BHTK = torch.randn(1, 4, 9, 8)
    with torch.autocast("cpu", torch.float16):
        gates_BHT = attention._gates(heads_BHTK)
    assert torch.equal(gates_BHT, attention._gates(heads_BHTK))


def test_frozen_features_are_not_computed_in_bfloat16() -> None:
    """Promise T2 across precisions: bfloat16 would differ from the cache by 7.5e-3."""
    lengths = [5_000, 12_000]
    waveforms_BS, num_samples_B = pad(lengths, 0, 0.0), torch.tensor(lengths)
    extractor = FeatureExtractor(copy_to_ours(make_reference("base")), LayerMix.mean_of((2, 4), 4))
    expected, _ = extractor(waveforms_BS, num_samples_B)
    with torch.autocast("cpu", torch.bfloat16):
        actual, _ = extractor(waveforms_BS, num_samples_B)
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(actual, expected)
    # The input of a trainable layer is frozen still; the layer itself follows the surrounding precision.
    extractor.wavlm.freeze_except((3,))
    states, _ = extractor.wavlm(waveforms_BS, num_samples_B)
    with torch.autocast("cpu", torch.bfloat16):
        mixed, _ = extractor.wavlm(waveforms_BS, num_samples_B)
    assert torch.equal(mixed[3], states[3]) and not torch.equal(mixed[4], states[4])
