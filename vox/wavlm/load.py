"""WavLM's weights: from a folder or the Hugging Face hub, through transformers, checked.

A hub name is looked up in the hub's local cache first; the network is used only for what is not there. What
is loaded must be exactly what the configuration asks for: weights that are missing, or left over, are an
error, because transformers would fill them in at random with a warning.
"""

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import WavLMConfig

from vox.errors import WavLMError, name_first
from vox.wavlm.files import CONFIG_FILE, PREPROCESSOR_FILE, REMEDY
from vox.wavlm.hub import first_line, obtain_folder
from vox.wavlm.model import WavLM, check_config

if TYPE_CHECKING:
    from transformers import WavLMModel

log = logging.getLogger(__name__)


def load_wavlm(name_or_folder: str) -> WavLM:
    """Load WavLM in float32 on the CPU: in evaluation mode, all frozen.

    Takes a local folder or a name on the Hugging Face hub. Raises WavLMError where neither can be had, and
    for a folder without config.json, another type of model, a configuration that Vox does not support, and
    weights that are damaged, missing, left over, of another shape or not finite.
    """
    folder = obtain_folder(name_or_folder)
    config = _read_config(folder)
    source = _read_weights(folder, config)
    with torch.device("meta"):
        wavlm = WavLM(config, _read_do_normalize(folder, config))
    wavlm.to_empty(device="cpu")
    wavlm.load_state_dict(source.state_dict(), strict=True)
    for name, parameter in wavlm.named_parameters():
        if not parameter.isfinite().all():
            raise WavLMError(f"weights hold NaN or infinity: {name}", where=folder, remedy=REMEDY)
    return wavlm


def build_wavlm(config_dict: dict[str, Any]) -> WavLM:
    """Build WavLM with random weights from what `WavLM.config_dict` returned.

    Raises WavLMError for a configuration that is not WavLM's or that Vox does not support.
    """
    values = dict(config_dict)
    do_normalize = bool(values.pop("do_normalize"))
    return WavLM(_parse_config(values, where=None), do_normalize)


def weights_sha256(wavlm: WavLM) -> str:
    """Return the sha256 (hex) of all parameters: names, shapes and float32 bytes, sorted by name.

    Depends on nothing else: neither on the file format they came from nor on the device they are on.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(wavlm.state_dict().items()):
        values = tensor.detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name} {list(values.shape)}\n".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def _read_config(folder: Path) -> WavLMConfig:
    path = folder / CONFIG_FILE
    if not path.exists():
        raise WavLMError(f"this folder holds no {CONFIG_FILE}, so no WavLM", where=folder, remedy=REMEDY)
    return _parse_config(_read_json(path), where=path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WavLMError(f"cannot read JSON ({type(error).__name__})", where=path, remedy=REMEDY) from error
    if not isinstance(values, dict):
        raise WavLMError("not a JSON object", where=path, remedy=REMEDY)
    return values


def _parse_config(values: dict[str, Any], where: Path | None) -> WavLMConfig:
    model_type = values.get("model_type")
    if model_type != "wavlm":
        raise WavLMError(f"this model is of type {model_type!r}, not 'wavlm'", where=where, remedy=REMEDY)
    try:
        config = WavLMConfig.from_dict(values)
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise WavLMError(f"impossible WavLM configuration: {error}", where=where, remedy=REMEDY) from error
    check_config(config)
    return config


def _read_do_normalize(folder: Path, config: WavLMConfig) -> bool:
    path = folder / PREPROCESSOR_FILE
    if path.exists():
        value = _read_json(path).get("do_normalize", True)  # Wav2Vec2FeatureExtractor's own default
        if not isinstance(value, bool):
            raise WavLMError(f"do_normalize is {value!r}, not true or false", where=path, remedy=REMEDY)
        return value
    # fairseq's convention: models with layer norm in the stem were trained on normalised audio.
    do_normalize = config.feat_extract_norm == "layer"
    effect = "normalised" if do_normalize else "taken as they are"
    log.info("%s has no %s: waveforms are %s", folder, PREPROCESSOR_FILE, effect)
    return do_normalize


def _read_weights(folder: Path, config: WavLMConfig) -> "WavLMModel":
    from transformers import WavLMModel  # seconds to import, and a checkpoint holds WavLM's weights itself

    try:
        with _quiet_transformers():
            loaded: Any = WavLMModel.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # so that they are listed; they are refused below
            )
    except Exception as error:  # a damaged file makes its reader raise anything, KeyError included
        what = f"cannot read WavLM's weights ({first_line(error)})"
        raise WavLMError(what, where=folder, remedy=REMEDY) from error
    source, info = loaded
    troubles = {
        "weights are missing": info["missing_keys"],
        "weights hold what is not WavLM's": info["unexpected_keys"],
        "weights are of another shape than config.json says": [key for key, *_ in info["mismatched_keys"]],
    }
    for what, names in troubles.items():
        if names:
            raise WavLMError(f"{what} ({name_first(sorted(names))})", where=folder, remedy=REMEDY)
    return source


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep transformers' warnings and bars off the screen: what they would say is checked and raised."""
    logger = transformers.utils.logging
    verbosity, had_bars = logger.get_verbosity(), logger.is_progress_bar_enabled()
    logger.set_verbosity_error()
    logger.disable_progress_bar()
    try:
        yield
    finally:
        logger.set_verbosity(verbosity)
        if had_bars:
            logger.enable_progress_bar()
