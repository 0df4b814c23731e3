"""Where to compute, and in which precision."""

import os
from contextlib import AbstractContextManager, nullcontext

import torch

from vox.errors import DeviceError

# Set to 1, it lets attention on a GPU go through cuDNN. An environment variable and not a config key: it
# belongs to a machine and not to a run, which may resume elsewhere, and all commands that compute need it.
CUDNN_ATTENTION = "VOX_CUDNN_ATTENTION"


def local_device(name: str) -> str:
    """Turn `auto` and `cuda` into this process's own GPU of its machine, where torchrun started it."""
    local_rank = os.environ.get("LOCAL_RANK")
    if name in ("auto", "cuda") and local_rank is not None and torch.cuda.is_available():
        return f"cuda:{local_rank}"
    return name


def pick_device(name: str = "auto") -> torch.device:
    """Return the device named: `auto` (CUDA if there is one, else CPU), `cpu`, `cuda` or `cuda:N`.

    A GPU becomes the process's current one, and computes float32 in full. Raises DeviceError when the name
    is unknown or there is no such GPU.
    """
    device = _parse_device(name)
    if device.type == "cuda":
        _set_up_cuda(device)
    return device


def _parse_device(name: str) -> torch.device:
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


def _set_up_cuda(device: torch.device) -> None:
    if device.index is not None:
        torch.cuda.set_device(device)  # streams, events and memory figures are the current device's
    # TensorFloat-32 keeps 10 bits of a float32's mantissa. cuDNN uses it by default from Ampere on: float32
    # would be 1e-3 off itself, in WavLM and in the encoder. Half precision is not affected.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    # Products in half precision add up in float32 to the end: by default cuBLAS may add up parts of a long
    # sum in half precision.
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    # torch 2.11 prefers cuDNN's attention on compute capability 9.0 and 10.x (cuDNN after 9.15; torch brings
    # 9.19). It makes a plan for every new shape, 0.18 s each on an H100, and nearly every batch here has a
    # new shape. With a mask its gradients can be NaN (pytorch issue 196678, since
    # 2.11), and it rounds dropout to sixteenths (pytorch issue 174245).
    torch.backends.cuda.enable_cudnn_sdp(os.environ.get(CUDNN_ATTENTION) == "1")


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of mixed precision: float32 means none.

    `auto` is bfloat16 where the GPU has it, else float16, and float32 on a CPU.
    """
    if name == "auto":
        if device.type == "cpu":
            return torch.float32
        # By capability, since torch calls bfloat16 supported where it is emulated, and slow (V100, T4).
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
    if dtype is torch.float16 and device.type == "cpu":
        raise DeviceError("fp16 training needs a GPU", remedy="use --set train.precision=fp32 or bf16")
    return dtype


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Return the context that computes in mixed precision, or does nothing for float32."""
    if dtype is torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def frozen_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Return the context for WavLM's frozen part, which keeps its features those of the cache.

    Under bfloat16 (8 bits of mantissa) features come out 7.5e-3 off float32, more than a cache may differ
    from live audio; under float16 (11 bits) 0.6e-3. What is not trained has no gradients that could
    underflow, and so needs no bfloat16: it runs in float16 on a GPU and in float32 on a CPU. Any other
    precision is left as it is.
    """
    kind = device.type
    if not torch.is_autocast_enabled(kind) or torch.get_autocast_dtype(kind) is not torch.bfloat16:
        return nullcontext()
    return torch.autocast(kind, dtype=torch.float16, enabled=kind != "cpu")


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


def available_memory_gb(device: torch.device) -> float:
    """Return the GB of a GPU that this process may use: what is free, and what it has reserved."""
    free, _ = torch.cuda.mem_get_info(device)
    return (free + torch.cuda.memory_reserved(device)) / 1e9


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """Return a floating-point tensor in float32, or as it is where it has more."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
