"""A tiny cache of made-up features, and damage to a file."""

from pathlib import Path

import numpy as np

from vox.features.cache import FeatureCache, cache_dir, open_cache
from vox.features.fingerprint import Fingerprint
from vox.features.plan import CachePlan, ShardPlan, hash_utterances, utterances_to_jsonl, write_plan
from vox.features.stamps import Recorded, Stamp, write_stamps
from vox.features.writer import ShardWriter
from vox.units import samples_to_frames

SPLIT = "dev-small"
FINGERPRINT = Fingerprint("ab" * 32, (3, 4), {"sample_rate": "16000", "do_normalize": "false"})
FEATURE_DIM = 4
SKIPPED = "utt-3"


def make_features(name: str, num_samples: int) -> np.ndarray:
    """Make the float16 features of an utterance from its name."""
    seed = int(name.removeprefix("utt-"))
    shape = (samples_to_frames(num_samples), FEATURE_DIM)
    return np.random.default_rng(seed).standard_normal(shape).astype("<f2")


def write_cache(features_dir: Path, fingerprint: Fingerprint = FINGERPRINT) -> Path:
    """Write a cache of six utterances in three shards, one utterance skipped; return its folder."""
    folder = cache_dir(features_dir, SPLIT, fingerprint)
    lengths = {f"utt-{number}": 2_000 + 640 * number for number in range(6)}
    groups = [dict(list(lengths.items())[start : start + 2]) for start in (0, 2, 4)]
    shards = []
    for number, group in enumerate(groups):
        counts = [samples_to_frames(length) for length in group.values()]
        digest = hash_utterances(list(group), list(group.values()))
        shards.append(ShardPlan(f"shard-{number:05d}.h5", len(group), sum(counts), digest))
    digest = hash_utterances(list(lengths), list(lengths.values()))
    num_samples = sum(lengths.values())
    plan = CachePlan(SPLIT, fingerprint, "a/wavlm", FEATURE_DIM, num_samples, digest, tuple(shards))
    folder.mkdir(parents=True)
    recorded = {name: Recorded(Stamp(f"{name}.flac", 5, 6), length) for name, length in lengths.items()}
    write_stamps(folder, recorded)
    write_plan(folder, plan, utterances_to_jsonl(list(lengths), list(lengths.values())))
    for shard, group in zip(shards, groups, strict=True):
        writer = ShardWriter(
            folder / shard.name,
            ids=list(group),
            num_samples=list(group.values()),
            num_frames=[samples_to_frames(length) for length in group.values()],
            feature_dim=FEATURE_DIM,
            fingerprint=fingerprint,
            notes={},
        )
        for row, (name, length) in enumerate(group.items()):
            if name == SKIPPED:
                writer.skip(row, "cannot be decoded")
            else:
                writer.write(row, make_features(name, length))
        writer.finish()
    return folder


def open_here(folder: Path, fingerprint: Fingerprint = FINGERPRINT) -> FeatureCache:
    """Open the cache in a folder."""
    return open_cache(folder.parent.parent, SPLIT, fingerprint)


def flip_byte(path: Path, position: int, bits: int = 1) -> None:
    """Change some bits of one byte of a file; the same call again restores it."""
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ bits]))
