"""`vox status` and `vox dashboard`: the state of a run from its folder, in any state of the folder."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.training import stage1_options
from train.run import run_training
from vox.cli import main
from vox.commands.dashboard import tensorboard_command
from vox.runs.layout import ALIVE, BACKUP, METRICS, OPTIONS
from vox.runs.liveness import identify_machine, read_process_start
from vox.runs.status import RunStatus, find_runs, read_status

CHECKOUT = Path(__file__).resolve().parents[2]
NOW = 1_750_000_000.0
TRAIN = {
    "kind": "train",
    "update": 40,
    "ctc": 2.5,
    "attention": 1.25,
    "loss": 1.625,
    "grad_norm": 0.75,
    "learning_rate": 3e-5,
    "epoch": 1,
    "updates_per_second": 2.0,
    "audio_seconds_per_second": 400.0,
    "peak_memory_gb": 5.5,
    "skipped_updates": 3,
    "unread_updates": 1,
}


def dev_event(update: int, wer: float, *, is_best: bool, kind: str = "dev") -> dict:
    return {
        "kind": kind,
        "update": update,
        "epoch": 1,
        "is_best": is_best,
        "wer_ctc": wer,
        "wer_attention": wer / 2,
    }


EVENTS = [
    {**TRAIN, "update": 20, "loss": 9.0, "epoch": 0},
    dev_event(30, 0.5, is_best=True),
    dev_event(30, 0.25, is_best=False, kind="dev_ema"),
    {**TRAIN, "update": 30},
    dev_event(35, 0.75, is_best=False),
    TRAIN,
    {"kind": "skipped", "update": 41, "ids": ["7-1-0001"]},
]


def own_heartbeat(**changes: object) -> dict:
    """Return the heartbeat that this test's process would write at NOW."""
    alive = {
        "pid": os.getpid(),
        "process_start": read_process_start(os.getpid()),
        **identify_machine(),
        "state": "training",
        "started": NOW - 3600,
        "written": NOW - 2,
        "heard": NOW - 3,
    }
    return alive | changes


def dead_pid() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


@pytest.fixture
def run(tmp_path) -> Path:
    """A run's folder of an older version, without a heartbeat."""
    folder = tmp_path / "runs" / "stage1"
    checkpoint = folder / "checkpoints" / "update-00000030"
    checkpoint.mkdir(parents=True)
    (checkpoint / "checksums.json").write_text("{}")
    os.utime(checkpoint / "checksums.json", (NOW - 600, NOW - 600))
    (checkpoint / "state.json").write_text(json.dumps({"update": 30, "epoch": 1, "total_updates": 100}))
    for name in ("last", "best"):
        (folder / name).symlink_to(f"checkpoints/{checkpoint.name}")
    (folder / OPTIONS).write_text(json.dumps({"stage": 1, "backup": "s3://b/x", "device": "auto"}))
    (folder / "config.yaml").write_text("train:\n  epochs: 5\n  key_of_another_version: 1\n")
    spaced = [json.dumps(EVENTS[0], separators=(" , ", " : ")), *map(json.dumps, EVENTS[1:])]  # rewritten
    (folder / METRICS).write_text("".join(f"{line}\n" for line in spaced))
    (folder / BACKUP).write_text(
        json.dumps(
            {"last_good": NOW - 120, "checkpoint": "update-00000020", "error": "no route", "failed": NOW}
        )
    )
    return folder


def status_with(run: Path, alive: dict) -> RunStatus:
    (run / ALIVE).write_text(json.dumps(alive))
    return read_status(run, NOW)


