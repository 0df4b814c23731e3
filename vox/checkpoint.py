"""Checkpoints: folders that hold everything, and exist whole or not at all.

    model.safetensors   every parameter, WavLM's included: nothing else is needed to decode
    config.yaml         the run's resolved configuration
    wavlm.json          WavLM's shape and preprocessing
    tokenizer.model     SentencePiece
    state.json          where the run stood, and its dev results
    trainer.pt          optimizer, scaler and random states, for resuming
    checksums.json      sha256 of each file above

A checkpoint is written beside its final name, fsynced and renamed. `best` and `last` are symbolic links
in the run's folder, replaced atomically. Loading executes no code.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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

SMALL_FILES_BYTES = 4 << 20  # room for everything in a checkpoint but its tensors


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
    A folder of that name that is there already is replaced. Raises CheckpointError when the disk is full;
    what was there before is then still there.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    tensors = {name: tensor.detach().contiguous() for name, tensor in recogniser.state_dict().items()}
    _check_space(folder.parent, _count_bytes(tensors) + _count_bytes(trainer_state))
    partial.mkdir()
    try:
        with _full_disk_explained(folder):
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
        _put_in_place(partial, folder)
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
    """Make `link` a symbolic link to a folder below the same parent, atomically replacing an old one.

    It is on disk when this returns, so that what it pointed to before may be deleted.
    """
    partial = link.with_name(f".{link.name}.partial")
    partial.unlink(missing_ok=True)
    partial.symlink_to(os.path.relpath(target, link.parent))
    partial.replace(link)
    _fsync(link.parent)


def remove_unlinked(checkpoints_dir: Path, links: tuple[Path, ...]) -> None:
    """Delete the checkpoints that no link points to, and what killed runs left half-written."""
    kept = {link.resolve() for link in links if link.exists()}
    for folder in checkpoints_dir.iterdir():
        if folder.resolve() not in kept:
            shutil.rmtree(folder, ignore_errors=True)


def find_last(run_dir: Path) -> Path:
    """Return the checkpoint that a run resumes from.

    Where `last` is lost (some file systems and object stores keep no links), it is the newest one.
    Raises CheckpointError when there is none.
    """
    last = run_dir / "last"
    if last.exists():
        return last
    names = list_checkpoints(run_dir)
    if not names:
        raise CheckpointError(
            "the run was not saved yet, so there is nothing to resume",
            where=run_dir,
            remedy="start it again without --resume",
        )
    log.warning("%s is missing: resuming from the newest checkpoint, %s", last, names[-1])
    return run_dir / "checkpoints" / names[-1]


def list_checkpoints(run_dir: Path) -> list[str]:
    """Return the names of a run's whole checkpoints, oldest first."""
    return sorted(
        path.name for path in (run_dir / "checkpoints").glob("update-*") if path.suffix != ".partial"
    )


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


def _put_in_place(partial: Path, folder: Path) -> None:
    """Give a finished folder its name, moving one that has it aside first."""
    replaced = folder.with_name(f".{folder.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if folder.exists():
        folder.rename(replaced)
    partial.rename(folder)
    _fsync(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _count_bytes(value: object) -> int:
    """Count the bytes of the tensors in a tree of mappings and lists."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(map(_count_bytes, value.values()))
    return sum(map(_count_bytes, value)) if isinstance(value, list | tuple) else 0


def _check_space(parent: Path, num_bytes: int) -> None:
    needed, free = num_bytes + SMALL_FILES_BYTES, shutil.disk_usage(parent).free
    if free < needed:
        raise _no_space(parent, f"{needed / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free")


@contextmanager
def _full_disk_explained(folder: Path) -> Iterator[None]:
    """Turn what safetensors and torch raise for a failing disk, which is no OSError, into a line."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _no_space(folder, error.strerror) from None
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


def _no_space(where: Path, detail: str | None) -> CheckpointError:
    return CheckpointError(
        f"no space left for a checkpoint ({detail})",
        where=where,
        remedy="free some, then go on with --resume",
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
