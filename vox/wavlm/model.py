"""WavLM, exact in padded batches, with any of its Transformer layers trainable.

B batch, S samples, T frames, D model width, H heads. Masks: True = real frame.

Chen et al. 2022, "WavLM: Large-Scale Self-Supervised Pre-Training for Full Stack Speech Processing". Both
published shapes: base (group norm in the stem, post-norm layers) and large (layer norm in the stem, pre-norm
layers). Parameter names are those of Hugging Face's WavLMModel. Layer drop and SpecAugment are not built, and
dropout acts in trainable layers only: a frozen part computes the same in training as in evaluation.
"""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import WavLMConfig

from vox.device import frozen_autocast
from vox.errors import ConfigError, WavLMError
from vox.masks import lengths_to_mask, zero_padding
from vox.units import samples_to_frames
from vox.wavlm.attention import make_bias_scratch
from vox.wavlm.derived import clear_derived
from vox.wavlm.encoder import Encoder
from vox.wavlm.linear import ACTIVATIONS, autocast_dtype
from vox.wavlm.measure import Measured, measure
from vox.wavlm.stem import ConvStem, FeatureProjection, clean_waveforms


def check_config(config: WavLMConfig) -> None:
    """Raise WavLMError for a configuration that asks for something Vox does not build."""
    known = {
        "add_adapter": (False,),
        "feat_extract_norm": ("group", "layer"),
        "feat_extract_activation": tuple(ACTIVATIONS),
        "hidden_act": tuple(ACTIVATIONS),
    }
    for key, values in known.items():
        value = getattr(config, key)
        if value not in values:
            allowed = " or ".join(map(str, values))
            raise WavLMError(f"this WavLM has {key} = {value}, and Vox supports {allowed}")
    if config.hidden_size % config.num_attention_heads:
        raise WavLMError(
            f"this WavLM's hidden_size {config.hidden_size} is no multiple of "
            f"num_attention_heads {config.num_attention_heads}"
        )


