"""Checkpoints: written atomically, verified when read, self-contained."""

import json
import os
import resource
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.power import assert_durable, watch_renames
from tests.support.training import MODEL, tiny_recogniser
from vox.checkpoint.files import load_recogniser, load_trainer_state, save_checkpoint
from vox.checkpoint.series import find_checkpoint, newest_checkpoint, remove_unlinked
from vox.config import ModelConfig, load_config
from vox.disk import replace_link
from vox.errors import CheckpointError
from vox.runs.layout import TRAINER
from vox.text import train_tokenizer


@pytest.fixture(scope="module")
def parts(tiny_wavlm_dir):
    recogniser = tiny_recogniser(tiny_wavlm_dir)
    with torch.no_grad():
        recogniser.extractor.mix.weights += 0.01  # stage 2 moves them
    tokenizer = train_tokenizer(["go stop left right up down open close jump run"] * 3, MODEL["vocab_size"])
    config = load_config(None, [*(f"model.{k}={v}" for k, v in MODEL.items()), "features.layers=[3,4]"])
    return {"recogniser": recogniser, "tokenizer": tokenizer, "config": config}


def save(folder: Path, parts: dict) -> Path:
    save_checkpoint(folder, **parts, state={"update": 7}, trainer_state={"rng": torch.arange(9)})
    return folder


def test_a_checkpoint_loads_by_itself(tmp_path, parts):
    loaded = load_recogniser(save(tmp_path / "a", parts))
    for name, tensor in parts["recogniser"].state_dict().items():
        assert torch.equal(loaded.recogniser.state_dict()[name], tensor), name
    assert not loaded.recogniser.training
    assert loaded.config == parts["config"]
    assert loaded.state == {"update": 7}
    (tmp_path / "file").touch()
    assert {path.stat().st_mode for path in (tmp_path / "a").iterdir()} == {
        (tmp_path / "file").stat().st_mode
    }
    assert loaded.tokenizer.encode("go left") == parts["tokenizer"].encode("go left")
    assert torch.equal(load_trainer_state(tmp_path / "a")["rng"], torch.arange(9))


def test_every_changed_byte_and_missing_file_is_refused(tmp_path, parts):
    folder = save(tmp_path / "a", parts)
    generator = np.random.default_rng(0)
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        place = int(generator.integers(len(content)))
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(CheckpointError):
            load_recogniser(folder)
        path.unlink()
        with pytest.raises(CheckpointError):
            load_recogniser(folder)
        path.write_bytes(content)
    load_recogniser(folder)


def test_a_failed_save_leaves_nothing(tmp_path, parts):
    class Unwritable:
        """A state that JSON cannot represent."""

    with pytest.raises(TypeError):
        save_checkpoint(tmp_path / "a", **parts, state={"update": Unwritable()})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_the_same_name_is_replaced(tmp_path, parts):
    save_checkpoint(tmp_path / "a", **parts, state={"metrics_bytes": 900})
    save_checkpoint(tmp_path / "a", **parts, state={"metrics_bytes": 899})
    assert load_recogniser(tmp_path / "a").state == {"metrics_bytes": 899}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("failing", ["model.safetensors", "trainer.pt"])
def test_a_full_disk_is_one_line_and_loses_nothing(failing, tmp_path, parts):
    """safetensors and torch.save raise their own errors; a limit on file sizes triggers them."""
    save(tmp_path / "a", parts)
    model_bytes = (tmp_path / "a" / "model.safetensors").stat().st_size
    trainer_state = {"exp_avg": torch.zeros(model_bytes)}
    limit = 4096 if failing == "model.safetensors" else model_bytes + 4096
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(CheckpointError, match=r"cannot write a checkpoint .*--resume"):
            save_checkpoint(tmp_path / "b", **parts, state={}, trainer_state=trainer_state)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    load_recogniser(tmp_path / "a")


def test_too_little_space_is_found_before_writing(tmp_path, parts, monkeypatch):
    monkeypatch.setattr("vox.disk.free_bytes", lambda folder: 4 << 20)
    with pytest.raises(CheckpointError, match="too little disk space for a checkpoint"):
        save(tmp_path / "a", parts)
    assert list(tmp_path.iterdir()) == []


def test_another_shape_is_refused_by_name(tmp_path, parts):
    other = parts["config"].model_copy(update={"model": ModelConfig(**(MODEL | {"d_model": 64}))})
    folder = tmp_path / "a"
    save_checkpoint(folder, **(parts | {"config": other}), state={})
    with pytest.raises(CheckpointError, match="another shape"):
        load_recogniser(folder)


def test_links_move_and_the_rest_is_removed(tmp_path):
    checkpoints = tmp_path / "checkpoints"
    for name in ("one", "two", "three"):
        (checkpoints / name).mkdir(parents=True)
    best, last = tmp_path / "best", tmp_path / "last"
    replace_link(best, checkpoints / "one")
    replace_link(last, checkpoints / "two")
    replace_link(last, checkpoints / "three")
    remove_unlinked(checkpoints, (best, last))
    assert sorted(path.name for path in checkpoints.iterdir()) == ["one", "three"]
    assert str(last.readlink()) == "checkpoints/three"  # relative: a run's folder may be moved


def test_the_newest_stage_is_found(tmp_path, parts, monkeypatch, caplog):
    with pytest.raises(CheckpointError, match="run vox train"):
        newest_checkpoint(tmp_path)
    for stage in (1, 2):
        (tmp_path / f"stage{stage}" / "best").mkdir(parents=True)
        assert newest_checkpoint(tmp_path) == tmp_path / f"stage{stage}" / "best"
    save(tmp_path / "runs" / "stage1" / "best", parts)
    monkeypatch.chdir(tmp_path)
    with caplog.at_level("INFO"):
        assert find_checkpoint(None) == Path("runs/stage1/best")
    assert "checkpoint: runs/stage1/best" in caplog.text  # which was not named


def test_a_folder_that_is_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_recogniser(tmp_path / "none")
    (tmp_path / "state.json").write_text(json.dumps({}))
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load_recogniser(tmp_path)


def test_a_folder_of_checkpoints_names_those_inside(tmp_path, parts):
    folder = tmp_path / "checkpoints"
    for name in ("update-1", "update-2"):
        save(folder / name, parts)
    with pytest.raises(
        CheckpointError, match=r"holds checkpoints .*; name one of those inside: update-2, up"
    ):
        load_recogniser(folder)
    (tmp_path / "best").symlink_to(folder / "update-1")
    with pytest.raises(CheckpointError, match=rf"; name {tmp_path}/best or one of those inside: update-2"):
        load_recogniser(folder)


def test_a_loss_of_power_leaves_a_checkpoint_whole_and_linked(tmp_path, parts, monkeypatch):
    """Links too, because their former target is deleted next."""
    renames = watch_renames(monkeypatch)
    folder = save(tmp_path / "checkpoints" / "a", parts)
    replace_link(tmp_path / "last", folder)
    assert_durable(renames, folder, tmp_path / "last")


class Payload:
    """Creates a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.folder,)


def test_loading_a_trainer_state_executes_no_code(tmp_path):
    torch.save({"rng": Payload(tmp_path / "executed")}, tmp_path / TRAINER)
    with pytest.raises(CheckpointError, match="cannot read the trainer state"):
        load_trainer_state(tmp_path)
    assert not (tmp_path / "executed").exists()
