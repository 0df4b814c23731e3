"""Runs that are killed, stopped or restored end where the uninterrupted run ends (T7)."""

import itertools
import json
import math
import os
import shutil
import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest

import train.loop
import train.resume
import train.save
import train.update.step
import vox.checkpoint.files
from tests.support.processes import run_ranks
from tests.support.training import Killed, assert_equal_runs, read_metrics, signal_during
from train.options import TrainOptions
from train.progress import OF_BEST, Progress
from train.record.metrics import MetricsLog
from train.resume import rank_best
from train.run import run_training
from train.signals import Interrupted
from vox.checkpoint.files import load_recogniser
from vox.cli import main
from vox.disk import hash_file, replace_link
from vox.errors import CheckpointError, ConfigError, TrainingError
from vox.runs.layout import CHECKSUMS, METRICS, STATE


def kill_while_writing(options: TrainOptions, update: int) -> None:
    """Train in a process that is killed by SIGKILL when the checkpoint of an update is half written.

    By then the next update is finished: training continued during the write.
    """
    step, hash_checkpoint_file, updates = train.loop.run_update, hash_file, itertools.count(1)
    is_over = threading.Event()

    def count_update(*arguments):
        result = step(*arguments)
        if next(updates) == update + 1:
            is_over.set()
        return result

    def die_at_checksums(path: Path) -> str:
        if f"{update:08d}.partial" in str(path):
            os._exit(3) if not is_over.wait(60) else os.kill(os.getpid(), signal.SIGKILL)
        return hash_checkpoint_file(path)

    def work(_: int) -> None:
        train.loop.run_update, vox.checkpoint.files.hash_file = count_update, die_at_checksums
        run_training(options)

    assert run_ranks(1, work) == [-signal.SIGKILL]


def test_killed_while_a_checkpoint_is_written_and_resumed_ends_the_same(stage1, tmp_path):
    """T7, stage 1 from the cache: SIGKILL after 5 of 9 updates, in the second epoch."""
    overrides = (*stage1.overrides, "train.checkpoint_minutes=1e-6")
    options = replace(stage1, run=tmp_path / "run", overrides=overrides)
    kill_while_writing(options, update=4)
    assert (options.run_dir / "checkpoints" / ".update-00000004.partial").is_dir()
    assert json.loads((options.run_dir / "last" / "state.json").read_text())["update"] == 3
    run_training(TrainOptions(stage=1, run=options.run_dir, resume=True))
    assert_equal_runs(stage1.run_dir, options.run_dir)


def test_killed_inside_an_epoch_and_resumed_ends_the_same(stage1, tmp_path, monkeypatch):
    """The checkpoint of update 5 is written after update 6 has changed the weights, and is then resumed."""
    step, save, updates = train.loop.run_update, train.save.save_checkpoint, itertools.count(1)
    is_over = threading.Event()

    def die_at_the_end(*arguments):
        result = step(*arguments)
        if next(updates) == 6:
            is_over.set()
            raise Killed
        return result

    def save_late(folder: Path, **content) -> None:
        if folder.name == "update-00000005":
            assert is_over.wait(60), "training waits for the checkpoint"
        save(folder, **content)

    monkeypatch.setattr("train.loop.run_update", die_at_the_end)
    monkeypatch.setattr("train.save.save_checkpoint", save_late)
    overrides = (*stage1.overrides, "train.checkpoint_minutes=1e-6")
    options = replace(stage1, run=tmp_path / "run", overrides=overrides)
    with pytest.raises(Killed):
        run_training(options)
    monkeypatch.undo()
    assert json.loads((options.run_dir / "last" / "state.json").read_text())["update"] == 5
    run_training(TrainOptions(stage=1, run=options.run_dir, resume=True))
    assert_equal_runs(stage1.run_dir, options.run_dir)


@pytest.mark.parametrize("is_signalled", [False, True])
def test_a_checkpoint_that_cannot_be_written_stops_the_run(is_signalled, stage1, tmp_path, monkeypatch):
    """With its own line, also after a signal, when a user would believe that the run is saved."""
    save, step, num_updates = train.save.save_checkpoint, train.loop.run_update, 0

    def count_update(*arguments):
        nonlocal num_updates
        num_updates += 1
        if num_updates == 4 and is_signalled:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*arguments)

    def save_or_fail(folder: Path, **content) -> None:
        if folder.name == "update-00000004":
            raise CheckpointError("no space left for a checkpoint", where=folder)
        save(folder, **content)

    monkeypatch.setattr("train.loop.run_update", count_update)
    monkeypatch.setattr("train.save.save_checkpoint", save_or_fail)
    overrides = (*stage1.overrides, "train.checkpoint_minutes=1e-6")
    options = replace(stage1, run=tmp_path / "run", overrides=overrides)
    with pytest.raises(CheckpointError, match=r"no space left for a checkpoint: \S+update-00000004"):
        run_training(options)
    assert num_updates in (4, 5)  # at once, or where the next checkpoint would begin
    assert json.loads((options.run_dir / "alive.json").read_text())["state"] == "failed"


