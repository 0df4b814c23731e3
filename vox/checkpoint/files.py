"""Checkpoints: folders that hold everything, written atomically. Their files: vox/runs/layout.py.

A checkpoint is written beside its final name, fsynced and renamed. `best` and `last` are symbolic links
in the run's folder, replaced atomically. Loading executes no code.
"""

import errno
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from vox.checkpoint.integrity import check_files
from vox.config import Config, dump_config, load_saved_config
from vox.disk import check_space, hash_file, sync
from vox.errors import CheckpointError, ConfigError, TextError
from vox.model.recogniser import Recogniser
from vox.runs.layout import (
    CHECKSUMS,
    CONFIG,
    EMA,
    MODEL,
    STATE,
    TOKENIZER,
    TRAINER,
    WAVLM,
    WORDS,
)
from vox.text import Normaliser, Tokenizer
from vox.wavlm.extractor import FeatureExtractor
from vox.wavlm.load import build_wavlm
from vox.wavlm.mix import LayerMix

log = logging.getLogger(__name__)

STATE_FORMAT = 1  # of state.json, also where it names none; raised when an older Vox would misread it

SMALL_FILES_BYTES = 4 << 20  # room for everything in a checkpoint but its tensors
_FREE_SOME = "free some, then go on with --resume"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, read and rebuilt. `recogniser` is in eval mode, all of WavLM frozen."""

    folder: Path
    recogniser: Recogniser
    tokenizer: Tokenizer
    config: Config
    state: dict[str, Any]

    @property
    def normaliser(self) -> Normaliser:
        """Return what brings texts into the alphabet that it was trained with."""
        return Normaliser(self.config.text)


def save_checkpoint(
    folder: Path,
    *,
    recogniser: Recogniser,
    tokenizer: Tokenizer,
    config: Config,
    state: Mapping[str, Any],
    weights: Mapping[str, torch.Tensor] | None = None,
    averaged: Mapping[str, torch.Tensor] | None = None,
    trainer_state: Mapping[str, Any] | None = None,
    words: Mapping[str, int] | None = None,
) -> None:
    """Write a checkpoint folder whole: beside its name, fsynced, renamed.

    `weights` is a copy of the recogniser's state dict to write in its place, where that may change meanwhile.
    `averaged` are averages of some parameters, which count in their place where `state` says "weights":
    "ema". `words`: how often the training transcripts have each word. `state` must be JSON; `trainer_state`
    tensors and plain values that torch loads with weights_only.
    A folder of that name that is there already is replaced. Raises CheckpointError when the disk is full;
    what was there before is then still there.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    weights = recogniser.state_dict() if weights is None else weights
    tensors = {name: tensor.detach().contiguous() for name, tensor in weights.items()}
    check_checkpoint_space(folder.parent, sum(map(_count_bytes, (tensors, averaged, trainer_state))))
    partial.mkdir()
    try:
        with _full_disk_explained(folder):
            save_file(tensors, partial / MODEL)
            if averaged is not None:
                save_file({name: tensor.contiguous() for name, tensor in averaged.items()}, partial / EMA)
            (partial / CONFIG).write_text(dump_config(config), encoding="utf-8")
            _write_json(partial / WAVLM, recogniser.extractor.wavlm.config_dict())
            (partial / TOKENIZER).write_bytes(tokenizer.model_bytes)
            _write_json(partial / STATE, {"format": STATE_FORMAT, **state})
            if words is not None:
                _write_json(partial / WORDS, words)
            if trainer_state is not None:
                torch.save(dict(trainer_state), partial / TRAINER)
            _write_json(
                partial / CHECKSUMS, {path.name: hash_file(path) for path in sorted(partial.iterdir())}
            )
            for path in partial.iterdir():
                shutil.copymode(partial / CHECKSUMS, path)  # safetensors writes 0600
                sync(path)
            sync(partial)
        _put_in_place(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def load_recogniser(
    folder: Path | str, device: torch.device | str = "cpu", *, as_trained: bool = False
) -> Checkpoint:
    """Load a checkpoint by itself: model, tokenizer, config and state.

    as_trained: the weights that training goes on with, even where their average is the better model.
    Raises CheckpointError when it is missing, damaged, incomplete, or its weights are of another shape
    than its config says.
    """
    folder = Path(folder)
    check_files(folder)
    try:
        config = load_saved_config(folder / CONFIG)
        tokenizer = Tokenizer.load(folder / TOKENIZER)
        wavlm = build_wavlm(json.loads((folder / WAVLM).read_text(encoding="utf-8")))
        mix = LayerMix.mean_of(config.features.layers, wavlm.num_layers)
        recogniser = Recogniser(config.model, FeatureExtractor(wavlm, mix))
    except (ConfigError, TextError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint does not fit this version of Vox ({error})", where=folder
        ) from None
    load_weights(recogniser, folder)
    state = read_state(folder)
    if state.get("weights") == "ema" and not as_trained:
        recogniser.load_state_dict(load_averaged(folder), strict=False)
    recogniser.extractor.wavlm.freeze_except(())
    recogniser.to(device).eval()
    return Checkpoint(folder, recogniser, tokenizer, config, state)


def read_normaliser(folder: Path) -> Normaliser:
    """Return what brings texts into a checkpoint's alphabet, without loading it; raise CheckpointError."""
    if not (folder / CONFIG).is_file():
        check_files(folder)
    try:
        return Normaliser(load_saved_config(folder / CONFIG).text)
    except (ConfigError, TextError) as error:
        raise CheckpointError(f"cannot use the checkpoint's alphabet ({error})", where=folder) from None


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


def load_averaged(folder: Path) -> dict[str, torch.Tensor]:
    """Load the averaged weights; CheckpointError if they are absent or unreadable."""
    try:
        tensors: dict[str, torch.Tensor] = load_file(folder / EMA)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"cannot read the averaged weights ({error})", where=folder / EMA) from None
    return tensors


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
    """Read where the run stood, as it was given to `save_checkpoint`.

    Raises CheckpointError when the file is unreadable, or of a format that this Vox does not know.
    """
    path = folder / STATE
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(state, dict):
            raise ValueError("not a table of keys and values")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"cannot read the state ({error})", where=path, remedy="use another checkpoint"
        ) from None
    found = state.pop("format", STATE_FORMAT)
    if found != STATE_FORMAT:
        raise CheckpointError(
            f"the checkpoint's state has format {found}, and this Vox reads format {STATE_FORMAT}",
            where=path,
            remedy="use the version of Vox that wrote it, or a newer one",
        )
    return state