def test_every_figure_is_the_newest_of_its_kind(run):
    alive = own_heartbeat(update=44, total_updates=100, epoch=2, updates_per_second=4.0, world_size=2)
    alive |= {"device_name": "a GPU", "gpu": {"memory_gb": 1.5, "utilization": None}}
    status = status_with(run, alive)
    assert (status.stage, status.state, status.liveness, status.since) == (1, "training", "alive", NOW - 3600)
    assert (status.epoch, status.epochs, status.update, status.total_updates) == (2, 5, 44, 100)
    assert (status.loss, status.ctc, status.attention) == (1.625, 2.5, 1.25)
    assert (status.learning_rate, status.grad_norm) == (3e-5, 0.75)
    assert [(dev.weights, dev.update, dev.wer) for dev in status.dev] == [
        ("raw", 35, {"ctc": 0.75, "attention": 0.375}),
        ("ema", 30, {"ctc": 0.25, "attention": 0.125}),
    ]
    assert status.best_dev is not None
    assert (status.best_dev.update, status.best_dev.wer["ctc"]) == (30, 0.5)
    assert (status.updates_per_second, status.audio_seconds_per_second) == (4.0, 400.0)
    assert status.seconds_left == (100 - 44) / 4.0
    assert (status.device, status.world_size, status.peak_memory_gb) == ("a GPU", 2, 5.5)
    assert status.gpu == {"memory_gb": 1.5, "utilization": None}
    assert status.last_checkpoint == status.best_checkpoint
    assert status.last_checkpoint is not None
    assert (status.last_checkpoint.name, status.last_checkpoint.written) == ("update-00000030", NOW - 600)
    assert status.backup is not None
    assert (status.backup.last_good, status.backup.error) == (NOW - 120, "no route")
    assert (status.skipped_updates, status.unread_updates, status.faults) == (3, 1, ())


@pytest.mark.parametrize(
    ("changes", "liveness"),
    [
        ({}, "alive"),
        ({"written": NOW - 9999}, "alive"),  # its pid tells more than a file that could not be written
        ({"pid": dead_pid()}, "dead"),
        ({"process_start": 1}, "dead"),  # the pid is another process's now
        ({"state": "done"}, "dead"),
        ({"host": "elsewhere", "pid": 1}, "alive"),
        ({"host": "elsewhere", "written": NOW - 61}, "dead"),
        ({"boot_id": "another machine of that name", "pid": 1}, "alive"),
        ({"pid_namespace": "pid:[1]", "pid": 1}, "alive"),  # another container
        ({"host": "elsewhere", "written": NOW + 61}, "unknown"),
        ({"pid": "?"}, "unknown"),
    ],
    ids=str,
)
def test_alive_or_dead(changes, liveness, run):
    status = status_with(run, own_heartbeat(**changes))
    assert status.liveness == liveness
    assert (status.seconds_left is not None) == (liveness == "alive")


def test_a_process_that_nobody_has_buried_is_dead(run):
    process = subprocess.Popen(["sleep", "60"])
    alive = own_heartbeat(pid=process.pid, process_start=read_process_start(process.pid))
    assert status_with(run, alive).liveness == "alive"
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it stays as a zombie
    assert status_with(run, alive).liveness == "dead"
    process.wait()


def test_an_older_run_is_unknown_and_has_its_figures(run):
    status = read_status(run, NOW)
    assert (status.state, status.liveness, status.seconds_left) == ("unknown", "unknown", None)
    assert (status.epoch, status.epochs, status.update, status.total_updates) == (2, 5, 40, 100)
    assert status.since == (run / METRICS).stat().st_mtime


@pytest.mark.parametrize("num_bytes", [1, 30, 200])
def test_a_torn_last_line_is_passed_over(num_bytes, run):
    lines = (run / METRICS).read_bytes().splitlines(keepends=True)[:-1]  # the last is TRAIN's
    (run / METRICS).write_bytes(b"".join(lines)[:-num_bytes])
    status = read_status(run, NOW)
    # A line that lacks nothing but its end is whole.
    assert (status.update, status.faults) == (40 if num_bytes == 1 else 35, ())
    assert status.loss == 1.625


