"""Typed configuration: every key, its default and its bounds.

A config is read once (YAML file, then `--set key=value`, then command-line options), is frozen, and is
saved with the run. The defaults are the reference run's; `configs/stage1.yaml` and
`configs/stage2.yaml` spell them out, and a test keeps both equal to what stands here.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from vox.defaults import DEFAULT_LAYERS, DEFAULT_WAVLM
from vox.errors import ConfigError

# Far beyond any use: a slip of the keyboard is an error here, not a failed allocation later.
MAX_VOCAB_SIZE = 1_000_000
MAX_WIDTH = 65_536
MAX_LAYERS = 1_000
MAX_KERNEL = 10_001
MAX_COUNT = 1_000_000_000
MAX_WORKERS = 1_000
MAX_SPLIT_WEIGHT = 1_000

# What was computed before there was a key to choose it.
_BEFORE_KEY_EXISTED: dict[str, Any] = {"model": {"cross_attention": "plain"}}

# PyYAML's constructors let through what they meet: a date that does not exist is a ValueError.
_YAML_ERRORS = (yaml.YAMLError, ValueError, AttributeError, LookupError, RecursionError)


class _Section(BaseModel):
    # NaN passes every other bound, and infinity most: a run would go on with nothing to learn from.
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


def _auto_or_number(least: int, most: int) -> BeforeValidator:
    """Check that a value is "auto" or an integer between two bounds."""

    def check(value: object) -> object:
        if isinstance(value, float) and value.is_integer():  # 2e3, as pydantic's own int takes it
            value = int(value)
        is_number = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
        if value != "auto" and not is_number:
            raise ValueError(f"auto, or a number from {least} to {most}")
        return value

    return BeforeValidator(check)


class ModelConfig(_Section):
    """Dimensions of everything above WavLM; all a loader needs to build the modules."""

    vocab_size: Annotated[Literal["auto"] | int, _auto_or_number(5, MAX_VOCAB_SIZE)] = Field(
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


class FeaturesConfig(_Section):
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


_Speed = Annotated[float, Field(ge=0.5, le=2.0)]


def _check_splits(given: tuple[str, ...]) -> tuple[str, ...]:
    weights = dict(map(_parse_weight, given))
    if len(weights) != len(given):
        raise ValueError(f"{', '.join(given)} must be different splits")
    if not all(1 <= weight <= MAX_SPLIT_WEIGHT for weight in weights.values()):
        raise ValueError(f"the number after a split is from 1 to {MAX_SPLIT_WEIGHT}")
    return given


def _check_no_weights(given: tuple[str, ...]) -> tuple[str, ...]:
    if weighted := [entry for entry in given if _parse_weight(entry)[0] != entry]:
        raise ValueError(f"{weighted[0]}: a number after a split is for data.train_split only")
    return given


def _list_splits(value: object) -> object:
    if isinstance(value, str):
        value = (value,)
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) and name for name in value):
        raise ValueError("give a split's name, or a list of names")
    return value


# One split's name, or a list of names. A tuple even of one, so that all that follows knows one kind.
WeightedSplits = Annotated[
    tuple[str, ...], BeforeValidator(_list_splits), AfterValidator(_check_splits), Field(min_length=1)
]
Splits = Annotated[WeightedSplits, AfterValidator(_check_no_weights)]


def _parse_weight(entry: str) -> tuple[str, int]:
    """Read `names:3` as a split and how often an epoch hears its utterances; once without a number."""
    name, _, count = entry.rpartition(":")
    return (name, int(count)) if name and count.isdecimal() else (entry, 1)


class DataConfig(_Section):
    """Splits and batches."""

    train_split: WeightedSplits = Field(
        default=("train-clean-100",),
        description="one, or a list; NAME:3 is heard three times an epoch",
    )
    dev_split: Splits = Field(default=("dev-clean",), description="one, or a list, which is scored as one")
    utterances_per_update: int = Field(
        default=32, ge=1, le=MAX_COUNT, description="over all ranks and micro-batches"
    )
    micro_batch_utterances: Annotated[Literal["auto"] | int, _auto_or_number(1, MAX_COUNT)] = Field(
        default="auto", description="utterances on a device at once; auto: as many as fit, 8 on a CPU"
    )
    micro_batch_seconds: float | None = Field(
        default=None, gt=0, description="padded seconds on a device at once, in place of a count"
    )
    workers: int = Field(
        default=2, ge=0, le=MAX_WORKERS, description="processes that decode audio in live training"
    )
    speeds: tuple[_Speed, ...] = Field(
        default=(1.0,), min_length=1, description="the train split is heard at each of these speeds"
    )
    concatenate: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of the updates whose utterances stand 2 to 4 in a row, one after the other",
    )
    concatenate_seconds: float = Field(
        default=30.0, gt=0, description="the longest row of several utterances"
    )
    min_seconds: float | None = Field(
        default=None, gt=0, description="shorter utterances are left out of training, and listed"
    )
    max_seconds: float | None = Field(
        default=None, gt=0, description="longer utterances are left out of training, and listed"
    )

    @property
    def train_weights(self) -> dict[str, int]:
        """How often an epoch hears each train split's utterances, by the split's name."""
        return dict(map(_parse_weight, self.train_split))

    @model_validator(mode="after")
    def _check_limits(self) -> "DataConfig":
        least, most = self.min_seconds, self.max_seconds
        if least is not None and most is not None and least > most:
            raise ValueError(f"min_seconds {least} is above max_seconds {most}")
        return self

    @model_validator(mode="after")
    def _check_speeds(self) -> "DataConfig":
        if len(set(self.speeds)) != len(self.speeds):
            raise ValueError(f"speeds {list(self.speeds)} must be different")
        return self


BUILT_IN_ALPHABETS = ("english", "letters", "characters")


class TextConfig(_Section):
    """The alphabet of transcripts, and how they are brought into it (docs/languages.md)."""

    alphabet: str = Field(
        default="english", description="english, letters, characters, or the file of a table of your own"
    )
    language: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z]{2,3}([-_][A-Za-z0-9]+)*$",
        description="a code as tr or de: how capital letters become small ones, and numbers words",
    )
    numbers: Literal["refuse", "spell"] = Field(
        default="refuse", description="spell: as words, by num2words (an extra), in text.language"
    )
    table: tuple[str, ...] | None = Field(
        default=None, description="the lines of a table of your own, filled in when its file is read"
    )

    @property
    def rules(self) -> tuple[object, ...]:
        """What decides how a text is written: where they are equal, so are alphabets."""
        return ("table" if self.table else self.alphabet, self.language, self.table)

    @model_validator(mode="before")
    @classmethod
    def _read_table(cls, tree: Any) -> Any:
        """Read the file of a table, so that a saved config needs it no more."""
        if not isinstance(tree, dict):
            return tree
        if tree.get("language") is False:  # YAML's reading of `no`: Norwegian
            tree = {**tree, "language": "no"}
        alphabet = tree.get("alphabet", "english")
        if not isinstance(alphabet, str) or alphabet in BUILT_IN_ALPHABETS or tree.get("table") is not None:
            return tree
        try:
            lines = Path(alphabet).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, ValueError):
            known = ", ".join(BUILT_IN_ALPHABETS)
            raise ValueError(f"{alphabet}: take {known}, or the file of a table in UTF-8") from None
        kept = [line.strip() for line in lines]
        return {**tree, "table": [line for line in kept if line and not line.startswith("#")]}

    @model_validator(mode="after")
    def _check_text(self) -> "TextConfig":
        if (self.table is None) != (self.alphabet in BUILT_IN_ALPHABETS):
            raise ValueError(
                "text.table belongs to an alphabet of your own: name its file with text.alphabet"
            )
        if self.alphabet == "english" and (self.language or "en").lower()[:2] != "en":
            raise ValueError(f"alphabet english with language {self.language}: set text.alphabet=letters")
        if self.numbers == "spell" and self.language is None and self.alphabet != "english":
            raise ValueError("numbers are spelled in a language: set text.language")
        return self


class AugmentConfig(_Section):
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


class OptimizerConfig(_Section):
    """AdamW under OneCycle."""

    learning_rate: float = Field(default=1e-4, gt=0, description="the peak")
    wavlm_learning_rate: float | None = Field(
        default=None, gt=0, description="the peak of unfrozen WavLM layers; learning_rate if null"
    )
    betas: tuple[_Decay, _Decay] = (0.9, 0.98)
    weight_decay: float = Field(default=0.01, ge=0, description="none on norms, biases and other vectors")
    warmup_fraction: float = Field(default=0.1, gt=0, lt=1, description="of all updates")
    max_grad_norm: float = Field(default=1.0, gt=0)


class TrainConfig(_Section):
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


class AdaptConfig(_Section):
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


class Config(_Section):
    """Everything that one run of training needs to know."""

    model: ModelConfig = ModelConfig()
    features: FeaturesConfig = FeaturesConfig()
    data: DataConfig = DataConfig()
    text: TextConfig = TextConfig()
    augment: AugmentConfig = AugmentConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    adapt: AdaptConfig = AdaptConfig()


def load_config(path: Path | str | Sequence[Path | str] | None, overrides: Sequence[str] = ()) -> Config:
    """Read a config file, apply `key.path=value` overrides (values as YAML), and check everything.

    Of several files, each is laid over the ones before it, key by key.

    Raises ConfigError, in one line, for a missing or malformed file, an unknown key, a wrong type or an
    impossible value.
    """
    paths = [path] if isinstance(path, str | Path) else list(path or ())
    tree: dict[str, Any] = {}
    for each in paths:
        tree = _lay_over(tree, _read_yaml(Path(each)))
    set_keys = _apply_overrides(tree, overrides)
    return parse_config(tree, where=str(paths[-1]) if paths else "--set", where_by_key=set_keys)


def load_saved_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read the config that a run or a checkpoint was saved with, by this version or an older one.

    overrides: as in `load_config`. A key that an older version did not have gets the value by which that
    version computed, which is not always today's default. Raises ConfigError.
    """
    tree = _lay_over(_BEFORE_KEY_EXISTED, _read_yaml(path))
    return parse_config(tree, where=str(path), where_by_key=_apply_overrides(tree, overrides))


