"""Restoring runs: from an older checkpoint if the newest is damaged, and from a backup."""

import errno
import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest
import torch

from tests.support.backups import FailingFilesystem, write_checkpoint
from tests.support.power import assert_durable, watch_renames
from tests.support.training import assert_equal_runs, signal_during, stage1_options
from train.options import TrainOptions
from train.progress import Progress
from train.record.backup import NUM_TRIES, Backup
from train.record.restore import restore_run
from train.resume import restore_links, resume_state
from train.run import run_training
from train.save import read_rng
from train.signals import Interrupted
from vox.checkpoint.integrity import check_files
from vox.checkpoint.series import find_last, remove_unlinked
from vox.cli import main
from vox.disk import replace_link
from vox.errors import CheckpointError, ConfigError
from vox.runs.layout import CHECKSUMS, CONFIG, METRICS, MODEL, OPTIONS, TRAINER, list_checkpoints

FIRST, SECOND, THIRD = (f"update-0000000{number}-validated" for number in (3, 6, 9))


@pytest.fixture(scope="module")
def whole(tiny_root, tiny_wavlm_dir, tmp_path_factory) -> TrainOptions:
    """A finished run that keeps two validated checkpoints beside `best` and `last`."""
    run = tmp_path_factory.mktemp("runs") / "run"
    options = stage1_options(tiny_root, tiny_wavlm_dir, run, overrides=("train.keep_checkpoints=2",))
    run_training(options)
    return options


def copy_run(options: TrainOptions, folder: Path) -> Path:
    shutil.copytree(options.run_dir, folder, symlinks=True)
    return folder


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_the_newest_validated_checkpoints_are_kept_beside_best_and_last(tmp_path):
    names = [f"update-{update}{end}" for update in range(1, 6) for end in ("", "-validated")]
    for name in [*names, ".update-6-validated.partial"]:
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    best, last = tmp_path / "best", tmp_path / "last"
    replace_link(best, tmp_path / "checkpoints" / "update-4-validated")
    replace_link(last, tmp_path / "checkpoints" / "update-5")
    for keep, others in ((2, ["update-3-validated", "update-5-validated"]), (0, [])):
        remove_unlinked(tmp_path / "checkpoints", (best, last), keep)
        left = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
        assert left == sorted([*others, "update-4-validated", "update-5"])


def test_the_one_before_is_kept_where_best_and_last_are_one(stage1, tmp_path, caplog):
    """One flipped bit must not end a run that is configured to keep no other checkpoint."""
    run = copy_run(stage1, tmp_path / "run")
    replace_link(run / "best", (run / "last").resolve())
    remove_unlinked(run / "checkpoints", (run / "best", run / "last"))
    flip_bit(run / "last" / MODEL)
    run_training(TrainOptions(stage=1, run=run, resume=True))
    assert "the newest whole checkpoint, update-00000009" in caplog.text
    assert len(list_checkpoints(run)) <= 3


@pytest.mark.parametrize("num_failures", [1, 2])
def test_a_failing_disk_is_not_a_damaged_checkpoint(num_failures, tmp_path, monkeypatch):
    """One read error, as on a network disk, is retried; after two, no checkpoint is skipped or deleted."""
    for name in (FIRST, SECOND):
        replace_link(tmp_path / "last", write_checkpoint(tmp_path, name))
    failures = iter([OSError(errno.EIO, "Input/output error")] * num_failures)

    def read(path: Path) -> str:
        for failure in failures:
            raise failure
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr("vox.checkpoint.integrity.hash_file", read)
    if num_failures == 1:
        assert find_last(tmp_path).resolve().name == SECOND
    else:
        with pytest.raises(CheckpointError, match=rf"\(Input/output error\): .*{SECOND}.*same command again"):
            find_last(tmp_path)


def test_what_is_damaged_is_kept_until_the_next_checkpoint(tmp_path):
    for name in (FIRST, SECOND):
        replace_link(tmp_path / "last", write_checkpoint(tmp_path, name))
    flip_bit(tmp_path / "last" / MODEL)
    damaged = (tmp_path / "last" / MODEL).read_bytes()
    restore_links(tmp_path, find_last(tmp_path), Progress())
    assert list_checkpoints(tmp_path) == [FIRST]
    assert (tmp_path / "checkpoints" / f".damaged-{SECOND}" / MODEL).read_bytes() == damaged
    remove_unlinked(tmp_path / "checkpoints", (tmp_path / "last",))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [FIRST]


