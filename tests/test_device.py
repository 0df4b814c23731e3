"""Devices: what choosing a GPU sets, and which precision it gets."""

from collections.abc import Iterator

import pytest
import torch

from vox.device import pick_device, pick_precision
from vox.errors import DeviceError


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.device]]:
    """Pretend that there are two GPUs; give the list of those that are made current."""
    made_current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", made_current.append)
    backends = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = True
    yield made_current
    for backend, value in zip(backends, before, strict=True):
        backend.allow_tf32 = value


def test_a_gpu_is_made_current_and_computes_float32_in_full(two_gpus: list[torch.device]) -> None:
    assert pick_device("cuda:1") == torch.device("cuda:1")
    assert two_gpus == [torch.device("cuda:1")]
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
    assert pick_device("auto") == torch.device("cuda")
    assert len(two_gpus) == 1  # the current one stays it
    with pytest.raises(DeviceError, match="no such GPU: cuda:2"):
        pick_device("cuda:2")


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
