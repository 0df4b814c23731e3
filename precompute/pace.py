"""How the work is cut up for a device by default."""

import os
from dataclasses import dataclass

# Padded seconds of audio computed at once: what keeps a GPU busy (an H100 is 1.3 times as fast with 320 as
# with 160), and what a laptop's memory bears.
CUDA_BATCH_SECONDS = 320.0
CPU_BATCH_SECONDS = 30.0
# Processes that decode, by default. One decodes about 2,600 seconds of FLAC a second: four
# would keep a GPU waiting that computes 10,000.
CUDA_MAX_WORKERS = 8
CPU_MAX_WORKERS = 4


@dataclass(frozen=True)
class Pace:
    """Padded seconds computed at once, and processes that decode."""

    batch_seconds: float
    workers: int


def choose_pace(batch_seconds: float | None, workers: int | None, device_type: str) -> Pace:
    """Fill in what is not given; the workers leave one core for the computation."""
    is_gpu = device_type == "cuda"
    default_seconds = CUDA_BATCH_SECONDS if is_gpu else CPU_BATCH_SECONDS
    max_workers = CUDA_MAX_WORKERS if is_gpu else CPU_MAX_WORKERS
    default_workers = min(max_workers, len(os.sched_getaffinity(0)) - 1)
    return Pace(
        batch_seconds=default_seconds if batch_seconds is None else batch_seconds,
        workers=default_workers if workers is None else workers,
    )