@pytest.mark.parametrize("damaged", [MODEL, TRAINER, CHECKSUMS])
def test_a_damaged_last_is_passed_over_and_the_run_ends_the_same(damaged, whole, tmp_path, caplog):
    run = copy_run(whole, tmp_path / "run")
    assert {FIRST, SECOND, THIRD} <= set(list_checkpoints(run))
    shutil.rmtree(run / "checkpoints" / "update-00000009")  # or only the validation would be done again
    if damaged == TRAINER:
        (run / "last" / damaged).unlink()
    elif damaged == CHECKSUMS:  # cut: a changed digit would be in some other file's sum
        (run / "last" / damaged).write_bytes((run / "last" / damaged).read_bytes()[:-20])
    else:
        flip_bit(run / "last" / damaged)
    with pytest.raises(CheckpointError, match=damaged):
        check_files(run / "last")
    run_training(TrainOptions(stage=1, run=run, resume=True))
    assert f"{THIRD} cannot be resumed from: {damaged}" in caplog.text
    assert f"the newest whole checkpoint, {SECOND}" in caplog.text
    assert_equal_runs(whole.run_dir, run)
    assert {FIRST, SECOND, THIRD} <= set(list_checkpoints(run))


def test_where_no_checkpoint_is_whole_each_is_named(tmp_path):
    flip_bit(write_checkpoint(tmp_path, FIRST) / MODEL)
    (write_checkpoint(tmp_path, SECOND) / TRAINER).unlink()
    message = rf"none .*{SECOND}: trainer.pt is missing, {FIRST}: model.safetensors has changed"
    with pytest.raises(CheckpointError, match=message) as caught:
        find_last(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("left", [(FIRST, SECOND), (FIRST,), ()])
def test_best_goes_back_with_the_run(left, tmp_path, caplog):
    """To the one named by the older state; or else to the last best one that exists; or else to none."""
    checkpoints = tmp_path / "checkpoints"
    for name, rank in ((FIRST, 3.0), (SECOND, 2.0), (THIRD, 1.0)):
        if name in (*left, THIRD):
            write_checkpoint(tmp_path, name, best=[rank], best_checkpoint=name)
    last = write_checkpoint(tmp_path, "update-00000007")
    replace_link(tmp_path / "best", checkpoints / THIRD)
    progress = Progress(best=[2.0], best_checkpoint=SECOND)
    restore_links(tmp_path, last, progress, keep=2)
    assert set(list_checkpoints(tmp_path)) == {*left, "update-00000007"}
    best = tmp_path / "best"
    assert (best.resolve().name if best.is_symlink() else None) == (left[-1] if left else None)
    assert progress.best_checkpoint == (left[-1] if left else None)
    assert progress.best == ({FIRST: [3.0], SECOND: [2.0]}[left[-1]] if left else None)
    assert (SECOND in left) != ("lost" in caplog.text)


def test_a_damaged_best_is_not_the_best(tmp_path, caplog):
    for name, rank in ((FIRST, 3.0), (SECOND, 2.0)):
        known = {"best": [rank], "lowest_errors": "1 2", "best_limit": rank, "best_checkpoint": name}
        replace_link(tmp_path / "best", write_checkpoint(tmp_path, name, **known))
    flip_bit(tmp_path / "best" / MODEL)
    last = write_checkpoint(tmp_path, THIRD)
    progress = Progress(best=[2.0], best_checkpoint=SECOND)
    restore_links(tmp_path, last, progress, keep=2)
    assert (tmp_path / "best").resolve().name == progress.best_checkpoint == FIRST
    assert (progress.best, progress.lowest_errors, progress.best_limit) == ([3.0], "1 2", 3.0)
    assert f"{SECOND}, once the best, is damaged: {MODEL} has changed" in caplog.text


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_each_rank_gets_its_random_state_and_a_new_one_keeps_its_own(rank, caplog):
    """Saved by two processes, resumed by one process that acts as each of them in turn."""
    device = torch.device("cpu")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    states, draws = [], []
    for seed in range(3):
        torch.manual_seed(seed)
        states.append(read_rng(device))
        draws.append(torch.rand(3))
    torch.manual_seed(2)
    scaler = torch.amp.GradScaler("cpu", enabled=True)
    ranks = SimpleNamespace(rank=rank, world_size=1)
    run = SimpleNamespace(device=device, optimizer=optimizer, scaler=scaler, ranks=ranks)
    saved = torch.amp.GradScaler("cpu", enabled=True, init_scale=64.0).state_dict()
    resume_state(run, {"optimizer": optimizer.state_dict(), "scaler": saved, "rng": states[:2]})
    assert scaler.get_scale() == 64.0
    assert torch.equal(torch.rand(3), draws[rank])
    assert ("saved by 2 processes" in caplog.text) == (rank == 0)


def back_up(url: str, run: Path, *, num_checkpoints: int = 2) -> None:
    """Back up a run of `num_checkpoints`, of which the first is the best."""
    backup = Backup(url, run)
    run.mkdir(exist_ok=True)
    for name, content in ((OPTIONS, '{"stage": 1}'), (CONFIG, "{}"), (METRICS, '{"kind": "dev"}\n')):
        (run / name).write_text(content)
    for number in range(num_checkpoints):
        name = (FIRST, "update-00000004")[number]
        backup.submit(write_checkpoint(run, name, best_checkpoint=FIRST), is_best=number == 0)
    backup.close(30)


def far_file(url: str, path: str) -> tuple[fsspec.AbstractFileSystem, str]:
    filesystem, root = fsspec.core.url_to_fs(url)
    return filesystem, f"{root}/run/{path}"


def change_far(url: str, path: str, content: bytes | None) -> None:
    """Replace a file of the backup, or delete it."""
    filesystem, path = far_file(url, path)
    filesystem.rm(path) if content is None else filesystem.pipe_file(path, content)


def assert_same_files(one: Path, other: Path, names: tuple[str, ...]) -> None:
    for name in names:
        files = {path.name: path.read_bytes() for path in (one / name).iterdir()}
        assert files == {path.name: path.read_bytes() for path in (other / name).iterdir()}


@pytest.mark.parametrize("place", ["{url}", "{url}/run"])
def test_a_run_is_restored_from_where_it_was_backed_up(place, url, tmp_path, monkeypatch):
    run, restored = tmp_path / "run", tmp_path / "elsewhere" / "run"
    back_up(url, run)
    FailingFilesystem.failures = 2
    with monkeypatch.context() as patch:
        renames = watch_renames(patch)
        restore_run(place.format(url=url), restored, 1)
    assert_durable(renames, restored / "checkpoints", restored / "last", restored / OPTIONS)
    assert str((restored / "last").readlink()) == "checkpoints/update-00000004"
    assert str((restored / "best").readlink()) == f"checkpoints/{FIRST}"
    assert_same_files(run / "checkpoints", restored / "checkpoints", (FIRST, "update-00000004"))
    for name in (OPTIONS, CONFIG, METRICS):
        assert (restored / name).read_bytes() == (run / name).read_bytes()
    assert not (restored / ".restore").exists()
    with pytest.raises(CheckpointError, match="holds a run already"):
        restore_run(url, restored, 1)


@pytest.mark.parametrize("path", [MODEL, TRAINER, CHECKSUMS, None])
@pytest.mark.parametrize("content", [b"other", None])
def test_a_damaged_copy_is_passed_over_for_the_one_before(path, content, tmp_path, caplog):
    url, restored = str(tmp_path / "there"), tmp_path / "elsewhere" / "run"
    back_up(url, tmp_path / "run")
    change_far(url, f"checkpoints/update-00000004/{path}" if path else "last.json", content)
    restore_run(url, restored)
    assert {(restored / name).resolve().name for name in ("last", "best")} == {FIRST}
    assert list_checkpoints(restored) == [FIRST]
    check_files(restored / "last")
    assert f"restoring the older checkpoint {FIRST}" in caplog.text
    assert path is None or f"update-00000004, which `last` names, is damaged: {path}" in caplog.text


def test_where_no_copy_is_whole_nothing_is_restored(tmp_path):
    url, restored = str(tmp_path / "there"), tmp_path / "elsewhere" / "run"
    back_up(url, tmp_path / "run")
    for name in (FIRST, "update-00000004"):
        change_far(url, f"checkpoints/{name}/{MODEL}", b"other")
    with pytest.raises(CheckpointError, match=f"no checkpoint of the backup is whole .*update-.*{FIRST}"):
        restore_run(url, restored)
    assert not list_checkpoints(restored)
    assert not (restored / OPTIONS).exists()


def test_an_interrupted_restore_goes_on(failing, tmp_path):
    """Complete files are not downloaded again, partial ones are; the run exists only at the end."""
    restored = tmp_path / "elsewhere" / "run"
    back_up(failing, tmp_path / "run")
    arrived = restored / ".restore" / "checkpoints" / "update-00000004"
    arrived.mkdir(parents=True)
    for name, keep_bytes in ((MODEL, None), (TRAINER, 5)):
        content = (tmp_path / "run" / "checkpoints" / "update-00000004" / name).read_bytes()
        (arrived / name).write_bytes(content[:keep_bytes])
    FailingFilesystem.opened.clear()
    FailingFilesystem.failures = NUM_TRIES
    with pytest.raises(CheckpointError, match=r"cannot read the backup \(connection lost.*same command"):
        restore_run(failing, restored)
    assert not list_checkpoints(restored)
    restore_run(failing, restored)
    read = [path.partition("checkpoints/")[2] for path in FailingFilesystem.opened]
    assert f"update-00000004/{MODEL}" not in read
    assert read.count(f"update-00000004/{TRAINER}") == 1
    check_files(restored / "last")


@pytest.mark.parametrize("guilty", ["last.json", CHECKSUMS])
def test_a_backup_cannot_write_outside_the_run(guilty, tmp_path):
    url, restored = str(tmp_path / "there"), tmp_path / "elsewhere" / "run"
    back_up(url, tmp_path / "run")
    far = tmp_path / "there" / "run" / "checkpoints"
    outside = {"last.json": tmp_path / "outside", CHECKSUMS: restored / "outside"}[guilty]
    if guilty == CHECKSUMS:
        (tmp_path / "there" / "outside").write_bytes(b"evil")
        checksums = json.loads((far / "update-00000004" / CHECKSUMS).read_text())
        checksums["../../../outside"] = hashlib.sha256(b"evil").hexdigest()
        (far / "update-00000004" / CHECKSUMS).write_text(json.dumps(checksums))
    else:
        shutil.copytree(far / FIRST, Path(f"{far}/{outside}"))
        change_far(url, guilty, json.dumps({"checkpoint": str(outside)}).encode())
    restore_run(url, restored)
    assert list_checkpoints(restored) == [FIRST]
    assert not outside.exists()


def test_a_wrong_place_or_stage_is_said_before_anything_is_copied(tmp_path):
    url = str(tmp_path / "there")
    back_up(url, tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"a run called stage1 \(found there: run\)"):
        restore_run(url, tmp_path / "stage1")
    with pytest.raises(CheckpointError, match="nor of any"):
        restore_run(f"{url}/nowhere", tmp_path / "stage1")
    with pytest.raises(ConfigError, match=r"a run of stage 1: .*; use --stage 1"):
        restore_run(f"{url}/run", tmp_path / "stage2", 2)
    with pytest.raises(ConfigError, match=r"--from: .*nowhere"):
        restore_run("nowhere://x", tmp_path / "stage1")
    assert not (tmp_path / "stage1").exists()
    assert not (tmp_path / "stage2").exists()


def test_a_lost_machine_s_run_ends_the_same_on_another(whole, failing, tmp_path, monkeypatch):
    """The run's folder, the data at its old place, and WavLM no longer exist."""
    old, new = tmp_path / "old", tmp_path / "new"
    shutil.copytree(whole.root, old / "data")
    options = replace(whole, root=old / "data", features=None, run=old / "run", backup=failing)
    FailingFilesystem.failures = 2
    with monkeypatch.context() as patch, pytest.raises(Interrupted):  # the waits between tries stay short
        signal_during(patch, "run_update", on_call=5)
        run_training(options)
    FailingFilesystem.failures = 2
    old.rename(tmp_path / "lost")
    shutil.move(tmp_path / "lost" / "data", new / "data")
    arguments = ["train", "--stage", "1", "--root", str(new / "data"), "--run", str(new / "run")]
    assert main([*arguments, "--resume", "--from", failing, "--device", "cpu"]) == 0
    assert_equal_runs(whole.run_dir, new / "run")


def test_a_url_without_resume_is_one_line(capsys):
    assert main(["train", "--stage", "1", "--from", "memory://there/run"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "needs --resume" in lines[0]
