"""The options that a resumed run keeps from its start."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest

from train.options import CHANGEABLE, IN_CONFIG, OF_THE_COMMAND, TrainOptions, resume_options, save_options
from train.signals import Interrupted
from vox.cli import main
from vox.config import load_saved_config
from vox.errors import ConfigError
from vox.runs.layout import CONFIG, OPTIONS

# Another value than the default for every option; `stage` and `run` are the run's own.
OTHER = {
    "cached": True,
    "config_path": Path("my.yaml"),
    "overrides": ("train.epochs=3",),
    "root": Path("elsewhere"),
    "train_split": ("train-tiny",),
    "dev_split": ("dev-tiny",),
    "wavlm": "wavlm-tiny",
    "features": Path("caches"),
    "resume": True,
    "restore_from": "file:///backup/run",
    "from_checkpoint": Path("stage1/best"),
    "device": "cpu",
    "backup": "file:///backup",
    "skip_bad": True,
    "replay_split": ("train-tiny",),
    "no_replay": True,
}
NAMES = [each.name for each in fields(TrainOptions) if each.name not in ("stage", "run")]


def test_every_option_has_a_place_in_these_tests() -> None:
    assert set(NAMES) == set(OTHER)
    assert (OF_THE_COMMAND | CHANGEABLE | IN_CONFIG).issubset({"run", *NAMES})


@pytest.mark.parametrize("name", NAMES)
def test_no_option_is_lost_or_changed_in_silence_on_resume(name: str, tmp_path: Path) -> None:
    """A recorded option is restored; an option given now is used, or refused with its name."""
    plain = TrainOptions(stage=1, run=tmp_path)
    given = replace(plain, **{name: OTHER[name]})
    save_options(given)
    kept = getattr(plain if name in OF_THE_COMMAND | IN_CONFIG else given, name)
    assert getattr(resume_options(plain), name) == kept

    save_options(plain)
    if name in OF_THE_COMMAND | CHANGEABLE:
        assert getattr(resume_options(given), name) == OTHER[name]
    else:
        with pytest.raises(ConfigError, match=f"cannot be given.*--stage 1 --resume --run {tmp_path} alone"):
            resume_options(given)


def test_a_resumed_run_is_of_its_own_stage_and_folder(tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    save_options(TrainOptions(stage=2, run=tmp_path / "run"))
    (tmp_path / "run").rename(moved)
    assert resume_options(TrainOptions(stage=2, run=moved, resume=True)).run == moved
    with pytest.raises(ConfigError, match=r"--stage cannot be given.*write vox train --stage 2 --resume"):
        resume_options(TrainOptions(stage=1, run=moved, resume=True))


def test_a_run_from_before_there_could_be_several_splits_is_resumed(tmp_path: Path) -> None:
    """Its options and its config have a text or null where there is a list now."""
    options = {"stage": 3, "train_split": "a", "dev_split": "b", "replay_split": None, "skip_bad": True}
    (tmp_path / OPTIONS).write_text(json.dumps(options))
    resumed = TrainOptions(stage=3, run=tmp_path, resume=True)
    assert resume_options(resumed) == replace(resumed, skip_bad=True)
    text = "data: {train_split: a, dev_split: b}\nadapt: {replay_split: c, source_dev_split: null}\n"
    (tmp_path / CONFIG).write_text(text)
    config = load_saved_config(tmp_path / CONFIG)
    assert (config.data.train_weights, config.data.dev_split) == ({"a": 1}, ("b",))
    assert (config.adapt.replay_split, config.adapt.source_dev_split) == (("c",), None)
    assert (config.data.min_seconds, config.data.max_seconds) == (None, None)
    assert config.adapt.learns == "all"


@pytest.mark.parametrize("is_saved", [False, True])
def test_an_interrupted_run_says_how_to_go_on(
    is_saved: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(options: TrainOptions) -> None:
        if is_saved:
            (options.run_dir / "last").mkdir(parents=True)
        raise Interrupted(2)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("train.inputs.check_inputs", lambda options: None)
    monkeypatch.setattr("train.run.run_training", interrupt)
    assert main(["train", "--stage", "1", "--run", "my runs/a"]) == 130
    told = capsys.readouterr().err
    command = "saved; go on with vox train --stage 1 --resume --run 'my runs/a'"
    assert (command if is_saved else "there was nothing to save yet") in told