def test_damage_is_named_and_hides_nothing_else(run):
    lines = (run / METRICS).read_bytes().splitlines()
    (run / METRICS).write_bytes(b"\n".join([b"\x00\x00", *lines[:-2], b"{torn", b""]))
    for name in (ALIVE, OPTIONS, "config.yaml"):
        (run / name).write_bytes(b"{\xff\x00")
    status = read_status(run, NOW)
    assert status.faults == (
        "alive.json cannot be read",
        "options.json cannot be read",
        "config.yaml cannot be read",
        f"{METRICS}: 2 lines cannot be read",
    )
    assert (status.liveness, status.stage, status.epochs, status.loss) == ("unknown", None, None, 1.625)


def test_a_run_that_has_only_begun(tmp_path, capsys):
    (tmp_path / ALIVE).write_text(json.dumps(own_heartbeat(state="starting", written=time.time())))
    assert main(["status", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "starting; alive since" in shown
    assert "update         - of -" in shown


def test_a_copy_without_links_and_elsewhere(run, tmp_path):
    shutil.copytree(run, tmp_path / "copy", symlinks=False, ignore=shutil.ignore_patterns("last", "best"))
    status = read_status(tmp_path / "copy", NOW)
    assert status.total_updates == 100
    assert status.last_checkpoint is not None
    assert status.last_checkpoint.name == "update-00000030"
    assert status.best_checkpoint is None


def test_the_screen_and_json_say_the_same(run, capsys):
    alive = own_heartbeat(pid=dead_pid(), update=44, error="CacheError: stale", loss=float("nan"))
    (run / ALIVE).write_text(json.dumps(alive | {"state": "validating"}))
    (run / METRICS).write_text(json.dumps({**TRAIN, "ctc": float("nan")}) + "\n")
    assert main(["status", str(run)]) == 0
    shown = capsys.readouterr().out
    moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(NOW - 2))
    for part in (
        f"{run} (stage 1)",
        f"died in validating; dead since {moment} (",
        "CacheError: stale",
        "epoch          2 of 5",
        "update         44 of 100",
        "1.6250 (CTC nan, attention 1.2500 a label)",
        "2 updates/s, 400 s of audio a second",
        "time left      -",
        "peak 5.50 GB",
        "update-00000030",
        "update-00000020",
        "the newest failed: no route",
        "updates: 3 without a finite gradient, 1 without a readable recording",
    ):
        assert part in shown, part
    assert main(["status", str(run), "--json"]) == 0

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    tree = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert (tree["liveness"], tree["state"], tree["update"], tree["ctc"]) == ("dead", "validating", 44, "nan")
    assert tree["backup"]["error"] == "no route"


def test_all_runs_are_shown_newest_first(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    newer = Path("runs/demo/stage2")
    newer.mkdir(parents=True)
    (newer / METRICS).touch()
    (newer / "checkpoints" / "inner").mkdir(parents=True)
    (newer / "checkpoints" / "inner" / METRICS).touch()
    os.utime(run / METRICS, (NOW, NOW))
    Path("runs/link").symlink_to("stage1")  # not a second run
    assert main(["status", "--json"]) == 0
    assert [tree["run"] for tree in json.loads(capsys.readouterr().out)] == ["runs/demo/stage2", "runs/link"]
    assert find_runs(Path("runs/stage1")) == [Path("runs/stage1")]


@pytest.mark.parametrize("arguments", [["status", "here"], ["status"], ["dashboard", "here"], ["dashboard"]])
def test_a_folder_that_holds_no_run_is_one_line(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert captured.err.startswith("vox: error: no")


def test_watching_redraws_until_it_is_interrupted(run):
    command = [sys.executable, "-m", "vox", "status", str(run), "--watch", "0.05"]
    watching = subprocess.Popen(
        command,
        cwd=CHECKOUT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs ignore it
    )
    assert watching.stdout is not None
    for update in (50, 60):
        (run / METRICS).write_text(json.dumps({**TRAIN, "update": update}) + "\n")
        end = time.monotonic() + 60
        while f"{update} of 100" not in watching.stdout.readline():
            assert time.monotonic() < end
    watching.send_signal(signal.SIGINT)
    _, errors = watching.communicate(timeout=60)
    assert (watching.returncode, errors) == (0, "")


def test_a_status_imports_no_torch(run):
    program = (
        "import sys; from vox.cli import main\n"
        f"assert main(['status', {str(run)!r}]) == 0\n"
        "assert not {'torch', 'numpy', 'pydantic', 'h5py'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=CHECKOUT, check=True, stdout=subprocess.DEVNULL)


def test_a_run_of_the_decoder_alone_shows_no_loss_of_ctc(run, capsys):
    event = {key: value for key, value in TRAIN.items() if key != "ctc"}
    (run / METRICS).write_text(json.dumps(event) + "\n")
    assert main(["status", str(run)]) == 0
    assert "1.6250 (attention 1.2500 a label)" in capsys.readouterr().out


def test_where_all_updates_are_done_no_other_epoch_begins(run):
    """As with max_updates, which may end before the epochs do."""
    for total, epoch in ((44, 1), (45, 2)):
        (run / ALIVE).write_text(json.dumps(own_heartbeat(state="finished", update=44, total_updates=total)))
        assert read_status(run, NOW).epoch == epoch


def test_a_real_run(tiny_root, tiny_wavlm_dir, tmp_path):
    """Training writes the files that `vox status` reads, with the same names and keys."""
    options = stage1_options(
        tiny_root,
        tiny_wavlm_dir,
        tmp_path / "run",
        overrides=("train.epochs=1",),
        backup=str(tmp_path / "copy"),
    )
    run_training(options)
    status = read_status(options.run_dir, time.time())
    events = [json.loads(line) for line in (options.run_dir / METRICS).read_text().splitlines()]
    train = [event for event in events if event["kind"] == "train"][-1]
    dev = [event for event in events if event["kind"] == "dev"][-1]
    for name in (
        "ctc",
        "attention",
        "loss",
        "grad_norm",
        "learning_rate",
        "skipped_updates",
        "unread_updates",
    ):
        assert getattr(status, name) == train[name], name
    assert [figures.wer for figures in status.dev] == [
        {"ctc": dev["wer_ctc"], "attention": dev["wer_attention"]}
    ]
    assert status.best_dev == status.dev[0]
    assert (status.stage, status.epoch, status.epochs) == (1, 1, 1)
    assert (status.update, status.total_updates) == (3, 3)
    assert status.last_checkpoint is not None
    assert status.last_checkpoint.name == (options.run_dir / "last").resolve().name
    assert time.time() - status.last_checkpoint.written < 60
    assert status.backup is not None
    assert (status.backup.checkpoint, status.backup.error) == (status.last_checkpoint.name, None)
    assert status.faults == ()


def test_the_dashboard_is_this_pythons_own_tensorboard(tmp_path):
    command = tensorboard_command(tmp_path / "my runs", "0.0.0.0", 7007)
    assert command[:3] == [sys.executable, "-m", "tensorboard.main"]
    flags = dict(zip(command[3::2], command[4::2], strict=True))
    assert flags == {"--logdir": str(tmp_path / "my runs"), "--host": "0.0.0.0", "--port": "7007"}


@pytest.mark.parametrize("host", ["localhost", "no such host.invalid"])
def test_a_dashboard_that_cannot_listen_is_one_line(host, run, capsys, monkeypatch):
    monkeypatch.setattr(os, "execv", None)  # if it comes to that, this process must not become TensorBoard
    with socket.create_server(("localhost", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["dashboard", str(run.parent), "--host", host, "--port", str(port)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "cannot listen here (" in captured.err
    assert f"{host}:{port}" in captured.err
    assert len(captured.err.splitlines()) == 1
