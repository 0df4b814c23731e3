"""A GPU that computes nothing: the real code on torch's fake tensors, which report the device `cuda`.

Fake tensors have a shape, a dtype and a device, but no data. So every operation is checked as on a GPU: its
tensors must be on one device, and those of a product must have one dtype, under CUDA's autocast rules. Every
place where the host would wait for the GPU is recorded. Not checked: numbers, races, memory, and the choice
of kernels.

    with fake_gpu() as gpu:
        ...                                # torch.device("cuda") works here
    gpu.check_waits(("train/update/step.py", "if bool(is_wanted):"))
"""

import contextlib
import ctypes
import linecache
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CHECKOUT = Path(__file__).resolve().parents[2]
OURS = tuple(f"{CHECKOUT / part}/" for part in ("vox", "train", "precompute", "evaluate"))
PASSED_OVER = f"{CHECKOUT}/vox/wavlm/linear.py"  # whose caller says more

CONVOLUTIONS = ("conv1d", "conv_transpose1d", "convolution", "convolution_backward")
PRODUCTS = ("linear", "matmul", "mm", "addmm", "bmm", "baddbmm", *CONVOLUTIONS)
NUMBER_READS = ("_local_scalar_dense", "item", "is_nonzero")
HOST_READS = (*NUMBER_READS, "nonzero", "masked_select", "unique_consecutive", "repeat_interleave")
COPIES = ("_to_copy", "to", "copy_")  # `to` is seen in inference mode, which takes no operation apart
INDEXING = ("index", "index_put", "index_put_")
FIRST_NUMBER = 5  # what the host reads: 5, or 5, 6, 7 ... of a tensor; no special token's id


def find_line() -> tuple[str, int, str]:
    """Return the file, line and function of the innermost stack frame that is in Vox."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(OURS) and name != PASSED_OVER:
            return str(Path(name).relative_to(CHECKOUT)), frame.f_lineno, frame.f_code.co_qualname
        frame = frame.f_back  # type: ignore[assignment]
    return "elsewhere", 0, ""


class Watch(TorchDispatchMode):
    """Intercepts every operation: records waits and products by dtype, and raises for mixed dtypes."""

    def __init__(self) -> None:
        super().__init__()
        self.start_again()

    def start_again(self) -> None:
        """Clear the records."""
        self.waits: dict[tuple[str, int], int] = defaultdict(int)  # by file and line
        self.products: dict[torch.dtype, set[str]] = defaultdict(set)  # `file function`, by dtype
        self.longest_sum = 0  # of a product in float64
        self.strided_masks: set[str] = set()  # places whose mask no fused kernel takes

    def check_waits(self, *allowed: tuple[str, str]) -> None:
        """Raise AssertionError unless the waits are at exactly these lines: files and their source."""
        missing, unexpected = set(allowed), []
        for file, line in self.waits:
            text = linecache.getline(str(CHECKOUT / file), line).strip()
            missing.discard((file, text))
            if (file, text) not in allowed:
                unexpected.append(f"{file}:{line}: {text}")
        assert not unexpected, "the host waits for the GPU at\n" + "\n".join(unexpected)
        assert not missing, f"the host waits no more at {missing}: take it off the list"

    def note_wait(self) -> None:
        """Record that the host waits here."""
        file, line, _ = find_line()
        self.waits[file, line] += 1

    def note_product(self, name: str, tensors: list[Tensor]) -> None:
        """Record a product's dtype and place; raise AssertionError for mixed dtypes."""
        numbers = [tensor for tensor in tensors if tensor.is_floating_point() or tensor.is_complex()]
        dtypes = {tensor.dtype.to_real() for tensor in numbers}
        file, line, function = find_line()
        assert len(dtypes) == 1, f"{file}:{line}: {name} of {sorted(map(str, dtypes))}"
        (dtype,) = dtypes
        self.products[dtype].add(f"{file} {function}")
        if dtype is torch.float64:
            self.longest_sum = max(self.longest_sum, tensors[0].shape[-1])

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._overloadpacket.__name__
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        is_on_gpu = any(tensor.device.type == "cuda" for tensor in tensors)
        if is_on_gpu and (name in HOST_READS or (name in INDEXING and _reads_index(args[1]))):
            self.note_wait()
        if name in NUMBER_READS:
            return True if name == "is_nonzero" else _make_number(args[0])
        if is_on_gpu and name in PRODUCTS:
            has_own_sums = func._overloadname == "dtype"  # a product whose sums have a dtype of their own
            self.note_product(name, tensors[-2:] if has_own_sums else tensors)
        if func is torch.ops.aten.baddbmm.dtype:  # torch 2.11's own account of its shape is an error
            return torch.empty_like(args[0])
        result = func(*args, **kwargs)
        if name == "empty" and kwargs.get("pin_memory"):
            result.is_pinned_here = True
        if name in COPIES and _copy_waits(func, args, kwargs, result):
            self.note_wait()
        return result


