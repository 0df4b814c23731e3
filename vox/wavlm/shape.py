"""A WavLM's shape, and whether what is asked of it fits. Imports no torch."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from vox.config import Config, ModelConfig
from vox.defaults import DEFAULT_LAYERS
from vox.errors import ConfigError
from vox.wavlm.files import CONFIG_FILE
from vox.wavlm.hub import obtain_folder


class Shape(NamedTuple):
    """The width of a WavLM's layers, and how many there are."""

    hidden_size: int
    num_layers: int


def read_shape(folder: Path) -> Shape | None:
    """Read the shape of a folder's WavLM; None where it cannot be read, which loading it explains."""
    try:
        values = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        shape = Shape(values["hidden_size"], values["num_hidden_layers"])
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return shape if all(type(number) is int and number > 0 for number in shape) else None


def check_config_fits(vox_config: Config) -> None:
    """Raise one ConfigError with all settings that the shape of the config's WavLM makes necessary.

    Obtains the WavLM's folder, from the hub if need be, but reads no weights. Raises WavLMError as
    `obtain_folder` does.
    """
    shape = read_shape(obtain_folder(vox_config.features.wavlm))
    if shape is None:
        return
    settings = _find_settings(shape, vox_config.model)
    if max(vox_config.features.layers) > shape.num_layers:
        settings.insert(0, f"features.layers=[{_upper_layers(shape)}]")
    _refuse(shape, settings, vox_config.features.wavlm)


def check_layers_fit(wavlm: str, layers: Sequence[int]) -> None:
    """Do what `check_config_fits` does, for layers (counted from 1) of a WavLM alone."""
    shape = read_shape(obtain_folder(wavlm))
    if shape is not None:
        check_layers(shape, layers, wavlm)


def check_layers(shape: Shape, layers: Sequence[int], where: object) -> None:
    """Raise ConfigError for a layer (counted from 1) that a WavLM does not have."""
    if max(layers) > shape.num_layers:
        raise ConfigError(
            f"the features ask for layer {max(layers)}, and this WavLM has {shape.num_layers}",
            where=where,
            remedy=f"choose from 1 to {shape.num_layers}, as --layers {_upper_layers(shape)} "
            f"(to precompute) or --set features.layers=[{_upper_layers(shape)}]",
        )


def check_model(shape: Shape, model: ModelConfig) -> None:
    """Raise one ConfigError with all settings of a model that a WavLM's shape makes necessary."""
    _refuse(shape, _find_settings(shape, model), None)


def _find_settings(shape: Shape, model: ModelConfig) -> list[str]:
    pairs = (
        ("feature_dim", model.feature_dim, shape.hidden_size),
        ("num_wavlm_layers", model.num_wavlm_layers, shape.num_layers),
    )
    return [f"model.{key}={found}" for key, asked, found in pairs if asked != found]


def _refuse(shape: Shape, settings: Sequence[str], where: object) -> None:
    if settings:
        options = " ".join(f"--set {shlex.quote(setting)}" for setting in settings)
        raise ConfigError(
            f"the config does not fit this WavLM, which is {shape.hidden_size} channels wide and "
            f"{shape.num_layers} layers deep",
            where=where,
            remedy=f"pass {options}, or choose another with --wavlm",
        )


def _upper_layers(shape: Shape) -> str:
    """List as many of the top layers as are cached by default: `1,2,3,4`."""
    first = max(1, shape.num_layers - len(DEFAULT_LAYERS) + 1)
    return ",".join(map(str, range(first, shape.num_layers + 1)))
