"""Which WavLM a folder's files hold, remembered: a run with nothing to do need not read the weights for it.

`models.json` lies beside the splits in the features folder. An entry is valid while no file of the model's
folder has changed. It only answers whether there is work; fingerprints always come from the loaded weights.
Without it, or with one that is damaged, a run is slower by what
loading WavLM takes.
"""

import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import vox
from vox.disk import add_checksum, remove_leftovers, strip_checksum, write_whole
from vox.features.fingerprint import CONFIG_KEYS, ModelIdentity
from vox.wavlm.files import FileStamp, stamp_files

MODELS_NAME = "models.json"
MAX_MODELS = 32
# A file changed twice within a tick of the file system's clock looks as if once: too young is not
# remembered, nor is a time in whole seconds (of a read-only image, where it may have been set by hand).
MIN_AGE_SECONDS = 2.0
NS = 1_000_000_000


def recall_model(features_dir: Path, folder: Path) -> ModelIdentity | None:
    """Return what the WavLM of a folder was when it was last loaded; None where a file may have changed."""
    stamps = stamp_files(folder)
    if stamps is None:
        return None
    origin = _describe_origin(folder, stamps)
    return next((model for known, model in _read_entries(features_dir) if known == origin), None)


def remember_model(
    features_dir: Path, folder: Path, stamps: Sequence[FileStamp], model: ModelIdentity
) -> None:
    """Keep what the WavLM of a folder is, from which `stamps` were taken before it was loaded.

    Does nothing where a file is so young, or its time so coarse, that a change could go unseen, or where
    nothing can be written.
    """
    times = [changed_ns for *_, changed_ns in stamps]
    if time.time_ns() - max(times) < MIN_AGE_SECONDS * NS or any(each % NS == 0 for each in times):
        return
    origin = _describe_origin(folder, stamps)
    entries = _read_entries(features_dir)
    if (origin, model) in entries:
        return
    others = [entry for entry in entries if entry[0].get("folder") != origin["folder"]]
    kept = [*others[1 - MAX_MODELS :], (origin, model)]
    rows = [{"origin": known, "model": asdict(identity)} for known, identity in kept]
    with contextlib.suppress(OSError):
        features_dir.mkdir(parents=True, exist_ok=True)
        remove_leftovers(features_dir)
        write_whole(features_dir / MODELS_NAME, add_checksum(json.dumps(rows, indent=1).encode()))


def _describe_origin(folder: Path, stamps: Sequence[FileStamp]) -> dict[str, Any]:
    """Write down all that an identity follows from, as JSON gives it back."""
    return {
        "folder": str(folder.resolve()),
        "files": [list(stamp) for stamp in stamps],
        # What reads the files, and what of the configuration is described.
        "vox": vox.__version__,
        "transformers": version("transformers"),
        "config_keys": list(CONFIG_KEYS),
    }


def _read_entries(features_dir: Path) -> list[tuple[dict[str, Any], ModelIdentity]]:
    """Read all that is remembered, oldest first: nothing from a file that is damaged or another Vox's."""
    try:
        content = strip_checksum((features_dir / MODELS_NAME).read_bytes())
        rows = [] if content is None else json.loads(content)
        return [(dict(row["origin"]), _to_model(row["model"])) for row in rows]
    except (OSError, KeyError, TypeError, ValueError, RecursionError):
        return []


def _to_model(values: dict[str, Any]) -> ModelIdentity:
    return ModelIdentity(
        weights_sha256=str(values["weights_sha256"]),
        do_normalize=bool(values["do_normalize"]),
        config=str(values["config"]),
        hidden_size=int(values["hidden_size"]),
        num_layers=int(values["num_layers"]),
    )
