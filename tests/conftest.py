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

import numpy as np
import pytest
import soundfile
import torch

from vox.units import SAMPLE_RATE

if TYPE_CHECKING:
    from train.options import TrainOptions

WORDS = ("go", "stop", "left", "right", "up", "down", "open", "close", "jump", "run")


def tiny_wavlm_kwargs(**changes: object) -> dict:
    """Return WavLMConfig arguments for a model of the real shape and a thousandth of the size."""
    arguments: dict = {
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "conv_dim": (16,) * 7,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
        "num_buckets": 32,
        "max_bucket_distance": 80,
    }
    return arguments | changes


def make_speech(num_samples: int, seed: int) -> np.ndarray:
    """Make [num_samples] float32 that is no speech, but has pitch, onsets and noise."""
    generator = np.random.default_rng(seed)
    time = np.arange(num_samples) / SAMPLE_RATE
    pitch = generator.uniform(90, 250)
    tone = np.sin(2 * np.pi * pitch * time) * np.sin(2 * np.pi * generator.uniform(1, 4) * time) ** 2
    return (0.3 * tone + 0.02 * generator.standard_normal(num_samples)).astype(np.float32)


def make_text(seed: int, num_words: int = 3) -> str:
    """Make an upper-case transcript, as LibriSpeech has them."""
    return " ".join(np.random.default_rng(seed).choice(WORDS, num_words)).upper()


def write_split(
    root: Path, split: str, num_utterances: int, *, speaker: int = 7, chapter: int = 1, first_seed: int = 0
) -> Path:
    """Write a split in LibriSpeech's layout, one speaker and chapter, 0.6 to 1.6 s an utterance."""
    chapter_dir = root / "LibriSpeech" / split / str(speaker) / str(chapter)
    chapter_dir.mkdir(parents=True)
    lines = []
    for index in range(num_utterances):
        seed = first_seed + index
        name = f"{speaker}-{chapter}-{index:04d}"
        num_samples = int(np.random.default_rng(seed).integers(9_600, 25_600))
        soundfile.write(chapter_dir / f"{name}.flac", make_speech(num_samples, seed), SAMPLE_RATE)
        lines.append(f"{name} {make_text(seed)}\n")
    (chapter_dir / f"{speaker}-{chapter}.trans.txt").write_text("".join(lines))
    return chapter_dir


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
    from tests.training import stage1_options
    from train.run import run_training

    run = tmp_path_factory.mktemp("runs") / "stage1"
    options = stage1_options(tiny_root, tiny_wavlm_dir, run, cached=True, features=features_dir)
    run_training(options)
    return options
