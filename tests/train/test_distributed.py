"""Two ranks and one: the same gradient, the same run, and the same end after a kill (T6, T7)."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import train.loop
import train.save
from tests.support.gradients import NUM_UTTERANCES, gradient_of, make_batch, make_split
from tests.support.processes import join, run_ranks
from tests.support.speech import write_split
from tests.support.training import (
    assert_equal_runs,
    read_metrics,
    read_weights,
    stage1_options,
    stage2_options,
    tiny_recogniser,
)
from train.build import choose_trainable
from train.options import TrainOptions
from train.ranks import Ranks
from train.run import run_training
from train.signals import Interrupted
from train.update.schedule import build_optimizer
from train.update.step import (
    LabelTotals,
    StepSettings,
    accumulate_gradients,
    run_update,
    settle_buckets,
    wrap_losses,
)
from vox.config import OptimizerConfig, load_config
from vox.data.plan import plan_epoch
from vox.model.recogniser import Recogniser

CALM = ("model.dropout=0.0", "augment.time_masks=0", "augment.channel_masks=0")  # nothing is drawn
CPU = torch.device("cpu")


def cached_recogniser(wavlm_dir: Path) -> Recogniser:
    """A recogniser on cached features, as stage 1 sets it up."""
    recogniser = tiny_recogniser(wavlm_dir, dropout=0.0)
    recogniser.extractor.requires_grad_(False)
    return recogniser


def no_scaler() -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", enabled=False)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("world_size", [2, 3])
def test_gradient_does_not_depend_on_the_ranks(tiny_wavlm_dir, tmp_path, dtype, tolerance, world_size):
    """32 utterances in micro-batches of at most 5 on each rank, against one batch of all in one process."""
    recogniser = cached_recogniser(tiny_wavlm_dir).to(dtype).eval()
    features, labels = make_split()
    num_labels = sum(map(len, labels))
    totals = LabelTotals(num_labels, num_labels + NUM_UTTERANCES)
    plan = plan_epoch(
        [len(frames) for frames in features],
        seed=0,
        epoch=0,
        utterances_per_update=NUM_UTTERANCES,
        micro_batch_utterances=5,
        world_size=world_size,
    )
    whole = gradient_of(recogniser, [make_batch(features, labels, range(NUM_UTTERANCES), dtype)], totals)

    def work(rank: int) -> None:
        ranks = join(rank, world_size)
        settings = StepSettings(CPU, torch.float32, 0.3, 0.1, 1.0, augment=None)
        recogniser.zero_grad()
        batches = [make_batch(features, labels, group, dtype) for group in plan[0][rank]]
        accumulate_gradients(wrap_losses(recogniser, ranks), no_scaler(), batches, totals, settings, ranks)
        gradient = torch.cat([p.grad.flatten() for p in recogniser.parameters() if p.grad is not None])
        torch.save(gradient, tmp_path / f"{rank}.pt")

    assert run_ranks(world_size, work) == [0] * world_size
    for rank in range(world_size):
        shared = torch.load(tmp_path / f"{rank}.pt")
        assert torch.linalg.norm(shared - whole) <= tolerance * torch.linalg.norm(whole)


def test_the_gradient_of_the_decoder_alone_does_not_depend_on_the_ranks(tiny_wavlm_dir, tmp_path):
    """No rank waits for the gradients of what does not learn (adapt.learns), in the second update either."""
    recogniser = tiny_recogniser(tiny_wavlm_dir, dropout=0.0).double()
    choose_trainable(recogniser, load_config(None, ["adapt.learns=decoder"]), cached=True)
    features, labels = make_split()
    settings = StepSettings(CPU, torch.float32, None, 0.1, 1.0, augment=None)
    totals = LabelTotals(sum(map(len, labels[:4])), sum(map(len, labels[:4])) + 4)

    def add_up(ranks: Ranks) -> torch.Tensor:
        losses, mine = wrap_losses(recogniser, ranks), range(4)[ranks.rank :: ranks.world_size]
        settle_buckets(losses, settings)
        for _ in range(2):
            recogniser.zero_grad()
            batches = [make_batch(features, labels, [position], torch.float64) for position in mine]
            accumulate_gradients(losses, no_scaler(), batches, totals, settings, ranks)
        return torch.cat([p.grad.flatten() for p in recogniser.parameters() if p.grad is not None])

    assert run_ranks(2, lambda rank: torch.save(add_up(join(rank, 2)), tmp_path / f"{rank}.pt")) == [0, 0]
    alone = add_up(Ranks())
    assert len(alone) == sum(parameter.numel() for parameter in recogniser.decoder.parameters())
    for rank in range(2):
        shared = torch.load(tmp_path / f"{rank}.pt")
        assert torch.linalg.norm(shared - alone) <= 1e-10 * torch.linalg.norm(alone)


def test_ranks_agree_on_what_is_not_finite_and_a_rank_without_work_takes_part(tiny_wavlm_dir, tmp_path):
    """NaN on one rank skips the update on both; if one rank has nothing to read, only the other's counts."""
    recogniser, alone = (cached_recogniser(tiny_wavlm_dir) for _ in range(2))
    features, labels = make_split()
    settings = StepSettings(CPU, torch.float32, 0.3, 0.1, 1.0, augment=None)
    totals = LabelTotals(len(labels[1]), len(labels[1]) + 1)
    good = make_batch(features, labels, [1], torch.float32)
    run_update(
        wrap_losses(alone, Ranks()),
        build_optimizer(alone, OptimizerConfig(learning_rate=0.1)),
        no_scaler(),
        [good],
        totals,
        settings,
        Ranks(),
    )
    features[0][3, 5] = float("nan")
    bad = make_batch(features, labels, [0], torch.float32)

    def work(rank: int) -> None:
        ranks = join(rank, 2)
        losses = wrap_losses(recogniser, ranks)
        optimizer = build_optimizer(recogniser, OptimizerConfig(learning_rate=0.1))
        before = {name: tensor.clone() for name, tensor in recogniser.state_dict().items()}
        batch = [bad] if rank == 1 else [good]
        result = run_update(losses, optimizer, no_scaler(), batch, totals, settings, ranks).read()
        assert not result.is_finite
        assert all(torch.equal(before[name], tensor) for name, tensor in recogniser.state_dict().items())
        batch = [good] if rank == 1 else []
        result = run_update(losses, optimizer, no_scaler(), batch, totals, settings, ranks).read()
        assert result.is_finite and result.num_targets == totals.num_targets
        torch.save(recogniser.state_dict(), tmp_path / f"{rank}.pt")

    assert run_ranks(2, work) == [0, 0]
    for rank in range(2):
        for name, tensor in torch.load(tmp_path / f"{rank}.pt").items():
            torch.testing.assert_close(tensor, alone.state_dict()[name], rtol=1e-4, atol=1e-6)


