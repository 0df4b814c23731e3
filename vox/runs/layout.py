"""The names of a run's files and checkpoints. Imports nothing heavy.

    alive.json      the heartbeat: which process trains, in which state
    metrics.jsonl   one event a line: train, dev, handoff, skipped
    options.json    what `vox train` was asked for
    config.yaml     the resolved configuration
    utterances.jsonl  the utterances when the run began; no part of a backup
    backup.json     the newest copy made elsewhere, and the newest failure
    checkpoints/    whole checkpoints; the links `best` and `last` name two of them, and in stage 3
                    `before` the one with the weights before adaptation
    tensorboard/    the same figures as metrics.jsonl

A checkpoint is a folder:

    model.safetensors   every parameter, WavLM's included: nothing else is needed to decode
    ema.safetensors     an exponential average of those that learn, if training keeps one
    config.yaml         the run's resolved configuration
    wavlm.json          WavLM's shape and preprocessing
    tokenizer.model     SentencePiece
    words.json          how often the training transcripts have each word
    state.json          where the run stood, its dev results, and the format of this file
    trainer.pt          optimizer, scaler and random states, for resuming
    checksums.json      sha256 of each file above, written last
"""

import re
from pathlib import Path
from typing import Literal

ALIVE, METRICS, OPTIONS, BACKUP = "alive.json", "metrics.jsonl", "options.json", "backup.json"
TENSORBOARD, CHECKPOINTS = "tensorboard", "checkpoints"
BEST, LAST, BEFORE = "best", "last", "before"
UTTERANCES = "utterances.jsonl"
CONFIG = "config.yaml"  # of a run and of each of its checkpoints

MODEL, EMA, WAVLM, TOKENIZER = "model.safetensors", "ema.safetensors", "wavlm.json", "tokenizer.model"
STATE, TRAINER, CHECKSUMS = "state.json", "trainer.pt", "checksums.json"
WORDS = "words.json"
REQUIRED = (MODEL, CONFIG, WAVLM, TOKENIZER, STATE)

Weights = Literal["raw", "ema", "average", "interpolated"]  # which weights a dev result is of

# plain: saved without a dev result of its own. validated: with one. average: the mean of several validated
# checkpoints at the end of training, with its own dev result. interpolated: between the weights before and
# after adaptation, with its own dev result.
Kind = Literal["plain", "validated", "average", "interpolated"]
_SUFFIXES: dict[Kind, str] = {
    "plain": "",
    "validated": "-validated",
    "average": "-validated-average",
    "interpolated": "-validated-interpolated",
}
_NAME = re.compile(r"update-\d+(|-validated|-validated-average|-validated-interpolated)")


def checkpoint_name(update: int, kind: Kind = "plain") -> str:
    """Return the name of a checkpoint's folder; by name, checkpoints sort in the order they are written."""
    return f"update-{update:08d}{_SUFFIXES[kind]}"


def kind_of(name: str) -> Kind | None:
    """Return the kind of a checkpoint by its folder's name; None for anything else."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    return next(kind for kind, suffix in _SUFFIXES.items() if suffix == match[1])


def checkpoints_of(run_dir: Path) -> Path:
    """Return the folder of a run's checkpoints."""
    return run_dir / CHECKPOINTS


def list_checkpoints(run_dir: Path) -> list[str]:
    """Return the names of a run's whole checkpoints, oldest first."""
    return sorted(path.name for path in checkpoints_of(run_dir).glob("update-*") if kind_of(path.name))


def list_validated(run_dir: Path) -> list[Path]:
    """Return a run's checkpoints of kind "validated", oldest first.

    Not those of kind "average": the mean of checkpoints must not count itself among them.
    """
    names = [name for name in list_checkpoints(run_dir) if kind_of(name) == "validated"]
    return [checkpoints_of(run_dir) / name for name in names]


def name_copy(name: str, life: int) -> str:
    """Return a checkpoint's name in a backup that still holds another of that name: `update-7.1`."""
    return f"{name}.{life}" if life else name


def name_original(copy_name: str) -> str:
    """Return the name a checkpoint had before `name_copy`."""
    return copy_name.partition(".")[0]
