"""A tiny recogniser and the options of a tiny run, for the tests of training."""

from pathlib import Path
from typing import Any

import torch

from train.options import TrainOptions
from vox.config import ModelConfig
from vox.model.recogniser import Recogniser
from vox.wavlm.extractor import FeatureExtractor
from vox.wavlm.load import load_wavlm
from vox.wavlm.mix import LayerMix

MODEL = {
    "vocab_size": 25,
    "feature_dim": 32,
    "num_wavlm_layers": 4,
    "d_model": 32,
    "encoder_heads": 2,
    "encoder_d_ff": 32,
    "layers_per_block": 1,
    "conv_kernel": 5,
    "decoder_layers": 1,
    "decoder_heads": 2,
    "decoder_d_ff": 32,
}


def tiny_recogniser(wavlm_dir: Path, **changes: Any) -> Recogniser:
    """Build a recogniser over the tiny WavLM, seeded, all of WavLM frozen."""
    wavlm = load_wavlm(str(wavlm_dir))
    torch.manual_seed(1)
    config = ModelConfig(**(MODEL | changes))
    return Recogniser(config, FeatureExtractor(wavlm, LayerMix.mean_of((3, 4), 4)))


def stage1_options(
    root: Path, wavlm_dir: Path, run: Path, *, cached: bool = False, **changes: Any
) -> TrainOptions:
    """Options of a stage-1 run of 3 epochs x 3 updates x 2 micro-batches of 2."""
    overrides = [f"model.{key}={value}" for key, value in MODEL.items()]
    overrides += ["features.layers=[3,4]", "optimizer.learning_rate=0.003", *small_run()]
    return TrainOptions(
        stage=1,
        cached=cached,
        overrides=tuple(overrides) + tuple(changes.pop("overrides", ())),
        root=root,
        train_split="train-tiny",
        dev_split="dev-tiny",
        wavlm=str(wavlm_dir),
        features=changes.pop("features", root / "features"),
        run=run,
        device="cpu",
        **changes,
    )


def stage2_options(root: Path, run: Path, origin: Path, **changes: Any) -> TrainOptions:
    """Options of a stage-2 run from a checkpoint, unfreezing the top two of four layers."""
    overrides = (*small_run(), "train.unfreeze_layers=[2,3]", *changes.pop("overrides", ()))
    return TrainOptions(
        stage=2,
        overrides=overrides,
        root=root,
        train_split="train-tiny",
        dev_split="dev-tiny",
        run=run,
        from_checkpoint=origin,
        device="cpu",
        **changes,
    )


def small_run() -> tuple[str, ...]:
    """Overrides common to both stages."""
    return (
        "data.utterances_per_update=4",
        "data.micro_batch_utterances=2",
        "data.workers=0",
        "train.epochs=3",
        "train.log_updates=2",
    )
