"""`--dry-run`: sizes and time, from a few batches, leaving nothing behind."""

import re
from collections import Counter
from pathlib import Path

import pytest
import torch

from precompute.estimate import measure_disk
from tests.precomputing import command, cores
from vox.cli import main
from vox.data.batch import AudioBatch


def test_dry_run_writes_nothing(
    tiny_root: Path, tiny_wavlm_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(tiny_root, tiny_wavlm_dir, tmp_path / "features", "--dry-run")) == 0
    told = capsys.readouterr().out
    for unit in ("12 utterances", "hours", "frames", "GB", "shards", "free"):
        assert unit in told
    estimate = r"^about \d+\.\d s here \([\d.]+ times real time, from [1-4] timed batches?(; the disk .*)?\)$"
    assert re.search(estimate, told, re.MULTILINE)
    assert not (tmp_path / "features").exists()


@pytest.mark.parametrize(("budget", "copies", "num_threads"), [("0.01", 1, 3), ("9", 3, 1)])
def test_the_estimate_holds_no_more_in_memory_than_the_work(
    tiny_root: Path,
    tiny_wavlm_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    budget: str,
    copies: int,
    num_threads: int,
) -> None:
    """A recording longer than the budget is timed alone, with all cores, as it will be computed."""
    computed: list[tuple[tuple[str, ...], int]] = []

    def compute(extractor: object, batch: AudioBatch, *rest: object) -> None:
        computed.append((tuple(batch.ids), torch.get_num_threads()))

    monkeypatch.setattr("precompute.estimate.compute_batch", compute)
    with cores(3):
        dry_run = command(tiny_root, tiny_wavlm_dir, tmp_path, "--dry-run", "--batch-seconds", budget)
        assert main(dry_run) == 0
    # The first is computed twice: to warm up, and to be timed.
    times = Counter(ids for ids, _ in computed)
    times[computed[0][0]] -= copies
    assert set(times.values()) == {copies}
    assert {each for _, each in computed} == {num_threads}


def test_the_estimate_is_the_disks_where_that_is_slower(
    tiny_root: Path,
    tiny_wavlm_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert measure_disk(tmp_path / "not" / "yet") > 0 and not any(tmp_path.iterdir())
    monkeypatch.setattr("precompute.estimate.measure_disk", lambda folder: 10.0)  # bytes a second
    assert main(command(tiny_root, tiny_wavlm_dir, tmp_path / "features", "--dry-run")) == 0
    told = capsys.readouterr().out
    num_frames = int(re.search(r"([\d,]+) frames", told)[1].replace(",", ""))  # type: ignore[index]
    minutes = num_frames * 32 * 2 // 10 // 60
    expected = rf"about (1 h )?{minutes % 60:02d} min.* here \(0\.0 times .*; the disk takes 0 MB/s\)"
    assert re.search(expected, told)
