"""Both stages end to end on a tiny corpus: learning, handoff and refusals."""

import itertools
import json
import re
import shlex
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import train.loop
from precompute.cli import precompute
from tests.support.speech import write_split
from tests.support.training import read_metrics, read_weights, stage1_options, stage2_options
from train.options import TrainOptions, resolve_config, warn_if_all_frozen
from train.run import run_training
from vox.checkpoint.files import load_recogniser, read_words
from vox.cli import main
from vox.corpus import read_split
from vox.errors import (
    AudioError,
    CacheError,
    CheckpointError,
    ConfigError,
    CorpusError,
    HandoffError,
    TextError,
    VoxError,
)
from vox.features.cache import cache_dir
from vox.features.fingerprint import make_fingerprint


def test_stage1_learns_and_leaves_wavlm_alone(stage1, tiny_wavlm_dir):
    lines = read_metrics(stage1.run_dir, timing=True)
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    dev = [line for line in lines if line["kind"] == "dev"]
    assert losses[-1] < losses[0]
    assert len(dev) == 3
    assert {"wer_ctc", "wer_attention", "ctc", "attention"} <= dev[0].keys()
    assert all(line["audio_seconds_per_second"] > 0 for line in lines if line["kind"] == "train")
    weights = read_weights(stage1.run_dir)
    original = load_file(tiny_wavlm_dir / "model.safetensors")
    for name, tensor in original.items():
        assert torch.equal(weights[f"extractor.wavlm.{name}"], tensor), name
    assert list((stage1.run_dir / "tensorboard").iterdir())


def test_a_checkpoint_knows_how_often_training_heard_each_word(stage1, tiny_root):
    utterances, _ = read_split(tiny_root, "train-tiny")
    heard = Counter(word for utterance in utterances for word in utterance.text.split())
    assert read_words(stage1.run_dir / "best") == heard


def test_stage1_live_learns_what_stage1_cached_learns(stage1, tiny_root, tiny_wavlm_dir, tmp_path):
    """The same run without a cache: apart from the mix, losses agree within float16 rounding of features."""
    options = stage1_options(tiny_root, tiny_wavlm_dir, tmp_path / "run")
    run_training(options)
    cached = [line["ctc"] for line in read_metrics(stage1.run_dir) if line["kind"] == "train"]
    live = [line["ctc"] for line in read_metrics(options.run_dir) if line["kind"] == "train"]
    assert live == pytest.approx(cached, rel=2e-2)
    assert live[0] == pytest.approx(cached[0], rel=1e-4)
    mix = read_weights(options.run_dir)["extractor.mix.weights"]
    assert not torch.equal(mix, torch.tensor([0, 0, 0.5, 0.5]))  # learnt, where nothing is cached


def test_stage1_cached_needs_transcripts_and_features_alone(
    stage1, tiny_root, tiny_wavlm_dir, features_dir, tmp_path
):
    root = tmp_path / "data"
    for transcript in tiny_root.rglob("*.trans.txt"):
        copy = root / transcript.relative_to(tiny_root)
        copy.parent.mkdir(parents=True)
        shutil.copy(transcript, copy)
    options = stage1_options(root, tiny_wavlm_dir, tmp_path / "run", cached=True, features=features_dir)
    run_training(options)
    expected, losses = (
        [line["ctc"] for line in read_metrics(run) if line["kind"] == "train"]
        for run in (stage1.run_dir, options.run_dir)
    )
    assert losses == expected


def test_stage2_starts_where_stage1_ended_and_trains_the_top(stage1, tiny_root, tmp_path):
    options = stage2_options(tiny_root, tmp_path / "run", stage1.run_dir / "best")
    run_training(options)
    lines = read_metrics(options.run_dir)
    before = [line for line in read_metrics(stage1.run_dir) if line["kind"] == "dev" and line["is_best"]][-1]
    after = next(line for line in lines if line["kind"] == "dev")
    assert after["update"] == 0
    assert after["ctc"] == pytest.approx(before["ctc"], rel=1e-2)
    assert next(line for line in lines if line["kind"] == "handoff")["relative_difference"] < 0.01
    old, new = read_weights(stage1.run_dir, "best"), read_weights(options.run_dir)
    for name, tensor in old.items():
        may_change = "extractor.wavlm" not in name or ".layers.2." in name or ".layers.3." in name
        assert may_change or torch.equal(new[name], tensor), name
    moved = {name.split(".")[4] for name in old if ".layers." in name and "wavlm" in name
             and not torch.equal(old[name], new[name])}  # fmt: skip
    assert moved == {"2", "3"}


