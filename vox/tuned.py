"""The settings that `vox tune` chose for a checkpoint: decoder, weights and temperature.

`tuned.json` is in the checkpoint's folder, because weights of one checkpoint do not fit another. It has one
entry without a language model and one for each language model, keyed by the file's sha256.
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
    """Settings chosen on a dev split.

    decoder: the one with the lowest WER on that split. beam, ctc_weight, length_bonus, lm_weight: as in
    SearchOptions and `--lm-weight`. temperature: of confidences (`vox.decode.confidence`).
    split: the dev split. wer: WERs on it by decoder, as fractions.
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
    """Return the entry of a checkpoint for this language model (None: without one); None if there is none.

    Raises CheckpointError if tuned.json cannot be read, and OSError if the language model cannot.
    """
    entries = _read_entries(checkpoint / TUNED)
    return entries.get(_key(lm)) if entries else None  # a language model may be large: hash it only if needed


def write_tuned(checkpoint: Path, lm: Path | str | None, tuned: Tuned) -> Path:
    """Write an entry and keep the others; return the file. Raises OSError, and as `read_tuned`."""
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
        return {key: read_entry(entry) for key, entry in content["entries"].items()}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError):
        remedy = "delete it and run `vox tune` again"
        raise CheckpointError("a damaged file of tuned weights", where=path, remedy=remedy) from None


def read_entry(entry: dict[str, Any]) -> Tuned:
    """Return the settings of a JSON object; raise ValueError, KeyError or TypeError for anything else."""
    tuned = Tuned(**{field.name: entry[field.name] for field in fields(Tuned)})
    weights = (tuned.ctc_weight, tuned.length_bonus, tuned.lm_weight, tuned.temperature)
    if not isinstance(tuned.beam, int) or not isinstance(tuned.decoder, str) or tuned.temperature <= 0:
        raise ValueError("not what vox tune writes")
    if not all(math.isfinite(weight) for weight in weights):
        raise ValueError("a weight that is not a finite number")
    return tuned
