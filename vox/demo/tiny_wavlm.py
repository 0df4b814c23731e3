"""Make a tiny WavLM without training it, whose features are good enough to learn speech from.

At random, a stack of seven convolutions mixes the channels until little of the signal's spectrum is
left to read. Here the stem's weights are set by hand to a filter bank: three convolutions pass 80 samples
(5 ms) on as they are, the fourth filters them into 64 mel-spaced bands, its activation rectifies, and the
last three average each band over 25 ms. Everything above the stem is random, as transformers makes it.

K kernel samples, C channels.
"""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vox.units import SAMPLE_RATE, STEM_KERNELS, STEM_STRIDES

if TYPE_CHECKING:
    import torch
    from torch import nn

NUM_LAYERS = 4
HIDDEN_SIZE = 128
NUM_BANDS = 64  # channels of the stem

BAND_HZ = (120.0, 7000.0)  # centres of the lowest and the highest band
WINDOW_SAMPLES = 80
EMPHASIS = 1.5  # power of the frequency: speech falls off towards its high bands
GAIN = 2.0  # of a band at 1 kHz: well into the activation's straight part

# Added to the normalised samples while they are passed on: what is positive, GELU leaves as it is.
PEDESTAL = 6.0
POSITION_GAIN = 0.1  # the random positional convolution would drown the bands


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
            conv_dim=(NUM_BANDS,) * len(STEM_KERNELS),
            conv_kernel=STEM_KERNELS,
            conv_stride=STEM_STRIDES,
            feat_extract_norm="group",
            num_conv_pos_embeddings=32,
            num_conv_pos_embedding_groups=8,
        )
    ).eval()
    with torch.no_grad():
        set_filter_bank([layer.conv for layer in model.feature_extractor.conv_layers])
        model.feature_extractor.conv_layers[0].layer_norm.bias.fill_(PEDESTAL)
        model.encoder.pos_conv_embed.conv.parametrizations.weight.original0.mul_(POSITION_GAIN)
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


def set_filter_bank(convolutions: "list[nn.Conv1d]") -> None:
    """Set the weights of WavLM's seven convolutions to a filter bank."""
    first, *passing, filtering = convolutions[:4]
    for convolution in convolutions:
        convolution.weight.zero_()
    window = first.kernel_size[0]
    for sample in range(window):
        first.weight[sample, 0, sample] = 1.0
    # Of three windows that overlap by half, the first and the last make one of twice the length.
    for convolution in passing:
        for sample in range(2 * window):
            convolution.weight[sample, sample % window, 2 * (sample // window)] = 1.0
        window *= 2
    filters_CK = make_filters()
    filtering.weight[:, :window, 0] = filters_CK[:, :window]
    filtering.weight[:, :window, 2] = filters_CK[:, window:]
    for convolution in convolutions[4:]:
        convolution.weight.diagonal(dim1=0, dim2=1).fill_(1 / convolution.kernel_size[0])


def make_filters() -> "torch.Tensor":
    """Make one windowed cosine a band, without a response to a constant: float32 [C, K]."""
    import torch

    low, high = (_hz_to_mel(hz) for hz in BAND_HZ)
    seconds_K = (torch.arange(WINDOW_SAMPLES) - (WINDOW_SAMPLES - 1) / 2) / SAMPLE_RATE
    window_K = torch.hann_window(WINDOW_SAMPLES + 2, periodic=False)[1:-1]
    filters = []
    for band in range(NUM_BANDS):
        hz = _mel_to_hz(low + (high - low) * band / (NUM_BANDS - 1))
        phase = 2.4 * band  # spread out, so that the bands do not peak together
        wave_K = window_K * torch.cos(2 * math.pi * hz * seconds_K + phase)
        wave_K -= window_K * (wave_K.sum() / window_K.sum())
        filters.append(wave_K / wave_K.norm() * GAIN * (hz / 1000) ** EMPHASIS)
    return torch.stack(filters)


def _hz_to_mel(hz: float) -> float:
    return 2595 * math.log10(1 + hz / 700)


def _mel_to_hz(mel: float) -> float:
    return 700 * (10 ** (mel / 2595) - 1)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to save it in.")
@click.option("--seed", default=0, show_default=True, help="Draws the weights.")
def main(out: Path, seed: int) -> None:
    """Save a tiny WavLM that was never trained: a filter bank below random layers."""
    save_tiny_wavlm(out, seed)
    click.echo(f"{out}: a WavLM of {NUM_LAYERS} layers, {HIDDEN_SIZE} wide, never trained")


if __name__ == "__main__":
    main()