def numbers_of(line: dict) -> dict[str, float]:
    return {name: value for name, value in line.items() if isinstance(value, int | float)}


def assert_close_runs(one: Path, other: Path) -> None:
    expected, found = read_metrics(one), read_metrics(other)
    assert [line["kind"] for line in found] == [line["kind"] for line in expected]
    for left, right in zip(expected, found, strict=True):
        assert numbers_of(right) == pytest.approx(numbers_of(left), rel=1e-3)


def test_two_ranks_train_what_one_trains(tiny_root, tiny_wavlm_dir, tmp_path):
    """Without dropout and masks, losses, dev results and files equal those of one process."""
    one = stage1_options(tiny_root, tiny_wavlm_dir, tmp_path / "one", overrides=CALM)
    run_training(one)
    two = replace(one, run=tmp_path / "two")
    assert run_ranks(2, lambda rank: run_training(two)) == [0, 0]
    assert_close_runs(one.run_dir, two.run_dir)
    assert {path.name for path in two.run_dir.iterdir()} == {path.name for path in one.run_dir.iterdir()}


@pytest.fixture(scope="module")
def two_ranks(tiny_root, tiny_wavlm_dir, tmp_path_factory) -> TrainOptions:
    """A finished stage-1 run of two ranks, with dropout and masks: its options."""
    options = stage1_options(tiny_root, tiny_wavlm_dir, tmp_path_factory.mktemp("runs") / "whole")
    assert run_ranks(2, lambda rank: run_training(options)) == [0, 0]
    return options


