"""The table of stages, which is used by the command line, the configs and the start of a run."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tests.support.training import read_metrics, stage2_options
from train import stages
from train.options import CONFIGS_DIR, TrainOptions, resolve_config
from train.run import run_training
from train.stages import STAGES, Stage, find_stage
from vox.checkpoint.series import newest_checkpoint
from vox.errors import CheckpointError, ConfigError
from vox.runs.layout import BEST

THIRD = Stage(3, "a third", (2, 1), checks_handoff=True, may_unfreeze=False, config="stage1.yaml")


def test_every_stage_has_its_config_and_comes_after_those_it_starts_from() -> None:
    for number, stage in STAGES.items():
        tree = yaml.safe_load((CONFIGS_DIR / stage.config).read_text())
        assert tree["train"]["stage"] == stage.number == number
        assert bool(tree["train"]["unfreeze_layers"]) == (stage.may_unfreeze and not stage.adapts)
        assert all(before < number and before in STAGES for before in stage.starts_from)


def test_an_unknown_stage_is_refused() -> None:
    with pytest.raises(ConfigError, match="there is no stage 9 of training; known: 1, 2, 3"):
        resolve_config(TrainOptions(stage=9))


@pytest.mark.parametrize("found", [(), (1,), (2,), (1, 2)])
def test_a_new_stage_is_one_row(
    found: tuple[int, ...],
    stage1: TrainOptions,
    tiny_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It starts from the newest existing stage, reads its config, and checks the handoff."""
    monkeypatch.setitem(stages.STAGES, 3, THIRD)
    monkeypatch.chdir(tmp_path)
    for number in found:
        Path("runs", find_stage(number).run_name).mkdir(parents=True)
        Path("runs", f"stage{number}", BEST).symlink_to((stage1.run_dir / BEST).resolve())
    options = replace(
        stage2_options(tiny_root, tmp_path / "run", tmp_path),
        stage=3,
        from_checkpoint=None,
        overrides=("train.max_updates=1", "data.workers=0", "data.micro_batch_utterances=2"),
    )
    if not found:
        with pytest.raises(CheckpointError, match=r"no stage-2 checkpoint .*vox train --stage 1 --cached"):
            run_training(options)
        return
    assert newest_checkpoint() == Path("runs", f"stage{max(found)}", BEST)
    if found == (2,):
        run_training(options)
        assert read_metrics(tmp_path / "run")[0]["kind"] == "handoff"