@pytest.mark.parametrize(("name", "update"), [("run_update", 1), ("validate", 3)])
def test_sigterm_saves_and_leaves(name, update, stage1, tmp_path, monkeypatch):
    """The current update is finished and saved, validation is aborted; the resumed run ends the same."""
    options = replace(stage1, run=tmp_path / "run")
    signal_during(monkeypatch, name)
    with pytest.raises(Interrupted) as caught:
        run_training(options)
    monkeypatch.undo()
    assert caught.value.signal_number == signal.SIGTERM
    state = json.loads((options.run_dir / "last" / "state.json").read_text())
    assert (state["update"], state["epoch"]) == (update, 0)
    run_training(TrainOptions(stage=1, run=options.run_dir, resume=True))
    assert_equal_runs(stage1.run_dir, options.run_dir)


def test_a_resumed_run_knows_what_was_best(stage1, tmp_path, monkeypatch):
    """The second of three results is the lowest, and the third takes its place after the resume."""
    original, wers = train.judge.validate.validate, []

    def scripted(recogniser, split, tokenizer, **keywords):
        result = original(recogniser, split, tokenizer, **keywords)
        wer, place = wers.pop(0)
        errors = [int(k == place) for k in range(len(result.num_words))]
        return replace(
            result,
            wer=dict.fromkeys(result.wer, wer),
            wer_upper=dict.fromkeys(result.wer, 0.5),
            errors=dict.fromkeys(result.wer, errors),
        )

    states = []
    for name in ("whole", "resumed"):
        wers[:] = [(0.3, 0), (0.1, 0), (0.11, 1)]
        options = replace(stage1, run=tmp_path / name)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(train.judge.validate, "validate", scripted)
            if name == "resumed":
                with pytest.MonkeyPatch.context() as signalling, pytest.raises(Interrupted):
                    signal_during(signalling, "run_update", 8)
                    run_training(options)
                options = TrainOptions(stage=1, run=options.run_dir, resume=True)
            run_training(options)
        state = json.loads((options.run_dir / "last" / "state.json").read_text())
        states.append({key: state[key] for key in OF_BEST})
    assert states[0] == states[1]
    assert states[0]["best"][0] == 0.1 and states[0]["best_checkpoint"] == "update-00000009-validated"


def test_weights_that_stage_1_begins_with_have_to_be_improved_on(stage1, tmp_path):
    """With a learning rate at which nothing is learnt."""
    changes = {"overrides": (*stage1.overrides, "optimizer.learning_rate=1e-30")}
    options = replace(stage1, run=tmp_path / "run", from_checkpoint=stage1.run_dir / "best", **changes)
    run_training(options)
    devs = [event for event in read_metrics(options.run_dir) if event["kind"] == "dev"]
    assert [event["is_best"] for event in devs] == [True, False, False, False] and devs[0]["update"] == 0
    assert (options.run_dir / "best").resolve().name == "update-00000000-validated"


def assert_links_go_back(run: Path, patch: pytest.MonkeyPatch) -> None:
    """Resume up to the first update: `best` is what `last` names; the previous checkpoint is kept."""

    def die(_: object) -> None:
        raise Killed

    patch.setattr("train.run.train_epochs", die)
    with pytest.raises(Killed):
        run_training(TrainOptions(stage=1, run=run, resume=True))
    patch.undo()
    best = json.loads((run / "last" / "state.json").read_text())["best_checkpoint"]
    assert ((run / "best").resolve().name if (run / "best").exists() else None) == best
    kept = {(run / "last").resolve().name, best} - {None}
    others = {path.name for path in (run / "checkpoints").iterdir()} - kept
    assert len(others) <= 1
    assert all(name < (run / "last").resolve().name for name in others)


