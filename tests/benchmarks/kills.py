"""Phase 1 under kills and damage: does it end where an undisturbed run ends, and is every fault seen?

`python -m tests.benchmarks.kills --kills 50 --flips 200` makes a tiny corpus and a tiny WavLM, kills
`vox precompute` at random moments (alone, as two ranks at once, with a worker that decodes, at two speeds,
with --rebuild over a whole cache, and with recordings that change from one run to the next), and then damages
a finished cache in many ways. Prints one table; exit status 1 if a byte differs or a fault goes unseen.
"""

import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import soundfile

from tests.support.speech import make_speech, tiny_wavlm_kwargs, write_split
from vox.cli import main as run_vox
from vox.features.verify import verify_cache
from vox.units import SAMPLE_RATE

SPLIT = "train-tiny"
NUM_UTTERANCES = 60
OPTIONS = f"--split {SPLIT} --layers 3,4 --shard-gb 0.00002 --batch-seconds 3 --workers 0"
FLIPS_PER_TRUNCATION = 5

Files = dict[str, bytes]  # by their path in the features folder


@dataclass(frozen=True)
class Scenario:
    """One way to run `vox precompute` again and again."""

    title: str
    options: str = ""
    num_ranks: int = 1
    is_begun_whole: bool = False  # over a finished cache
    is_changing: bool = False  # recordings change between the runs


SCENARIOS = (
    Scenario("one rank"),
    Scenario("two ranks at once", num_ranks=2),
    Scenario("a decoding worker", "--workers 1"),
    Scenario("two speeds", "--speeds 0.9,1.0"),
    Scenario("--rebuild", "--rebuild", is_begun_whole=True),
    Scenario("changing recordings", "--rebuild", is_changing=True),
)


