"""The results of updates: read when they are needed, summed up, and written as lines of metrics.

The host does not wait for the device at each update: results stay there until a line or a checkpoint needs
them.
"""

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from tqdm import tqdm

from train.progress import Progress
from train.record.heartbeat import Heartbeat, measure_gpu
from train.record.metrics import MetricsLog
from train.splits import TrainingSplit
from train.update.step import UpdateResult
from vox.data.concatenate import RowUpdate, count_in_rows
from vox.device import peak_memory_gb
from vox.errors import TrainingError, name_first
from vox.progress import format_duration
from vox.units import FRAME_RATE

log = logging.getLogger(__name__)

LINE_SECONDS = 15.0  # between progress lines where there is no terminal

# Updates in a row whose gradient is not finite, after which training stops. More than float16's search for a
# scale can take: each halves the loss scale, and 50 bring it from 2^16 to 2^-34.
MAX_SKIPPED_IN_A_ROW = 50


@dataclass
class Meter:
    """Counts updates into the run's progress, and writes the metric lines.

    Sums that a resumed run continues are in `progress.window`; times are of this process only.
    """

    progress: Progress
    split: TrainingSplit
    metrics: MetricsLog | None  # of the first rank only
    heartbeat: Heartbeat
    device: torch.device
    run_dir: Path
    total_updates: int
    is_scaled: bool  # float16: the loss is scaled, and an overflow lowers the scale
    _unread: list[tuple[int, RowUpdate, float, UpdateResult]] = field(default_factory=list)
    _window_start: float = 0.0  # of the line under way, on the monotonic clock
    _last_line: float = 0.0  # when progress was last logged, on the same
    _timed_updates: int = 0  # of the line under way
    _timed_frames: int = 0

    def start(self) -> None:
        """Begin to measure rates."""
        self._window_start = time.monotonic()

    def add(self, update: RowUpdate, learning_rate: float, result: UpdateResult) -> None:
        """Note an update that is under way; call it when progress has counted the update."""
        self._unread.append((self.progress.update, update, learning_rate, result))

    def read(self) -> None:
        """Wait for the updates under way; add them to the next metric line, or count them as skipped.

        Raises TrainingError after too many updates in a row with a gradient that is not finite.
        """
        progress = self.progress
        results, self._unread = self._unread, []
        for number, update, learning_rate, result in results:
            figures = result.read()
            if figures.num_targets == 0:
                progress.unread_updates += 1
                log.warning("update %d skipped: none of its recordings could be read", number)
            elif not figures.is_finite:
                self._count_skipped(number, update)
            else:
                progress.skipped_in_a_row = 0
                window = progress.window
                for name in ("ctc", "attention", "loss", "grad_norm", "num_frames"):
                    if (value := getattr(figures, name)) is not None:
                        window[name] = window.get(name, 0.0) + value
                window["count"] = window.get("count", 0) + 1
                window["learning_rate"] = learning_rate
                if result.ctc_weight is not None:
                    window["ctc_weight"] = result.ctc_weight
                self._timed_updates += 1
                self._timed_frames += figures.num_frames

    def write_line(self, bar: "tqdm[NoReturn]") -> None:
        """Write the means since the last metric line, if there are any, and start the next."""
        self.read()
        progress, now = self.progress, time.monotonic()
        seconds, self._window_start = now - self._window_start, now
        window, progress.window = progress.window, {}
        timed_updates, timed_frames = self._timed_updates, self._timed_frames
        self._timed_updates = self._timed_frames = 0
        if not window:
            return
        count = window["count"]
        means = ("ctc", "attention", "loss", "grad_norm")
        values = {name: window[name] / count for name in means if name in window}
        values |= {name: window[name] for name in ("learning_rate", "ctc_weight") if name in window}
        timing = {
            "epoch": progress.epoch,
            "updates_per_second": timed_updates / seconds,
            "audio_seconds_per_second": timed_frames / FRAME_RATE / seconds,
            "peak_memory_gb": peak_memory_gb(self.device),
            "skipped_updates": progress.skipped_updates,
            "unread_updates": progress.unread_updates,
        }
        gpu = measure_gpu(self.device) or {}
        timing |= {f"gpu_{name}": value for name, value in gpu.items() if value is not None}
        self._write("train", progress.update, values | timing)
        self.heartbeat.beat(updates_per_second=timing["updates_per_second"])
        self._show(values | timing, bar)

    def _write(self, kind: str, update: int, values: dict[str, Any]) -> None:
        if self.metrics is not None:
            self.metrics.write(kind, update, values)

    def _count_skipped(self, number: int, update: RowUpdate) -> None:
        """Record an update whose gradient is not finite; raise TrainingError after too many in a row."""
        progress = self.progress
        progress.skipped_updates += 1
        progress.skipped_in_a_row += 1
        ids = [self.split.ids[position] for position in count_in_rows(update)[0]]
        self._write("skipped", number, {"ids": ids})
        limit = MAX_SKIPPED_IN_A_ROW
        if self.is_scaled:
            log.info("update %d skipped: float16 overflowed, and the loss is scaled less now", number)
        else:
            log.warning("update %d skipped: non-finite gradient; utterance ids are in metrics.jsonl", number)
            limit = min(
                limit, self.total_updates
            )  # a short run of which every update is skipped fails as well
        if progress.skipped_in_a_row >= limit:
            raise TrainingError(
                f"{limit} updates in a row, up to update {number}, had a non-finite gradient (utterances of "
                f"the last: {name_first(ids)}; the others are in metrics.jsonl)",
                where=self.run_dir,
                remedy="check the recordings or their cache (vox cache verify), then go on with --resume; if "
                "they are sound, start another run with a lower optimizer.learning_rate or "
                "train.precision=fp32",
            )

    def _show(self, values: dict[str, Any], bar: "tqdm[NoReturn]") -> None:
        """Show the newest figures beside the bar on a terminal; elsewhere log them now and then."""
        progress, now = self.progress, time.monotonic()
        if not bar.disable:
            bar.set_postfix_str(f"loss {values['loss']:.3f}")
        if not bar.disable or now - self._last_line < LINE_SECONDS or not values["updates_per_second"]:
            return
        self._last_line = now
        left = (self.total_updates - progress.update) / values["updates_per_second"]
        log.info(
            "update %d of %d: loss %.4f (%sattention %.4f a label), gradient %.2f, %.2f/s, %s left",
            progress.update,
            self.total_updates,
            values["loss"],
            f"CTC {values['ctc']:.4f}, " if "ctc" in values else "",
            values["attention"],
            values["grad_norm"],
            values["updates_per_second"],
            format_duration(left),
        )
