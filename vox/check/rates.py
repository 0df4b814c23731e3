"""Speeds of this machine: products of matrices, decoding of audio, and how much of the first a model reaches.

B batch, S samples.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import soundfile
import torch
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from vox.audio import read_audio
from vox.check.audio import make_voice
from vox.check.results import Rate
from vox.check.subject import CheckSubject
from vox.device import synchronize
from vox.units import SAMPLE_RATE
from vox.wavlm.cpu import IS_ONEDNN_THERE, is_packable, multiply_packed, pack

# Rows, and products timed together: much longer than it takes to start them.
CUDA_MATRICES = 8192, 20
CPU_MATRICES = 2048, 4
MATRIX_TRIALS = 5

DECODED_SECONDS = 12.0  # a recording's length
DECODED_COUNT = 8


def time_work(work: Callable[[], object], device: torch.device, repeats: int = 1, warm_up: int = 1) -> float:
    """Return the seconds of one call: the median of `repeats`, after some that do not count."""
    for _ in range(warm_up):
        work()
    seconds = []
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[len(seconds) // 2]


def measure_matrix_rate(
    device: torch.device, dtype: torch.dtype, matrices: tuple[int, int] | None = None
) -> float:
    """Return the floating-point operations a second of a large product of matrices, the best of a few.

    matrices: their rows, and how many products are timed together. On a CPU the weight is packed before,
    as the frozen model's are: no product there is faster.
    """
    size, num_products = matrices or (CUDA_MATRICES if device.type == "cuda" else CPU_MATRICES)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    with torch.inference_mode():
        packed = pack(right) if is_packable(left, right) else None
        multiply: Callable[[], torch.Tensor] = partial(torch.matmul, left, right)
        if packed is not None:
            multiply = partial(multiply_packed, left, packed, None)
        work = partial(_repeat, multiply, num_products)
        work()  # to warm up
        seconds = min(time_work(work, device, warm_up=0) for _ in range(MATRIX_TRIALS))
    return 2 * size**3 * num_products / seconds


def count_flops(work: Callable[[], object]) -> int:
    """Count the floating-point operations of some work's products of matrices and convolutions.

    Work in threads of its own is not counted.
    """
    aten = torch.ops.aten
    counts: dict[Any, Any] = {
        aten.convolution_backward: _count_convolution_backward,
        aten.bmm: _count_bmm,
        aten.baddbmm: _count_baddbmm,
    }
    if IS_ONEDNN_THERE:
        counts[torch.ops.mkldnn._linear_pointwise] = _count_packed_product
    with FlopCounterMode(display=False, custom_mapping=counts) as counter:
        work()
    return int(counter.get_total_flops())


def matrix_rate(subject: CheckSubject, dtype: torch.dtype) -> float:
    """Return the matrix rate of the subject's device, measured once."""
    if dtype not in subject.matrix_rates:
        matrices = subject.amounts.matrix_size, subject.amounts.matrix_products
        subject.matrix_rates[dtype] = measure_matrix_rate(subject.device, dtype, matrices)
    return subject.matrix_rates[dtype]


def check_matrix_rate(subject: CheckSubject) -> Iterator[Rate]:
    """Measure the products of matrices that everything else is compared with."""
    for dtype in dict.fromkeys((torch.float32, subject.precision)):
        name = str(dtype).removeprefix("torch.")
        rate = matrix_rate(subject, dtype)
        yield Rate(f"matrix_{name}", f"matrix products in {name}", rate / 1e12, "TFLOP/s")


def check_audio_decoding(subject: CheckSubject) -> Iterator[Rate]:
    """Time the decoding of FLAC files on one core: what each worker process of phase 1 does."""
    with TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{index}.flac" for index in range(DECODED_COUNT)]
        for index, path in enumerate(paths):
            soundfile.write(path, make_voice(DECODED_SECONDS, index), SAMPLE_RATE)
        seconds = time_work(lambda: [read_audio(path) for path in paths], torch.device("cpu"), repeats=3)
    rate = DECODED_COUNT * DECODED_SECONDS / seconds
    yield Rate("decode_audio", "decoding FLAC, a core", rate, "x real time")


def _repeat(work: Callable[[], object], count: int) -> None:
    for _ in range(count):
        work()


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


def _count_bmm(left_shape: torch.Size, right_shape: torch.Size, *_: object, out_shape: object = None) -> int:
    """Count a product whose sums may have a dtype of their own, which torch's count does not take."""
    return 2 * left_shape.numel() * right_shape[-1]


def _count_baddbmm(
    _added_shape: torch.Size,
    left_shape: torch.Size,
    right_shape: torch.Size,
    *_: object,
    out_shape: object = None,
) -> int:
    return _count_bmm(left_shape, right_shape)


def _count_packed_product(
    input_shape: torch.Size, weight_shape: torch.Size, *_: object, out_shape: object = None
) -> int:
    return 2 * input_shape.numel() * weight_shape[0]
