"""Several processes working on one folder of features at the same time."""

import os
import re
from pathlib import Path

import pytest
import torch

from tests.support.precomputing import command, read_files
from tests.support.processes import run_ranks
from tests.support.speech import write_split
from vox.cli import main
from vox.device import local_device

SPLIT = "train-tiny"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_split(root, SPLIT, 12)
    return root


@pytest.fixture(scope="module")
def one_run(root: Path, tiny_wavlm_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Compute the split alone; return every file."""
    features = tmp_path_factory.mktemp("features")
    assert main(command(root, tiny_wavlm_dir, features)) == 0
    return read_files(features)


@pytest.mark.parametrize("is_given", [True, False])
def test_two_ranks_at_once_make_what_one_makes(
    root: Path,
    tiny_wavlm_dir: Path,
    tmp_path: Path,
    one_run: dict[str, bytes],
    capfd: pytest.CaptureFixture[str],
    is_given: bool,
) -> None:
    """Ranks from the options, and from the environment variables of torchrun."""

    def work(rank: int) -> None:
        more = ["--world-size", "2", "--rank", str(rank)] if is_given else []
        if is_given:
            del os.environ["RANK"], os.environ["WORLD_SIZE"], os.environ["LOCAL_RANK"]
        raise SystemExit(main(command(root, tiny_wavlm_dir, tmp_path, *more)))

    assert run_ranks(2, work) == [0, 0]
    assert read_files(tmp_path) == one_run
    num_shards = sum(name.endswith(".h5") for name in one_run)
    shares = [int(share) for share in re.findall(r"to compute here: (\d+)", capfd.readouterr().out)]
    assert len(shares) == 2 and sum(shares) == num_shards and min(shares) > 0


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert local_device("cuda") == "cuda"
    monkeypatch.setenv("LOCAL_RANK", "1")
    named = {name: local_device(name) for name in ("auto", "cuda", "cuda:0", "cpu")}
    assert named == {"auto": "cuda:1", "cuda": "cuda:1", "cuda:0": "cuda:0", "cpu": "cpu"}


def test_a_rank_whose_every_recording_is_bad_says_so(
    tiny_wavlm_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chapter = write_split(tmp_path, SPLIT, 12)
    for path in chapter.glob("*.flac"):
        path.write_bytes(path.read_bytes()[:4000])  # its header is as it was
    line = command(tmp_path, tiny_wavlm_dir, tmp_path / "features", "--world-size", "2", "--rank", "1")
    assert main(line) == 2
    *_, told = capsys.readouterr().err.splitlines()
    assert "no utterance of split train-tiny that this process is to compute has features" in told