@pytest.mark.parametrize("on_move", [1, 3, 4, 6, 7])
def test_killed_at_a_link_and_resumed_ends_the_same(on_move, stage1, tmp_path, monkeypatch):
    """`last` moves at the start and at an epoch's end (1, 2, 5), `best` and `last` after validation."""
    moves = itertools.count(1)

    def dying_link(link: Path, target: Path) -> None:
        if next(moves) == on_move:
            raise Killed(link.name)
        replace_link(link, target)

    options = replace(stage1, run=tmp_path / "run")
    monkeypatch.setattr("train.save.replace_link", dying_link)
    with pytest.raises(Killed, match={3: "best", 6: "best"}.get(on_move, "last")):
        run_training(options)
    monkeypatch.undo()
    assert_links_go_back(options.run_dir, monkeypatch)
    if on_move == 4:  # and once more: timings differ in length, and so do the bytes of the metrics
        signal_during(monkeypatch, "run_update")
        with pytest.raises(Interrupted):
            run_training(TrainOptions(stage=1, run=options.run_dir, resume=True))
        monkeypatch.undo()
    run_training(TrainOptions(stage=1, run=options.run_dir, resume=True))
    assert_equal_runs(stage1.run_dir, options.run_dir)
    best = json.loads((options.run_dir / "best" / "state.json").read_text())
    assert best["best_checkpoint"] == (options.run_dir / "best").resolve().name
    assert len(list((options.run_dir / "checkpoints").iterdir())) <= 3  # best, last, the one before


def test_a_run_whose_gradients_stay_nan_stops_and_can_be_resumed(stage1, tmp_path, monkeypatch, capsys):
    """From update 4 on no gradient is finite. Resumed from update 3 without the cause, it ends the same."""
    weigh, run = train.update.step._weigh, tmp_path / "run"
    calls = itertools.count(1)

    def weigh_nan(*arguments):  # called once for each of an update's two micro-batches
        return weigh(*arguments) * (math.nan if next(calls) > 6 else 1.0)

    monkeypatch.setattr("train.update.step._weigh", weigh_nan)
    monkeypatch.setattr("train.meter.MAX_SKIPPED_IN_A_ROW", 3)
    message = r"^3 updates in a row, up to update 6, .*7-1-00.*--resume"
    with pytest.raises(TrainingError, match=message) as caught:
        run_training(replace(stage1, run=run))
    skipped = [line for line in read_metrics(run) if line["kind"] == "skipped"]
    assert [(line["update"], len(line["ids"])) for line in skipped] == [(4, 4), (5, 4), (6, 4)]
    assert all(name in str(caught.value) for name in skipped[-1]["ids"][:3])
    assert main(["train", "--stage", "1", "--resume", "--run", str(run)]) == 2
    assert "vox: error: 3 updates in a row, up to update 6" in capsys.readouterr().err.splitlines()[-1]
    monkeypatch.undo()
    run_training(TrainOptions(stage=1, run=run, resume=True))
    assert_equal_runs(stage1.run_dir, run)


def test_a_short_run_of_which_every_update_is_skipped_fails(stage1, tmp_path, monkeypatch):
    weigh = train.update.step._weigh
    monkeypatch.setattr("train.update.step._weigh", lambda *arguments: weigh(*arguments) * math.inf)
    with pytest.raises(TrainingError, match="9 updates in a row, up to update 9"):
        run_training(replace(stage1, run=tmp_path / "run"))


def test_backup_holds_a_checkpoint_that_loads(stage1, tmp_path):
    options = replace(stage1, run=tmp_path / "run", backup=f"file://{tmp_path}/elsewhere")
    run_training(options)
    pointer = json.loads((tmp_path / "elsewhere" / "run" / "best.json").read_text())
    copy = load_recogniser(tmp_path / "elsewhere" / "run" / "checkpoints" / pointer["checkpoint"])
    assert copy.state["update"] in (3, 6, 9)
    assert json.loads((options.run_dir / "backup.json").read_text())["error"] is None


def test_a_backup_is_a_run_that_can_be_resumed(stage1, tmp_path, monkeypatch, caplog):
    """After SIGTERM the run waits for the newest checkpoint; a running copy to the backup continues."""
    signal_during(monkeypatch, "run_update", on_call=5)
    options = replace(stage1, run=tmp_path / "run", backup=f"file://{tmp_path}/elsewhere")
    with pytest.raises(Interrupted):
        run_training(options)
    monkeypatch.undo()
    restored = tmp_path / "elsewhere" / "run"
    run_training(TrainOptions(stage=1, run=restored, resume=True))
    assert_equal_runs(stage1.run_dir, restored)
    assert "is the run itself, so there is no backup" in caplog.text


def test_a_failing_backup_never_stops_training(stage1, tmp_path):
    (tmp_path / "file").write_text("in the way")
    options = replace(stage1, run=tmp_path / "run", backup=f"file://{tmp_path}/file/below")
    run_training(options)
    assert (options.run_dir / "best").exists()
    assert json.loads((options.run_dir / "backup.json").read_text())["error"]


def test_a_run_is_not_overwritten(stage1):
    with pytest.raises(CheckpointError, match="--resume"):
        run_training(stage1)


