"""Backups: which checkpoints are copied, that copies are checked, and that they never get in the way."""

import hashlib
import json
import threading
from pathlib import Path

import pytest

from train.backup import Backup
from vox.checkpoint import CHECKSUMS


def write_checkpoint(run_dir: Path, name: str) -> Path:
    """Write files with checksums; a backup does not look further."""
    folder = run_dir / "checkpoints" / name
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(name.encode())
    checksums = {"model.safetensors": hashlib.sha256(name.encode()).hexdigest()}
    (folder / CHECKSUMS).write_text(json.dumps(checksums))
    return folder


@pytest.fixture
def gate(monkeypatch) -> threading.Event:
    """Hold every copy until the gate is opened."""
    opened, copy = threading.Event(), Backup._copy

    def copy_when_opened(backup: Backup, job) -> None:
        opened.wait(30)
        copy(backup, job)

    monkeypatch.setattr(Backup, "_copy", copy_when_opened)
    return opened


def test_the_newest_and_the_newest_best_are_copied_and_the_rest_is_deleted(tmp_path, gate):
    run, remote = tmp_path / "run", tmp_path / "there" / "run"
    (run / ".backup" / "leftover").mkdir(parents=True)
    backup = Backup(f"file://{tmp_path}/there", run)
    for number, is_best in enumerate((False, False, True, False, True, False, False), start=1):
        backup.submit(write_checkpoint(run, f"update-{number}"), is_best=is_best)
    assert len(list((run / ".backup").iterdir())) <= 3  # under way, newest best, newest
    gate.set()
    backup.close(30)
    assert sorted(path.name for path in (remote / "checkpoints").iterdir()) == ["update-5", "update-7"]
    assert json.loads((remote / "best.json").read_text()) == {"checkpoint": "update-5"}
    assert json.loads((remote / "last.json").read_text()) == {"checkpoint": "update-7"}
    assert list((run / ".backup").iterdir()) == []
    assert json.loads((run / "backup.json").read_text())["checkpoint"] == "update-7"


def test_a_copy_of_the_right_size_with_other_bytes_is_no_backup(tmp_path, monkeypatch):
    run = tmp_path / "run"
    backup = Backup(f"file://{tmp_path}/there", run)
    put = backup._filesystem.put_file

    def put_damaged(source: str, target: str) -> None:
        put(source, target)
        content = Path(target).read_bytes()
        Path(target).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))

    monkeypatch.setattr(backup._filesystem, "put_file", put_damaged)
    backup.submit(write_checkpoint(run, "update-1"), is_best=True)
    backup.close(30)
    assert "not what was sent" in json.loads((run / "backup.json").read_text())["error"]
    assert not (tmp_path / "there" / "run" / "last.json").exists()


def test_a_target_that_hangs_is_given_up_and_said(tmp_path, gate, caplog):
    run = tmp_path / "run"
    backup = Backup(f"file://{tmp_path}/there", run)
    backup.submit(write_checkpoint(run, "update-1"), is_best=True)
    backup.close(0.05)
    assert "gave up waiting" in caplog.text
    gate.set()
    backup.close(30)
    assert (tmp_path / "there" / "run" / "last.json").exists()
