"""The layer mix, and the feature extractor, which skips layers that the mix does not need."""

import copy
from pathlib import Path

import pytest
import torch

from tests.support.wavlm_models import copy_to_ours, make_reference, make_waveform, relative_l2, run_reference
from vox.errors import ConfigError
from vox.wavlm.extractor import FeatureExtractor, build_extractor
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


def test_what_is_built_is_frozen_and_asks_for_its_weights_once(tiny_wavlm_dir: Path) -> None:
    """Reading the weights of a mix makes the host wait for the GPU in every batch."""
    extractor = build_extractor(str(tiny_wavlm_dir), (2, 3))
    assert not any(parameter.requires_grad for parameter in extractor.parameters())
    with torch.inference_mode():
        assert extractor.mix.needed_layers() is extractor.mix.needed_layers()


def test_nothing_is_kept_past_a_training_that_torch_does_not_count() -> None:
    """Changes through `.data` do not change a tensor's version, like those of a fused optimizer."""
    extractor = make_extractor((1, 2))
    extractor.requires_grad_(False)
    extractor(WAVEFORM, NUM_SAMPLES)
    for layers in ((0,), ()):  # trained, and frozen again
        extractor.wavlm.freeze_except(layers)
        extractor.mix.requires_grad_(bool(layers))
        if layers:
            extractor(WAVEFORM, NUM_SAMPLES)
            for parameter in extractor.parameters():
                parameter.data = parameter.data.mul_(1.5)
            extractor.mix.weights.data.copy_(torch.tensor([0.0, 0.0, 1.0, 0.0]))
    found_BTC, _ = extractor(WAVEFORM, NUM_SAMPLES)
    expected_BTC, _ = copy.deepcopy(extractor)(WAVEFORM, NUM_SAMPLES)  # a copy has kept nothing
    assert torch.equal(found_BTC, expected_BTC)
