"""Where to compute, and in which precision."""

from contextlib import AbstractContextManager, nullcontext

import torch

from vox.errors import DeviceError


def pick_device(name: str = "auto") -> torch.device:
    """Return the device named: `auto` (CUDA if there is one, else CPU), `cpu`, `cuda` or `cuda:N`.

    Raises DeviceError when the name is unknown or there is no such GPU.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError("unknown device", where=name, remedy="use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise DeviceError("unsupported device", where=name, remedy="use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError("no such GPU", where=name, remedy="use --device auto or --device cpu")
    return device


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of mixed precision: float32 means none.

    `auto` is bfloat16 where the GPU has it, else float16, and float32 on a CPU.
    """
    if name == "auto":
        if device.type == "cpu":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
    if dtype is torch.float16 and device.type == "cpu":
        raise DeviceError("fp16 training needs a GPU", remedy="use --set train.precision=fp32 or bf16")
    return dtype


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Return the context that computes in mixed precision, or does nothing for float32."""
    if dtype is torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def synchronize(device: torch.device) -> None:
    """Wait for the device, so that a host clock may be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory_gb(device: torch.device) -> float:
    """Return the most memory this process has held, in GB: the GPU's, or on a CPU the resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
