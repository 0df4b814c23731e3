"""`--dry-run`: sizes and time, from a few batches, leaving nothing behind."""

import re
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import vox.device
from precompute.estimate import measure_disk
from tests.support.precomputing import SPLIT, command, cores
from vox.cli import main
from vox.corpus import load_split
from vox.data.batch import AudioBatch
from vox.units import SAMPLE_RATE
from vox.wavlm.extractor import FeatureExtractor


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


def test_the_estimate_is_what_the_timed_batches_say(
    tiny_root: Path,
    tiny_wavlm_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a machine that computes 100 s of audio a second and writes in no time."""
    clock = SimpleNamespace(seconds=0.0)

    def compute(extractor: object, batch: AudioBatch, device: object, copies: int) -> None:
        clock.seconds += copies * int(batch.num_samples_B.sum()) / SAMPLE_RATE / 100

    monkeypatch.setattr("precompute.estimate._compute", compute)
    monkeypatch.setattr("precompute.estimate.time", SimpleNamespace(perf_counter=lambda: clock.seconds))
    monkeypatch.setattr("precompute.estimate.measure_disk", lambda folder: 1e12)
    assert main(command(tiny_root, tiny_wavlm_dir, tmp_path / "features", "--dry-run")) == 0
    told = capsys.readouterr().out
    seconds = sum(utterance.num_samples or 0 for utterance in load_split(tiny_root, SPLIT)) / SAMPLE_RATE
    assert f"about {seconds / 100:.1f} s here (100.0 times real time" in told


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
    """A recording longer than the batch limit is timed alone, on all cores, as it will be computed."""
    computed: list[tuple[tuple[str, ...], int]] = []

    def compute(extractor: object, batch: AudioBatch, *rest: object) -> None:
        computed.append((tuple(batch.ids), torch.get_num_threads()))

    monkeypatch.setattr("precompute.estimate.compute_batch", compute)
    with cores(3):
        dry_run = command(tiny_root, tiny_wavlm_dir, tmp_path, "--dry-run", "--batch-seconds", budget)
        assert main(dry_run) == 0
    # To warm up, all but the longest of the first batch, or the first batch itself.
    times = Counter(ids for ids, _ in computed[copies:])
    warm_up, first = computed[0][0], computed[copies][0]
    assert warm_up in (first, first[1:]) and warm_up
    assert set(times.values()) == {copies}
    assert {each for _, each in computed} == {num_threads}


def test_the_estimate_counts_what_a_new_shape_costs_a_gpu(
    tiny_root: Path, tiny_wavlm_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every batch has a new shape, which costs time; a repeated batch would be timed without that cost."""
    shapes: list[torch.Size] = []
    moved_to: list[torch.device] = []

    def compute(extractor: object, batch: AudioBatch, *rest: object) -> None:
        shapes.append(batch.waveforms_BS.shape)

    def to(extractor: FeatureExtractor, device: torch.device) -> FeatureExtractor:
        moved_to.append(device)
        return extractor

    monkeypatch.setattr(vox.device, "pick_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr("precompute.estimate.compute_batch", compute)
    monkeypatch.setattr("precompute.estimate.synchronize", lambda device: None)
    monkeypatch.setattr("precompute.estimate.autocast", lambda *_: nullcontext())
    monkeypatch.setattr(FeatureExtractor, "to", to)
    dry_run = command(tiny_root, tiny_wavlm_dir, tmp_path, "--dry-run", "--batch-seconds", "4")
    assert main(dry_run) == 0
    assert moved_to == [torch.device("cuda")]
    assert len(shapes) == len(set(shapes)) >= 4


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