def test_handoff_catches_changed_audio_and_another_split(stage1, tiny_root, tmp_path):
    root = tmp_path / "data"
    write_split(root, "train-tiny", 12, speaker=7)
    write_split(root, "dev-tiny", 4, speaker=8, first_seed=300)
    options = stage2_options(root, tmp_path / "run", stage1.run_dir / "best")
    with pytest.raises(HandoffError, match="has changed since stage 1"):
        run_training(options)
    with pytest.raises(HandoffError, match="--dev-split dev-tiny"):
        run_training(replace(options, root=tiny_root, dev_split=("train-tiny",)))


def test_handoff_catches_other_weights(stage1, tiny_root, tmp_path, monkeypatch):
    def load_shaken(folder: Path, **keywords):
        loaded = load_recogniser(folder, **keywords)
        with torch.no_grad():
            loaded.recogniser.ctc_head.bias[3] += 5
        return loaded

    monkeypatch.setattr("train.build.load_recogniser", load_shaken)
    with pytest.raises(HandoffError, match="not those that were validated"):
        run_training(stage2_options(tiny_root, tmp_path / "run", stage1.run_dir / "best"))
    assert not (tmp_path / "run" / "last").exists()  # nothing that evaluate could mistake for a stage 2


def test_weights_newer_than_their_dev_result_are_not_handed_over(stage1, tiny_root, tmp_path, monkeypatch):
    """A checkpoint from inside an epoch still has the dev result of the previous epoch."""

    def load_later(folder: Path, **keywords):
        loaded = load_recogniser(folder, **keywords)
        return replace(loaded, state=loaded.state | {"update": loaded.state["update"] + 1})

    monkeypatch.setattr("train.build.load_recogniser", load_later)
    with pytest.raises(CheckpointError, match="start from a `best` checkpoint"):
        run_training(stage2_options(tiny_root, tmp_path / "run", stage1.run_dir / "best"))


def cut_recordings(root: Path, split: str, count: int | None = None) -> None:
    """Truncate recordings after their headers: they are listed but cannot be decoded."""
    for path in sorted((root / "LibriSpeech" / split).rglob("*.flac"))[:count]:
        path.write_bytes(path.read_bytes()[:2000])


def test_a_dev_recording_that_neither_stage_can_read_does_not_stop_stage2(tiny_wavlm_dir, tmp_path):
    root = tmp_path / "data"
    write_split(root, "train-tiny", 12)
    write_split(root, "dev-tiny", 3, speaker=8, first_seed=100)
    cut_recordings(root, "dev-tiny", 1)
    arguments = ["--root", root, "--wavlm", tiny_wavlm_dir, "--layers", "3,4", "--workers", 0, "--skip-bad"]
    splits = ["--split", "train-tiny", "--split", "dev-tiny"]
    precompute.main([str(a) for a in [*arguments, *splits]], standalone_mode=False)
    options = stage1_options(
        root, tiny_wavlm_dir, tmp_path / "one", cached=True, overrides=("train.epochs=1",)
    )
    run_training(options)
    overrides = ("train.max_updates=1",)
    run_training(stage2_options(root, tmp_path / "two", options.run_dir / "best", overrides=overrides))
    assert (tmp_path / "two" / "best").exists()


@pytest.mark.parametrize("split", ["train-tiny", "dev-tiny"])
def test_a_split_of_which_nothing_can_be_read_is_an_error(split, tiny_wavlm_dir, tmp_path):
    root = tmp_path / "data"
    write_split(root, "train-tiny", 12)
    write_split(root, "dev-tiny", 2, speaker=8)
    cut_recordings(root, split)
    with pytest.raises(AudioError, match=f"no recording of .*could be read.*{split}"):
        run_training(stage1_options(root, tiny_wavlm_dir, tmp_path / "run"))


def test_an_update_of_which_nothing_can_be_read_is_counted(tiny_wavlm_dir, tmp_path, caplog):
    root = tmp_path / "data"
    write_split(root, "train-tiny", 12)
    write_split(root, "dev-tiny", 2, speaker=8)
    cut_recordings(root, "train-tiny", 6)
    overrides = ("train.epochs=1", "data.utterances_per_update=1")
    run_training(stage1_options(root, tiny_wavlm_dir, tmp_path / "run", overrides=overrides))
    assert json.loads((tmp_path / "run" / "last" / "state.json").read_text())["unread_updates"] == 6
    assert "skipped 6 updates without a readable recording" in caplog.text


