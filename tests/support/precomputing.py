"""A tiny `vox precompute`, for the tests of phase 1."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

SPLIT = "train-tiny"
BATCH_SECONDS = 2.5
LAYERS = (3, 4)


def command(root: Path, wavlm: Path, features: Path, *more: str) -> list[str]:
    """Return the options of `vox precompute` for the tiny split with several small shards."""
    options = f"--split {SPLIT} --layers 3,4 --shard-gb 0.000012 --batch-seconds {BATCH_SECONDS} --workers 0"
    places = ["--root", str(root), "--wavlm", str(wavlm), "--features", str(features)]
    return ["precompute", *override([*options.split(), *places], more)]


def override(options: list[str], more: Sequence[str]) -> list[str]:
    """Return options (each a name and a value) and then `more`, whose values go before theirs.

    --split may be repeated, and is.
    """
    pairs = zip(options[::2], options[1::2], strict=True)
    kept = [pair for pair in pairs if pair[0] == "--split" or pair[0] not in more]
    return [*(word for pair in kept for word in pair), *more]


def read_files(features: Path) -> dict[str, bytes]:
    """Return every file of all caches in a features folder, by its relative path."""
    paths = [path for path in features.glob("*/**/*") if path.is_file()]
    return {str(path.relative_to(features)): path.read_bytes() for path in paths}


@contextmanager
def cores(count: int) -> Iterator[None]:
    """Make torch use this number of cores on any machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
