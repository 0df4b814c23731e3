"""Averages of the weights: their values, resuming after a kill, and which weights a dev result is of."""

import hashlib
import json
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

import train.loop
from tests.support.backups import write_checkpoint
from tests.support.training import (
    Killed,
    assert_equal_runs,
    die_after,
    read_metrics,
    stage1_options,
    stage2_options,
    tiny_recogniser,
)
from train.build import build_parts
from train.judge.average import average_checkpoints
from train.options import TrainOptions
from train.run import run_training
from train.state import Run
from train.update.ema import Ema
from train.update.step import UpdateResult
from vox.checkpoint.files import load_recogniser
from vox.errors import ConfigError
from vox.runs.layout import CHECKSUMS, EMA, MODEL


def result(*, is_finite: bool = True, num_targets: int = 5) -> UpdateResult:
    sums_5 = torch.tensor([1.0, 1.0, 4.0, num_targets, 50.0], dtype=torch.float64)
    return UpdateResult(sums_5, torch.tensor(1.0), torch.tensor(is_finite), 0.3)


def test_the_exponential_average_is_the_recursion(tiny_wavlm_dir):
    """Compare with a scalar loop: decay 0.9, lower at the start; updates without a change do not count."""
    recogniser = tiny_recogniser(tiny_wavlm_dir)
    bias = recogniser.ctc_head.bias
    ema = Ema(recogniser, decay=0.9)
    expected = 0.0
    for update in range(30):
        with torch.no_grad():
            bias.fill_(update + 1.0)
        kind = {7: {"is_finite": False}, 9: {"num_targets": 0}}.get(update, {})
        ema.follow(update, result(**kind))
        if not kind:
            decay = min(0.9, (1 + update) / (10 + update))
            expected = decay * expected + (1 - decay) * (update + 1)
    assert ema.weights["ctc_head.bias"][0].item() == pytest.approx(expected, rel=1e-5)
    assert "extractor.wavlm.encoder.layer_norm.weight" not in ema.weights
    with ema.in_place():
        assert bias[0].item() == pytest.approx(expected, rel=1e-5)
    assert bias[0].item() == 30.0


def let_the_average_win(patch: pytest.MonkeyPatch) -> None:
    """Replace error rates so that the average is better; its measured losses are kept."""
    validate_weights = train.loop.validate_weights

    def validate_unfairly(*arguments):
        results = validate_weights(*arguments)
        wer = {"raw": 0.5, "ema": 0.4 - 0.01 * arguments[0].progress.update}
        return {name: replace(each, wer=dict.fromkeys(each.wer, wer[name])) for name, each in results.items()}

    patch.setattr("train.loop.validate_weights", validate_unfairly)


@pytest.fixture(scope="module")
def averaged(tiny_root, tiny_wavlm_dir, tmp_path_factory) -> TrainOptions:
    """A finished run whose exponential average is better, validated within epochs too."""
    overrides = ("train.ema_decay=0.5", "train.validate_updates=2")
    run = tmp_path_factory.mktemp("runs") / "ema"
    options = stage1_options(tiny_root, tiny_wavlm_dir, run, overrides=overrides)
    with pytest.MonkeyPatch.context() as patch:
        let_the_average_win(patch)
        run_training(options)
    return options


def test_both_weights_are_validated_at_each_epoch_and_in_between(averaged):
    lines = read_metrics(averaged.run_dir)
    for kind in ("dev", "dev_ema"):
        assert [line["update"] for line in lines if line["kind"] == kind] == [2, 3, 4, 6, 8, 9]
    raw, ema = ([line for line in lines if line["kind"] == kind] for kind in ("dev", "dev_ema"))
    assert any(one["ctc"] != other["ctc"] for one, other in zip(raw, ema, strict=True))
    assert all(line["is_best"] for line in ema) and not any(line["is_best"] for line in raw)


def test_a_checkpoint_stands_for_the_better_weights(averaged):
    """`evaluate` and stage 2 load the weights of the dev result; training continues with the raw weights."""
    folder = averaged.run_dir / "best"
    state = json.loads((folder / "state.json").read_text())
    lines = [line for line in read_metrics(averaged.run_dir) if line["update"] == 9]
    (recorded,) = [line for line in lines if line["kind"] == "dev_ema"]
    assert (state["weights"], state["best_checkpoint"]) == ("ema", "update-00000009-validated")
    assert (state["dev"]["ctc"], state["dev"]["wer"]["ctc"]) == (recorded["ctc"], recorded["wer_ctc"])
    raw, ema = load_file(folder / MODEL), load_file(folder / EMA)
    name = "ctc_head.weight"
    assert not torch.equal(raw[name], ema[name])
    assert torch.equal(load_recogniser(folder).recogniser.ctc_head.weight, ema[name])
    assert torch.equal(load_recogniser(folder, as_trained=True).recogniser.ctc_head.weight, raw[name])


def test_stage2_starts_from_the_average(averaged, tiny_root, tmp_path, monkeypatch):
    def look(options, config, device, ranks):
        parts = build_parts(options, config, device, ranks)
        started_from.append(parts.recogniser.ctc_head.weight)
        raise Killed

    started_from: list[torch.Tensor] = []
    monkeypatch.setattr("train.run.build_parts", look)
    with pytest.raises(Killed):
        run_training(stage2_options(tiny_root, tmp_path / "run", averaged.run_dir / "best"))
    assert torch.equal(started_from[0], load_file(averaged.run_dir / "best" / EMA)["ctc_head.weight"])