def test_transcripts_that_the_tokenizer_cannot_spell_are_named(tiny_wavlm_dir, tmp_path):
    root = tmp_path / "data"
    write_split(root, "train-tiny", 12)
    chapter = write_split(root, "dev-tiny", 2, speaker=8)
    transcripts = chapter / "8-1.trans.txt"
    transcripts.write_text(transcripts.read_text().rstrip() + " ZEBRA\n")
    with pytest.raises(CorpusError, match="the tokenizer lacks: dev-tiny: 8-1-0001"):
        run_training(stage1_options(root, tiny_wavlm_dir, tmp_path / "run"))


def test_an_automatic_vocabulary_is_recorded_as_a_number(tiny_root, tiny_wavlm_dir, tmp_path, caplog):
    caplog.set_level("INFO")
    overrides = ("model.vocab_size=auto", "train.max_updates=1")
    options = stage1_options(tiny_root, tiny_wavlm_dir, tmp_path / "run", overrides=overrides)
    run_training(options)
    saved = load_recogniser(options.run_dir / "last")
    assert saved.config.model.vocab_size == saved.tokenizer.vocab_size
    assert f"auto is {saved.tokenizer.vocab_size} for these transcripts" in caplog.text
    assert "is large for these transcripts" not in caplog.text


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"overrides": ("model.vocab_size=900",)}, TextError, "largest.*configs/small.yaml"),
        ({"overrides": ("model.feature_dim=768",)}, ConfigError, "--set model.feature_dim=32"),
        ({"overrides": ("features.layers=[9]",)}, ConfigError, r"4 layers deep.*features.layers=\[1,2,3,4\]"),
        ({"overrides": ("train.unfreeze_layers=[3]",)}, ConfigError, "stage 2"),
        ({"cached": True, "features": Path("nowhere")}, CacheError, "vox precompute --split train-tiny"),
        ({"cached": True, "overrides": ("features.layers=[2,3]",)}, CacheError, "layers"),
        ({"resume": True}, CheckpointError, "no run to resume"),
    ],
)
def test_what_a_user_can_mend_is_refused(
    changes, error, message, tiny_root, tiny_wavlm_dir, features_dir, tmp_path
):
    changes = {"features": features_dir} | changes
    with pytest.raises(error, match=message) as caught:
        run_training(stage1_options(tiny_root, tiny_wavlm_dir, tmp_path / "run", **changes))
    assert isinstance(caught.value, VoxError)
    assert "\n" not in str(caught.value)


def test_the_advised_commands_make_the_cache_that_is_wanted(tiny_root, tiny_wavlm_dir, tmp_path, caplog):
    """Run as they are written, with --workers added; WavLM is named by a config key, not by --wavlm."""

    def run_advice(text: str) -> Path:
        words = shlex.split(re.findall(r"`(vox precompute .*?)`", text)[-1])
        assert main([*words[1:], "--workers", "0"]) == 0
        (cache,) = (tmp_path / "my features" / words[words.index("--split") + 1]).iterdir()
        return cache

    caplog.set_level("INFO")
    overrides = (f"features.wavlm={tiny_wavlm_dir}", "data.speeds=[0.9]", "train.max_updates=1")
    options = replace(
        stage1_options(tiny_root, tiny_wavlm_dir, tmp_path / "run", cached=True, overrides=overrides),
        wavlm=None,
        features=tmp_path / "my features",
    )
    with pytest.raises(CacheError, match="no cached features for split train-tiny") as caught:
        run_training(options)
    run_advice(str(caught.value))
    run_training(options)
    assert "dev-tiny is not cached" in caplog.text
    made = run_advice(caplog.text)
    wavlm = load_recogniser(options.run_dir / "last").recogniser.extractor.wavlm
    fingerprint = make_fingerprint(wavlm, (3, 4))
    assert made == cache_dir(tmp_path / "my features", "dev-tiny", fingerprint)


def test_a_cache_of_other_weights_is_refused_by_name(tiny_root, tiny_wavlm_dir, features_dir, tmp_path):
    from transformers import WavLMModel

    other = WavLMModel.from_pretrained(tiny_wavlm_dir)
    with torch.no_grad():
        other.encoder.layers[1].final_layer_norm.bias[0] += 1
    other.save_pretrained(tmp_path / "other")
    options = stage1_options(
        tiny_root, tmp_path / "other", tmp_path / "run", cached=True, features=features_dir
    )
    with pytest.raises(CacheError, match="weights"):
        run_training(options)


