"""WavLM's linear layers on a CPU: packed while frozen, with the same results as unpacked.

B batch, T frames, C input channels, D output channels.
"""

import copy
import pickle
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.support.wavlm_models import relative_l2
from vox.wavlm import cpu
from vox.wavlm.linear import Linear

needs_onednn = pytest.mark.skipif(not cpu.IS_ONEDNN_THERE, reason="this torch has no oneDNN")


def make_layer(activation: str | None = None) -> Linear:
    torch.manual_seed(0)
    return Linear(48, 80, activation).requires_grad_(False)


def make_inputs(num_frames: int) -> Tensor:
    """Make [2, T, 48] with non-contiguous rows."""
    return torch.randn(2, num_frames, 64, generator=torch.Generator().manual_seed(1))[..., 8:56]


def expected_of(layer: Linear, inputs: Tensor) -> Tensor:
    """Compute the formula in float64."""
    weight, bias = layer.weight.double(), layer.bias.double()
    outputs = (inputs.double()[..., None, :] * weight).sum(-1) + bias
    return outputs if layer.activation is None else F.gelu(outputs)


@pytest.mark.parametrize("is_there", [pytest.param(True, marks=needs_onednn), False])
@pytest.mark.parametrize("activation", [None, "gelu"])
@pytest.mark.parametrize("num_frames", [1, 7, 130])
def test_outputs_are_the_formulas(
    monkeypatch: pytest.MonkeyPatch, num_frames: int, activation: str | None, is_there: bool
) -> None:
    monkeypatch.setattr(cpu, "IS_ONEDNN_THERE", is_there)
    layer, inputs = make_layer(activation), make_inputs(num_frames)
    assert cpu.is_packable(inputs, layer.weight) == is_there
    outputs = layer(inputs)
    assert outputs.shape == (2, num_frames, 80)
    assert relative_l2(outputs, expected_of(layer, inputs)) < 1e-6


def change_in_place(layer: Linear) -> None:
    with torch.no_grad():
        layer.weight.mul_(2)


def load_others(layer: Linear) -> None:
    layer.load_state_dict({name: -value for name, value in layer.state_dict().items()})


def replace(layer: Linear) -> None:
    layer.weight = torch.nn.Parameter(layer.weight + 1, requires_grad=False)


@pytest.mark.parametrize("change", [change_in_place, load_others, replace])
def test_a_changed_weight_is_packed_anew(change: Callable[[Linear], None]) -> None:
    layer, inputs = make_layer(), make_inputs(5)
    layer(inputs)
    change(layer)
    assert relative_l2(layer(inputs), expected_of(layer, inputs)) < 1e-6


def test_a_weight_that_has_learned_is_packed_anew() -> None:
    """Also after a fused optimizer, whose changes torch does not count."""
    layer, inputs = make_layer(), make_inputs(5)
    layer(inputs)
    layer.requires_grad_(True)
    layer(inputs).square().sum().backward()
    torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True).step()
    layer.requires_grad_(False)
    assert relative_l2(layer(inputs), expected_of(layer, inputs)) < 1e-6


def test_a_copy_has_weights_of_its_own() -> None:
    layer, inputs = make_layer(), make_inputs(5)
    layer(inputs)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        change_in_place(other)
        assert torch.equal(layer(inputs), make_layer()(inputs))
        assert relative_l2(other(inputs), expected_of(other, inputs)) < 1e-6


@pytest.mark.parametrize("learner", ["weight", "bias", "inputs"])
def test_what_learns_gets_its_gradient(learner: str) -> None:
    layer, inputs = make_layer("gelu"), make_inputs(5)
    layer(inputs)
    learning = {"weight": layer.weight, "bias": layer.bias, "inputs": inputs}[learner]
    learning.requires_grad_(True)
    (gradient,) = torch.autograd.grad(layer(inputs).sum(), learning)
    (expected,) = torch.autograd.grad(expected_of(layer, inputs).sum(), learning)
    assert relative_l2(gradient, expected) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_precision_is_kept(dtype: torch.dtype) -> None:
    layer, inputs = make_layer(), make_inputs(5)
    layer(inputs)
    is_half = dtype is torch.bfloat16
    with torch.autocast("cpu", dtype=dtype) if is_half else nullcontext():
        outputs = layer(inputs) if is_half else layer.to(dtype)(inputs.to(dtype))
    assert outputs.dtype is dtype
    assert relative_l2(outputs, expected_of(layer, inputs)) < (1e-2 if is_half else 1e-12)