def _reads_index(indices: list[Tensor | None]) -> bool:
    """Return whether indices are copied from the host, or the true positions of a mask are searched."""
    given = [index for index in indices if index is not None]
    return any(index.device.type == "cpu" or index.dtype is torch.bool for index in given)


def _copy_waits(func: Any, args: Any, kwargs: Any, result: Tensor) -> bool:
    """Return whether a copy between host and GPU blocks: always, unless non_blocking from pinned memory."""
    is_in_place = func._overloadpacket.__name__ == "copy_"
    source, target = (args[1], args[0]) if is_in_place else (args[0], result)
    if source.device.type == target.device.type:
        return False
    names = [argument.name for argument in func._schema.arguments]
    given = dict(zip(names, args, strict=False)) | kwargs
    on_host = source if source.device.type == "cpu" else target
    # Torch itself pins what it makes for a copy to the host that is not waited for.
    is_pinned = getattr(on_host, "is_pinned_here", False) or (on_host is target and not is_in_place)
    return not (given.get("non_blocking", False) and is_pinned)


def _make_number(tensor: Tensor) -> bool | int | float:
    if tensor.dtype is torch.bool:
        return True
    return float(FIRST_NUMBER) if tensor.is_floating_point() else FIRST_NUMBER


@contextlib.contextmanager
def fake_gpu() -> Iterator[Watch]:
    """Make `cuda` a device with fake tensors, and yield the watcher. All tensors created here are fake."""
    watch = Watch()
    with (
        pytest.MonkeyPatch.context() as patch,
        _no_context_of_a_driver(),
        torch.autograd.set_multithreading_enabled(False),  # the modes are this thread's
        FakeTensorMode(allow_non_fake_inputs=True),
        watch,
    ):
        _replace_driver_calls(patch)
        _replace_what_needs_data(patch, watch)
        yield watch


def _replace_driver_calls(patch: pytest.MonkeyPatch) -> None:
    """Answer the driver queries of torch and Vox as an H100 would."""

    class Event:
        def record(self, stream: object) -> None: ...
        def synchronize(self) -> None: ...
        def query(self) -> bool:
            return True

    patch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    patch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    patch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    patch.setattr(torch.cuda, "Event", Event)
    patch.setattr(torch.cuda, "current_stream", lambda device=None: None)
    patch.setattr(torch.random, "fork_rng", lambda *_, **__: contextlib.nullcontext())
    patch.setattr(Tensor, "pin_memory", _pin)
    patch.setattr(FakeTensor, "data_ptr", lambda tensor: id(tensor), raising=False)


def _pin(tensor: Tensor) -> Tensor:
    pinned = tensor.detach()
    pinned.is_pinned_here = True  # type: ignore[attr-defined]
    return pinned


