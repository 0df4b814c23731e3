"""Checkpoints: folders that hold everything, and exist whole or not at all.

    model.safetensors   every parameter, WavLM's included: nothing else is needed to decode
    config.yaml         the run's resolved configuration
    wavlm.json          WavLM's shape and preprocessing
    tokenizer.model     SentencePiece
    state.json          where the run stood, and its dev results
    trainer.pt          optimizer, scaler and random states, for resuming (absent in an export)
    checksums.json      sha256 of each file above

A checkpoint is written beside its final name, fsynced and renamed. `best` and `last` are symbolic links
in the run's folder, replaced atomically. Loading executes no code.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from vox.config import Config, dump_config, load_config
from vox.errors import CheckpointError, ConfigError, TextError
from vox.model.recogniser import Recogniser
from vox.text import Tokenizer
from vox.wavlm.extractor import FeatureExtractor
from vox.wavlm.load import build_wavlm
from vox.wavlm.mix import LayerMix

log = logging.getLogger(__name__)

MODEL, CONFIG, WAVLM, TOKENIZER = "model.safetensors", "config.yaml", "wavlm.json", "tokenizer.model"
STATE, TRAINER, CHECKSUMS = "state.json", "trainer.pt", "checksums.json"
REQUIRED = (MODEL, CONFIG, WAVLM, TOKENIZER, STATE)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, read and rebuilt. `recogniser` is in eval mode, all of WavLM frozen."""

    folder: Path
    recogniser: Recogniser
    tokenizer: Tokenizer
    config: Config
    state: dict[str, Any]


def save_checkpoint(
    folder: Path,
    *,
    recogniser: Recogniser,
    tokenizer: Tokenizer,
    config: Config,
    state: Mapping[str, Any],
    trainer_state: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint folder whole: beside its name, fsynced, renamed.

    `state` must be JSON; `trainer_state` tensors and plain values that torch loads with weights_only.
    A name stands for its content: a folder that is there already is whole, and is kept.
    """
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        tensors = {name: tensor.detach().contiguous() for name, tensor in recogniser.state_dict().items()}
        save_file(tensors, partial / MODEL)
        (partial / CONFIG).write_text(dump_config(config), encoding="utf-8")
        _write_json(partial / WAVLM, recogniser.extractor.wavlm.config_dict())
        (partial / TOKENIZER).write_bytes(tokenizer.model_bytes)
        _write_json(partial / STATE, state)
        if trainer_state is not None:
            torch.save(dict(trainer_state), partial / TRAINER)
        _write_json(partial / CHECKSUMS, {path.name: _sha256(path) for path in sorted(partial.iterdir())})
        for path in partial.iterdir():
            _fsync(path)
        _fsync(partial)
        partial.rename(folder)
        _fsync(folder.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def load_recogniser(folder: Path | str, device: torch.device | str = "cpu") -> Checkpoint:
    """Load a checkpoint by itself: model, tokenizer, config and state.

    Raises CheckpointError when it is missing, damaged, incomplete, or its weights are of another shape
    than its config says.
    """
    folder = Path(folder)
    check_files(folder)
    try:
        config = load_config(folder / CONFIG)
        tokenizer = Tokenizer.load(folder / TOKENIZER)
        wavlm = build_wavlm(json.loads((folder / WAVLM).read_text(encoding="utf-8")))
        mix = LayerMix.mean_of(config.features.layers, wavlm.num_layers)
        recogniser = Recogniser(config.model, FeatureExtractor(wavlm, mix))
    except (ConfigError, TextError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint does not fit this version of Vox ({error})", where=folder
        ) from None
    load_weights(recogniser, folder)
    recogniser.extractor.wavlm.freeze_except(())
    recogniser.to(device).eval()
    return Checkpoint(folder, recogniser, tokenizer, config, read_state(folder))


def load_weights(recogniser: Recogniser, folder: Path) -> None:
    """Copy a checkpoint's weights into a model of the same shape; CheckpointError if it is of another."""
    try:
        tensors = load_file(folder / MODEL)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"cannot read the weights ({error})", where=folder / MODEL) from None
    expected = recogniser.state_dict()
    wrong = sorted(
        name
        for name in expected.keys() | tensors.keys()
        if name not in tensors or name not in expected or tensors[name].shape != expected[name].shape
    )
    if wrong:
        raise CheckpointError(
            f"checkpoint is of another shape than its config ({len(wrong)} tensors differ, first {wrong[0]})",
            where=folder,
            remedy="use the config it was trained with",
        )
    recogniser.load_state_dict(tensors)


def load_trainer_state(folder: Path) -> dict[str, Any]:
    """Load what resuming needs beside the weights; CheckpointError if it is absent or unreadable."""
    path = folder / TRAINER
    if not path.exists():
        raise CheckpointError("checkpoint has no trainer state, so it cannot be resumed", where=folder)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged archive
        raise CheckpointError(f"cannot read the trainer state ({error})", where=path) from None


def read_state(folder: Path) -> dict[str, Any]:
    """Read where the run stood."""
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read the state ({error})", where=folder / STATE) from None
    assert isinstance(state, dict)
    return state


def check_files(folder: Path) -> None:
    """Check that a checkpoint is all there and that every file has the checksum it was written with."""
    if not folder.is_dir():
        raise CheckpointError("no checkpoint", where=folder, remedy="train one, or name another folder")
    try:
        checksums = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise CheckpointError(
            f"not a checkpoint, or a damaged one: {CHECKSUMS} is missing or unreadable", where=folder
        ) from None
    for name in sorted({*REQUIRED, *checksums}):
        path = folder / name
        if name not in checksums or not path.is_file():
            raise CheckpointError(
                f"damaged checkpoint: {name} is missing", where=folder, remedy="use another checkpoint"
            )
        if _sha256(path) != checksums[name]:
            raise CheckpointError(
                f"damaged checkpoint: {name} has changed since it was written",
                where=folder,
                remedy="use another checkpoint",
            )


def point_link(link: Path, target: Path) -> None:
    """Make `link` a symbolic link to a folder below the same parent, atomically replacing an old one."""
    partial = link.with_name(f".{link.name}.partial")
    partial.unlink(missing_ok=True)
    partial.symlink_to(os.path.relpath(target, link.parent))
    partial.replace(link)


def remove_unlinked(checkpoints_dir: Path, links: tuple[Path, ...]) -> None:
    """Delete the checkpoints that no link points to, and what killed runs left half-written."""
    kept = {link.resolve() for link in links if link.exists()}
    for folder in checkpoints_dir.iterdir():
        if folder.resolve() not in kept:
            shutil.rmtree(folder, ignore_errors=True)


def newest_checkpoint(runs_dir: Path | str = "runs") -> Path:
    """Return the newest stage's best checkpoint under a folder of runs: `stage2/best` over `stage1/best`.

    Raises CheckpointError when there is none.
    """
    for stage in (2, 1):
        best = Path(runs_dir) / f"stage{stage}" / "best"
        if best.exists():
            return best
    raise CheckpointError(
        "no checkpoint",
        where=f"{runs_dir}/stage1/best",
        remedy="run vox train, or name one with --checkpoint",
    )


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, allow_nan=True) + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
