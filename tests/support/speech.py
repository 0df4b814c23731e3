"""A tiny corpus of tones, and the shape of a tiny WavLM."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import soundfile

from vox.units import SAMPLE_RATE

needs_espeak = pytest.mark.skipif(
    importlib.util.find_spec("espeakng_loader") is None, reason="espeakng-loader is not installed"
)

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
    """Make [num_samples] float32 that resembles speech: with pitch, onsets and noise."""
    generator = np.random.default_rng(seed)
    time = np.arange(num_samples) / SAMPLE_RATE
    pitch = generator.uniform(90, 250)
    tone = np.sin(2 * np.pi * pitch * time) * np.sin(2 * np.pi * generator.uniform(1, 4) * time) ** 2
    return (0.3 * tone + 0.02 * generator.standard_normal(num_samples)).astype(np.float32)


def make_text(seed: int, num_words: int = 3) -> str:
    """Make an upper-case transcript, as in LibriSpeech."""
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
