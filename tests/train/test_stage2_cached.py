"""Stage 2 from a cache of the layer below those it trains: the losses are those of live audio (T2)."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.support.training import (
    Killed,
    assert_equal_runs,
    die_after,
    read_metrics,
    read_weights,
    stage1_options,
    stage2_options,
)
from train.options import TrainOptions
from train.run import run_training
from vox.errors import CacheError, ConfigError

CALM = ("augment.time_masks=0", "augment.channel_masks=0")


@pytest.fixture(scope="module")
def cached(stage1, tiny_root, features_dir, tmp_path_factory) -> TrainOptions:
    run = tmp_path_factory.mktemp("runs") / "stage2"
    options = stage2_options(
        tiny_root, run, stage1.run_dir / "best", cached=True, features=features_dir, overrides=CALM
    )
    run_training(options)
    return options


def test_its_losses_are_the_live_ones_and_it_trains_the_top(cached, stage1, tiny_root, tmp_path):
    live = stage2_options(tiny_root, tmp_path / "live", stage1.run_dir / "best", overrides=CALM)
    run_training(live)
    ours, theirs = (
        [line for line in read_metrics(options.run_dir) if line["kind"] in ("train", "dev")]
        for options in (cached, live)
    )
    assert len(ours) == len(theirs) > 6
    for one, other in zip(ours, theirs, strict=True):
        assert one["ctc"] == pytest.approx(other["ctc"], rel=1e-3)
        assert one["attention"] == pytest.approx(other["attention"], rel=1e-3)
    before, after = read_weights(stage1.run_dir, "best"), read_weights(cached.run_dir)
    moved = {
        name.split(".")[4]
        for name in before
        if "wavlm" in name and ".layers." in name and not torch.equal(before[name], after[name])
    }
    assert moved == {"2", "3"}
    mix = after["extractor.mix.weights"]
    assert mix[0] == 0 and mix[1] != 0  # the cached layer's weight learns, those below it cannot
    assert "live" not in json.dumps(read_metrics(cached.run_dir))


def test_killed_and_resumed_ends_the_same(cached, tmp_path, monkeypatch):
    """WavLM's weights are no longer those that made the cache: the checkpoint names them."""
    overrides = (*cached.overrides, "train.checkpoint_minutes=1e-6")
    options = replace(cached, run=tmp_path / "run", overrides=overrides)
    with monkeypatch.context() as patch:
        die_after(patch, updates=5)
        with pytest.raises(Killed):
            run_training(options)
    assert json.loads((options.run_dir / "last" / "state.json").read_text())["update"] == 5
    run_training(TrainOptions(stage=2, run=options.run_dir, resume=True))
    assert_equal_runs(cached.run_dir, options.run_dir)


def test_what_cannot_be_cached_is_refused(cached, stage1, tmp_path, features_dir, tiny_root):
    options = replace(cached, run=tmp_path / "run")
    for overrides, error, message in (
        (("train.unfreeze_layers=[]",), ConfigError, "names none"),
        (("train.unfreeze_layers=[0,3]",), ConfigError, "none can be cached"),
        (("train.unfreeze_layers=[3]",), CacheError, "vox precompute --split train-tiny --layers 3"),
    ):
        with pytest.raises(error, match=message):
            run_training(replace(options, overrides=(*options.overrides, *overrides)))
    # A mix that hears layers below the cached one: what stage 1 learns from live audio.
    live = stage1_options(tiny_root, Path(stage1.wavlm), tmp_path / "live")
    run_training(live)
    with pytest.raises(CacheError, match="hears layers below 2"):
        run_training(replace(options, from_checkpoint=live.run_dir / "best"))
