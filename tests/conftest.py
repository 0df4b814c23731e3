"""Fixtures that several test files share: a tiny WavLM on disk and a tiny corpus of tones."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

# Before torch is imported; subprocesses inherit both. Models here are too small to share among threads.
os.environ["OMP_NUM_THREADS"] = "1"
# On a machine with a GPU the tests compute where they do everywhere: many compare to the bit, and `auto`
# would choose the GPU and float16. VOX_TEST_GPU=1 shows it to tests that are meant for one.
if os.environ.get("VOX_TEST_GPU") != "1":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import pytest
import torch

from tests.support.speech import tiny_wavlm_kwargs, write_split

if TYPE_CHECKING:
    from train.options import TrainOptions


@pytest.fixture(scope="session")
def tiny_wavlm_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a tiny random WavLM as transformers would; return its folder (read only)."""
    from transformers import WavLMConfig, WavLMModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("wavlm")
    WavLMModel(WavLMConfig(**tiny_wavlm_kwargs())).eval().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write `train-tiny` (12 utterances) and `dev-tiny` (4) under a data root (read only)."""
    root = tmp_path_factory.mktemp("data")
    write_split(root, "train-tiny", 12, speaker=7, first_seed=0)
    write_split(root, "dev-tiny", 4, speaker=8, first_seed=100)
    return root


@pytest.fixture(scope="session")
def features_dir(tiny_root: Path, tiny_wavlm_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cache the mean of the tiny WavLM's layers 3 and 4, and layer 2 alone; return the folder (read only)."""
    from precompute.cli import precompute

    folder = tmp_path_factory.mktemp("features")
    for layers in ("3,4", "2"):
        arguments = ["--root", tiny_root, "--wavlm", tiny_wavlm_dir, "--layers", layers, "--features", folder]
        splits = ["--split", "train-tiny", "--split", "dev-tiny", "--workers", 0]
        precompute.main([str(a) for a in [*arguments, *splits]], standalone_mode=False)
    return folder


@pytest.fixture(scope="session")
def stage1(
    tiny_root: Path, tiny_wavlm_dir: Path, features_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> "TrainOptions":
    """Train stage 1 from the cache; return the finished run's options (its folder is read only)."""
    from tests.support.training import stage1_options
    from train.run import run_training

    run = tmp_path_factory.mktemp("runs") / "stage1"
    options = stage1_options(tiny_root, tiny_wavlm_dir, run, cached=True, features=features_dir)
    run_training(options)
    return options
