"""Features in float16 on a GPU against float32, at full size, with a GPU's arithmetic emulated on a CPU.

A GPU's products take half-precision numbers, sum in float32 and round once. Here a CPU emulates that, along
the code paths of a GPU. B batch, S samples, T frames, D model width.
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import WavLMConfig, WavLMModel

from tests.support.wavlm_models import copy_to_ours, make_waveform, relative_l2
from vox.wavlm.model import WavLM
from vox.wavlm.stem import ConvStem

aten = torch.ops.aten
PRODUCTS = {
    aten.mm,
    aten.addmm,
    aten.bmm,
    aten.baddbmm,
    aten.convolution,
    aten._scaled_dot_product_flash_attention_for_cpu,
}
SECOND = 16_000


class ProductsOfAGpu(TorchDispatchMode):
    """Computes float16 products in float32, rounds the result, and counts them."""

    num_products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._overloadpacket not in PRODUCTS or torch.float16 not in map(_dtype_of, args[:2]):
            return func(*args, **kwargs)
        self.num_products += 1
        if "dtype" in func._overloadname:  # half-precision numbers, sums that stay float32: a GPU's alone
            kept = func._overloadpacket.default
            return kept(*(_widen(value) for value in args if not isinstance(value, torch.dtype)))
        out = func(*map(_widen, args), **{name: _widen(value) for name, value in kwargs.items()})
        return (out[0].half(), *out[1:]) if isinstance(out, tuple) else out.half()


def _dtype_of(value: object) -> torch.dtype | None:
    return value.dtype if isinstance(value, Tensor) else None


def _widen(value: object) -> object:
    is_half = isinstance(value, Tensor) and value.dtype is torch.float16
    return value.float() if is_half else value


@pytest.fixture(scope="module")
def wavlm() -> WavLM:
    """WavLM-base with the random weights that training begins with: these do not dampen input errors."""
    torch.manual_seed(0)
    return copy_to_ours(WavLMModel(WavLMConfig()))


@torch.no_grad()
def compute_features(wavlm: WavLM, waveforms_BS: Tensor) -> Tensor:
    """Return the default features, [B, T, D]: the mean of layers 9 to 12."""
    num_samples_B = torch.full((len(waveforms_BS),), waveforms_BS.shape[1])
    states, _ = wavlm(waveforms_BS, num_samples_B, (9, 10, 11, 12))
    return torch.stack(states).mean(0)


def test_features_in_float16_are_those_in_float32(wavlm: WavLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative L2 is at most 1e-3, with a margin, because it depends on the weights and on the audio."""
    time_S = torch.arange(SECOND) / SECOND
    square_1S = (torch.sin(2 * torch.pi * 220 * time_S).sign())[None]  # the worst of six kinds of audio
    waveforms_BS = torch.cat([make_waveform(SECOND), square_1S])
    expected_BTD = compute_features(wavlm, waveforms_BS)
    monkeypatch.setattr(ConvStem, "forward", ConvStem.run_batch)
    with ProductsOfAGpu() as gpu, torch.autocast("cpu", dtype=torch.float16):
        actual_BTD = compute_features(wavlm, waveforms_BS)
    for actual_TD, expected_TD in zip(actual_BTD, expected_BTD, strict=True):
        assert relative_l2(actual_TD, expected_TD) <= 0.9e-3
    assert gpu.num_products == 12 * (6 + 1) + 4  # linear maps and attention of all layers; two convolutions
