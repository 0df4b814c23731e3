"""What a step's time goes into, without changing the step: on the host, and on a GPU's stream."""

import itertools
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from vox.device import synchronize
from vox.wavlm.linear import is_packable, multiply_packed, pack

# Rows, and products timed together: much longer than it takes to start them.
CUDA_MATRICES = 8192, 20
CPU_MATRICES = 2048, 4
MATRIX_TRIALS = 5


class Clock:
    """Divides time among parts: it belongs to the innermost that is under way."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._stack = ["rest"]
        self._marks: list[tuple[str, float, torch.cuda.Event | None]] = []
        self._mark()

    def _mark(self) -> None:
        event = None
        if self._is_cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
        self._marks.append((self._stack[-1], time.perf_counter(), event))

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Give the time inside to a part."""
        self._stack.append(name)
        self._mark()
        try:
            yield
        finally:
            self._stack.pop()
            self._mark()

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, its time given to a part."""

        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return run

    def shares(self) -> list[dict[str, float]]:
        """Return each part's share of the time so far: the device's, where there is one, and the host's."""
        self._mark()
        host: dict[str, float] = defaultdict(float)
        gpu: dict[str, float] = defaultdict(float)
        if self._is_cuda:
            torch.cuda.synchronize()
        for (name, start, start_event), (_, end, end_event) in itertools.pairwise(self._marks):
            host[name] += end - start
            if start_event is not None and end_event is not None:
                gpu[name] += start_event.elapsed_time(end_event)
        found = [gpu, host] if self._is_cuda else [host]
        return [{name: each[name] / sum(each.values()) for name in list(each)} for each in found]


def find_waits(work: Callable[[], object]) -> Counter[str]:
    """Count the times that some work waits for the GPU, by line of code, as torch reports them."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    messages = [each for each in caught if "synchroniz" in str(each.message)]
    return Counter(f"{Path(each.filename).name}:{each.lineno}" for each in messages)


def count_flops(work: Callable[[], object]) -> int:
    """Count the floating-point operations of some work's products of matrices and convolutions."""
    corrected = {torch.ops.aten.convolution_backward: _count_convolution_backward}
    with FlopCounterMode(display=False, custom_mapping=corrected) as counter:
        work()
    return int(counter.get_total_flops())


def _count_convolution_backward(
    grad_shape: list[int],
    input_shape: list[int],
    weight_shape: list[int],
    *settings: Any,
    out_shape: object = None,
) -> int:
    """Count as often the convolution's own operations as there are gradients, of input and weight.

    torch's count takes no account of groups in the weight's: 512 times too many for a depthwise one.
    """
    _bias, _stride, _padding, _dilation, is_transposed, _output_padding, _groups, is_wanted = settings
    own = conv_flop_count(input_shape, weight_shape, grad_shape, transposed=is_transposed)
    return own * sum(is_wanted[:2])


def measure_matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the floating-point operations a second of a large product of matrices, the best of a few.

    On a CPU the weight is packed beforehand, as the frozen model's are: no product there is faster.
    """
    size, num_products = CUDA_MATRICES if device.type == "cuda" else CPU_MATRICES
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    with torch.inference_mode():
        packed = pack(right) if is_packable(left, right) else None
        multiply = partial(torch.matmul, left, right)
        if packed is not None:
            multiply = partial(multiply_packed, left, packed, None)
        seconds = []
        for _ in range(MATRIX_TRIALS + 1):  # one to warm up
            synchronize(device)
            start = time.perf_counter()
            for _ in range(num_products):
                multiply()
            synchronize(device)
            seconds.append(time.perf_counter() - start)
    return 2 * size**3 * num_products / min(seconds)
