"""Single kernels: attention with cuDNN and without, depthwise convolutions, CTC.

B batch, H heads, T frames, K head width, D model width, V vocabulary.
"""

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.benchmarks.gpu.bench import CTC_BOUND, Bench, Found, say
from vox.check.environment import describe, look_at_machine
from vox.check.rates import time_work
from vox.check.results import Promise, Rate

BACKENDS = {0: "math", 1: "flash", 2: "memory-efficient", 3: "cuDNN", 4: "overrideable"}  # torch's numbers
NEW_LENGTHS = 10
ODD_LENGTH = 704  # pytorch issue 196678: 128 n + 64
LOW_SCORE = -300.0  # of every key: a very low logsumexp


def report_machine(bench: Bench) -> Found:
    """Say what the machine is, and which attention backends torch prefers."""
    for label, text in describe(look_at_machine(bench.device, bench.folder)):
        say(f"{label:14}{text}")
    order = getattr(torch._C, "_get_sdp_priority_order", list)()
    say(f"{'preferred':14}{', '.join(BACKENDS.get(int(number), str(number)) for number in order)}")
    return []


def time_attention(bench: Bench) -> Found:
    """Time the encoder's attention (with gradients) and WavLM's (without), with cuDNN's kernel and not."""
    shrink = 1 if bench.is_cuda else 8
    for has_cudnn in (True, False):
        with _cudnn_attention(has_cudnn):
            suffix = f"{'cudnn' if has_cudnn else 'no_cudnn'}"
            yield from _time_shapes(
                bench, "encoder", suffix, (8, 8, 599 // shrink, 64), _attend_with_gradient
            )
            yield from _time_shapes(bench, "wavlm", suffix, (10, 12, 799 // shrink, 64), _attend_with_bias)


def check_low_scores(bench: Bench) -> Found:
    """Count gradients that are not finite where all scores are very low, with cuDNN's kernel and not."""
    for has_cudnn in (True, False):
        with _cudnn_attention(has_cudnn):
            query = torch.ones(2, 8, ODD_LENGTH, 64, device=bench.device, dtype=_half(bench))
            query, key = query.requires_grad_(True), LOW_SCORE / 8 * torch.ones_like(query)
            is_seen = torch.ones(2, 1, 1, ODD_LENGTH, dtype=torch.bool, device=bench.device)
            is_seen[1, ..., ODD_LENGTH // 2 :] = False
            F.scaled_dot_product_attention(query, key, torch.randn_like(query), is_seen).sum().backward()
            assert query.grad is not None
            bad = int((~query.grad.isfinite()).sum())
            name = "cuDNN allowed" if has_cudnn else "cuDNN off"
            yield Promise("", f"gradients not finite at low scores, {name}", bad, 0)


def time_depthwise(bench: Bench) -> Found:
    """Time the encoder's depthwise convolution in bf16 and fp16, forward and backward."""
    shape = (8, 512, 599) if bench.is_cuda else (2, 32, 60)
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        x_BDT = torch.randn(shape, device=bench.device, dtype=dtype, requires_grad=True)
        weight = torch.randn(shape[1], 1, 31, device=bench.device, dtype=dtype, requires_grad=True)

        def work(x_BDT: Tensor = x_BDT, weight: Tensor = weight) -> None:
            F.conv1d(x_BDT, weight, padding=15, groups=x_BDT.shape[1]).sum().backward()

        what = f"depthwise convolution in {name}, forward and backward"
        yield Rate(f"depthwise_{name}", what, 1000 * time_work(work, bench.device, repeats=5), "ms")


def time_ctc(bench: Bench) -> Found:
    """Time the CTC loss alone, and compare its gradient with the CPU's where texts are empty."""
    batch, frames, vocabulary, labels = (8, 599, 2000, 48) if bench.is_cuda else (2, 60, 25, 5)
    scores_TBV = torch.randn(frames, batch, vocabulary, device=bench.device).log_softmax(2)
    scores_TBV.requires_grad_(True)
    labels_BU = torch.randint(4, vocabulary, (batch, labels), device=bench.device)
    frames_B, labels_B = torch.full((batch,), frames), torch.full((batch,), labels)

    def work() -> None:
        F.ctc_loss(scores_TBV, labels_BU, frames_B, labels_B, reduction="sum").backward()

    yield Rate(
        "ctc", "CTC alone, forward and backward", 1000 * time_work(work, bench.device, repeats=5), "ms"
    )
    for name, counts in (("one text is empty", [0, labels]), ("both texts are empty", [0, 0])):
        gradients = []
        for device in (torch.device("cpu"), bench.device):
            some_TBV = scores_TBV[:, :2].detach().to(device).requires_grad_(True)
            targets_BU = labels_BU[:2, : max(counts)].to(device)
            F.ctc_loss(some_TBV, targets_BU, [frames] * 2, counts, reduction="sum").backward()  # type: ignore[arg-type]
            assert some_TBV.grad is not None
            gradients.append(some_TBV.grad.cpu())
        expected, found = gradients
        distance = float(torch.linalg.norm(found - expected) / torch.linalg.norm(expected))
        yield Promise("", f"CTC's gradient where {name}, against the CPU's", distance, CTC_BOUND)


def _time_shapes(
    bench: Bench,
    name: str,
    suffix: str,
    shape: tuple[int, ...],
    attend: Callable[[Bench, tuple[int, ...]], None],
) -> Iterator[Rate]:
    first = time_work(partial(attend, bench, shape), bench.device, warm_up=0)
    again = time_work(partial(attend, bench, shape), bench.device, repeats=5)
    new = [
        time_work(partial(attend, bench, _shorten(shape, index)), bench.device, warm_up=0)
        for index in range(1, NEW_LENGTHS + 1)
    ]
    note = f"first {1000 * first:.1f} ms, a new length {1000 * statistics.median(new):.1f} ms"
    yield Rate(f"attention_{name}_{suffix}", f"attention of {name}, {suffix}", 1000 * again, "ms", note=note)


def _shorten(shape: tuple[int, ...], by: int) -> tuple[int, ...]:
    return (*shape[:2], shape[2] - by, shape[3])


def _attend_with_gradient(bench: Bench, shape: tuple[int, ...]) -> None:
    query = torch.randn(shape, device=bench.device, dtype=_half(bench), requires_grad=True)
    is_seen = torch.ones(shape[0], 1, 1, shape[2], dtype=torch.bool, device=bench.device)
    _note_backend(query, is_seen, 0.1)
    F.scaled_dot_product_attention(query, query, query, is_seen, dropout_p=0.1).sum().backward()


def _attend_with_bias(bench: Bench, shape: tuple[int, ...]) -> None:
    dtype = torch.float16 if bench.is_cuda else torch.float32
    batch, heads, frames, _ = shape
    aligned = -(-frames // 16) * 16  # as WavLM's attention lays its bias out
    with torch.inference_mode():
        query = torch.randn(shape, device=bench.device, dtype=dtype)
        bias = torch.randn(batch, heads, frames, aligned, device=bench.device, dtype=dtype)[..., :frames]
        _note_backend(query, bias, 0.0)
        F.scaled_dot_product_attention(query, query, query, bias)


_noted: set[str] = set()


def _note_backend(query: Tensor, mask: Tensor, dropout: float) -> None:
    """Say, once for each, which kernel torch chooses."""
    number = torch._fused_sdp_choice(query, query, query, mask, dropout)
    line = f"{list(query.shape[:2])} {query.dtype}, cuDNN {torch.backends.cuda.cudnn_sdp_enabled()}: "
    line += BACKENDS.get(number, str(number))
    if line not in _noted:
        _noted.add(line)
        say(line)


@contextmanager
def _cudnn_attention(is_on: bool) -> Iterator[None]:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(is_on)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def _half(bench: Bench) -> torch.dtype:
    return torch.bfloat16 if bench.is_cuda else torch.float32
