"""What a cache was made from: two caches with the same fingerprint hold interchangeable features."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vox.units import SAMPLE_RATE

if TYPE_CHECKING:
    from vox.wavlm.model import WavLM

FORMAT_VERSION = 2  # of the shard files; raised when an older reader would misread them
PREFIX_DIGITS = 12  # of the digest, in the folder's name

# What a WavLM's configuration says of its arithmetic beyond what the shapes of its weights do.
CONFIG_KEYS = (
    "do_stable_layer_norm",
    "feat_extract_norm",
    "feat_extract_activation",
    "hidden_act",
    "layer_norm_eps",
    "conv_kernel",
    "conv_stride",
    "conv_bias",
    "num_attention_heads",
    "num_buckets",
    "max_bucket_distance",
    "num_conv_pos_embeddings",
    "num_conv_pos_embedding_groups",
)

RESAMPLER = "torchaudio sinc_interp_hann"  # what vox.audio converts other sample rates with


@dataclass(frozen=True)
class Fingerprint:
    """The parts that decide a feature vector's value.

    The precision of the computation is not among them: promise T2 bounds what it changes.
    """

    weights_sha256: str
    layers: tuple[int, ...]  # averaged, counted from 1
    preprocessing: Mapping[str, str]
    format_version: int = FORMAT_VERSION

    @property
    def digest(self) -> str:
        """Return the sha256 over all parts, as hex."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    @property
    def prefix(self) -> str:
        """Return the part of the digest that names the cache's folder."""
        return self.digest[:PREFIX_DIGITS]

    @property
    def speed(self) -> float:
        """Return the speed at which the recordings are played."""
        return float(self.preprocessing.get("speed", "1.0"))

    def at_speed(self, speed: float) -> "Fingerprint":
        """Return the fingerprint of the same features of the recordings played at a speed.

        Speed 1 is not written down: it is what every fingerprint without a speed means.
        """
        others = {key: value for key, value in self.preprocessing.items() if key != "speed"}
        variant = {} if speed == 1 else {"speed": str(float(speed))}
        return replace(self, preprocessing=others | variant)

    def to_dict(self) -> dict[str, Any]:
        """Return the parts as JSON-able values."""
        return {
            "format_version": self.format_version,
            "layers": list(self.layers),
            "preprocessing": dict(sorted(self.preprocessing.items())),
            "weights_sha256": self.weights_sha256,
        }

    @classmethod
    def from_dict(cls, parts: Mapping[str, Any]) -> "Fingerprint":
        """Read what `to_dict` wrote; raise KeyError, TypeError or ValueError for anything else."""
        return cls(
            weights_sha256=str(parts["weights_sha256"]),
            layers=tuple(int(layer) for layer in parts["layers"]),
            preprocessing={str(key): str(value) for key, value in dict(parts["preprocessing"]).items()},
            format_version=int(parts["format_version"]),
        )

    def differences(self, model: "Fingerprint") -> list[str]:
        """Say in words, part by part, how this cache differs from what a model needs (empty: it does not)."""
        found = []
        if self.format_version != model.format_version:
            found.append(f"format version: cache {self.format_version}, this Vox {model.format_version}")
        if self.weights_sha256 != model.weights_sha256:
            found.append(f"weights: cache {self.weights_sha256[:8]}…, model {model.weights_sha256[:8]}…")
        if self.layers != model.layers:
            found.append(f"layers: cache {join_layers(self.layers)}, model {join_layers(model.layers)}")
        for key in sorted({*self.preprocessing, *model.preprocessing}):
            absent = "1.0" if key == "speed" else "none"
            ours, theirs = self.preprocessing.get(key, absent), model.preprocessing.get(key, absent)
            if key == "config":
                ours, theirs = _keep_different(ours, theirs)
            if ours != theirs:
                found.append(f"{key}: cache {ours}, model {theirs}")
        return found


@dataclass(frozen=True)
class ModelIdentity:
    """What of a WavLM decides its features, and what is asked of it before it is loaded."""

    weights_sha256: str
    do_normalize: bool
    config: str  # as `describe_config` writes it
    hidden_size: int
    num_layers: int

    def fingerprint(self, layers: Sequence[int]) -> Fingerprint:
        """Describe the features that the mean of these layers, counted from 1, gives."""
        return Fingerprint(
            weights_sha256=self.weights_sha256,
            layers=tuple(sorted(layers)),
            preprocessing={
                "sample_rate": str(SAMPLE_RATE),
                "do_normalize": str(self.do_normalize).lower(),
                "resampler": RESAMPLER,
                "config": self.config,
            },
        )


def identify_model(wavlm: "WavLM") -> ModelIdentity:
    """Describe a WavLM, its weights included."""
    from vox.wavlm.load import weights_sha256

    return ModelIdentity(
        weights_sha256=weights_sha256(wavlm),
        do_normalize=wavlm.do_normalize,
        config=describe_config(wavlm.config),
        hidden_size=wavlm.hidden_size,
        num_layers=wavlm.num_layers,
    )


def make_fingerprint(wavlm: "WavLM", layers: Sequence[int]) -> Fingerprint:
    """Describe the features that the mean of these layers (counted from 1) of a WavLM gives."""
    return identify_model(wavlm).fingerprint(layers)


def describe_config(config: Any) -> str:
    """Write what decides a WavLM's arithmetic on one line: key=value, with blanks between."""
    values = {key: json.dumps(getattr(config, key), separators=(",", ":")) for key in CONFIG_KEYS}
    return " ".join(f"{key}={value}" for key, value in values.items())


def _keep_different(ours: str, theirs: str) -> tuple[str, str]:
    """Leave out the words that two lines share; none is what an older cache has."""
    words, others = ours.split(), theirs.split()
    return (
        " ".join(word for word in words if word not in others),
        " ".join(word for word in others if word not in words),
    )


def join_layers(layers: Sequence[int]) -> str:
    """Write layers as the command line takes them: 9,10,11,12."""
    return ",".join(str(layer) for layer in layers)
