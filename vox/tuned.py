"""What `vox tune` found out about a checkpoint: the decoder, the weights and the temperature that suit it.

`tuned.json` lies in the checkpoint's folder, since weights of one checkpoint say nothing about another. It
has an entry without a language model and one for each model that was tuned with, by the file's sha256.
"""

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from vox.disk import hash_file, write_whole
from vox.errors import CheckpointError

TUNED = "tuned.json"
FORMAT = 1


@dataclass(frozen=True)
class Tuned:
    """Settings that a dev split chose.

    decoder: the one with the lowest WER on that split. beam, ctc_weight, length_bonus, lm_weight: as in
    SearchOptions and `--lm-weight`. temperature: of confidences (`vox.decode.confidence`).
    split: the dev split. wer: on it, by decoder, as fractions.
    """

    decoder: str
    beam: int
    ctc_weight: float
    length_bonus: float
    lm_weight: float
    temperature: float
    split: str
    wer: dict[str, float]


def read_tuned(checkpoint: Path, lm: Path | str | None) -> Tuned | None:
    """Return what was tuned for a checkpoint with this language model (None: without); None if nothing was.

    Raises CheckpointError for a file that cannot be read, and OSError for a language model that cannot.
    """
    entries = _read_entries(checkpoint / TUNED)
    return entries.get(_key(lm)) if entries else None  # a language model may be large: hash it for a reason


def write_tuned(checkpoint: Path, lm: Path | str | None, tuned: Tuned) -> Path:
    """Write an entry, and keep the others; return the file. Raises OSError, and CheckpointError as above."""
    path = checkpoint / TUNED
    entries = _read_entries(path) | {_key(lm): tuned}
    content = {"format": FORMAT, "entries": {key: asdict(entry) for key, entry in entries.items()}}
    write_whole(path, (json.dumps(content, indent=1) + "\n").encode())
    return path


def _key(lm: Path | str | None) -> str:
    return "without a language model" if lm is None else hash_file(Path(lm))


def _read_entries(path: Path) -> dict[str, Tuned]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] > FORMAT:
            raise CheckpointError("tuned by a newer Vox", where=path, remedy="update Vox, or tune again")
        return {key: _read_entry(entry) for key, entry in content["entries"].items()}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError):
        remedy = "delete it and run `vox tune` again"
        raise CheckpointError("a damaged file of tuned weights", where=path, remedy=remedy) from None


def _read_entry(entry: dict[str, Any]) -> Tuned:
    tuned = Tuned(**{field.name: entry[field.name] for field in fields(Tuned)})
    weights = (tuned.ctc_weight, tuned.length_bonus, tuned.lm_weight, tuned.temperature)
    if not isinstance(tuned.beam, int) or not isinstance(tuned.decoder, str) or tuned.temperature <= 0:
        raise ValueError("not what vox tune writes")
    if not all(math.isfinite(weight) for weight in weights):
        raise ValueError("a weight that is no number")
    return tuned
