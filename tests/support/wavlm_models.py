"""Hugging Face's WavLM with weights that reveal every error, and ours with the same weights.

B batch, S samples, T frames, D model width.
"""

import torch
from torch import Tensor
from transformers import WavLMConfig, WavLMModel

from tests.support.speech import make_speech, tiny_wavlm_kwargs
from vox.wavlm.model import WavLM

# The two published shapes, as changes to the configuration: wavlm-base and base-plus, wavlm-large.
SHAPES: dict[str, dict] = {
    "base": {},
    "large": {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True},
}


def make_reference(shape: str, **changes: object) -> WavLMModel:
    """Make a tiny WavLMModel in evaluation mode in which every parameter affects the output."""
    return make_reference_of(WavLMConfig(**tiny_wavlm_kwargs(**SHAPES[shape], **changes)))


def make_reference_of(config: WavLMConfig) -> WavLMModel:
    """Make a WavLMModel with large random weights: matrices that keep a unit input's size, gains near 1.

    At transformers' own initialisation biases are 0, norms are 1, gates equal, attention almost uniform and
    each layer a small change to its input: a wrong layer would pass for a right one.
    """
    with torch.device("meta"):
        model = WavLMModel(config)
    model = model.to_empty(device="cpu").eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_gain = name.endswith(("norm.weight", "gru_rel_pos_const", "weight.original0"))
            is_matrix = parameter.dim() > 1 and not is_gain
            scale = parameter[0].numel() ** -0.5 if is_matrix else 0.3
            parameter.normal_(1.0 if is_gain else 0.0, scale, generator=generator)
    return model


def copy_to_ours(reference: WavLMModel, do_normalize: bool = False) -> WavLM:
    """Build our model on the reference's weights."""
    with torch.device("meta"):
        ours = WavLM(reference.config, do_normalize).to(reference.dtype)
    ours.load_state_dict(reference.state_dict(), strict=True, assign=True)
    ours.freeze_except(())
    return ours


def make_waveform(num_samples: int, seed: int = 0) -> Tensor:
    """Make [1, S] float32."""
    return torch.from_numpy(make_speech(num_samples, seed))[None]


@torch.no_grad()
def run_reference(reference: WavLMModel, waveform_1S: Tensor) -> list[Tensor]:
    """Return the reference's hidden states of one utterance, [T, D] each."""
    return [state[0] for state in reference(waveform_1S, output_hidden_states=True).hidden_states]


def relative_l2(actual: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference over the norm of the expected values, in float64."""
    assert actual.shape == expected.shape
    expected = expected.double()
    return ((actual.double() - expected).norm() / expected.norm()).item()
