"""Checkpoints of tiny untrained recognisers, for tests of commands that use a checkpoint."""

from pathlib import Path

import numpy as np
import torch

from tests.support.speech import WORDS
from vox.checkpoint.files import save_checkpoint
from vox.config import Config, FeaturesConfig, ModelConfig
from vox.model.recogniser import Recogniser
from vox.text import Tokenizer, train_tokenizer
from vox.wavlm.extractor import FeatureExtractor
from vox.wavlm.load import load_wavlm
from vox.wavlm.mix import LayerMix

LAYERS = (3, 4)


def save_arbitrary_checkpoint(folder: Path, wavlm_dir: Path) -> Path:
    """Save a checkpoint with arbitrary outputs that depend on the audio."""
    tokenizer = make_tokenizer()
    config, recogniser = make_recogniser(tokenizer, wavlm_dir)
    # At its initialisation the head hardly depends on the audio; this one does.
    torch.nn.init.normal_(recogniser.ctc_head.weight)
    save_checkpoint(folder, recogniser=recogniser, tokenizer=tokenizer, config=config, state={"update": 7})
    return folder


def save_go_checkpoint(folder: Path, wavlm_dir: Path) -> Path:
    """Save a checkpoint whose CTC head writes `go` in every frame, so `go` for every recording."""
    tokenizer = make_tokenizer()
    config, recogniser = make_recogniser(tokenizer, wavlm_dir)
    (go,) = tokenizer.encode("go")
    with torch.no_grad():
        recogniser.ctc_head.weight.zero_()
        recogniser.ctc_head.bias.zero_()
        recogniser.ctc_head.bias[go] = 1.0
    save_checkpoint(folder, recogniser=recogniser, tokenizer=tokenizer, config=config, state={"update": 1})
    return folder


def make_tokenizer(vocab_size: int = 59) -> Tokenizer:
    """Train a tokenizer in which `go` is one piece. One of fewer than 32 pieces lacks `a` and `z`."""
    generator = np.random.default_rng(0)
    return train_tokenizer([" ".join(generator.choice(WORDS, 4)) for _ in range(200)], vocab_size)


def make_recogniser(tokenizer: Tokenizer, wavlm_dir: Path) -> tuple[Config, Recogniser]:
    """Build a tiny recogniser with random weights over the tiny WavLM."""
    model = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        feature_dim=32,
        num_wavlm_layers=4,
        d_model=16,
        encoder_heads=2,
        encoder_d_ff=32,
        layers_per_block=1,
        conv_kernel=5,
        decoder_layers=1,
        decoder_heads=2,
        decoder_d_ff=32,
    )
    config = Config(model=model, features=FeaturesConfig(wavlm=str(wavlm_dir), layers=LAYERS))
    torch.manual_seed(0)
    extractor = FeatureExtractor(load_wavlm(str(wavlm_dir)), LayerMix.mean_of(LAYERS, 4))
    return config, Recogniser(model, extractor)
