"""The largest micro-batch is tried before the first update."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from tests.support.training import stage1_options
from train.loop import _plan_epoch
from train.memory import describe_batch, find_largest, make_worst_batch, rehearse, settle_micro_batch
from train.options import TrainOptions, resume_options
from train.run import run_training
from train.update.step import Losses
from vox.config import load_saved_config
from vox.errors import ConfigError, DeviceError


def spy_on_start(options, monkeypatch):
    """Run a stage up to its first update, and return the Run."""
    caught = SimpleNamespace()

    def remember(run, settings):
        caught.run, caught.settings = run, settings
        settle_micro_batch(run, settings)

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("train.run.settle_micro_batch", remember)

    monkeypatch.setattr("train.run.settle_buckets", stop)
    with pytest.raises(KeyboardInterrupt):
        run_training(options)
    return caught.run, caught.settings


@pytest.mark.parametrize("limit", ["data.micro_batch_utterances=5", "data.micro_batch_seconds=4"])
def test_no_epoch_has_a_larger_one(tiny_root, tiny_wavlm_dir, tmp_path, monkeypatch, limit):
    overrides = (limit, "data.utterances_per_update=12")
    options = stage1_options(tiny_root, tiny_wavlm_dir, tmp_path / "run", overrides=overrides)
    run, _ = spy_on_start(options, monkeypatch)
    batch, _ = make_worst_batch(run)
    lengths = run.parts.train.lengths
    for run.progress.epoch in range(20):
        for update in _plan_epoch(run):
            for micro in update[0]:
                longest = max(sum(lengths[position] for position in row) for row in micro)
                if limit == "data.micro_batch_utterances=5":
                    assert len(micro) <= len(batch.ids) == 5 and longest <= batch.waveforms_BS.shape[1]
                else:
                    assert len(micro) * longest <= 4 * 16_000


def test_the_seed_decides_weights_and_order(tiny_root, tiny_wavlm_dir, tmp_path, monkeypatch):
    """Two seeds, one of them twice: the state of a run before its first update."""
    drawn = []
    for number, seed in enumerate((1, 2, 1)):
        run_dir = tmp_path / str(number)
        options = stage1_options(tiny_root, tiny_wavlm_dir, run_dir, overrides=(f"train.seed={seed}",))
        run, _ = spy_on_start(options, monkeypatch)
        drawn.append((run.parts.recogniser.ctc_head.weight, _plan_epoch(run)))
    (weights, order), (other_weights, other_order), (same_weights, same_order) = drawn
    assert not torch.equal(weights, other_weights) and order != other_order
    assert torch.equal(weights, same_weights) and order == same_order


def test_it_leaves_no_trace(tiny_root, tiny_wavlm_dir, tmp_path, monkeypatch):
    run, settings = spy_on_start(stage1_options(tiny_root, tiny_wavlm_dir, tmp_path / "run"), monkeypatch)
    recogniser = run.parts.recogniser
    before = {name: tensor.clone() for name, tensor in recogniser.state_dict().items()}
    random_before, was_training = torch.get_rng_state(), recogniser.training
    rehearse(run, settings)
    assert torch.equal(torch.get_rng_state(), random_before)
    assert recogniser.training == was_training
    assert all(torch.equal(before[name], tensor) for name, tensor in recogniser.state_dict().items())
    assert all(parameter.grad is None for parameter in recogniser.parameters())


def test_running_out_of_memory_names_the_setting(tiny_root, tiny_wavlm_dir, tmp_path, monkeypatch):
    run, settings = spy_on_start(stage1_options(tiny_root, tiny_wavlm_dir, tmp_path / "run"), monkeypatch)

    class Exhausted(Losses):
        def forward(self, *_: object) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

    run.losses = Exhausted(run.parts.recogniser)
    with pytest.raises(DeviceError, match=r"lower data.micro_batch_utterances \(now 2\)") as caught:
        rehearse(run, settings)
    assert describe_batch(make_worst_batch(run)[0]) in str(caught.value)


def test_the_search_halves_until_it_fits():
    tried = []

    def fits(count):
        tried.append(count)
        return count <= 9

    assert find_largest(35, fits) == 9 and tried == [35, 18, 9]
    assert find_largest(3, lambda _: False) == 1


def test_auto_is_eight_on_a_cpu_and_a_number_is_taken_as_it_is(
    tiny_root, tiny_wavlm_dir, tmp_path, monkeypatch
):
    for asked, expected in (("auto", 8), ("3", 3)):
        overrides = (f"data.micro_batch_utterances={asked}",)
        options = stage1_options(tiny_root, tiny_wavlm_dir, tmp_path / asked, overrides=overrides)
        run, _ = spy_on_start(options, monkeypatch)
        assert run.progress.micro_batch_utterances == expected


def test_out_of_memory_in_the_middle_halves_the_micro_batch_and_loses_nothing(
    tiny_root, tiny_wavlm_dir, tmp_path, monkeypatch, caplog
):
    """Micro-batches of 4 fail from the second update on: all updates are made, with the same gradients."""
    overrides = ("model.dropout=0", "augment.time_masks=0", "augment.channel_masks=0")
    plain = stage1_options(tiny_root, tiny_wavlm_dir, tmp_path / "plain", overrides=overrides)
    run_training(plain)  # micro-batches of 2
    forward, num_calls = Losses.forward, 0

    def fail_when_large(self, batch, labels, settings):
        nonlocal num_calls
        num_calls += 1
        if num_calls > 1 and len(batch.ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, batch, labels, settings)

    monkeypatch.setattr(Losses, "forward", fail_when_large)
    overrides += ("data.micro_batch_utterances=4",)
    halved = stage1_options(tiny_root, tiny_wavlm_dir, tmp_path / "halved", overrides=overrides)
    run_training(halved)
    warnings = [r.getMessage() for r in caplog.records if "ran out of memory" in r.getMessage()]
    assert len(warnings) == 1 and warnings[0].startswith("update 2 ran out of memory")
    states = [json.loads((o.run_dir / "last" / "state.json").read_text()) for o in (plain, halved)]
    assert states[0]["update"] == states[1]["update"] and states[1]["micro_batch_utterances"] == 2
    first, second = (load_file(o.run_dir / "last" / "model.safetensors") for o in (plain, halved))
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, atol=1e-5, rtol=1e-4)


def test_out_of_memory_that_no_smaller_cut_can_end_names_the_setting(
    tiny_root, tiny_wavlm_dir, tmp_path, monkeypatch
):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Losses, "forward", fail)
    options = stage1_options(tiny_root, tiny_wavlm_dir, tmp_path / "run")
    with pytest.raises(DeviceError, match="use a GPU with more memory"):
        run_training(options)


def test_the_peak_in_the_metrics_is_of_training_and_not_of_the_rehearsal(
    tiny_root, tiny_wavlm_dir, tmp_path, monkeypatch
):
    run, settings = spy_on_start(stage1_options(tiny_root, tiny_wavlm_dir, tmp_path / "run"), monkeypatch)
    gpu, calls = torch.device("cuda"), []
    monkeypatch.setattr("train.memory.rehearse", lambda run, settings: calls.append("rehearse"))
    for name in ("max_memory_allocated", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda device, name=name: calls.append((name, device)) or 0)
    settle_micro_batch(replace(run, device=gpu), settings)
    assert calls == ["rehearse", ("max_memory_allocated", gpu), ("reset_peak_memory_stats", gpu)]


def test_nothing_is_pinned_for_a_cpu_beside_a_gpu(
    tiny_root, tiny_wavlm_dir, features_dir, tmp_path, monkeypatch
):
    def pin_memory(tensor):
        raise AssertionError("pinned memory is the GPU's")

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)  # the optimizer asks
    for cached in (True, False):
        options = stage1_options(
            tiny_root,
            tiny_wavlm_dir,
            tmp_path / str(cached),
            cached=cached,
            features=features_dir,
            overrides=("train.max_updates=1",),
        )
        run_training(options)


def test_out_of_memory_after_the_step_is_not_computed_again(tiny_root, tiny_wavlm_dir, tmp_path, monkeypatch):
    """The average of the weights needs memory too; by then the update has changed them."""

    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("train.update.ema.Ema.follow", fail)
    options = stage1_options(tiny_root, tiny_wavlm_dir, tmp_path / "run", overrides=("train.ema_decay=0.9",))
    with pytest.raises(torch.OutOfMemoryError):
        run_training(options)
    assert json.loads((options.run_dir / "last" / "state.json").read_text())["update"] == 0


def test_a_resumed_run_may_be_cut_smaller(tiny_root, tiny_wavlm_dir, tmp_path):
    options = stage1_options(tiny_root, tiny_wavlm_dir, tmp_path / "run", overrides=("train.max_updates=1",))
    run_training(options)
    cut = ("data.micro_batch_utterances=1",)
    smaller = TrainOptions(stage=1, run=options.run_dir, resume=True, overrides=cut)
    config = load_saved_config(options.run_dir / "config.yaml", resume_options(smaller).overrides)
    assert config.data.micro_batch_utterances == 1
    with pytest.raises(ConfigError, match="keeps its settings: --set cannot be given"):
        resume_options(replace(smaller, overrides=("train.epochs=9",)))


@pytest.mark.parametrize(
    ("recorded", "others", "expected", "tried"),
    [(0, [], 8, [32, 16, 8]), (0, [4], 4, [32, 16, 8, 4]), (16, [], 16, [16]), (32, [], 16, [32, 16])],
)
def test_on_a_gpu_auto_takes_the_largest_cut_that_leaves_room_on_every_rank(
    recorded, others, expected, tried, tiny_root, tiny_wavlm_dir, tmp_path, monkeypatch
):
    """Of 100 bytes 32 utterances take too many, 16 take 90, 8 take 45; a resumed run needs no spare room.

    No cut is tried twice.
    """
    rehearsed = []
    overrides = ("data.micro_batch_utterances=auto", "data.utterances_per_update=32")
    run, settings = spy_on_start(
        stage1_options(tiny_root, tiny_wavlm_dir, tmp_path / "run", overrides=overrides), monkeypatch
    )

    def rehearse_fake_gpu(run, settings):
        rehearsed.append(run.progress.micro_batch_utterances)
        if run.progress.micro_batch_utterances == 32:
            raise DeviceError("too large")

    taken = {16: 90, 8: 45, 4: 20}
    monkeypatch.setattr("train.memory.rehearse", rehearse_fake_gpu)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (60, 100))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 40)
    monkeypatch.setattr(
        torch.cuda, "max_memory_allocated", lambda device: taken[run.progress.micro_batch_utterances]
    )
    ranks = SimpleNamespace(world_size=1, gather=lambda found: [found, *others])
    run.progress.micro_batch_utterances = recorded
    settle_micro_batch(replace(run, device=torch.device("cuda"), ranks=ranks), settings)
    assert run.progress.micro_batch_utterances == expected and rehearsed == tried