def read_words(folder: Path) -> dict[str, int]:
    """Read how often the training transcripts have each word; empty for a checkpoint of an older version.

    Raises CheckpointError when the file is unreadable.
    """
    path = folder / WORDS
    try:
        words = json.loads(path.read_text(encoding="utf-8"))
        return {word: int(count) for word, count in words.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"cannot read the word counts ({error})", where=path, remedy="use another checkpoint"
        ) from None


def _put_in_place(partial: Path, folder: Path) -> None:
    """Give a finished folder its name, moving one that has it aside first."""
    replaced = folder.with_name(f".{folder.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if folder.exists():
        folder.rename(replaced)
    partial.rename(folder)
    sync(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _count_bytes(value: object) -> int:
    """Count the bytes of the tensors in a tree of mappings and lists."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(map(_count_bytes, value.values()))
    return sum(map(_count_bytes, value)) if isinstance(value, list | tuple) else 0


def check_checkpoint_space(parent: Path, num_bytes: int) -> None:
    """Raise CheckpointError unless a checkpoint's tensors of so many bytes fit on the disk of a folder."""
    needed = num_bytes + SMALL_FILES_BYTES
    check_space(parent, needed, CheckpointError, what="a checkpoint", remedy=_FREE_SOME)


@contextmanager
def _full_disk_explained(folder: Path) -> Iterator[None]:
    """Turn what safetensors and torch raise for a failing disk, which is no OSError, into a line."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise CheckpointError(
            f"no space left for a checkpoint ({error.strerror})", where=folder, remedy=_FREE_SOME
        ) from None
    except SafetensorError as error:  # its message ends with the system's
        raise _cannot_write(folder, str(error)) from None
    except RuntimeError as error:
        # torch's archive writer: the failing write is reported first, or only noticed on closing.
        if "PytorchStreamWriter" not in str(error) and "unexpected pos" not in str(error):
            raise
        raise _cannot_write(folder, str(error).splitlines()[0]) from None


def _cannot_write(where: Path, detail: str) -> CheckpointError:
    return CheckpointError(
        f"cannot write a checkpoint ({detail})",
        where=where,
        remedy="if the disk is full free some, then go on with --resume",
    )


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, allow_nan=True) + "\n", encoding="utf-8")
