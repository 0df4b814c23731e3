"""The layer mix and the feature extractor, which skips what the mix does not need."""

import pytest
import torch

from tests.wavlm_models import copy_to_ours, make_reference, make_waveform, relative_l2, run_reference
from vox.errors import ConfigError
from vox.wavlm.extractor import FeatureExtractor
from vox.wavlm.mix import LayerMix

NUM_SAMPLES = torch.tensor([9_000])
WAVEFORM = make_waveform(9_000)


def make_extractor(layers: tuple[int, ...]) -> FeatureExtractor:
    return FeatureExtractor(copy_to_ours(make_reference("base")), LayerMix.mean_of(layers, 4))


def test_features_are_the_mean_of_the_layers_outputs() -> None:
    features_BTC, _ = make_extractor((1, 3))(WAVEFORM, NUM_SAMPLES)
    states = run_reference(make_reference("base"), WAVEFORM)
    assert relative_l2(features_BTC[0], (states[1] + states[3]) / 2) <= 1e-5


def test_a_frozen_mix_computes_only_what_it_needs() -> None:
    extractor = make_extractor((1, 2))
    full_BTC, _ = extractor(WAVEFORM, NUM_SAMPLES)
    calls: list[int] = []
    for index, layer in enumerate(extractor.wavlm.encoder.layers):
        layer.register_forward_hook(lambda *_, index=index: calls.append(index))
    extractor(WAVEFORM, NUM_SAMPLES)
    assert calls == [0, 1, 2, 3]  # trainable: the gradient of a zero weight needs its layer
    extractor.mix.requires_grad_(False)
    calls.clear()
    assert torch.equal(extractor(WAVEFORM, NUM_SAMPLES)[0], full_BTC)
    assert calls == [0, 1]


def test_every_weight_gets_its_gradient() -> None:
    extractor = make_extractor((2,))
    extractor(WAVEFORM, NUM_SAMPLES)[0].sum().backward()
    states, _ = extractor.wavlm(WAVEFORM, NUM_SAMPLES)
    expected = torch.stack([state.sum() for state in states[1:]])
    torch.testing.assert_close(extractor.mix.weights.grad, expected, rtol=1e-4, atol=1e-3)


def test_the_mix_of_weights_that_training_moved() -> None:
    mix = LayerMix([0.5, -1.0, 2.0])
    outputs = [torch.full((1, 2, 3), value) for value in (1.0, 10.0, 100.0)]
    assert torch.equal(mix(outputs), torch.full((1, 2, 3), 190.5))


@pytest.mark.parametrize("layers", [(), (0,), (5,), (2, 2)], ids=str)
def test_impossible_layers_are_an_error(layers: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="from 1 to 4 with --layers"):
        LayerMix.mean_of(layers, 4)
