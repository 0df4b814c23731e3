"""What a cache is to hold: `plan.json` and `utterances.jsonl`, written before its first shard.

From them a missing shard is noticed, and a corpus that has changed since. The utterances stand in a file
of their own, since they are read only to say what changed; `plan.json` holds their checksums.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from json.encoder import encode_basestring_ascii
from pathlib import Path
from typing import Any

from vox.disk import write_whole
from vox.errors import CacheError
from vox.features.fingerprint import FORMAT_VERSION, Fingerprint

PLAN_NAME = "plan.json"
UTTERANCES_NAME = "utterances.jsonl"


@dataclass(frozen=True)
class ShardPlan:
    """One shard as planned."""

    name: str
    num_utterances: int
    num_frames: int
    utterances_sha256: str  # of ids and num_samples, see hash_utterances
    retired: tuple[str, ...] = ()  # ids in the file that the split no longer has, or has in a later shard

    @property
    def num_live(self) -> int:
        """Count the utterances without the retired ones."""
        return self.num_utterances - len(self.retired)


@dataclass(frozen=True)
class CachePlan:
    """A whole cache as planned."""

    split: str
    fingerprint: Fingerprint
    wavlm: str  # the name or folder that the weights came from; for people, compared with nothing
    feature_dim: int
    num_samples: int  # of all utterances together, at 16 kHz
    utterances_sha256: str  # without the retired ones, in the order of the shards
    shards: tuple[ShardPlan, ...]

    @property
    def num_frames(self) -> int:
        """Count the frames of all shards."""
        return sum(shard.num_frames for shard in self.shards)

    @property
    def title(self) -> str:
        """Name the split, and the speed where it is not the recordings' own."""
        speed = self.fingerprint.speed
        return self.split if speed == 1 else f"{self.split} at speed {speed}"

    def to_json(self) -> str:
        """Write the plan as JSON that carries its own sha256."""
        tree = asdict(self) | {"fingerprint": self.fingerprint.to_dict(), "format_version": FORMAT_VERSION}
        for shard in tree["shards"]:
            if not shard["retired"]:  # as written before shards could have any
                del shard["retired"]
        return json.dumps(tree | {"sha256": _hash_tree(tree)}, indent=1, sort_keys=True) + "\n"


def hash_utterances(ids: Sequence[str], num_samples: Sequence[int]) -> str:
    """Hash utterances and their lengths, in order."""
    return hashlib.sha256(utterances_to_jsonl(ids, num_samples).encode()).hexdigest()


def utterances_to_jsonl(ids: Sequence[str], num_samples: Sequence[int]) -> str:
    """Write one line an utterance: its id and its length in samples."""
    pairs = zip(map(encode_basestring_ascii, ids), num_samples, strict=True)
    return "".join([f"[{name}, {int(length)}]\n" for name, length in pairs])


def write_plan(folder: Path, plan: CachePlan, utterances: str) -> None:
    """Put a plan and its utterances into a folder; several ranks may do so at once."""
    folder.mkdir(parents=True, exist_ok=True)
    # The plan last: where it is, the utterances are too.
    write_whole(folder / UTTERANCES_NAME, utterances.encode())
    write_whole(folder / PLAN_NAME, plan.to_json().encode())


def read_plan(folder: Path) -> CachePlan | None:
    """Read the plan of a cache; None when there is none.

    Raises CacheError when it is damaged, or of a format version that this Vox does not read.
    """
    path = folder / PLAN_NAME
    try:
        text = path.read_bytes().decode()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except UnicodeDecodeError:
        raise _damaged_plan(path) from None
    try:
        tree = json.loads(text)
        version = tree["format_version"]
        if isinstance(version, int) and version != FORMAT_VERSION:
            raise CacheError(
                f"cache of format version {version}, this Vox reads {FORMAT_VERSION}",
                where=folder,
                remedy="run vox precompute again with this Vox, or delete this folder",
            )
        plan = _tree_to_plan(tree)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        raise _damaged_plan(path) from None
    if plan.to_json() != text:  # whatever was changed, the checksum within it included
        raise _damaged_plan(path)
    return plan


def read_utterances(folder: Path, plan: CachePlan) -> dict[str, int]:
    """Read the planned utterances and their lengths in samples; raise CacheError when damaged."""
    path = folder / UTTERANCES_NAME
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        content = b""
    if hashlib.sha256(content).hexdigest() != plan.utterances_sha256:
        raise CacheError(
            "the list of a cache's utterances is damaged",
            where=path,
            remedy="run vox precompute again: it writes this file again",
        )
    return dict(parse_lines(content))


def parse_lines(content: bytes) -> list[Any]:
    """Parse JSON lines at once: three times as fast as line by line. Raises ValueError."""
    rows: list[Any] = json.loads(b"[" + b",".join(content.splitlines()) + b"]")
    return rows


def _tree_to_plan(tree: dict[str, Any]) -> CachePlan:
    return CachePlan(
        split=str(tree["split"]),
        fingerprint=Fingerprint.from_dict(tree["fingerprint"]),
        wavlm=str(tree["wavlm"]),
        feature_dim=int(tree["feature_dim"]),
        num_samples=int(tree["num_samples"]),
        utterances_sha256=str(tree["utterances_sha256"]),
        shards=tuple(
            ShardPlan(**shard | {"retired": tuple(shard.get("retired", ()))}) for shard in tree["shards"]
        ),
    )


def _hash_tree(tree: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def _damaged_plan(path: Path) -> CacheError:
    return CacheError(
        "the plan of a cache is damaged",
        where=path,
        remedy="run vox precompute --rebuild, or delete this folder",
    )