def train_and_die(options: TrainOptions, rank: int, updates: int, *, is_whole_group: bool) -> None:
    """Train for some updates, then be killed, together with the other rank or alone."""
    original, count = train.loop.run_update, 0

    def dying_update(*arguments):
        nonlocal count
        count += 1
        if count > updates and (is_whole_group or rank == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments)

    train.loop.run_update = dying_update
    run_training(options)


@pytest.mark.parametrize("updates", [2, 4])
def test_two_ranks_killed_and_resumed_end_the_same(two_ranks, tmp_path, updates):
    """T7: SIGKILL within the first and the second epoch of 3 x 3 updates."""
    overrides = (*two_ranks.overrides, "train.checkpoint_minutes=1e-6")
    options = replace(two_ranks, run=tmp_path / "run", overrides=overrides)
    killed = run_ranks(2, lambda rank: train_and_die(options, rank, updates, is_whole_group=True))
    assert killed == [-signal.SIGKILL] * 2
    # The newest checkpoint may have been under way.
    assert json.loads((options.run_dir / "last" / "state.json").read_text())["update"] in (
        updates - 1,
        updates,
    )
    resumed = TrainOptions(stage=1, run=options.run_dir, resume=True)
    assert run_ranks(2, lambda rank: run_training(resumed)) == [0, 0]
    assert_equal_runs(two_ranks.run_dir, options.run_dir)


def test_stage2_of_two_ranks_killed_and_resumed_ends_the_same(two_ranks, tmp_path):
    options = stage2_options(two_ranks.root, tmp_path / "whole", two_ranks.run_dir / "best")
    assert run_ranks(2, lambda rank: run_training(options)) == [0, 0]
    overrides = (*options.overrides, "train.checkpoint_minutes=1e-6")
    dying = replace(options, run=tmp_path / "run", overrides=overrides)
    run_ranks(2, lambda rank: train_and_die(dying, rank, 5, is_whole_group=True))
    resumed = TrainOptions(stage=2, run=dying.run_dir, resume=True)
    assert run_ranks(2, lambda rank: run_training(resumed)) == [0, 0]
    assert_equal_runs(options.run_dir, dying.run_dir)


def test_one_rank_s_death_ends_all_with_one_message(two_ranks, tmp_path, capfd):
    options = replace(two_ranks, run=tmp_path / "run")
    statuses = run_ranks(2, lambda rank: train_and_die(options, rank, 4, is_whole_group=False))
    assert statuses == [2, -signal.SIGKILL]
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("rank ")]
    assert len(said) == 1 and "another process of the run ended" in said[0]
    assert "Traceback" not in capfd.readouterr().err


def test_an_error_of_all_ranks_is_said_once(two_ranks, tmp_path, capfd):
    options = replace(two_ranks, run=tmp_path / "run", train_split=("nowhere",))
    assert run_ranks(2, lambda rank: run_training(options)) == [2, 2]
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("rank ")]
    assert len(said) == 1 and "no split nowhere" in said[0]


@pytest.mark.parametrize("signalled", [(1,), (0, 1)])
def test_a_signal_stops_all_ranks_at_the_same_update(two_ranks, tmp_path, signalled):
    """torchrun repeats a signal, and ends all processes when one has ended: saving must survive both."""
    options = replace(two_ranks, run=tmp_path / "run")

    def work(rank: int) -> None:
        original, count = train.loop.run_update, 0
        save_checkpoint = train.save.save_checkpoint

        def update(*arguments):
            nonlocal count
            count += 1
            if count == 5 and rank in signalled:
                os.kill(os.getpid(), signal.SIGTERM)
                threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
            return original(*arguments)

        def save_slowly(folder: Path, **arguments) -> None:
            if "00000005" in folder.name:
                time.sleep(0.6)
            save_checkpoint(folder, **arguments)

        train.loop.run_update, train.save.save_checkpoint = update, save_slowly
        with pytest.raises(Interrupted):
            run_training(options)
        assert (options.run_dir / "last").resolve().name == "update-00000005"  # also when the others leave

    assert run_ranks(2, work) == [0, 0]
    resumed = TrainOptions(stage=1, run=options.run_dir, resume=True)
    assert run_ranks(2, lambda rank: run_training(resumed)) == [0, 0]
    assert_equal_runs(two_ranks.run_dir, options.run_dir)


