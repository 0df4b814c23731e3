"""Backups: which checkpoints are copied, that copies are verified, and that they never stop training."""

import errno
import hashlib
import json
import threading
from pathlib import Path

import fsspec
import pytest

from tests.support.backups import FailingFilesystem, read_json, write_checkpoint
from train.options import TrainOptions, save_options
from train.record.backup import NUM_TRIES, Backup
from vox.errors import ConfigError
from vox.runs.layout import CHECKSUMS, CONFIG, MODEL, OPTIONS


@pytest.fixture
def gate(monkeypatch) -> threading.Event:
    """Block every copy until the gate is opened."""
    opened, copy = threading.Event(), Backup._copy

    def copy_when_opened(backup: Backup, job) -> None:
        opened.wait(30)
        copy(backup, job)

    monkeypatch.setattr(Backup, "_copy", copy_when_opened)
    return opened


def test_the_newest_and_the_newest_best_are_copied_and_the_rest_is_deleted(tmp_path, url, gate):
    run = tmp_path / "run"
    (run / ".backup" / "leftover").mkdir(parents=True)
    backup = Backup(url, run)
    for number, is_best in enumerate((False, False, True, False, True, False, False), start=1):
        backup.submit(write_checkpoint(run, f"update-{number}"), is_best=is_best)
    assert len(list((run / ".backup").iterdir())) <= 3  # under way, newest best, newest
    gate.set()
    backup.close(30)
    filesystem, root = fsspec.core.url_to_fs(url)
    names = [path.rpartition("/")[2] for path in filesystem.ls(f"{root}/run/checkpoints", detail=False)]
    assert sorted(names) == ["update-5", "update-7"]
    for name in names:
        copied = filesystem.cat_file(f"{root}/run/checkpoints/{name}/{MODEL}")
        assert copied == (run / "checkpoints" / name / MODEL).read_bytes()
    assert read_json(url, "run/best.json") == {"checkpoint": "update-5"}
    assert read_json(url, "run/last.json") == {"checkpoint": "update-7"}
    assert list((run / ".backup").iterdir()) == []
    notes = json.loads((run / "backup.json").read_text())
    assert (notes["checkpoint"], notes["error"]) == ("update-7", None)


def test_a_copy_of_the_right_size_with_other_bytes_is_no_backup(tmp_path, failing, monkeypatch):
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


def test_a_dead_target_is_noted_and_a_best_one_that_failed_is_tried_again(tmp_path, failing, caplog):
    run, tried = tmp_path / "run", threading.Event()
    backup = Backup(failing, run)
    note = backup._fail

    def fail(name: str, error: Exception) -> None:
        note(name, error)
        if FailingFilesystem.failures == 0:
            tried.set()

    backup._fail = fail  # type: ignore[method-assign]
    FailingFilesystem.failures = NUM_TRIES
    backup.submit(write_checkpoint(run, "update-1"), is_best=True)
    assert tried.wait(30)
    assert json.loads((run / "backup.json").read_text())["error"] == "connection lost"
    assert "there is no good copy yet" in caplog.text
    backup.submit(write_checkpoint(run, "update-2"), is_best=False)
    backup.close(30)
    assert read_json(failing, "run/best.json") == {"checkpoint": "update-1"}
    assert read_json(failing, "run/last.json") == {"checkpoint": "update-2"}
    assert json.loads((run / "backup.json").read_text())["error"] is None


def test_a_copy_that_a_pointer_names_is_never_written_to(tmp_path, failing, monkeypatch):
    """A resumed run uses the same names again, and object stores rename file by file."""
    run = tmp_path / "run"
    folder = write_checkpoint(run, "update-1")

    def back_up_again() -> str:
        backup = Backup(failing, run)
        backup.submit(folder, is_best=False)
        backup.close(30)
        return read_json(failing, "run/last.json")["checkpoint"]

    def move_half(self, source: str, target: str, **_: object) -> None:
        self.cp_file(f"{source}/{MODEL}", f"{target}/{MODEL}")
        raise ConnectionResetError

    assert back_up_again() == "update-1"
    whole = FailingFilesystem.store[f"/there/run/checkpoints/update-1/{MODEL}"].getvalue()
    (folder / MODEL).write_bytes(b"other")
    checksums = json.loads((folder / CHECKSUMS).read_text()) | {MODEL: hashlib.sha256(b"other").hexdigest()}
    (folder / CHECKSUMS).write_text(json.dumps(checksums))
    with monkeypatch.context() as patch:
        patch.setattr(FailingFilesystem, "mv", move_half)
        assert back_up_again() == "update-1"
    assert FailingFilesystem.store[f"/there/run/checkpoints/update-1/{MODEL}"].getvalue() == whole
    assert [back_up_again(), back_up_again()] == ["update-1.1", "update-1"]


def test_a_new_run_does_not_replace_the_backup_of_another(tmp_path, failing):
    """With two machines, or one that was lost, the first run's copies matter more than the second's."""
    first, second = tmp_path / "one" / "run", tmp_path / "two" / "run"
    backup = Backup(failing, first)
    backup.submit(write_checkpoint(first, "update-1"), is_best=False)
    backup.close(30)
    with pytest.raises(ConfigError, match=r"there already: /there/run; .*--resume --from URL"):
        Backup(failing, second)
    Backup(failing, first).close(30)  # resumed


@pytest.mark.parametrize("is_reached", [True, False])
def test_a_resumed_run_does_not_replace_the_backup_of_another(is_reached, tmp_path, failing, monkeypatch):
    """It has copies elsewhere and gets a new URL, where older copies with the same names exist."""
    runs = [tmp_path / number / "run" for number in ("one", "two")]
    first, second = (write_checkpoint(run, f"update-{number}") for number, run in enumerate(runs))
    for run in runs:
        save_options(TrainOptions(stage=1, run=run))
    for _ in range(2):  # its own may be replaced
        backup = Backup(failing, runs[0])
        backup.submit(first, is_best=False)
        backup.close(30)
    if is_reached:
        with pytest.raises(ConfigError, match=r"the backup of another run .*there already: /there/run"):
            Backup(failing, runs[1])
    else:
        with monkeypatch.context() as patch:
            patch.setattr(FailingFilesystem, "exists", lambda *_: 1 / 0)
            backup = Backup(failing, runs[1])
        backup.submit(second, is_best=False)
        backup.close(30)
        assert "another run of this name" in json.loads((runs[1] / "backup.json").read_text())["error"]
    assert json.loads((runs[0] / "backup.json").read_text())["error"] is None
    assert read_json(failing, "run/last.json") == {"checkpoint": "update-0.1"}


def test_a_disk_without_hard_links_is_backed_up_too(tmp_path, failing, monkeypatch):
    """The partial copy of a failed try must not block the next try."""
    run = tmp_path / "run"
    folder = write_checkpoint(run, "update-1")
    backup = Backup(failing, run)

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    (run / ".backup" / "update-1" / MODEL).mkdir(parents=True)
    backup.submit(folder, is_best=False)
    backup.close(30)
    assert read_json(failing, "run/last.json") == {"checkpoint": "update-1"}


def test_small_files_go_with_the_checkpoint(tmp_path, url):
    run = tmp_path / "run"
    backup = Backup(url, run)
    folder = write_checkpoint(run, "update-1")
    for name in (OPTIONS, CONFIG):
        (run / name).write_text(json.dumps({"of": name}))
    backup.submit(folder, is_best=False)
    backup.close(30)
    assert [read_json(url, f"run/{name}") for name in (OPTIONS, CONFIG)] == [{"of": OPTIONS}, {"of": CONFIG}]