def _replace_what_needs_data(patch: pytest.MonkeyPatch, watch: Watch) -> None:
    """Supply shapes and numbers that depend on data, which fake tensors do not have."""
    real_tolist = Tensor.tolist

    def tolist(tensor: Tensor) -> Any:
        if not isinstance(tensor, FakeTensor):
            return real_tolist(tensor)
        if tensor.device.type == "cuda":
            watch.note_wait()
        if tensor.dim() == 0:
            return _make_number(tensor)
        assert tensor.dim() == 1
        return [_make_number(tensor) + index for index in range(len(tensor))]

    patch.setattr(Tensor, "tolist", tolist)
    patch.setattr(Tensor, "unique_consecutive", lambda tensor: tensor)
    patch.setattr(F, "scaled_dot_product_attention", lambda *args, **kwargs: _attend(watch, *args, **kwargs))
    patch.setattr(F, "ctc_loss", _ctc_loss)


def _attend(
    watch: Watch,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
) -> Tensor:
    """Check a fused kernel's requirements, and run the memory-efficient one, which supports masks.

    torch's own function asks the driver which kernel to take. Autocast lowers attention, as it does products.
    """
    file, line, function = find_line()
    if torch.is_autocast_enabled("cuda"):
        lower = torch.get_autocast_dtype("cuda")
        query, key, value = query.to(lower), key.to(lower), value.to(lower)
        if attn_mask is not None and attn_mask.is_floating_point():
            attn_mask = attn_mask.to(lower)
    dtypes, devices = {query.dtype, key.dtype, value.dtype}, {query.device, key.device, value.device}
    if attn_mask is not None:
        dtypes |= {attn_mask.dtype} - {torch.bool}
        devices |= {attn_mask.device}
        if attn_mask.stride(-1) != 1:
            watch.strided_masks.add(f"{file}:{line}")
        if attn_mask.dtype is torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, float("-inf"))
        attn_mask = attn_mask.expand(*query.shape[:3], key.shape[2])
    assert len(dtypes) == 1 and len(devices) == 1, f"{file}:{line}: attention of {dtypes} on {devices}"
    watch.products[query.dtype].add(f"{file} {function}")
    is_learning = torch.is_grad_enabled() and any(each.requires_grad for each in (query, key, value))
    attend = torch.ops.aten._scaled_dot_product_efficient_attention
    with torch.autocast("cuda", enabled=False):
        return attend(query, key, value, attn_mask, is_learning, dropout_p, is_causal)[0]


def _ctc_loss(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: list[int],
    target_lengths: list[int],
    reduction: str = "mean",
    **_: object,
) -> Tensor:
    """Check the requirements of torch's CTC for CUDA; its own copies of the lengths are not recorded."""
    assert log_probs.device.type == targets.device.type == "cuda"
    assert isinstance(input_lengths, list) and isinstance(target_lengths, list)
    assert log_probs.dtype is torch.float32 and targets.dtype is torch.int64
    return log_probs.mean((0, 2)) if reduction == "none" else log_probs.mean()


@contextlib.contextmanager
def _no_context_of_a_driver() -> Iterator[None]:
    """Let autograd run on fake tensors: its engine asks torch's hooks for CUDA whether a GPU has a context.

    Without a driver that is an error. The answer is made "no", in a copy of the hooks' table of virtual
    functions (Itanium C++ ABI: two destructors, isBuilt, isAvailable, hasPrimaryContext, as
    ATen/detail/AcceleratorHooksInterface.h declares them).
    """
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    get_hooks = library._ZN2at6detail12getCUDAHooksEv
    get_hooks.restype = ctypes.c_void_p
    table_of_hooks = ctypes.c_void_p.from_address(get_hooks())
    original = table_of_hooks.value
    assert original is not None
    size, header = 128, 2  # entries to copy, and those before the first function
    bytes_each = ctypes.sizeof(ctypes.c_void_p)
    content = ctypes.string_at(original - header * bytes_each, size * bytes_each)
    table = (ctypes.c_void_p * size).from_buffer_copy(content)
    answer = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_int8)(lambda hooks, device: False)
    table[header + 4] = ctypes.cast(answer, ctypes.c_void_p).value
    table_of_hooks.value = ctypes.addressof(table) + header * bytes_each
    try:
        yield
    finally:
        table_of_hooks.value = original