def test_three_ranks_killed_and_resumed_end_the_same(two_ranks, tmp_path):
    """The order of adding three numbers matters, and DistributedDataParallel changes it once."""
    options = replace(two_ranks, run=tmp_path / "whole")
    assert run_ranks(3, lambda rank: run_training(options)) == [0] * 3
    overrides = (*options.overrides, "train.checkpoint_minutes=1e-6")
    dying = replace(options, run=tmp_path / "run", overrides=overrides)
    run_ranks(3, lambda rank: train_and_die(dying, rank, 4, is_whole_group=True))
    resumed = TrainOptions(stage=1, run=dying.run_dir, resume=True)
    assert run_ranks(3, lambda rank: run_training(resumed)) == [0] * 3
    assert_equal_runs(options.run_dir, dying.run_dir)


def test_ranks_draw_different_dropout(two_ranks, tmp_path, monkeypatch):
    options = replace(two_ranks, run=tmp_path / "run")

    def work(rank: int) -> None:
        def note_seed(run) -> None:
            (tmp_path / str(rank)).write_text(str(torch.initial_seed()))
            raise SystemExit(0)

        monkeypatch.setattr("train.run.train_epochs", note_seed)
        run_training(options)

    run_ranks(2, work)
    assert (tmp_path / "0").read_text() != (tmp_path / "1").read_text()


def test_a_recording_that_another_rank_cannot_read_is_named(tiny_wavlm_dir, tmp_path, capfd):
    root = tmp_path / "data"
    write_split(root, "train-tiny", 12)
    write_split(root, "dev-tiny", 4, speaker=8, first_seed=100)
    for path in (root / "LibriSpeech" / "train-tiny").rglob("*.flac"):
        path.write_bytes(path.read_bytes()[:2000])
        break
    options = stage1_options(root, tiny_wavlm_dir, tmp_path / "run", overrides=("train.epochs=1",))

    def work(_: int) -> None:
        for name in ("vox", "train"):
            logging.getLogger(name).addHandler(logging.StreamHandler())
        run_training(options)

    assert run_ranks(2, work) == [0, 0]
    said = capfd.readouterr().err
    assert f"skipped {path.stem}" in said and f"left out {path.stem}" in said


def test_a_run_of_two_ranks_goes_on_with_one(two_ranks, tmp_path, caplog):
    options = replace(two_ranks, run=tmp_path / "run", overrides=(*two_ranks.overrides, *CALM))

    def work(rank: int) -> None:
        train_and_die(options, rank, 4, is_whole_group=True)

    run_ranks(2, work)
    run_training(TrainOptions(stage=1, run=options.run_dir, resume=True))
    assert "saved by 2 processes, resumed by 1" in caplog.text
    assert len(read_weights(options.run_dir)) > 0


def test_torchrun_starts_it(stage1, tmp_path):
    """The user's command, from a cache: two ranks train the same as one."""
    changes = (*CALM, "train.epochs=1", "data.concatenate=1.0")
    one = replace(stage1, run=tmp_path / "one", overrides=(*stage1.overrides, *changes))
    run_training(one)
    arguments = ["--stage", "1", "--cached", "--root", one.root, "--features", one.features]
    arguments += ["--train-split", "train-tiny", "--dev-split", "dev-tiny", "--wavlm", one.wavlm]
    arguments += ["--device", "cpu"]
    arguments += [part for override in one.overrides for part in ("--set", override)]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "vox"]
    command = [sys.executable, *launcher, "train", *map(str, arguments), "--run-dir", str(tmp_path / "two")]
    subprocess.run(command, cwd=Path(__file__).parents[2], check=True, timeout=240)
    assert_close_runs(one.run_dir, tmp_path / "two")
