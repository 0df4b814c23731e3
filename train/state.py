"""The moving parts of a run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from train.build import Parts
from train.meter import Meter
from train.progress import Progress
from train.ranks import Ranks
from train.record.backup import Backup
from train.record.checkpoint_writer import CheckpointWriter
from train.record.heartbeat import Heartbeat
from train.record.metrics import MetricsLog
from train.signals import Signals
from train.update.ema import Ema
from train.update.l2_sp import L2Sp
from vox.runs.layout import checkpoints_of


@dataclass
class Run:
    """The moving parts of one stage, as one rank has them."""

    parts: Parts
    run_dir: Path
    device: torch.device
    precision: torch.dtype
    ranks: Ranks
    total_updates: int
    losses: torch.nn.Module  # what an update calls; adds gradients up over ranks
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    progress: Progress
    metrics: MetricsLog | None  # of the first rank only, as is the backup
    heartbeat: Heartbeat
    signals: Signals
    writer: CheckpointWriter
    meter: Meter
    ema: Ema | None = None
    l2_sp: L2Sp | None = None  # stage 3
    backup: Backup | None = None

    @property
    def checkpoints_dir(self) -> Path:
        """Where checkpoint folders are."""
        return checkpoints_of(self.run_dir)

    def write(self, kind: str, update: int, values: dict[str, Any]) -> None:
        """Write one event to the metrics, on the first rank."""
        if self.metrics is not None:
            self.metrics.write(kind, update, values)

    def write_text(self, name: str, update: int, text: str) -> None:
        """Write a text to TensorBoard, on the first rank."""
        if self.metrics is not None:
            self.metrics.write_text(name, update, text)