def parse_config(
    tree: Mapping[str, Any], where: str, where_by_key: Mapping[str, str] | None = None
) -> Config:
    """Check a tree of keys and values; raise ConfigError naming the first key that is wrong.

    where: what the tree was read from; where_by_key: where single keys came from, if elsewhere.
    """
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "config"
        where = (where_by_key or {}).get(key, where)
        if first["type"] == "extra_forbidden":
            raise ConfigError(
                f"unknown config key {key}", where=where, remedy=f"known here: {_known_keys(first['loc'])}"
            ) from None
        what = first["msg"].removeprefix("Value error, ").replace("valid tuple", "list, like [1, 2, 3]")
        raise ConfigError(f"bad value for {key} ({what})", where=where, remedy="correct it") from None


def dump_config(config: Config) -> str:
    """Write a config as YAML, every key spelled out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError("no such config file", where=path, remedy="see configs/ for examples") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the config file ({error})", where=path) from None
    except _YAML_ERRORS as error:
        raise ConfigError(f"not valid YAML ({error})", where=path, remedy="correct it") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(
            "a config file holds sections of keys", where=path, remedy="see configs/stage1.yaml"
        )
    return tree


def _lay_over(lower: dict[str, Any], upper: dict[str, Any]) -> dict[str, Any]:
    """Merge two trees: where both have a section its keys are merged, else the upper value counts."""
    merged = dict(lower)
    for key, value in upper.items():
        below = merged.get(key)
        if isinstance(below, dict) and isinstance(value, dict):
            value = _lay_over(below, value)
        merged[key] = value
    return merged


def _apply_overrides(tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, str]:
    """Set keys of a tree; return what each key was set by, for errors."""
    for override in overrides:
        _apply_override(tree, override)
    return {override.partition("=")[0]: f"--set {override}" for override in overrides}


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(
            f"--set {override} is not of the form key=value", remedy="write --set train.epochs=5"
        )
    try:
        value = yaml.safe_load(text)
    except _YAML_ERRORS:
        raise ConfigError(f"--set {override}: the value is not valid YAML", remedy="quote it") from None
    *parents, leaf = key.split(".")
    section = tree
    for parent in parents:
        child = section.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"unknown config key {key}", where="--set", remedy=f"{parent} is not a section")
        section = child
    section[leaf] = _yaml_number(value) if value == text else value  # value != text: it was quoted


def _yaml_number(value: Any) -> Any:
    """Read 1e-4 as a number: YAML 1.1 calls it a string unless it has a dot."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _known_keys(location: tuple[int | str, ...]) -> str:
    section: Any = Config
    for part in location[:-1]:
        section = section.model_fields[str(part)].annotation
    return ", ".join(section.model_fields)
