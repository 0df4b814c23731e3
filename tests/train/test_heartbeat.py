"""The heartbeat of a run: its content, timing and end, and that it never stops training."""

import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.support.training import read_metrics, stage1_options
from train.record.heartbeat import Heartbeat
from train.run import run_training
from vox.errors import AudioError
from vox.runs.layout import ALIVE
from vox.runs.liveness import judge_liveness, read_process_start


class Signalled(Exception):  # noqa: N818 - stands for the loop's event
    """The exception that the loop raises when it is asked to stop."""


def read_alive(run: Path) -> dict:
    return json.loads((run / ALIVE).read_text())


def wait_until(is_so: Callable[[], bool], seconds: float = 5.0) -> None:
    """Wait for another thread; fail after a while."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)


def test_it_says_which_process_trains_and_how_far_it_is(tmp_path):
    run, before = tmp_path / "runs" / "new", time.time()
    with Heartbeat(run, world_size=4, every_seconds=600) as heartbeat:
        first = read_alive(run)
        heartbeat.beat(state="training", update=7, epoch=2)
        wait_until(lambda: read_alive(run)["state"] == "training")  # at once, not in ten minutes
        second = read_alive(run)
        with heartbeat.during("saving"):
            wait_until(lambda: read_alive(run)["state"] == "saving")
        wait_until(lambda: read_alive(run)["state"] == "training")
        assert judge_liveness(read_alive(run), time.time() + 1e6) == "alive"
    assert first["state"] == "starting"
    assert (first["pid"], first["process_start"]) == (os.getpid(), read_process_start(os.getpid()))
    assert (first["world_size"], first["device"], first["gpu"]) == (4, "cpu", None)
    assert before <= first["started"] <= first["written"] <= second["heard"] <= second["written"]
    assert (second["update"], second["epoch"]) == (7, 2)
    last = read_alive(run)
    assert (last["state"], last["update"]) == ("done", 7)
    assert [path.name for path in run.iterdir()] == [ALIVE]  # nothing half-written is left


def test_it_is_rewritten_while_the_loop_says_nothing(tmp_path):
    with Heartbeat(tmp_path, every_seconds=0.02) as heartbeat:
        heartbeat.beat(update=3)
        wait_until(lambda: read_alive(tmp_path).get("update") == 3)
        heard, written = (read_alive(tmp_path)[key] for key in ("heard", "written"))
        wait_until(lambda: read_alive(tmp_path)["written"] > written)
        assert read_alive(tmp_path)["heard"] == heard  # a loop that hangs is not hidden by the thread


@pytest.mark.parametrize(
    ("error", "state", "line"),
    [
        (AudioError("no audio", where="x.flac"), "failed", "no audio: x.flac"),
        (RuntimeError("two\nlines"), "failed", "RuntimeError: two"),
        (Signalled(), "interrupted", None),
        (KeyboardInterrupt(), "interrupted", None),
    ],
    ids=repr,
)
def test_it_ends_with_how_the_run_ended(error, state, line, tmp_path):
    for index in range(50):  # the thread may be writing the state before at this very moment
        with (
            pytest.raises(type(error)),
            Heartbeat(tmp_path, interruptions=(Signalled, KeyboardInterrupt), every_seconds=600) as heartbeat,
        ):
            heartbeat.beat(state="training")
            time.sleep(index * 1e-5)
            raise error
        assert (read_alive(tmp_path)["state"], read_alive(tmp_path)["error"]) == (state, line)


def test_a_deleted_folder_is_said_once_and_stops_nothing(tmp_path, caplog):
    run = tmp_path / "run"
    with caplog.at_level(logging.WARNING), Heartbeat(run, every_seconds=0.01) as heartbeat:
        shutil.rmtree(run)
        wait_until(lambda: bool(caplog.records))
        for state in ("training", "saving", "training"):
            heartbeat.beat(state=state, figure=torch.zeros(1))  # no JSON either
            time.sleep(0.02)
        assert not run.exists()
        run.mkdir()
        heartbeat.beat(figure=None)
        wait_until((run / ALIVE).exists)  # a disk that was full may have room again
    assert len(caplog.records) == 1
    assert read_alive(run)["state"] == "done"


def test_other_ranks_write_nothing_and_need_no_other_code(tmp_path):
    with Heartbeat(tmp_path / "run", is_enabled=False) as heartbeat:
        heartbeat.beat(state="training", update=1)
    assert not (tmp_path / "run").exists()


def test_a_beat_takes_no_time(tmp_path):
    with Heartbeat(tmp_path) as heartbeat:
        started = time.perf_counter()
        for update in range(1000):
            heartbeat.beat(state="training", update=update, epoch=1, updates_per_second=3.5)
        assert time.perf_counter() - started < 1.0  # 1 ms each; 2 us measured


def test_a_gpu_s_figures_reach_the_metrics(tiny_root, tiny_wavlm_dir, tmp_path, monkeypatch):
    def measure(device):
        return {"memory_gb": 1.5, "utilization": 97.0, "temperature": None}  # a driver that does not tell

    monkeypatch.setattr("train.meter.measure_gpu", measure)
    options = stage1_options(tiny_root, tiny_wavlm_dir, tmp_path / "run", overrides=("train.max_updates=1",))
    run_training(options)
    (line,) = (row for row in read_metrics(options.run_dir) if row["kind"] == "train")
    assert (line["gpu_memory_gb"], line["gpu_utilization"]) == (1.5, 97.0)
    assert "gpu_temperature" not in line
