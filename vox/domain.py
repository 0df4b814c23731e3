"""Domains: folders made by `vox adapt` from text alone, to use with a recogniser.

    lm.arpa       an n-gram model over the recogniser's pieces
    hotwords.txt  words to prefer; a person may edit it
    weights.json  the search, its weights, and what they were made for
    report.md     how all this was made, and what it does on the dev splits

A domain fits any checkpoint with the same tokenizer, so also its own checkpoint after more training. But
weights tuned on one checkpoint may make another worse.
"""

import json
import logging
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vox.disk import hash_file, write_whole
from vox.errors import DomainError
from vox.runs.layout import CHECKSUMS, MODEL, TOKENIZER
from vox.tuned import Tuned, read_entry

log = logging.getLogger(__name__)

LM, HOTWORDS, WEIGHTS, REPORT = "lm.arpa", "hotwords.txt", "weights.json", "report.md"
FORMAT = 1


@dataclass(frozen=True)
class Domain:
    """The content of weights.json.

    tuned: the search and its weights; its `split` is empty and its `wer` too where no dev split was given.
    hotword_weight: as `--hotword-weight`. tokenizer_sha256, model_sha256: of files in the checkpoint.
    """

    tuned: Tuned
    hotword_weight: float
    tokenizer_sha256: str
    model_sha256: str


def write_weights(folder: Path, domain: Domain) -> Path:
    """Write weights.json and return it. Raises OSError."""
    content = {"format": FORMAT, **asdict(domain)}
    write_whole(folder / WEIGHTS, (json.dumps(content, indent=1) + "\n").encode())
    return folder / WEIGHTS


def read_domain(folder: Path | str, checkpoint: Path) -> Domain:
    """Read a domain's weights for a checkpoint; warn if they were tuned on another one.

    Raises DomainError if the folder is not a domain, is damaged or incomplete, or was made for another
    tokenizer. Its language model and hotwords are read by those who need them.
    """
    folder = Path(folder)
    for name in (WEIGHTS, LM, HOTWORDS):
        if not (folder / name).is_file():
            raise DomainError(
                f"not a domain: it has no {name}", where=folder, remedy="make it with `vox adapt`"
            )
    path = folder / WEIGHTS
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] > FORMAT:
            raise DomainError("a domain of a newer Vox", where=path, remedy="update Vox, or make it again")
        domain = _parse(content)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DomainError("damaged weights of a domain", where=path, remedy="make the domain again") from None
    tokenizer = checkpoint / TOKENIZER
    if tokenizer.is_file() and hash_file(tokenizer) != domain.tokenizer_sha256:
        raise DomainError(
            "a domain made for another tokenizer",
            where=folder,
            remedy=f"make one with `vox adapt --checkpoint {checkpoint}`",
        )
    if domain.tuned.split and read_model_sha256(checkpoint) != domain.model_sha256:
        log.warning(
            "%s: its weights were tuned on another checkpoint and may not suit this one; make it again with "
            "`vox adapt`",
            folder,
        )
    return domain


def read_model_sha256(checkpoint: Path) -> str:
    """Return the hash of a checkpoint's model from its checksums; "" if it has none."""
    try:
        checksums = json.loads((checkpoint / CHECKSUMS).read_text(encoding="utf-8"))
        return str(checksums[MODEL])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _parse(content: dict[str, Any]) -> Domain:
    weight = content["hotword_weight"]
    hashes = [content["tokenizer_sha256"], content["model_sha256"]]
    if not all(isinstance(each, str) for each in hashes) or not math.isfinite(weight):
        raise ValueError("not what vox adapt writes")
    return Domain(read_entry(content["tuned"]), float(weight), *hashes)
