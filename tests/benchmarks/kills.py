"""Phase 1 under kills and damage: does it end where an undisturbed run ends, and is every fault seen?

`python -m tests.benchmarks.kills --kills 50 --flips 200` makes a tiny corpus and a tiny WavLM, kills
`vox precompute` at random moments, alone and as two ranks at once, and then damages the finished cache in
many ways. Prints one table; exit status 1 if a byte differs or a fault goes unseen.
"""

import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np

from tests.conftest import tiny_wavlm_kwargs, write_split
from vox.cli import main as run_vox
from vox.features.cache import verify_cache

SPLIT = "train-tiny"
NUM_UTTERANCES = 60
OPTIONS = f"--split {SPLIT} --layers 3,4 --shard-gb 0.00002 --batch-seconds 3 --workers 0"
FLIPS_PER_TRUNCATION = 5


@click.command()
@click.option("--kills", default=50, show_default=True, help="Kills: half of a lone run, half of two ranks.")
@click.option("--flips", default=200, show_default=True, help="Single bytes to change, one after the other.")
@click.option("--seed", default=0, show_default=True)
def main(kills: int, flips: int, seed: int) -> None:
    """Kill and damage, and print one table of counts."""
    generator = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as name:
        runs = _Runs(Path(name), generator)
        for num_ranks, share in ((1, kills - kills // 2), (2, kills // 2)):
            runs.kill(num_ranks, share)
        rows = [(what, str(count)) for what, count in runs.counts.items()]
        missed = runs.differences
        for kind, damage, count in _list_damage(runs.reference, flips):
            unseen = [text for text in _damage_often(runs.reference, damage, count, generator) if text]
            rows.append((f"{kind}: found of made", f"{count - len(unseen)} of {count}"))
            missed += unseen
    click.echo(f"\nphase 1 under kills and damage: seed {seed}, {runs.seconds:.2f} s an undisturbed run")
    for what, counted in rows:
        click.echo(f"{what:60}{counted:>14}")
    for line in missed:
        click.echo(f"MISSED: {line}")
    sys.exit(1 if missed else 0)


class _Runs:
    """Runs of `vox precompute` in forked children, and what became of them."""

    def __init__(self, place: Path, generator: np.random.Generator) -> None:
        self.counts: Counter[str] = Counter()
        self.differences: list[str] = []
        self._place = place
        self._generator = generator
        _make_inputs(place)
        start = time.monotonic()
        assert _wait(self._fork(place / "reference", 0, 1)) == 0
        self.seconds = time.monotonic() - start
        (self.reference,) = (place / "reference" / SPLIT).iterdir()
        self._truth = _read_files(self.reference)

    def kill(self, num_ranks: int, num_kills: int) -> None:
        """Kill ranks at random moments, again and again, and compare at the end of every whole cache."""
        title = "one rank" if num_ranks == 1 else f"{num_ranks} ranks at once"
        features = self._place / f"killed-{num_ranks}"
        remaining = num_kills
        while remaining > 0:
            killed = self._run_and_kill(features, num_ranks, remaining)
            remaining -= killed
            self.counts[f"{title}: kills"] += killed
            if killed:
                self._look(features, title)
            else:
                self._compare_and_clear(features, title)
        children = [self._fork(features, rank, num_ranks) for rank in range(num_ranks)]
        assert [_wait(child) for child in children] == [0] * num_ranks
        self._compare_and_clear(features, title)

    def _run_and_kill(self, features: Path, num_ranks: int, most: int) -> int:
        """Start all ranks, kill up to `most` of them, each at its moment; return how many died of it."""
        children = [self._fork(features, rank, num_ranks) for rank in range(num_ranks)]
        moments = sorted(zip(self._generator.uniform(0, self.seconds, num_ranks), children, strict=True))
        start = time.monotonic()
        for moment, child in moments[:most]:
            time.sleep(max(0.0, start + moment - time.monotonic()))
            os.kill(child, signal.SIGKILL)  # one that is done already is not reaped yet, and takes no harm
        statuses = [_wait(child) for child in children]
        assert set(statuses) <= {0, -signal.SIGKILL}, statuses
        return statuses.count(-signal.SIGKILL)

    def _fork(self, features: Path, rank: int, num_ranks: int) -> int:
        sys.stdout.flush()
        child = os.fork()
        if child:
            return child
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        places = ["--root", self._place, "--wavlm", self._place / "wavlm", "--features", features]
        share = ["--rank", rank, "--world-size", num_ranks]
        os._exit(run_vox(["precompute", *OPTIONS.split(), *map(str, [*places, *share])]))

    def _look(self, features: Path, title: str) -> None:
        """Count what a kill left behind; whatever has its final name must be whole."""
        files = {path.name: path for path in features.rglob("*") if path.is_file()}
        shards = [name for name in files if name.endswith(".h5")]
        num_truth = sum(name.endswith(".h5") for name in self._truth)
        self.counts[f"{title}: kills that left unfinished files"] += any(n.endswith(".part") for n in files)
        self.counts[f"{title}: kills that left some of the shards"] += 0 < len(shards) < num_truth
        for name, path in files.items():
            if not name.endswith(".part") and path.read_bytes() != self._truth.get(name):
                self.differences.append(f"{title}: {name} after a kill is not that of an undisturbed run")

    def _compare_and_clear(self, features: Path, title: str) -> None:
        self.counts[f"{title}: whole caches compared"] += 1
        found = {path.name: path.read_bytes() for path in features.rglob("*") if path.is_file()}
        different = sorted(n for n in found.keys() | self._truth.keys() if found.get(n) != self._truth.get(n))
        self.differences += [f"{title}: {name} of a whole cache differs" for name in different]
        shutil.rmtree(features)


def _make_inputs(place: Path) -> None:
    import h5py  # noqa: F401
    import torch
    from transformers import WavLMConfig, WavLMModel

    import precompute.run  # noqa: F401
    import vox.features.shard  # noqa: F401

    torch.set_num_threads(1)  # no pool of threads, so that forking is safe
    torch.manual_seed(0)
    WavLMModel(WavLMConfig(**tiny_wavlm_kwargs())).eval().save_pretrained(place / "wavlm")
    write_split(place, SPLIT, NUM_UTTERANCES)


def _wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _read_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


Damage = Callable[
    [Path, int, np.random.Generator], str
]  # of a folder; the attempt's number; says what it did


def _list_damage(reference: Path, flips: int) -> list[tuple[str, Damage, int]]:
    num_files = len(list(reference.iterdir()))
    return [
        ("bytes changed", _flip, flips),
        ("files cut short", _truncate, flips // FLIPS_PER_TRUNCATION),
        ("files missing", _remove, num_files),
        ("foreign files", _add_foreign, num_files),
        ("shards under each other's name", _exchange, num_files // 4),
    ]


def _damage_often(reference: Path, damage: Damage, count: int, generator: np.random.Generator) -> list[str]:
    """Damage fresh copies; return, for each, what was done if it went unseen, else an empty string."""
    outcomes = []
    for attempt in range(count):
        with tempfile.TemporaryDirectory() as name:
            copy = shutil.copytree(reference, Path(name) / SPLIT / reference.name)
            done = damage(copy, attempt, generator)
            outcomes.append("" if list(verify_cache(copy)) else done)
    return outcomes


def _choose_file(folder: Path, generator: np.random.Generator) -> Path:
    paths = sorted(folder.iterdir())
    return paths[int(generator.integers(len(paths)))]


def _flip(folder: Path, attempt: int, generator: np.random.Generator) -> str:
    path = _choose_file(folder, generator)
    content = bytearray(path.read_bytes())
    position, bits = int(generator.integers(len(content))), int(generator.integers(1, 256))
    content[position] ^= bits
    path.write_bytes(content)
    return f"byte {position} of {path.name} changed by {bits:08b}"


def _truncate(folder: Path, attempt: int, generator: np.random.Generator) -> str:
    path = _choose_file(folder, generator)
    num_bytes = int(generator.integers(path.stat().st_size))
    os.truncate(path, num_bytes)
    return f"{path.name} cut to {num_bytes} bytes"


def _remove(folder: Path, attempt: int, generator: np.random.Generator) -> str:
    path = sorted(folder.iterdir())[attempt]
    path.unlink()
    return f"{path.name} removed"


def _add_foreign(folder: Path, attempt: int, generator: np.random.Generator) -> str:
    """A copy of each file under a name that means nothing here."""
    path = sorted(folder.iterdir())[attempt]
    name = (f"{path.name}.bak", f"shard-{90_000 + attempt}.h5", f"._{path.name}")[attempt % 3]
    shutil.copy(path, folder / name)
    return f"{name} added"


def _exchange(folder: Path, attempt: int, generator: np.random.Generator) -> str:
    shards = sorted(folder.glob("*.h5"))
    first, second = (shards[int(index)] for index in generator.choice(len(shards), 2, replace=False))
    contents = first.read_bytes(), second.read_bytes()
    first.write_bytes(contents[1])
    second.write_bytes(contents[0])
    return f"{first.name} and {second.name} exchanged"


if __name__ == "__main__":
    main()