@click.command()
@click.option("--kills", default=50, show_default=True, help="Kills, shared out among six ways to run.")
@click.option("--flips", default=200, show_default=True, help="Single bytes to change, one after the other.")
@click.option("--seed", default=0, show_default=True)
def main(kills: int, flips: int, seed: int) -> None:
    """Kill and damage, and print one table of counts."""
    generator = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as name:
        runs = _Runs(Path(name), generator)
        for number, scenario in enumerate(SCENARIOS):
            runs.kill(scenario, (kills + number) // len(SCENARIOS))
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
        self._versions = _make_inputs(place)
        start = time.monotonic()
        self._truths = [self._compute(f"reference-{version}", "", version) for version in (1, 0)][::-1]
        self.seconds = (time.monotonic() - start) / 2
        (self.reference,) = (place / "reference-0" / SPLIT).iterdir()

    def kill(self, scenario: Scenario, num_kills: int) -> None:
        """Kill ranks at random moments, again and again, and compare at the end of every whole cache."""
        features = self._place / "killed"
        truths = (
            [self._compute("speeds", scenario.options, 0)] if "--speeds" in scenario.options else self._truths
        )
        remaining, version = num_kills, 0
        while remaining > 0:
            if scenario.is_begun_whole and not features.exists():
                shutil.copytree(self._place / "reference-0", features)
            killed = self._run_and_kill(scenario, features, remaining)
            remaining -= killed
            self.counts[f"{scenario.title}: kills"] += killed
            if not killed:
                self._compare_and_clear(scenario, features, truths[version])
                continue
            self._look(scenario, features, truths)
            if scenario.is_changing:
                version = 1 - version
                self._use(version)
                self._go_on_without_rebuild(scenario, features, truths[version])
        children = [self._fork(scenario, features, rank) for rank in range(scenario.num_ranks)]
        assert [_wait(child) for child in children] == [0] * scenario.num_ranks
        self._compare_and_clear(scenario, features, truths[version])
        self._use(0)

    def _compute(self, name: str, options: str, version: int) -> Files:
        """Run undisturbed on one version of the recordings; return the files that it leaves."""
        self._use(version)
        assert _wait(self._fork(Scenario("undisturbed", options), self._place / name, 0)) == 0
        return _read_files(self._place / name)

    def _use(self, version: int) -> None:
        """Put one version of the recordings in place, each with its own time."""
        for path, content in self._versions[version].items():
            path.write_bytes(content)
            os.utime(path, ns=(version, version))

    def _go_on_without_rebuild(self, scenario: Scenario, features: Path, truth: Files) -> None:
        """A run that does not refuse must end with the features of the recordings as they are now."""
        status = _wait(self._fork(Scenario(scenario.title), features, 0))
        assert status in (0, 2), status
        self.counts[f"{scenario.title}: {'went on' if status == 0 else 'refused'} without --rebuild"] += 1
        if status == 0:
            self._compare_and_clear(scenario, features, truth)

    def _run_and_kill(self, scenario: Scenario, features: Path, most: int) -> int:
        """Start all ranks, kill up to `most` of them, each at its moment; return how many died of it."""
        children = [self._fork(scenario, features, rank) for rank in range(scenario.num_ranks)]
        longest = self.seconds * (2 if "--speeds" in scenario.options else 1)
        moments = self._generator.uniform(0, longest, scenario.num_ranks)
        start = time.monotonic()
        for moment, child in sorted(zip(moments, children, strict=True))[:most]:
            time.sleep(max(0.0, start + moment - time.monotonic()))
            os.kill(child, signal.SIGKILL)  # one that is done already is not reaped yet, and takes no harm
        statuses = [_wait(child) for child in children]
        assert set(statuses) <= {0, -signal.SIGKILL}, statuses
        return statuses.count(-signal.SIGKILL)

    def _fork(self, scenario: Scenario, features: Path, rank: int) -> int:
        sys.stdout.flush()
        child = os.fork()
        if child:
            return child
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        places = ["--root", self._place, "--wavlm", self._place / "wavlm", "--features", features]
        share = ["--rank", rank, "--world-size", scenario.num_ranks]
        line = ["precompute", *OPTIONS.split(), *scenario.options.split()]
        os._exit(run_vox([*line, *map(str, [*places, *share])]))

    def _look(self, scenario: Scenario, features: Path, truths: list[Files]) -> None:
        """Count what a kill left behind; whatever has its final name must be whole."""
        files = _read_files(features) if features.exists() else {}
        num_shards, num_truth = (sum(n.endswith(".h5") for n in some) for some in (files, truths[0]))
        title = scenario.title
        self.counts[f"{title}: kills that left unfinished files"] += any(n.endswith(".part") for n in files)
        self.counts[f"{title}: kills that left some of the shards"] += 0 < num_shards < num_truth
        for name, content in files.items():
            if not name.endswith(".part") and content not in [truth.get(name) for truth in truths]:
                self.differences.append(f"{title}: {name} after a kill is not that of an undisturbed run")

    def _compare_and_clear(self, scenario: Scenario, features: Path, truth: Files) -> None:
        self.counts[f"{scenario.title}: whole caches compared"] += 1
        found = _read_files(features)
        different = sorted(n for n in found.keys() | truth.keys() if found.get(n) != truth.get(n))
        self.differences += [f"{scenario.title}: {name} of a whole cache differs" for name in different]
        shutil.rmtree(features)


def _make_inputs(place: Path) -> list[dict[Path, bytes]]:
    """Make a tiny WavLM and two versions of a corpus: other speech in some recordings, longer in a few."""
    import h5py  # noqa: F401
    import torch
    from transformers import WavLMConfig, WavLMModel

    import precompute.extract
    import precompute.run  # noqa: F401
    import vox.features.writer  # noqa: F401

    torch.set_num_threads(1)  # no pool of threads, so that forking is safe
    torch.manual_seed(0)
    WavLMModel(WavLMConfig(**tiny_wavlm_kwargs())).eval().save_pretrained(place / "wavlm")
    paths = sorted(write_split(place, SPLIT, NUM_UTTERANCES).glob("*.flac"))
    versions = [{path: path.read_bytes() for path in paths}]
    for number, path in enumerate(paths[::7]):
        num_samples = soundfile.info(path).frames + (3_200 if number % 3 == 2 else 0)
        soundfile.write(path, make_speech(num_samples, 1_000 + number), SAMPLE_RATE)
    versions.append({path: path.read_bytes() for path in paths})
    return versions


def _wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _read_files(features: Path) -> Files:
    paths = [path for path in features.glob("*/**/*") if path.is_file()]
    return {str(path.relative_to(features)): path.read_bytes() for path in paths}


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