def test_a_run_without_its_last_link_is_not_overwritten_either(stage1, tmp_path, caplog):
    """Object stores keep no links; the newest checkpoint is the last one."""
    run = tmp_path / "run"
    shutil.copytree(stage1.run_dir, run, symlinks=True)
    (run / "last").unlink()
    with pytest.raises(CheckpointError, match="--resume"):
        run_training(replace(stage1, run=run))
    with caplog.at_level("INFO", "train.run"):
        run_training(TrainOptions(stage=1, run=run, resume=True))
    assert "all 9 updates of this run are done: nothing is left to train" in caplog.text
    assert_equal_runs(stage1.run_dir, run)


def test_resume_refuses_another_run(stage1, tmp_path):
    run, root = tmp_path / "run", tmp_path / "data"
    shutil.copytree(stage1.run_dir, run, symlinks=True)
    with pytest.raises(ConfigError, match="--skip-bad cannot be given"):
        run_training(TrainOptions(stage=1, run=run, resume=True, cached=True, skip_bad=True))
    shutil.copytree(stage1.root, root)
    transcripts = next(root.glob("LibriSpeech/train-tiny/*/*/*.trans.txt"))
    transcripts.write_text(transcripts.read_text().replace("GO", "RUN"))
    resumed = TrainOptions(stage=1, run=run, resume=True, root=root, features=stage1.features)
    changed = r"train-tiny has changed since the run began \(\d+ utterances? of another length or text: \w"
    with pytest.raises(CheckpointError, match=changed):
        run_training(resumed)
    (run / "utterances.jsonl").unlink()  # as in a run of an older version
    with pytest.raises(CheckpointError, match=r"train-tiny has changed since the run began \(ids, lengths"):
        run_training(resumed)


def test_a_changed_dev_split_is_not_compared_with(stage1, tmp_path):
    run, root = tmp_path / "run", tmp_path / "data"
    shutil.copytree(stage1.run_dir, run, symlinks=True)
    shutil.copytree(stage1.root, root)
    transcripts = next(root.glob("LibriSpeech/dev-tiny/*/*/*.trans.txt"))
    words = transcripts.read_text()
    transcripts.write_text(words.replace("GO", "RUN") if "GO" in words else words.replace("UP", "RUN"))
    with pytest.raises(CheckpointError, match=r"dev-tiny has changed since the run began \(\d+ utterance"):
        run_training(TrainOptions(stage=1, run=run, resume=True, root=root, features=stage1.features))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, r"state has format 2, and this Vox reads format 1: \S+state.json; use the version"),
        ({"lookahead": 3}, r"keys that this Vox does not know \(lookahead\): \S+state.json; resume with"),
        ({"format": None}, None),  # what older versions wrote
    ],
)
def test_a_state_is_resumed_from_unless_another_version_wrote_it(changes, message, stage1, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(stage1.run_dir, run, symlinks=True)
    state = json.loads((run / "last" / STATE).read_text())
    assert state["format"] == 1
    state = {key: value for key, value in (state | changes).items() if key != "format" or value}
    (run / "last" / STATE).write_text(json.dumps(state))
    checksums = json.loads((run / "last" / CHECKSUMS).read_text())
    (run / "last" / CHECKSUMS).write_text(json.dumps(checksums | {STATE: hash_file(run / "last" / STATE)}))
    resumed = TrainOptions(stage=1, run=run, resume=True)
    if message is None:
        run_training(resumed)
        assert_equal_runs(stage1.run_dir, run)
    else:
        with pytest.raises(CheckpointError, match=message):
            run_training(resumed)


def test_metrics_are_never_filled_up_with_zeros(tmp_path):
    (tmp_path / METRICS).write_text('{"a": 1}\n{"b": 2}\n')
    for keep_bytes, left in ((99, '{"a": 1}\n{"b": 2}\n'), (12, '{"a": 1}\n'), (9, '{"a": 1}\n')):
        MetricsLog(tmp_path, keep_bytes=keep_bytes).close()
        assert (tmp_path / METRICS).read_text() == left


def test_the_best_checkpoint_of_an_older_version_is_ranked_as_this_one_does(tmp_path):
    """It ranked by the mean of both WERs, 0.315 here: a new result of 0.25 and 0.40 would replace it."""
    dev = {"wer": {"ctc": 0.02, "attention": 0.61}, "ctc": 0.5, "attention": 1.5}
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "state.json").write_text(json.dumps({"dev": dev}))
    progress = Progress(best=[0.315, 2.0])
    rank_best(tmp_path, {"best_limit": 0.9}, progress)  # of this version: another may be the lowest
    assert progress.best == [0.315, 2.0]
    rank_best(tmp_path, {}, progress)
    assert progress.best == [0.02, 2.0]
    only_the_decoder_learns = dev | {"source": {"wer": {"attention": 0.1}}}
    (tmp_path / "best" / "state.json").write_text(json.dumps({"dev": only_the_decoder_learns}))
    rank_best(tmp_path, {}, progress)
    assert progress.best == [0.61, 2.0]
