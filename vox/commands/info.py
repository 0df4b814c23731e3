"""`vox info`: what a config or a checkpoint is made of."""

import json
from pathlib import Path
from typing import Any

import click

from vox.config import Config, load_config, load_saved_config
from vox.errors import CheckpointError, ConfigError, VoxError
from vox.runs.layout import CONFIG, WAVLM


@click.command()
@click.option("--config", "config_path", type=click.Path(path_type=Path), help="A config file.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="A checkpoint folder.")
def info(config_path: Path | None, checkpoint: Path | None) -> None:
    """Print the parameter table: total and trainable by stage (the defaults' without an option)."""
    if config_path is not None and checkpoint is not None:
        raise ConfigError("--config and --checkpoint exclude each other", remedy="pass one of them")
    wavlm_config: dict[str, Any] | None
    if checkpoint is not None:
        config, wavlm_config = _read_checkpoint(checkpoint)
    else:
        config = load_config(config_path)
        wavlm_config = _read_wavlm_folder(Path(config.features.wavlm))

    if config.model.vocab_size == "auto":
        raise ConfigError(
            "model.vocab_size is auto: training finds the number from the transcripts",
            where=config_path,
            remedy="name a checkpoint of such a run: vox info --checkpoint RUN/best",
        )

    from vox.model.parameters import format_table, parameter_table

    unfreeze_layers = config.train.unfreeze_layers or None
    click.echo(format_table(parameter_table(config.model, wavlm_config, unfreeze_layers)))


def _read_checkpoint(folder: Path) -> tuple[Config, dict[str, Any]]:
    if not folder.is_dir():
        raise CheckpointError(
            "no such checkpoint folder", where=folder, remedy="vox train writes them to runs/"
        )
    for name in (CONFIG, WAVLM):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"no {name} in the checkpoint", where=folder, remedy="name another checkpoint"
            )
    return load_saved_config(folder / CONFIG), _read_json(folder / WAVLM, CheckpointError)


def _read_wavlm_folder(folder: Path) -> dict[str, Any] | None:
    """Read a local WavLM's shape; None for a hub name, which the table takes for WavLM-base's shape."""
    path = folder / "config.json"
    return _read_json(path, ConfigError) if path.is_file() else None


def _read_json(path: Path, error_type: type[VoxError]) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise error_type(f"cannot read JSON ({error})", where=path, remedy="restore the file") from None
    if not isinstance(tree, dict):
        raise error_type("not a JSON object", where=path, remedy="restore the file")
    return tree