class WavLM(nn.Module):
    """Hidden states of a batch of waveforms, each utterance as if it were alone.

    A new model is frozen and in evaluation mode; `freeze_except` chooses what trains.
    """

    def __init__(self, config: WavLMConfig, do_normalize: bool) -> None:
        """Build with random weights; `do_normalize`: bring each waveform to mean 0 and variance 1 first.

        Raises WavLMError for a configuration that Vox does not support.
        """
        check_config(config)
        super().__init__()
        self.config = config
        self.do_normalize = do_normalize
        self.hidden_size: int = config.hidden_size
        self.num_layers: int = config.num_hidden_layers
        if config.mask_time_prob > 0 or config.mask_feature_prob > 0:
            # Unused here (it stood for masked frames in pre-training), but published weights hold it.
            self.masked_spec_embed = nn.Parameter(torch.rand(config.hidden_size))
        self.feature_extractor = ConvStem(config)
        self.feature_projection = FeatureProjection(config)
        self.encoder = Encoder(config)
        self.trainable_layers: tuple[int, ...] = ()
        self.freeze_except(())
        self.eval()

    def config_dict(self) -> dict[str, Any]:
        """Return all that `build_wavlm` needs, as plain JSON values."""
        values = json.loads(json.dumps(self.config.to_dict()))
        values.pop("_name_or_path", None)  # where it was loaded from is no part of what it is
        return values | {"do_normalize": self.do_normalize}

    def num_frames(self, num_samples: Any) -> Any:
        """Count frames for an int, array or tensor of sample counts, exactly."""
        return samples_to_frames(num_samples, self.config.conv_kernel, self.config.conv_stride)

    def freeze_except(self, layers: Sequence[int]) -> None:
        """Make these Transformer layers trainable, counted from 0, and freeze all else.

        Layer 0 includes the position table that all layers share. The choice holds through `train()`: frozen
        parts stay in evaluation mode. Raises ConfigError for a layer that is not there.
        """
        missing = [layer for layer in layers if not 0 <= layer < self.num_layers]
        if missing:
            top = ",".join(map(str, range(max(0, self.num_layers - 3), self.num_layers)))
            raise ConfigError(
                f"train.unfreeze_layers names layer {missing[0]}, and this WavLM has {self.num_layers}",
                remedy="layers are counted from 0 here: the top three are "
                f"--set 'train.unfreeze_layers=[{top}]'",
            )
        self.trainable_layers = tuple(sorted(set(layers)))
        self.requires_grad_(False)
        for index in self.trainable_layers:
            self.encoder.layers[index].requires_grad_(True)
        clear_derived(self)
        self.train(self.training)

    def train(self, mode: bool = True) -> "WavLM":
        """Set training mode on the trainable layers only."""
        super().train(False)
        self.training = mode
        for index in self.trainable_layers:
            self.encoder.layers[index].train(mode)
        return self

    def measure(self, waveform_S: Tensor) -> Measured:
        """Measure a whole recording, float32 [S] on the CPU, for computing it in windows."""
        return measure(self.feature_extractor, waveform_S, self.do_normalize)

    def forward(
        self,
        waveforms_BS: Tensor,
        num_samples_B: Tensor,
        states: Sequence[int] | None = None,
        measured: Measured | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """Compute hidden states, float32 [B, T, D] each, and the number of valid frames [B], int64.

        Hidden state 0 is the input of the first layer, i the output of the i-th (counted from 1). T is the
        frames of S samples; what stands on padded frames is finite and means nothing. Waveforms are 16 kHz
        float32; their padding may hold anything. At least one must be as long as a frame.

        `states` names the ones to return, in that order (all by default). Layers above the highest are not
        computed, and what is not returned is not kept. Below the first trainable layer there is no gradient,
        and no bfloat16 (see `frozen_autocast`).

        measured: of the recording of which this is a window, a batch of one without padding.
        """
        num_samples_B = num_samples_B.to(waveforms_BS.device)
        num_frames_B = self.num_frames(num_samples_B)
        num_steps = self.num_frames(waveforms_BS.shape[1])
        assert num_steps > 0, "the batch is shorter than one frame"
        # An utterance without a frame attends to one frame of nothing: what a softmax over no key gives
        # is up to the kernel.
        is_valid_BT = lengths_to_mask(num_frames_B.clamp(min=1), num_steps)
        with frozen_autocast(waveforms_BS.device):
            hidden_BTD = self._embed(waveforms_BS, num_samples_B, is_valid_BT, measured)
        wanted = range(self.num_layers + 1) if states is None else states
        return self._run_layers(hidden_BTD, is_valid_BT, 0, wanted), num_frames_B

    def continue_from(
        self, hidden_BTD: Tensor, num_frames_B: Tensor, layer: int, states: Sequence[int] | None = None
    ) -> list[Tensor]:
        """Compute hidden states, float32 [B, T, D] each, from hidden state `layer`: only the layers above it.

        As `forward` does in all else. `hidden_BTD` is of any floating-point dtype and is itself hidden state
        `layer`, its padded frames zeroed (they may hold anything); `num_frames_B` counts the valid ones.
        `states` names the ones to return, none below `layer`: it and all above by default. No layer below may
        be trainable.
        """
        wanted = range(layer, self.num_layers + 1) if states is None else states
        assert 0 <= layer <= min(wanted, default=layer), "a hidden state below the given one"
        assert layer <= min(self.trainable_layers, default=layer), "a trainable layer below the given state"
        num_frames_B = num_frames_B.to(hidden_BTD.device)
        hidden_BTD = hidden_BTD.to(self.encoder.layer_norm.weight.dtype)
        hidden_BTD = zero_padding(hidden_BTD, lengths_to_mask(num_frames_B, hidden_BTD.shape[1]))
        is_valid_BT = lengths_to_mask(num_frames_B.clamp(min=1), hidden_BTD.shape[1])
        return self._run_layers(hidden_BTD, is_valid_BT, layer, wanted)

    def _run_layers(
        self, hidden_BTD: Tensor, is_valid_BT: Tensor, first: int, wanted: Sequence[int]
    ) -> list[Tensor]:
        """Return the wanted hidden states, from hidden state `first`."""
        device = hidden_BTD.device
        with self._gradient(0 in self.trainable_layers):
            position_bias = self.encoder.position_bias(hidden_BTD.shape[1])
        first_trainable = min(self.trainable_layers, default=self.num_layers)
        kept = {first: hidden_BTD} if first in wanted else {}
        bias, scratch_BHTT = position_bias, None
        for index in range(first, max(wanted, default=0)):
            is_above = index >= first_trainable
            # Without gradients no layer needs bfloat16, and a validation hears what the cache would hold.
            is_learning = is_above and torch.is_grad_enabled()
            with self._gradient(is_above), nullcontext() if is_learning else frozen_autocast(device):
                if torch.is_grad_enabled():
                    bias, scratch_BHTT = position_bias, None
                elif scratch_BHTT is None:
                    scratch_BHTT = make_bias_scratch(hidden_BTD, self.config.num_attention_heads)
                    bias = position_bias.to(scratch_BHTT.dtype)  # once for all layers
                hidden_BTD = self.encoder.layers[index](hidden_BTD, bias, is_valid_BT, scratch_BHTT)
            if index + 1 in wanted:
                kept[index + 1] = hidden_BTD
        return [kept[state] for state in wanted]

    @torch.no_grad()
    def _embed(
        self, waveforms_BS: Tensor, num_samples_B: Tensor, is_valid_BT: Tensor, measured: Measured | None
    ) -> Tensor:
        """Return the first layer's input [B, T, D]: all that is never trained."""
        waveforms_BS = waveforms_BS.to(self.encoder.layer_norm.weight.dtype)
        if measured is None:
            clean_BS, folded = clean_waveforms(waveforms_BS, num_samples_B, self.do_normalize), None
        else:
            clean_BS, folded = measured.clean(waveforms_BS), measured.folded
        # Features in float16 may be 1e-3 from float32's (relative L2), as far as a cache may be from live
        # audio. With the whole stem in half precision they are 0.9e-3 to 1.3e-3 away, over kinds of audio,
        # with stem and projection in float32 0.6e-3. On an H100 it is 0.77e-3 with two convolutions that
        # multiply half-precision numbers, and the stem takes 10 ms of a batch of 160 s instead of 20.
        products = autocast_dtype(waveforms_BS)
        with torch.autocast(waveforms_BS.device.type, enabled=False):
            frames_BTC = self.feature_extractor(clean_BS, num_samples_B, folded, products)
            hidden_BTD = self.feature_projection(frames_BTC)
        return self.encoder.add_positions(hidden_BTD, is_valid_BT)

    @staticmethod
    def _gradient(is_needed: bool) -> torch.set_grad_enabled:
        return torch.set_grad_enabled(is_needed and torch.is_grad_enabled())
