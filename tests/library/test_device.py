"""Devices: the settings made when a GPU is chosen, and its precision."""

import os
from collections.abc import Iterator

import pytest
import torch

from vox.device import pick_device, pick_precision
from vox.errors import DeviceError

MATMUL = torch.backends.cuda.matmul
FLAGS = (
    (torch.backends.cudnn, "allow_tf32"),
    (MATMUL, "allow_tf32"),
    (MATMUL, "allow_fp16_reduced_precision_reduction"),
    (MATMUL, "allow_bf16_reduced_precision_reduction"),
)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.device]]:
    """Simulate two GPUs with torch's setup; return the list of devices made current."""
    made_current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", made_current.append)
    monkeypatch.delenv("VOX_CUDNN_ATTENTION", raising=False)
    before = [getattr(backend, flag) for backend, flag in FLAGS], torch.backends.cuda.cudnn_sdp_enabled()
    _set_flags([True] * len(FLAGS), True)
    yield made_current
    _set_flags(*before)


def _set_flags(values: list[bool], is_cudnn_attention_on: bool) -> None:
    for (backend, flag), value in zip(FLAGS, values, strict=True):
        setattr(backend, flag, value)
    torch.backends.cuda.enable_cudnn_sdp(is_cudnn_attention_on)


def test_a_gpu_is_made_current(two_gpus: list[torch.device]) -> None:
    assert pick_device("cuda:1") == torch.device("cuda:1")
    assert two_gpus == [torch.device("cuda:1")]
    assert pick_device("auto") == torch.device("cuda")
    assert len(two_gpus) == 1  # the current one stays it
    with pytest.raises(DeviceError, match="no such GPU: cuda:2"):
        pick_device("cuda:2")


def test_products_on_a_gpu_keep_their_precision(two_gpus: list[torch.device]) -> None:
    pick_device("cuda")
    assert [flag for backend, flag in FLAGS if getattr(backend, flag)] == []


@pytest.mark.parametrize(("value", "is_on"), [(None, False), ("0", False), ("", False), ("1", True)])
def test_attention_goes_through_cudnn_only_where_that_is_asked_for(
    two_gpus: list[torch.device], monkeypatch: pytest.MonkeyPatch, value: str | None, is_on: bool
) -> None:
    if value is not None:
        monkeypatch.setenv("VOX_CUDNN_ATTENTION", value)
    pick_device("cuda:0")
    assert torch.backends.cuda.cudnn_sdp_enabled() == is_on
    # What it would go through instead.
    assert torch.backends.cuda.flash_sdp_enabled() and torch.backends.cuda.mem_efficient_sdp_enabled()


@pytest.mark.parametrize(
    ("capability", "precision"),
    [((7, 0), torch.float16), ((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)],
)
def test_bfloat16_is_chosen_where_the_gpu_computes_it(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], precision: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)  # emulated, on the older ones
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert pick_precision("auto", torch.device("cuda")) is precision
    assert pick_precision("auto", torch.device("cpu")) is torch.float32


@pytest.mark.skipif(os.environ.get("VOX_TEST_GPU") == "1", reason="asked to see the GPU")
def test_tests_see_no_gpu() -> None:
    """On a GPU machine, `auto` would use the GPU in every test and in every process that a test starts."""
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "" and torch.cuda.device_count() == 0