def test_killed_and_resumed_ends_with_the_same_average(averaged, tmp_path, monkeypatch):
    """In the middle of an epoch, if the dev result is the average's: training resumes the raw weights."""
    let_the_average_win(monkeypatch)
    overrides = (*averaged.overrides, "train.checkpoint_minutes=1e-6")
    options = replace(averaged, run=tmp_path / "run", overrides=overrides)
    with monkeypatch.context() as patch:
        die_after(patch, updates=5)
        with pytest.raises(Killed):
            run_training(options)
    state = json.loads((options.run_dir / "last" / "state.json").read_text())
    assert (state["update"], state["weights"]) == (5, "ema")
    run_training(TrainOptions(stage=1, run=options.run_dir, resume=True))
    assert_equal_runs(averaged.run_dir, options.run_dir)
    ours, theirs = (load_file(folder / "last" / EMA) for folder in (averaged.run_dir, options.run_dir))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_killed_before_a_validation_inside_an_epoch_it_is_made_up_for(averaged, tmp_path, monkeypatch):
    def die(run: Run, *_: object) -> None:
        run.writer.wait()  # the checkpoint of update 2
        raise Killed

    options = replace(averaged, run=tmp_path / "run")
    monkeypatch.setattr("train.loop.validate_weights", die)
    with pytest.raises(Killed):
        run_training(options)
    monkeypatch.undo()
    assert json.loads((options.run_dir / "last" / "state.json").read_text())["update"] == 2
    let_the_average_win(monkeypatch)
    run_training(TrainOptions(stage=1, run=options.run_dir, resume=True))
    assert_equal_runs(averaged.run_dir, options.run_dir)


@pytest.mark.parametrize("end", ["train.validate_updates=3", "train.max_updates=2"])
def test_an_update_is_validated_once(end, tiny_root, tiny_wavlm_dir, tmp_path, monkeypatch):
    """Also when an epoch or the run ends at such an update, and when it is killed there and resumed."""
    options = stage1_options(
        tiny_root, tiny_wavlm_dir, tmp_path / "run", overrides=("train.validate_updates=1", end)
    )
    original = train.loop.validate_weights

    def die_at_the_end_of_an_epoch(run, *arguments):
        if run.progress.update_in_epoch == 3:
            raise Killed
        return original(run, *arguments)

    monkeypatch.setattr("train.loop.validate_weights", die_at_the_end_of_an_epoch)
    with suppress(Killed):
        run_training(options)
    monkeypatch.undo()
    run_training(TrainOptions(stage=1, run=options.run_dir, resume=True))
    updates = [line["update"] for line in read_metrics(options.run_dir) if line["kind"] == "dev"]
    assert updates == sorted(set(updates))


def test_the_mean_of_checkpoints_is_kept_if_it_is_better(tiny_root, tiny_wavlm_dir, tmp_path):
    overrides = ("train.keep_checkpoints=2", "train.average_checkpoints=3")
    options = stage1_options(tiny_root, tiny_wavlm_dir, tmp_path / "run", overrides=overrides)
    run_training(options)
    checkpoints = sorted((options.run_dir / "checkpoints").iterdir())
    validated = [folder for folder in checkpoints if folder.name.endswith("-validated")]
    assert [folder.name[7:15] for folder in validated] == ["00000003", "00000006", "00000009"]
    line = read_metrics(options.run_dir)[-1]
    assert line["kind"] == "dev_average"
    weights = [load_file(folder / MODEL)["ctc_head.weight"] for folder in validated]
    mean = torch.stack(weights).double().mean(0).float()
    averaged = [folder for folder in checkpoints if folder.name.endswith("-average")]
    assert bool(averaged) == line["is_best"]
    if averaged:
        assert torch.equal(load_file(averaged[0] / MODEL)["ctc_head.weight"], mean)
        assert (options.run_dir / "best").resolve() == averaged[0].resolve()


@pytest.mark.parametrize("is_first", [True, False])
def test_the_mean_is_of_the_whole_ones_that_the_first_rank_sees(is_first, tmp_path, monkeypatch, caplog):
    """Weights 1, 2 and 6, of which 6 is damaged; another rank does not list the checkpoints."""
    folders = [tmp_path / "checkpoints" / f"update-{number}-validated" for number in (1, 2, 6)]
    for number, folder in zip((1, 2, 6), folders, strict=True):
        write_checkpoint(tmp_path, folder.name)
        save_file({"bias": torch.full((3,), float(number))}, folder / MODEL)
        checksums = json.loads((folder / CHECKSUMS).read_text())
        if number < 6:
            checksums[MODEL] = hashlib.sha256((folder / MODEL).read_bytes()).hexdigest()
        (folder / CHECKSUMS).write_text(json.dumps(checksums))
    recogniser = torch.nn.Linear(3, 3)
    recogniser.weight.requires_grad_(False)
    ranks = SimpleNamespace(is_first=is_first, gather=lambda value: [value if is_first else folders[:2], []])
    run = SimpleNamespace(
        run_dir=tmp_path if is_first else tmp_path / "nowhere",
        parts=SimpleNamespace(recogniser=recogniser),
        ranks=ranks,
        signals=SimpleNamespace(agree=None),
    )
    monkeypatch.setattr("train.judge.average.validate_run", lambda *_: None)
    assert average_checkpoints(run, 3)  # type: ignore[arg-type]
    assert recogniser.bias.tolist() == [1.5, 1.5, 1.5]
    assert ("update-6-validated is left out" in caplog.text) == is_first


def test_an_average_needs_its_checkpoints(tiny_root, tiny_wavlm_dir, tmp_path):
    overrides = ("train.average_checkpoints=3",)
    options = stage1_options(tiny_root, tiny_wavlm_dir, tmp_path / "run", overrides=overrides)
    with pytest.raises(ConfigError, match="needs keep_checkpoints 2 or more"):
        run_training(options)
