"""Make a tiny WavLM without training it, whose features are good enough to learn speech from.

At random, a stack of seven convolutions mixes the channels until little of the signal's spectrum is
left to read (a linear probe recovers log-mel energies with R² 0.34 from the tiny model's features). Here
the first convolution stays random, a bank of random filters, and each of the others averages over time,
channel by channel, as filter-bank features do; the probe then reaches R² 0.58.
"""

import json
from pathlib import Path

import click

from vox.units import SAMPLE_RATE, STEM_KERNELS, STEM_STRIDES

NUM_LAYERS = 4
HIDDEN_SIZE = 128


def save_tiny_wavlm(folder: Path, seed: int) -> None:
    """Save a tiny WavLM as transformers does: weights, config and preprocessor config."""
    import torch
    from transformers import WavLMConfig, WavLMModel

    torch.manual_seed(seed)
    model = WavLMModel(
        WavLMConfig(
            hidden_size=HIDDEN_SIZE,
            num_hidden_layers=NUM_LAYERS,
            num_attention_heads=4,
            intermediate_size=256,
            conv_dim=(64,) * len(STEM_KERNELS),
            conv_kernel=STEM_KERNELS,
            conv_stride=STEM_STRIDES,
            feat_extract_norm="layer",
            num_conv_pos_embeddings=32,
            num_conv_pos_embedding_groups=8,
        )
    ).eval()
    with torch.no_grad():
        for layer in model.feature_extractor.conv_layers[1:]:
            kernel_size = layer.conv.kernel_size[0]
            layer.conv.weight.zero_()
            layer.conv.weight.diagonal(dim1=0, dim2=1).fill_(1 / kernel_size)
    model.save_pretrained(folder)
    preprocessing = {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "sampling_rate": SAMPLE_RATE,
        "do_normalize": False,
        "padding_value": 0.0,
        "padding_side": "right",
        "return_attention_mask": True,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing, indent=2), encoding="utf-8")


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to save it in.")
@click.option("--seed", default=0, show_default=True, help="Draws the weights.")
def main(out: Path, seed: int) -> None:
    """Save a tiny WavLM of untrained weights."""
    save_tiny_wavlm(out, seed)
    click.echo(f"{out}: a WavLM of {NUM_LAYERS} layers, {HIDDEN_SIZE} wide, never trained")


if __name__ == "__main__":
    main()
