"""Frozen parts stay frozen: after train(), without dropout, without gradients or activations."""

import pytest
import torch

from tests.support.wavlm_models import copy_to_ours, make_reference, make_waveform
from vox.errors import ConfigError
from vox.wavlm.model import WavLM

NUM_SAMPLES = 8_000


@pytest.fixture
def wavlm() -> WavLM:
    """Dropout everywhere that a configuration allows, including SpecAugment and layer drop."""
    rates = ("hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout", "layerdrop")
    return copy_to_ours(make_reference("base", **dict.fromkeys(rates, 0.1), mask_time_prob=0.5))


def run(wavlm: WavLM, seed: int) -> list:
    torch.manual_seed(seed)
    return wavlm(make_waveform(NUM_SAMPLES), torch.tensor([NUM_SAMPLES]))[0]


def test_all_frozen_in_training_mode_is_evaluation(wavlm: WavLM) -> None:
    expected = run(wavlm, seed=0)
    torch.nn.Sequential(wavlm).train()  # as a recogniser around it would
    for state, same in zip(run(wavlm, seed=1), expected, strict=True):
        assert torch.equal(state, same)
        assert not state.requires_grad


def test_only_trainable_layers_drop_out(wavlm: WavLM) -> None:
    expected = run(wavlm, seed=0)
    wavlm.freeze_except((2,))
    wavlm.train()
    first, second = run(wavlm, seed=1), run(wavlm, seed=2)
    for index in range(3):
        assert torch.equal(first[index], expected[index])
    assert not torch.equal(first[3], second[3])
    # The frozen layer above it adds no noise of its own.
    position_bias = wavlm.encoder.position_bias(first[3].shape[1])
    is_valid = torch.ones(first[3].shape[:2], dtype=torch.bool)
    assert torch.equal(wavlm.encoder.layers[3](first[3], position_bias, is_valid), first[4])
    wavlm.eval()
    with torch.no_grad():  # attention has another kernel for gradients
        assert torch.equal(run(wavlm, seed=3)[4], expected[4])


def test_attention_drops_out_too(wavlm: WavLM) -> None:
    reference = make_reference("base", hidden_dropout=0.0, activation_dropout=0.0, attention_dropout=0.5)
    wavlm = copy_to_ours(reference)
    wavlm.freeze_except((3,))
    wavlm.train()
    assert not torch.equal(run(wavlm, seed=0)[4], run(wavlm, seed=1)[4])


def test_only_trainable_layers_hold_a_graph_and_gradients(wavlm: WavLM) -> None:
    wavlm.freeze_except((1, 3))
    wavlm.train()
    states = run(wavlm, seed=0)
    assert [state.requires_grad for state in states] == [False, False, True, True, True]
    trainable = {name.split(".")[2] for name, p in wavlm.named_parameters() if p.requires_grad}
    assert trainable == {"1", "3"}
    assert not wavlm.encoder.layers[0].attention.rel_attn_embed.weight.requires_grad
    with torch.no_grad():
        assert not run(wavlm, seed=0)[4].requires_grad
    wavlm.freeze_except(())
    assert not any(parameter.requires_grad for parameter in wavlm.parameters())
    assert not any(module.training for module in wavlm.encoder.layers.modules())


def test_frozen_parts_keep_no_activations(wavlm: WavLM) -> None:
    """Autograd saves nothing if nothing is trained, and nothing below the first trained layer."""
    saved: list[torch.Tensor] = []

    def count_saved(layers: tuple[int, ...]) -> int:
        wavlm.freeze_except(layers)
        saved.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            run(wavlm, seed=0)
        return len(saved)

    assert count_saved(()) == 0
    assert 0 < count_saved((3,)) < count_saved((2, 3))


@pytest.mark.parametrize("layers", [(4,), (-1,)])
def test_a_layer_that_is_not_there_is_an_error(wavlm: WavLM, layers: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"this WavLM has 4; .*--set 'train.unfreeze_layers=\[1,2,3\]'$"):
        wavlm.freeze_except(layers)
