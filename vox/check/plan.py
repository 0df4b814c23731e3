"""How long a corpus of a given size will take on this machine, and what it will cost."""

from dataclasses import dataclass

from vox.check.results import Findings
from vox.features.shard import FEATURE_BYTES
from vox.units import FRAME_RATE

SECONDS_PER_HOUR = 3600
WEIGHT_BYTES = 4
OPTIMIZER_WEIGHTS = 2  # kept for each that learns: AdamW's two moments
CHECKPOINTS_KEPT = 3  # of each stage: best, last, and the one before it


# What an epoch from the cache waits for, and the rate of each.
CACHED_RATES = {"updates": "stage1_cached", "the disk": "read_disk"}

Times = dict[str, float | None]  # seconds that each of several things takes; None is not known


@dataclass(frozen=True)
class Training:
    """What the plan needs to know of training."""

    stage1_epochs: int
    stage1_most_seconds: float | None  # of audio, where updates are limited
    stage2_epochs: int
    feature_dim: int
    num_weights: int
    num_learning: int  # in stage 2, where most learn
    workers: int  # processes that decode audio in stage 2


@dataclass(frozen=True)
class PlanRow:
    """One part of the work."""

    part: str
    hours: float
    disk_gb: float
    limit: str = ""  # what its time depends on


@dataclass(frozen=True)
class Plan:
    """The whole work for a corpus."""

    corpus_hours: float
    rows: tuple[PlanRow, ...]
    price: float | None  # of an hour

    @property
    def hours(self) -> float:
        """Return the hours of all parts, one after the other."""
        return sum(row.hours for row in self.rows)

    @property
    def disk_gb(self) -> float:
        """Return the room that all parts take."""
        return sum(row.disk_gb for row in self.rows)

    @property
    def cost(self) -> float | None:
        """Return what the hours cost, in the currency of the price."""
        return None if self.price is None else self.price * self.hours


def make_plan(
    findings: Findings, training: Training, corpus_hours: float, workers: int, price: float | None = None
) -> Plan | None:
    """Compute a corpus's times from the measured rates; None if a rate that is needed was not measured.

    workers: processes that decode audio in phase 1. Each part takes as long as the slowest of what runs side
    by side in it. Validation, saving and starting are not counted.
    """
    seconds = corpus_hours * SECONDS_PER_HOUR
    cache_bytes = seconds * FRAME_RATE * training.feature_dim * FEATURE_BYTES
    checkpoint = WEIGHT_BYTES * (training.num_weights + OPTIMIZER_WEIGHTS * training.num_learning) / 1e9
    stage1: float = training.stage1_epochs
    if training.stage1_most_seconds is not None:
        stage1 = min(stage1, training.stage1_most_seconds / seconds)
    stage2 = training.stage2_epochs

    def decode(workers: int) -> Times:
        return {f"{workers} decoding workers": _divide(seconds / max(1, workers), findings, "decode_audio")}

    written = {"the disk": _divide(cache_bytes / 1e6, findings, "write_disk")}
    # Where lengths that were not met before are slower, many are.
    extraction = _divide(seconds, findings, "extraction_new") or _divide(seconds, findings, "extraction")
    features = {"WavLM": extraction} | decode(workers) | written
    cached = {key: _divide(seconds, findings, rate) for key, rate in CACHED_RATES.items()}
    live = {"updates": _divide(seconds, findings, "stage2_live")} | decode(training.workers)
    kept = CHECKPOINTS_KEPT * checkpoint
    rows = [
        _make_row("precompute", features, 1, cache_bytes / 1e9),
        _make_row(f"stage 1 from the cache, {stage1:.3g} epochs", cached, stage1, kept),
        _make_row(f"stage 2 from audio, {stage2} epochs", live, stage2, kept),
    ]
    complete = [row for row in rows if row is not None]
    return Plan(corpus_hours, tuple(complete), price) if len(complete) == len(rows) else None


def _make_row(part: str, times: Times, repeats: float, disk_gb: float) -> PlanRow | None:
    """Take the slowest of what runs side by side; None where one of them is unknown."""
    known = {what: time for what, time in times.items() if time is not None}
    if len(known) < len(times):
        return None
    limit = max(known, key=known.__getitem__)
    return PlanRow(part, repeats * known[limit] / SECONDS_PER_HOUR, disk_gb, limit)


def _divide(amount: float, findings: Findings, key: str) -> float | None:
    rate = findings.value(key)
    return None if not rate else amount / rate
