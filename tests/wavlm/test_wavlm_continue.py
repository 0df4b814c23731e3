"""Continuing from a stored hidden state equals the whole forward pass, with the same gradients.

B batch, S samples, T frames, C channels.
"""

import copy

import pytest
import torch
from torch import Tensor

from tests.support.wavlm_models import SHAPES, copy_to_ours, make_reference, make_waveform, relative_l2
from vox.wavlm.extractor import FeatureExtractor
from vox.wavlm.mix import LayerMix

LENGTHS = (399, 5_000, 12_000)  # the first is too short for a frame
LAYER = 2  # of 4, counted from 1: its output is given


def make_batch() -> tuple[Tensor, Tensor]:
    waveforms_BS = torch.zeros(len(LENGTHS), max(LENGTHS))
    for row, length in enumerate(LENGTHS):
        waveforms_BS[row, :length] = make_waveform(length, row)[0]
    return waveforms_BS, torch.tensor(LENGTHS)


def make_extractor(shape: str, layers: tuple[int, ...] = (2, 4)) -> FeatureExtractor:
    extractor = FeatureExtractor(copy_to_ours(make_reference(shape)), LayerMix.mean_of(layers, 4))
    extractor.requires_grad_(False)
    return extractor


def store_state(extractor: FeatureExtractor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Compute the content of a cache, with NaN in the padding."""
    (hidden_BTC,), num_frames_B = extractor.wavlm(*make_batch(), [LAYER])
    for row, count in enumerate(num_frames_B.tolist()):
        hidden_BTC[row, count:] = float("nan")
    return hidden_BTC.to(dtype), num_frames_B


@pytest.mark.parametrize("shape", SHAPES)
def test_continuing_gives_the_features_of_forward(shape: str) -> None:
    extractor = make_extractor(shape)
    expected_BTC, num_frames_B = extractor(*make_batch())
    actual_BTC, counts_B = extractor.continue_from(*store_state(extractor, torch.float32), LAYER)
    assert torch.equal(actual_BTC, expected_BTC) and torch.equal(counts_B, num_frames_B)
    rounded_BTC, _ = extractor.continue_from(*store_state(extractor, torch.float16), LAYER)
    assert rounded_BTC.dtype == torch.float32
    assert 0 < relative_l2(rounded_BTC, expected_BTC) <= 1e-3


def gradients_of(extractor: FeatureExtractor, features_BTC: Tensor) -> dict[str, Tensor]:
    extractor.zero_grad()
    weights = torch.linspace(-1, 1, features_BTC.numel()).view(features_BTC.shape)
    (features_BTC * weights).sum().backward()
    return {name: p.grad.clone() for name, p in extractor.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_of_the_layers_above_are_those_of_forward(shape: str) -> None:
    extractor = make_extractor(shape)
    extractor.wavlm.freeze_except((2, 3))
    extractor.mix.requires_grad_(True)
    hidden = store_state(extractor, torch.float32)
    expected = gradients_of(extractor, extractor(*make_batch())[0])
    actual = gradients_of(extractor, extractor.continue_from(*hidden, LAYER)[0])
    assert actual.keys() == expected.keys()
    # The weight of the layer below, which is not computed, has no gradient to get.
    assert expected["mix.weights"][0] != 0 and actual["mix.weights"].nonzero().flatten().tolist() == [1, 2, 3]
    expected["mix.weights"][0] = 0
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, rtol=1e-5, atol=1e-6, msg=name)


def test_only_the_layers_above_run() -> None:
    extractor = make_extractor("base")
    hidden = store_state(extractor, torch.float16)
    calls: list[int] = []
    for index, layer in enumerate(extractor.wavlm.encoder.layers):
        layer.register_forward_hook(lambda *_, index=index: calls.append(index))
    extractor.continue_from(*hidden, LAYER)
    assert calls == [2, 3]


def test_what_lies_below_the_given_state_is_refused() -> None:
    extractor = make_extractor("base")
    hidden = store_state(extractor, torch.float32)
    extractor.wavlm.freeze_except((1,))
    with pytest.raises(AssertionError, match="trainable layer below"):
        extractor.continue_from(*hidden, LAYER)


def test_what_is_kept_of_frozen_weights_follows_them() -> None:
    """Matrices, spectra, position biases and the mix's layers are computed once, until a weight changes."""
    first, second = make_extractor("base", (1, 2)), make_extractor("base", (3, 4))
    with torch.no_grad():
        for parameter in second.wavlm.parameters():
            parameter.mul_(1.1)
    before_BTC, _ = first(*make_batch())
    expected_BTC, _ = second(*make_batch())
    assert not torch.equal(before_BTC, expected_BTC)
    first.load_state_dict(copy.deepcopy(second.state_dict()))
    assert torch.equal(first(*make_batch())[0], expected_BTC)
    assert torch.equal(copy.deepcopy(first)(*make_batch())[0], expected_BTC)


def test_what_inference_kept_serves_training() -> None:
    """Torch refuses to save inference tensors for gradients."""
    extractor = make_extractor("base")
    with torch.inference_mode():
        extractor(*make_batch())
    extractor.wavlm.freeze_except((3,))
    extractor(*make_batch())[0].sum().backward()
    assert extractor.wavlm.encoder.layers[3].attention.gru_rel_pos_const.grad is not None


def test_utterances_longer_than_a_block_equal_the_plain_convolution() -> None:
    """The stem runs in blocks of frames on a CPU; 300 frames are three."""
    stem = copy_to_ours(make_reference("base")).feature_extractor
    num_samples_B = torch.tensor([96_080, 70_000])
    waveforms_BS = torch.cat([make_waveform(96_080), make_waveform(96_080, 1)])
    waveforms_BS[1, 70_000:] = 0.0
    actual_BTC = stem(waveforms_BS, num_samples_B)
    for row, count in enumerate((300, 218)):
        frames_1CT = waveforms_BS[row : row + 1, None, : num_samples_B[row]]
        for layer in stem.conv_layers:
            frames_1CT = layer.conv(frames_1CT)
            frames_1CT = layer.activation(layer.layer_norm(frames_1CT) if layer.layer_norm else frames_1CT)
        assert frames_1CT.shape[2] == count
        assert relative_l2(actual_BTC[row, :count].T, frames_1CT[0].detach()) <= 1e-6


@pytest.mark.parametrize("shape", SHAPES)
def test_the_paths_of_a_gpu_compute_the_same(shape: str) -> None:
    """The GPU path, run on a CPU: whole batches, in the convolutions' own kernels."""
    wavlm = copy_to_ours(make_reference(shape))
    waveforms_BS, num_samples_B = make_batch()
    stem = wavlm.feature_extractor
    with torch.no_grad():
        frames_BTC = stem.run_batch(waveforms_BS, num_samples_B)
        expected_BTC = stem(waveforms_BS, num_samples_B)
        assert relative_l2(frames_BTC[2], expected_BTC[2]) <= 1e-6
        assert relative_l2(frames_BTC[1, :15], expected_BTC[1, :15]) <= 1e-6
        positions = wavlm.encoder.pos_conv_embed
        hidden_BTD = torch.randn(2, 70, 32)
        # An even kernel with padding on both sides returns one frame too many.
        half = positions.kernel // 2
        padded_BDT = torch.nn.functional.pad(hidden_BTD.transpose(1, 2), (half, half))
        expected_BTD = positions.conv(padded_BDT)[:, :, :70].transpose(1, 2)
        assert relative_l2(positions.convolve(hidden_BTD), expected_BTD) <= 1e-6
