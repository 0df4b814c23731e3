"""The sections about the model and its training, and the config as a whole."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from vox.config.corpus import DataConfig, Splits, TextConfig
from vox.config.section import (
    MAX_COUNT,
    MAX_KERNEL,
    MAX_LAYERS,
    MAX_VOCAB_SIZE,
    MAX_WIDTH,
    Section,
    auto_or_number,
)
from vox.defaults import DEFAULT_LAYERS, DEFAULT_WAVLM
from vox.errors import ConfigError


class ModelConfig(Section):
    """Dimensions of everything above WavLM; all a loader needs to build the modules."""

    vocab_size: Annotated[Literal["auto"] | int, auto_or_number(5, MAX_VOCAB_SIZE)] = Field(
        default=2000,
        description="BPE pieces, the four special tokens included; auto: by the size of the transcripts",
    )
    feature_dim: int = Field(default=768, ge=1, le=MAX_WIDTH, description="width of WavLM's layers")
    feature_norm: Literal["none", "utterance"] = Field(
        default="none", description="utterance: zero mean and unit variance over each utterance's frames"
    )
    num_wavlm_layers: int = Field(default=12, ge=1, le=MAX_LAYERS, description="weights in the layer mix")
    d_model: int = Field(default=512, ge=2, le=MAX_WIDTH)
    encoder_heads: int = Field(default=8, ge=1, le=MAX_WIDTH)
    encoder_d_ff: int = Field(default=2048, ge=1, le=MAX_WIDTH)
    resolution_blocks: int = Field(
        default=3, ge=1, le=16, description="frame rates of the U-Net: 50, 25, 12.5 Hz"
    )
    layers_per_block: int = Field(default=2, ge=1, le=MAX_LAYERS)
    conv_kernel: int = Field(default=31, ge=1, le=MAX_KERNEL, description="depthwise kernel, odd")
    decoder_layers: int = Field(default=4, ge=1, le=MAX_LAYERS)
    decoder_heads: int = Field(default=8, ge=1, le=MAX_WIDTH)
    decoder_d_ff: int = Field(default=2048, ge=1, le=MAX_WIDTH)
    decoder_context: int | None = Field(
        default=None,
        ge=2,
        le=MAX_COUNT,
        description="labels that the decoder sees, back and (label_clock) around in the audio; null: all",
    )
    cross_attention: Literal["plain", "label_clock"] = Field(
        default="label_clock",
        description="label_clock: rotary, a frame's position is the number of labels that CTC has begun; "
        "plain: none",
    )
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)

    @property
    def num_pieces(self) -> int:
        """The size of the vocabulary; raises ConfigError while it is still to be chosen."""
        if self.vocab_size == "auto":
            raise ConfigError(
                "model.vocab_size is auto, which training turns into a number",
                remedy="pass --set model.vocab_size=N, or name a checkpoint",
            )
        return self.vocab_size

    @model_validator(mode="after")
    def _check_shapes(self) -> "ModelConfig":
        for name, heads in (("encoder_heads", self.encoder_heads), ("decoder_heads", self.decoder_heads)):
            if self.d_model % (2 * heads):
                raise ValueError(f"d_model {self.d_model} must be a multiple of 2 x {name} ({heads})")
        if self.conv_kernel % 2 == 0:
            raise ValueError(f"conv_kernel {self.conv_kernel} must be odd")
        return self


class FeaturesConfig(Section):
    """Which WavLM, and which of its layers, make the features."""

    wavlm: str = Field(default=DEFAULT_WAVLM, description="hub name or local folder")
    layers: tuple[int, ...] = Field(
        default=DEFAULT_LAYERS, min_length=1, description="WavLM hidden states averaged, counted from 1"
    )

    @model_validator(mode="after")
    def _check_layers(self) -> "FeaturesConfig":
        if len(set(self.layers)) != len(self.layers) or min(self.layers) < 1:
            raise ValueError(f"layers {list(self.layers)} must be different numbers from 1 up")
        return self


Switch = Literal["auto"] | bool


def switch_is_on(switch: Switch, *, auto: bool) -> bool:
    """Say what a switch comes to, where `auto` is what it does by itself."""
    return auto if switch == "auto" else bool(switch)


class AugmentConfig(Section):
    """SpecAugment on features (Park et al. 2019; masks in proportion to length: Park et al. 2020)."""

    time_masks: int = Field(default=5, ge=0, le=1_000, description="masks an utterance")
    time_mask_fraction: float = Field(
        default=0.05, ge=0, le=1, description="longest mask, as a share of the utterance"
    )
    channel_masks: int = Field(default=2, ge=0, le=1_000)
    channel_mask_fraction: float = Field(
        default=0.1, ge=0, le=1, description="widest mask, as a share of the channels"
    )


_Decay = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Section):
    """AdamW under OneCycle."""

    learning_rate: float = Field(default=1e-4, gt=0, description="the peak")
    wavlm_learning_rate: float | None = Field(
        default=None, gt=0, description="the peak of unfrozen WavLM layers; learning_rate if null"
    )
    betas: tuple[_Decay, _Decay] = (0.9, 0.98)
    weight_decay: float = Field(default=0.01, ge=0, description="none on norms, biases and other vectors")
    warmup_fraction: float = Field(default=0.1, gt=0, lt=1, description="of all updates")
    max_grad_norm: float = Field(default=1.0, gt=0)


class TrainConfig(Section):
    """One stage of training."""

    stage: int = Field(default=1, ge=1, le=9)
    epochs: int = Field(default=20, ge=1, le=MAX_COUNT)
    max_updates: int | None = Field(default=None, ge=1, le=MAX_COUNT, description="stop early, for trials")
    unfreeze_layers: tuple[int, ...] = Field(default=(), description="WavLM layers to train, counted from 0")
    ctc_weight: float = Field(default=0.3, ge=0, le=1, description="attention gets the rest")
    ctc_weight_start: float | None = Field(
        default=None, ge=0, le=1, description="moves to ctc_weight over the first half of the updates"
    )
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="auto: bf16 where the GPU has it, else fp16; fp32 on CPU"
    )
    seed: int = Field(default=0, ge=0, lt=2**32)
    checkpoint_minutes: float = Field(default=10.0, gt=0, description="between saves inside an epoch")
    validate_updates: int | None = Field(
        default=None, ge=1, le=MAX_COUNT, description="validate inside an epoch too, every so many updates"
    )
    keep_checkpoints: int = Field(
        default=0, ge=0, le=MAX_COUNT, description="validated checkpoints kept beside best and last"
    )
    ema_decay: float | None = Field(
        default=None, gt=0, lt=1, description="of an exponential average of the weights, validated too"
    )
    average_checkpoints: int = Field(
        default=0, ge=0, le=MAX_COUNT, description="newest validated ones averaged at the end, validated too"
    )
    log_updates: int = Field(default=10, ge=1, le=MAX_COUNT, description="updates between metric lines")
    few_shapes: Switch = Field(
        default="auto", description="pad batches to few lengths, by 1 % on average; auto: on a GPU"
    )

    @model_validator(mode="after")
    def _check_averaging(self) -> "TrainConfig":
        if self.average_checkpoints > self.keep_checkpoints + 1:
            raise ValueError(
                f"average_checkpoints {self.average_checkpoints} needs keep_checkpoints "
                f"{self.average_checkpoints - 1} or more"
            )
        return self


class AdaptConfig(Section):
    """Stage 3: what is replayed of the source while the target is learnt, and what may be forgotten."""

    replay: float = Field(
        default=1.0, ge=0, le=1_000, description="source seconds per target second; 0: no replay"
    )
    replay_split: Splits | None = Field(
        default=None, description="the source; null: what the checkpoint was trained on"
    )
    source_dev_split: Splits | None = Field(
        default=None, description="where forgetting is measured; null: the checkpoint's dev splits"
    )
    tolerance: float | None = Field(
        default=None,
        ge=0,
        le=10,
        description="how much the source's dev WER may rise (0.01: one point); null: to its interval's end",
    )
    l2_sp: float = Field(
        default=0.0, ge=0, le=1_000, description="a pull towards the old weights, for training without replay"
    )
    learns: Literal["all", "decoder"] = Field(
        default="all", description="all above WavLM, or the attention decoder alone"
    )

    @property
    def ctc_learns(self) -> bool:
        """Whether the encoder and CTC learn, and so have a loss and may forget."""
        return self.learns == "all"


class Config(Section):
    """Everything that one run of training needs to know."""

    model: ModelConfig = ModelConfig()
    features: FeaturesConfig = FeaturesConfig()
    data: DataConfig = DataConfig()
    text: TextConfig = TextConfig()
    augment: AugmentConfig = AugmentConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    adapt: AdaptConfig = AdaptConfig()
