"""What a resumed run takes from the run that it continues."""

from dataclasses import fields, replace
from pathlib import Path

import pytest

from train.options import TrainOptions, resume_options, save_options
from vox.errors import ConfigError

GIVEN = TrainOptions(
    stage=2,
    cached=True,
    config_path=Path("mine.yaml"),
    overrides=("train.epochs=3",),
    root=Path("corpora"),
    train_split="train-x",
    dev_split="dev-x",
    wavlm="some/wavlm",
    features=Path("caches"),
    run=Path("somewhere"),
    resume=False,
    restore_from="file:///far",
    from_checkpoint=Path("runs/stage1/best"),
    device="cuda:1",
    backup="file:///elsewhere",
    skip_bad=True,
)
# They became the config, which is saved and read as a whole, or are of no use once a run is there.
IN_THE_CONFIG = {"config_path", "overrides", "train_split", "dev_split", "wavlm"}
OF_THE_START = {"from_checkpoint", "restore_from", "resume"}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    save_options(replace(GIVEN, run=tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", [field.name for field in fields(TrainOptions)])
def test_every_option_is_resumed(name, run):
    """A new option fails here until somebody has decided."""
    assert getattr(GIVEN, name) != getattr(TrainOptions(stage=1), name) or name == "resume"
    found = getattr(resume_options(TrainOptions(stage=2, run=run, resume=True)), name)
    if name in IN_THE_CONFIG | OF_THE_START:
        assert found == getattr(TrainOptions(stage=2, resume=True), name)
    else:
        assert found == getattr(replace(GIVEN, run=run), name)


def test_where_a_run_goes_on_may_be_said_and_what_it_is_may_not(run):
    moved = {"root": Path("r"), "features": Path("f"), "device": "cpu", "backup": "file:///b"}
    found = resume_options(TrainOptions(stage=2, run=run, resume=True, **moved))  # type: ignore[arg-type]
    assert {name: getattr(found, name) for name in moved} == moved
    for name in (*IN_THE_CONFIG, "from_checkpoint"):
        changed = TrainOptions(stage=2, run=run, resume=True, **{name: getattr(GIVEN, name)})
        with pytest.raises(ConfigError, match="a resumed run keeps its settings"):
            resume_options(changed)
