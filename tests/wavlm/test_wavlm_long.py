"""Long recordings: attention in blocks of queries gives the same result, with memory linear in the length.

B batch, S samples, T frames, D model width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.wavlm_models import SHAPES, copy_to_ours, make_reference, make_waveform, relative_l2
from vox.wavlm.attention import BIAS_ALIGNMENT, QUERY_BLOCK_FRAMES, spread_bias
from vox.wavlm.model import WavLM

WIDTH = 32


@contextmanager
def one_pass() -> Iterator[None]:
    """Attend from all frames to all frames at once, as for short recordings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vox.wavlm.attention.ONE_PASS_FRAMES", 1 << 30)
        yield


def is_in_memory(result: object) -> bool:
    """Return whether a tensor's memory can be inspected: that of a packed weight cannot."""
    return isinstance(result, Tensor) and not result.is_mkldnn


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest result of any operation."""

    num_elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [t.untyped_storage().nbytes() // t.element_size() for t in [result] if is_in_memory(t)]
        self.num_elements = max([self.num_elements, *sizes])
        return result


def run(wavlm: WavLM, lengths: list[int]) -> list[Tensor]:
    """Return every hidden state of every recording of a batch, [T, D], valid frames only."""
    waveforms_BS = torch.zeros(len(lengths), max(lengths))
    for row, length in enumerate(lengths):
        waveforms_BS[row, :length] = make_waveform(length, row)[0]
    states, num_frames_B = wavlm(waveforms_BS, torch.tensor(lengths))
    return [state[row, :count] for state in states for row, count in enumerate(num_frames_B.tolist())]


def gradients(wavlm: WavLM, lengths: list[int]) -> dict[str, Tensor]:
    """Return every gradient, of a sum that weighs each channel differently."""
    wavlm.zero_grad()
    (run(wavlm, lengths)[-1] * torch.linspace(0.5, 1.5, WIDTH)).square().mean().backward()
    return {name: p.grad.clone() for name, p in wavlm.named_parameters() if p.grad is not None}


def test_a_minute_in_blocks_is_a_minute_in_one_pass() -> None:
    wavlm = copy_to_ours(make_reference("base"))
    with LargestTensor() as largest:
        states = run(wavlm, [62 * 16_000])
    # A block's bias, beside which the feed-forward's widest activation is small; all pairs are 38 million.
    assert largest.num_elements <= 4 * QUERY_BLOCK_FRAMES * (3_099 + BIAS_ALIGNMENT)
    with one_pass():
        expected = run(wavlm, [62 * 16_000])
    assert max(relative_l2(a, e) for a, e in zip(states, expected, strict=True)) <= 1e-6


@pytest.mark.parametrize("shape", SHAPES)
def test_blocks_have_the_states_and_gradients_of_one_pass(
    shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a padded batch, in float64, including the position table's gradient, to which every block adds."""
    wavlm = copy_to_ours(make_reference(shape).double())
    wavlm.freeze_except((0, 1, 3))
    lengths = [50_000, 33_000]
    expected = run(wavlm, lengths), gradients(wavlm, lengths)
    monkeypatch.setattr("vox.wavlm.attention.ONE_PASS_FRAMES", 100)
    monkeypatch.setattr("vox.wavlm.attention.QUERY_BLOCK_FRAMES", 48)
    found = run(wavlm, lengths), gradients(wavlm, lengths)
    assert max(relative_l2(a, e) for a, e in zip(found[0], expected[0], strict=True)) <= 1e-12
    assert found[1].keys() == expected[1].keys() and any("rel_attn_embed" in name for name in found[1])
    scale = max(gradient.norm() for gradient in expected[1].values())
    for name, gradient in expected[1].items():
        # A key's bias moves all of a query's logits alike: its gradient is rounding alone.
        assert (found[1][name] - gradient).norm() <= 1e-10 * (gradient.norm() + 0.01 * scale), name


@pytest.mark.parametrize("first", [0, 5, 7])
def test_the_bias_of_a_block_is_its_rows_of_the_whole(first: int) -> None:
    bias_HR = torch.randn(2, 2 * 12 - 1)
    bias_HQT = spread_bias(bias_HR, first, first + 5)
    for query, key in product(range(5), range(12)):
        assert torch.equal(bias_HQT[:, query, key], bias_HR[:, key - (first + query) + 11])


@pytest.mark.parametrize("layers", [(), (0, 2)], ids=["frozen", "learning"])
def test_the_fused_kernels_take_the_mask_of_every_block(
    layers: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They need contiguous keys of a query in memory; for other masks a GPU uses a slow path."""
    strides = []

    def attend(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor, dropout_p: float) -> Tensor:
        strides.append(attn_mask.stride(-1))
        return real(query, key, value, attn_mask, dropout_p)

    real = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", attend)
    monkeypatch.setattr("vox.wavlm.attention.ONE_PASS_FRAMES", 100)
    monkeypatch.setattr("vox.wavlm.attention.QUERY_BLOCK_FRAMES", 48)
    wavlm = copy_to_ours(make_reference("base"))
    wavlm.freeze_except(layers)
    run(wavlm, [50_000, 33_000])  # 156 frames: four blocks in each of the four layers
    assert strides == [1] * 16


def test_a_gpus_stem_takes_long_recordings_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    stem = copy_to_ours(make_reference("base")).feature_extractor
    waveforms_BS = torch.cat([make_waveform(20_000, seed) for seed in range(2)])
    num_samples_B = torch.tensor([20_000, 20_000])
    with torch.no_grad():
        expected = stem.run_batch(waveforms_BS, num_samples_B)
        monkeypatch.setattr("vox.wavlm.stem.BATCH_FRAMES", 7)
        assert relative_l2(stem.run_batch(waveforms_BS, num_samples_B), expected) <= 1e-6