def test_stage2_config_is_laid_over_the_stage_s_own(tmp_path, caplog):
    path = tmp_path / "mine.yaml"
    path.write_text("data: {dev_split: mine}\noptimizer: {weight_decay: 0.02}\n")
    config = resolve_config(TrainOptions(stage=2, config_path=path, overrides=("train.epochs=7",)))
    assert (config.data.dev_split, config.train.epochs, config.optimizer.weight_decay) == (("mine",), 7, 0.02)
    assert (config.optimizer.learning_rate, config.train.unfreeze_layers) == (1e-5, (9, 10, 11))
    warn_if_all_frozen(config)
    assert not caplog.messages
    warn_if_all_frozen(resolve_config(TrainOptions(stage=2, overrides=("train.unfreeze_layers=[]",))))
    assert "no WavLM layer is unfrozen" in caplog.text


def test_stage2_needs_a_checkpoint_and_its_shape(stage1, tiny_root, tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint"):
        run_training(stage2_options(tiny_root, tmp_path / "run", tmp_path / "none"))
    with pytest.raises(CheckpointError, match=r"model.d_model: checkpoint 32, config 64"):
        run_training(
            stage2_options(
                tiny_root, tmp_path / "run", stage1.run_dir / "best", overrides=("model.d_model=64",)
            )
        )


def test_labels_longer_than_their_audio_are_named(tiny_wavlm_dir, tmp_path):
    """T4: never silently a zero loss."""
    root = tmp_path / "data"
    chapter = write_split(root, "train-tiny", 6)
    write_split(root, "dev-tiny", 2, speaker=8)
    transcripts = chapter / "7-1.trans.txt"
    lines = transcripts.read_text().splitlines()
    lines[2] += " GO STOP" * 60
    transcripts.write_text("\n".join(lines) + "\n")
    options = stage1_options(root, tiny_wavlm_dir, tmp_path / "run")
    with pytest.raises(CorpusError, match="7-1-0002"):
        run_training(options)
    run_training(replace(options, skip_bad=True))
    assert (options.run_dir / "best").exists()


def test_a_split_named_twice_and_a_run_named_as_a_checkpoint_are_refused(stage1, capsys):
    assert main(["train", "--stage", "1", "--train-split", "a", "--train-split", "a:2"]) == 2
    assert "data.train_split (a, a:2 must be different splits)" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match=rf"this is a run.*name {stage1.run_dir}/best"):
        load_recogniser(stage1.run_dir)


def test_saves_inside_an_epoch_and_skipped_updates_are_counted(
    tiny_root, tiny_wavlm_dir, tmp_path, monkeypatch, caplog
):
    """Twelve updates of a minute each, saved every five; the gradient of the fourth is not finite."""
    clock, updates, saved = SimpleNamespace(seconds=0.0), itertools.count(1), []
    step, save = train.loop.run_update, train.loop.save_run

    def slow_update(*arguments):
        clock.seconds += 60
        result = step(*arguments)
        return replace(result, is_finite=torch.tensor(False)) if next(updates) == 4 else result

    def note_save(run, name, **keywords):
        saved.append(name)
        save(run, name, **keywords)

    monkeypatch.setattr("train.loop.run_update", slow_update)
    for module in ("train.run", "train.loop", "train.judge.best"):
        monkeypatch.setattr(f"{module}.save_run", note_save)
    monkeypatch.setattr("train.loop.time", SimpleNamespace(monotonic=lambda: clock.seconds))
    overrides = ("train.epochs=1", "data.utterances_per_update=1", "train.checkpoint_minutes=5")
    options = stage1_options(tiny_root, tiny_wavlm_dir, tmp_path / "run", overrides=overrides)
    run_training(options)
    assert [name.removeprefix("update-000000") for name in saved] == ["00", "05", "10", "12", "12-validated"]
    lines = read_metrics(options.run_dir)
    (skipped,) = [line for line in lines if line["kind"] == "skipped"]
    assert skipped["update"] == 4 and len(skipped["ids"]) == 1
    counts = [line["skipped_updates"] for line in lines if line["kind"] == "train"]
    assert counts == [0, 1, 1, 1, 1, 1]
    assert json.loads((options.run_dir / "last" / "state.json").read_text())["skipped_updates"] == 1
    assert "skipped 1 update with a non-finite gradient" in caplog.text
