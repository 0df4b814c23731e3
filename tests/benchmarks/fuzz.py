"""Damage recordings of every format at random and read them: a result or one line, in bounded memory, soon.

    python -m tests.benchmarks.fuzz --seconds 600 --keep findings

A child process reads, with a limit on its memory. What counts as a fault: an exception that is not a
VoxError, a crash, more than 5 seconds, more memory than the limit, samples that are not finite or not as many
as the header promised. Every fault's file is kept.
"""

import multiprocessing
import random
import resource
import struct
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path

import click
import numpy as np
import soundfile
import torch
import torchaudio  # noqa: F401 - before the child is forked: it takes a second

from vox.audio import read_audio, read_header
from vox.errors import VoxError

MAX_SECONDS = 5.0
MEMORY_BYTES = 2 * 2**30  # of data; torch alone has half of one
EDGES = (0, 1, 2, 3, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)


def make_originals(folder: Path) -> list[Path]:
    """Write a short recording in every format and coding that libsndfile writes."""
    generator = np.random.default_rng(0)
    paths = []
    for kind in soundfile.available_formats():
        for coding in soundfile.available_subtypes(kind):
            for rate, channels in ((16_000, 1), (44_100, 2)):
                samples = 0.3 * generator.standard_normal((4_000, channels)).astype(np.float32)
                path = folder / f"{kind}-{coding}-{channels}.{kind.lower()}"
                try:
                    soundfile.write(path, samples, rate, format=kind, subtype=coding)
                except (soundfile.LibsndfileError, ValueError):
                    path.unlink(missing_ok=True)
                    continue
                paths.append(path)
    return paths


def damage(content: bytes, chance: random.Random) -> bytes:
    """Change a few bytes or fields (most of them in the first kilobyte), cut, repeat, or insert."""
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        if not data:
            break
        place = chance.randrange(min(len(data), chance.choice((64, 1024, len(data)))))
        action = chance.randrange(7)
        if action == 0:
            data[place] ^= 1 << chance.randrange(8)
        elif action == 1:
            data[place] = chance.randrange(256)
        elif action in (2, 3):  # a size that lies
            form = chance.choice(("<I", ">I", "<H", ">H", "<Q", ">Q"))
            value = chance.choice(EDGES) % 256 ** struct.calcsize(form)
            data[place : place + struct.calcsize(form)] = struct.pack(form, value)
        elif action == 4:
            del data[place:]
        elif action == 5:
            end = min(len(data), place + chance.randrange(1, 512))
            data[place:place] = data[place:end] * chance.choice((1, 2, 200))
        else:
            data[place:place] = bytes(chance.randrange(1, 5_000))
    return bytes(data)


def read_both(path: Path) -> str:
    """Read header and samples; return the kind of result, which begins with "fault" if it is one."""
    try:
        header = read_header(path)
        samples_S = read_audio(path)
    except VoxError as error:
        return "refused" if "\n" not in str(error) else "fault: several lines"
    except Exception as error:  # what must not happen
        return f"fault: {type(error).__name__}: {str(error)[:80]}"
    if len(samples_S) != header.num_samples:
        return "fault: another length than the header's"
    return "read" if np.isfinite(samples_S).all() else "fault: not finite"


def _serve(connection: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    torch.set_num_threads(1)
    while True:
        connection.send(read_both(Path(connection.recv())))


class Reader:
    """A child process that reads files; replaced when it dies or takes too long."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._connection, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("fork").Process(
            target=_serve, args=(theirs,), daemon=True
        )
        self._process.start()
        theirs.close()

    def read(self, path: Path) -> str:
        """Return the kind of result of one file."""
        self._connection.send(str(path))
        start = time.monotonic()
        try:
            if self._connection.poll(MAX_SECONDS):
                return str(self._connection.recv())
            found = "fault: too slow"
        except EOFError:
            found = f"fault: crash after {time.monotonic() - start:.1f} s"
        self._process.kill()
        self._process.join()
        self._start()
        return found


@click.command()
@click.option("--seconds", default=60.0, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--keep", type=click.Path(path_type=Path), default=Path("fuzz-findings"), show_default=True)
def main(seconds: float, seed: int, keep: Path) -> None:
    """Damage and read recordings for so many seconds; print the counts of each result."""
    chance = random.Random(seed)
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        originals = make_originals(Path(folder))
        contents = {path: path.read_bytes() for path in originals}
        reader = Reader()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            original = chance.choice(originals)
            damaged = Path(folder) / f"damaged{original.suffix}"
            damaged.write_bytes(damage(contents[original], chance))
            found = reader.read(damaged)
            counts[found] += 1
            if found.startswith("fault") and counts[found] <= 3:
                keep.mkdir(parents=True, exist_ok=True)
                kept = keep / f"{counts.total()}-{original.name}"
                kept.write_bytes(damaged.read_bytes())
                click.echo(f"{found}: {kept}")
    click.echo(f"{len(originals)} originals, {counts.total()} damaged")
    for found, count in counts.most_common():
        click.echo(f"{count:>8} {found}")


if __name__ == "__main__":
    main()
