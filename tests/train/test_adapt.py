"""Stage 3: it starts from the old model, and weights that forget the source are not kept (T15)."""

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import train.judge.adapt
import train.judge.validate
import train.loop
from tests.support.speech import tiny_wavlm_kwargs, write_split
from tests.support.training import (
    Killed,
    assert_equal_runs,
    die_after,
    read_metrics,
    read_weights,
    small_run,
)
from train.build import build_parts
from train.judge.promise import keeps_promise, make_promise
from train.judge.validate import DevResult
from train.options import TrainOptions, resolve_config
from train.progress import Progress
from train.ranks import Ranks
from train.run import run_training
from vox.audio import read_audio
from vox.checkpoint.files import load_averaged, load_recogniser, read_words
from vox.data.concatenate import count_in_rows
from vox.errors import CacheError, CheckpointError, ConfigError, CorpusError
from vox.features.cache import open_cache
from vox.hear import hear
from vox.runs.layout import BEFORE, BEST


@pytest.fixture(scope="module")
def target_root(tiny_root: Path, tiny_wavlm_dir: Path, features_dir: Path, tmp_path_factory) -> Path:
    """Make a data root with splits and caches of the source, and of the target: `mine` and `mine-dev`."""
    from precompute.cli import precompute

    root = tmp_path_factory.mktemp("target")
    write_split(root, "mine", 4, speaker=7, first_seed=200)  # ids that the source has too
    write_split(root, "mine-dev", 2, speaker=8, first_seed=300)
    for split in ("train-tiny", "dev-tiny"):
        (root / "LibriSpeech" / split).symlink_to(tiny_root / "LibriSpeech" / split)
    (root / "features").mkdir()
    for folder in features_dir.iterdir():
        (root / "features" / folder.name).symlink_to(folder)
    arguments = ["--root", root, "--wavlm", tiny_wavlm_dir, "--layers", "3,4", "--workers", 0]
    precompute.main(
        [str(a) for a in [*arguments, "--split", "mine", "--split", "mine-dev"]], standalone_mode=False
    )
    return root


def stage3_options(root: Path, run: Path, origin: Path | None, **changes) -> TrainOptions:
    """Options of a stage-3 run of 3 epochs x 2 updates of 2 target utterances and the source's."""
    small = (
        *small_run(),
        "data.utterances_per_update=2",
        "optimizer.learning_rate=0.003",
        "adapt.tolerance=10",  # a recogniser of tones babbles: its WER says nothing
    )
    return TrainOptions(
        stage=3,
        cached=True,
        overrides=(*small, *changes.pop("overrides", ())),
        root=root,
        train_split=changes.pop("train_split", ("mine",)),
        dev_split=changes.pop("dev_split", ("mine-dev",)),
        run=run,
        from_checkpoint=origin,
        device="cpu",
        **changes,
    )


@pytest.fixture(scope="module")
def adapted(target_root: Path, stage1: TrainOptions, tmp_path_factory) -> TrainOptions:
    """A finished run with all that stage 3 has: replay, and a pull towards the old weights."""
    run = tmp_path_factory.mktemp("runs") / "stage3"
    options = stage3_options(target_root, run, stage1.run_dir / BEST, overrides=("adapt.l2_sp=0.1",))
    run_training(options)
    return options


def test_it_begins_with_the_old_model_to_the_bit_and_learns(adapted: TrainOptions, stage1: TrainOptions):
    old, before, last = (
        read_weights(run, name)
        for run, name in ((stage1.run_dir, BEST), (adapted.run_dir, BEFORE), (adapted.run_dir, "last"))
    )
    assert old.keys() == before.keys()
    assert all(torch.equal(old[name], before[name]) for name in old)
    moved = {name for name in old if not torch.equal(old[name], last[name])}
    assert moved and not any(name.startswith("extractor.") for name in moved)
    loaded = load_recogniser(adapted.run_dir / "last")
    assert loaded.tokenizer.model_bytes == load_recogniser(stage1.run_dir / BEST).tokenizer.model_bytes
    assert loaded.config.adapt.replay_split == ("train-tiny",)
    assert loaded.config.adapt.source_dev_split == ("dev-tiny",)


def test_both_dev_splits_are_validated_before_training_and_after_each_epoch(adapted: TrainOptions):
    lines = [line for line in read_metrics(adapted.run_dir) if line["kind"] == "dev"]
    assert [line["update"] for line in lines] == [0, 2, 4, 6]
    assert all(line["source_wer_ctc"] >= 0 and line["source_ctc"] != line["ctc"] for line in lines)


def test_interpolation_ends_are_the_old_and_the_new_weights(adapted: TrainOptions, stage1: TrainOptions):
    points = [line for line in read_metrics(adapted.run_dir) if line["kind"] == "interpolation"]
    assert [point["alpha"] for point in points] == [step / 10 for step in range(11)]
    new = read_weights(adapted.run_dir, f"checkpoints/{_last_validated(adapted.run_dir)}")
    old = read_weights(stage1.run_dir, BEST)
    parameters = {name: torch.nn.Parameter(torch.zeros_like(old[name])) for name in old}
    for alpha, wanted in ((0.0, old), (1.0, new)):
        train.judge.adapt.put_between(parameters, old, new, alpha)
        assert all(torch.equal(parameters[name], wanted[name]) for name in old)
    train.judge.adapt.put_between(parameters, old, new, 0.3)
    name = "ctc_head.weight"
    torch.testing.assert_close(parameters[name].data, torch.lerp(old[name], new[name], 0.3))


def _last_validated(run: Path) -> str:
    return max(path.name for path in (run / "checkpoints").iterdir() if path.name.endswith("-validated"))


def test_killed_and_resumed_ends_the_same(adapted: TrainOptions, tmp_path: Path, monkeypatch):
    overrides = (*adapted.overrides, "train.checkpoint_minutes=1e-6")
    options = replace(adapted, run=tmp_path / "run", overrides=overrides)
    with monkeypatch.context() as patch:
        die_after(patch, updates=3)
        with pytest.raises(Killed):
            run_training(options)
    assert json.loads((options.run_dir / "last" / "state.json").read_text())["update"] == 3
    old, resumed = (
        (options.run_dir / BEFORE).resolve(),
        TrainOptions(stage=3, run=options.run_dir, resume=True),
    )
    old.rename(tmp_path / old.name)  # as after a restore from a backup
    with pytest.raises(CheckpointError, match=r"adapt.l2_sp pulls towards, are missing .*before"):
        run_training(resumed)
    (tmp_path / old.name).rename(old)
    run_training(resumed)
    assert_equal_runs(adapted.run_dir, options.run_dir)


def test_what_forgets_the_source_is_not_kept(
    target_root: Path, stage1: TrainOptions, tmp_path: Path, monkeypatch, caplog
):
    """The old weights stay best, bit for bit, even if the new ones are much better on the target (T15)."""
    original, seen = train.judge.validate.validate, []

    def forgetful(recogniser, *, split, **keywords):
        result = original(recogniser, split=split, **keywords)
        seen.append(split.name)
        is_old = len(seen) <= 2
        wer = (0.1 if is_old else 0.2) if split.name == "dev-tiny" else (0.5 if is_old else 0.0)
        return replace(result, wer=dict.fromkeys(result.wer, wer))

    monkeypatch.setattr(train.judge.validate, "validate", forgetful)
    overrides = ("train.epochs=1", "adapt.tolerance=0.05")
    options = stage3_options(target_root, tmp_path / "run", stage1.run_dir / BEST, overrides=overrides)
    with caplog.at_level("INFO"):
        run_training(options)
    old, best = read_weights(stage1.run_dir, BEST), read_weights(options.run_dir, BEST)
    assert all(torch.equal(old[name], best[name]) for name in old)
    assert "above 15.00 %: forgotten, so this cannot be best" in caplog.text
    assert "the old weights stay the best checkpoint" in caplog.text


def test_the_promise_is_the_interval_s_end_or_the_tolerance():
    def found(wer: float, **more) -> DevResult:
        return DevResult("dev", "aa", 1.0, 1.0, {"ctc": wer, "attention": 0.9}, 0, 1.0, [], **more)

    before = found(0.10, wer_upper={"ctc": 0.13, "attention": 0.95})
    assert make_promise(before, None) == {"wer": 0.10, "limit": 0.13}
    assert make_promise(before, 0.0) == {"wer": 0.10, "limit": 0.10}
    promise = make_promise(before, None)
    assert keeps_promise(promise, found(0.0, source=found(0.13)))
    assert not keeps_promise(promise, found(0.0, source=found(0.14)))


@pytest.mark.parametrize("ratio", [1.0, 3.0])
def test_an_update_hears_target_and_source_by_seconds(
    ratio: float, target_root: Path, stage1: TrainOptions, tmp_path: Path
):
    """An id in both splits means two recordings, each with its own features and labels."""
    changes = {"overrides": (f"adapt.replay={ratio}",)}
    options = stage3_options(target_root, tmp_path / "run", stage1.run_dir / BEST, **changes)
    parts = build_parts(options, resolve_config(options), torch.device("cpu"), Ranks())
    split = parts.train
    progress = Progress(micro_batch_utterances=2)
    plan = train.loop._plan_epoch(SimpleNamespace(parts=parts, progress=progress, ranks=Ranks()))
    assert len(plan) == 2
    seconds = {True: 0, False: 0}
    for position in (position for update in plan for position in count_in_rows(update)[0]):
        seconds[split.ids[position].startswith("train-tiny/")] += split.lengths[position]
    assert abs(seconds[True] - ratio * seconds[False]) <= max(split.lengths) / 2
    ours, theirs = split.utterances[0].id, f"train-tiny/{split.utterances[0].id}"
    assert split.labels[ours] != split.labels[theirs]
    source_cache = open_cache(target_root / "features", "train-tiny", parts.fingerprint)
    batch = next(split.source.read([[ours, theirs]]))
    wanted = source_cache.read(ours)
    assert np.array_equal(batch.features_BTC[1, : len(wanted)].numpy(), wanted)
    assert not torch.equal(batch.features_BTC[0], batch.features_BTC[1])


def test_live_it_trains_wavlm_s_top_layers_and_reads_the_source_s_recordings(
    target_root: Path, stage1: TrainOptions, tmp_path: Path
):
    overrides = ("train.epochs=1", "train.unfreeze_layers=[3]", "adapt.l2_sp=0.1")
    options = stage3_options(target_root, tmp_path / "run", stage1.run_dir / BEST, overrides=overrides)
    options = replace(options, cached=False, features=tmp_path / "nowhere")
    run_training(options)
    old, new = (
        read_weights(stage1.run_dir, BEST),
        read_weights(options.run_dir, "checkpoints/update-00000002"),
    )
    moved = {name for name in old if not torch.equal(old[name], new[name])}
    in_wavlm = {name for name in moved if name.startswith("extractor.wavlm")}
    assert in_wavlm and all(name.startswith("extractor.wavlm.encoder.layers.3.") for name in in_wavlm)
    assert "extractor.mix.weights" in moved and "decoder.embedding.weight" in moved
    assert sum(line["kind"] == "interpolation" for line in read_metrics(options.run_dir)) == 11
    split = build_parts(options, resolve_config(options), torch.device("cpu"), Ranks()).train
    ours, theirs = split.utterances[0].id, f"train-tiny/{split.utterances[0].id}"
    batch = next(split.source.read([[ours, theirs]]))
    for waveform_S, name in zip(batch.waveforms_BS, ("mine", "train-tiny"), strict=True):
        (path,) = (target_root / "LibriSpeech" / name).rglob(f"{ours}.*")
        wanted_S = torch.from_numpy(read_audio(path))
        assert torch.equal(waveform_S[: len(wanted_S)], wanted_S)


@pytest.fixture(scope="module")
def decoder_alone(target_root: Path, stage1: TrainOptions, tmp_path_factory) -> TrainOptions:
    """A finished run in which the decoder learns alone, with an average and a pull to the old weights."""
    run = tmp_path_factory.mktemp("runs") / "decoder"
    overrides = ("adapt.learns=decoder", "adapt.l2_sp=0.1", "train.ema_decay=0.5", "train.epochs=2")
    options = stage3_options(target_root, run, stage1.run_dir / BEST, overrides=overrides)
    run_training(options)
    return options


def test_the_decoder_learns_alone(decoder_alone: TrainOptions, stage1: TrainOptions):
    """All else is as before, to the bit; the losses and the promise are the decoder's."""
    run = decoder_alone.run_dir
    old, new = read_weights(stage1.run_dir, BEST), read_weights(run, f"checkpoints/{_last_validated(run)}")
    assert {name for name in old if not torch.equal(old[name], new[name])} == set(find_decoder(old))
    averaged = load_averaged(run / "last")
    assert averaged.keys() == find_decoder(old)
    assert not any(torch.equal(averaged[name], new[name]) for name in averaged)
    metrics = read_metrics(run)
    training = [line for line in metrics if line["kind"] == "train"]
    assert training and all(line["loss"] == line["attention"] > 0 for line in training)
    assert not any(key in line for line in training for key in ("ctc", "ctc_weight"))
    before = next(line for line in metrics if line["kind"] == "dev")
    assert "source_wer_ctc" not in before  # its CTC never changes, and would hide what attention forgets
    state = json.loads((run / "last" / "state.json").read_text())
    assert state["promise"]["wer"] == before["source_wer_attention"]
    assert sum(line["kind"] == "interpolation" for line in metrics) == 11


def find_decoder(weights: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in weights if name.startswith("decoder.")}


def test_a_decoder_that_learns_alone_resumes_to_the_bit(decoder_alone: TrainOptions, tmp_path: Path, caplog):
    overrides = (*decoder_alone.overrides, "train.checkpoint_minutes=1e-6")
    options = replace(decoder_alone, run=tmp_path / "run", overrides=overrides)
    with pytest.MonkeyPatch.context() as patch:
        die_after(patch, updates=3)
        with pytest.raises(Killed):
            run_training(options)
    with caplog.at_level("INFO"):
        run_training(TrainOptions(stage=3, run=options.run_dir, resume=True))
    assert_equal_runs(decoder_alone.run_dir, options.run_dir)
    old = read_weights(options.run_dir, BEFORE)
    count = sum(old[name].numel() for name in find_decoder(old))
    assert f"; {count:,} parameters learn;" in caplog.text


def test_a_decoder_that_learns_alone_hears_what_it_will_be_used_with(
    target_root: Path, stage1: TrainOptions, tmp_path: Path
):
    """Training mode means the decoder's dropout only; nothing below it is kept for a gradient."""
    options = stage3_options(target_root, tmp_path / "run", stage1.run_dir / BEST)
    options = replace(options, overrides=(*options.overrides, "adapt.learns=decoder"))
    parts = build_parts(options, resolve_config(options), torch.device("cpu"), Ranks())
    recogniser, split = parts.recogniser, parts.train
    batch = next(split.source.read([split.ids[:2]]))
    with torch.no_grad():
        used = hear(recogniser.eval(), batch)
    learnt_on = hear(recogniser.train(), batch)
    assert torch.equal(learnt_on.hidden_BTD, used.hidden_BTD)
    assert torch.equal(learnt_on.label_positions_BT, used.label_positions_BT)
    assert not learnt_on.hidden_BTD.requires_grad and not learnt_on.ctc_log_probs_BTV.requires_grad
    inputs_BU = split.label_batch([[name] for name in split.ids[:2]]).inputs_BU
    assert not torch.equal(*(recogniser.decoder(inputs_BU, used) for _ in range(2)))


def test_target_and_source_may_be_several_splits(target_root: Path, stage1: TrainOptions, tmp_path: Path):
    changes = {"train_split": ("mine", "mine-dev"), "replay_split": ("train-tiny", "dev-tiny")}
    options = stage3_options(target_root, tmp_path / "run", stage1.run_dir / BEST, **changes)
    parts = build_parts(options, resolve_config(options), torch.device("cpu"), Ranks())
    assert (parts.train.num_target, parts.train.num_replayed) == (6, 16)
    ours, theirs = "8-1-0000", "dev-tiny+train-tiny/8-1-0000"  # of mine-dev, and of dev-tiny
    batch = next(parts.train.source.read([[ours, theirs]]))
    for features_TC, split in zip(batch.features_BTC.numpy(), ("mine-dev", "dev-tiny"), strict=True):
        wanted = open_cache(target_root / "features", split, parts.fingerprint).read("8-1-0000")
        assert np.array_equal(features_TC[: len(wanted)], wanted)


def test_without_replay_it_is_said_loudly_and_no_source_is_read(
    target_root: Path, stage1: TrainOptions, tmp_path: Path, caplog
):
    options = stage3_options(target_root, tmp_path / "run", stage1.run_dir / BEST, no_replay=True)
    parts = build_parts(options, resolve_config(options), torch.device("cpu"), Ranks())
    assert parts.train.num_replayed == 0 and len(parts.train.utterances) == 4
    assert parts.source_dev is not None
    assert "NO REPLAY" in caplog.text
    both = Counter(read_words(stage1.run_dir / BEST)) + Counter(parts.train.word_counts)
    assert parts.words == both and both.total() > Counter(parts.train.word_counts).total() > 0


def test_what_cannot_be_adapted_is_refused_in_one_line(
    target_root: Path, stage1: TrainOptions, tmp_path: Path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    best, run = stage1.run_dir / BEST, tmp_path / "run"
    for changes, error, message in (
        ({"train_split": ("mine", "train-tiny")}, ConfigError, "source's.*--train-split"),
        ({"dev_split": ("dev-tiny",)}, ConfigError, "source's.*--dev-split"),
        ({"replay_split": ("mine",)}, ConfigError, "source's"),
        ({"replay_split": ("x",), "no_replay": True}, ConfigError, "contradict"),
        ({"overrides": ("train.unfreeze_layers=[3]",)}, ConfigError, "leave --cached out"),
        ({"overrides": ("adapt.source_dev_split=absent",)}, CorpusError, "absent is not .* be measured"),
        ({"stage": 1}, ConfigError, "stage 1 replays nothing"),
        (
            {"cached": False, "overrides": ("adapt.learns=decoder", "train.unfreeze_layers=[3]")},
            ConfigError,
            "freezes all but the decoder, but train.unfreeze_layers is set",
        ),
        (
            {"stage": 2, "overrides": ("adapt.learns=decoder",)},
            ConfigError,
            "for stage 3, and this is stage 2",
        ),
        ({"replay_split": ("absent",)}, CacheError, "no cached features for split absent"),
        ({"from_checkpoint": None}, CheckpointError, "no stage-2 checkpoint"),
    ):
        options = stage3_options(target_root, run, best)
        options = replace(options, no_replay=changes.get("stage") == 1)
        with pytest.raises(error, match=message):
            run_training(replace(options, **changes))
    assert not (run / "last").exists()


def test_words_that_the_alphabet_lacks_are_refused(target_root: Path, stage1: TrainOptions, tmp_path: Path):
    root = tmp_path / "root"
    transcript = write_split(root, "mine", 4, speaker=7, first_seed=200) / "7-1.trans.txt"
    transcript.write_text(re.sub("7-1-0000 .*", "7-1-0000 QUIZ", transcript.read_text()))
    for split in ("mine-dev", "train-tiny", "dev-tiny"):
        (root / "LibriSpeech" / split).symlink_to(target_root / "LibriSpeech" / split)
    options = stage3_options(root, tmp_path / "run", stage1.run_dir / BEST)
    options = replace(options, features=target_root / "features", skip_bad=False)
    with pytest.raises(CorpusError, match=r"with characters that the tokenizer lacks.*7-1-0000"):
        run_training(options)


def test_a_replay_cache_of_other_weights_is_refused(target_root: Path, stage1: TrainOptions, tmp_path: Path):
    """T9: the source's cache is checked like the target's."""
    from transformers import WavLMConfig, WavLMModel

    from precompute.cli import precompute

    features, other = tmp_path / "features", tmp_path / "wavlm"
    features.mkdir()
    for name in ("mine", "mine-dev", "dev-tiny"):
        (features / name).symlink_to(target_root / "features" / name)
    torch.manual_seed(1)
    WavLMModel(WavLMConfig(**tiny_wavlm_kwargs())).eval().save_pretrained(other)
    arguments = ["--root", target_root, "--wavlm", other, "--layers", "3,4", "--features", features]
    precompute.main(
        [str(a) for a in [*arguments, "--split", "train-tiny", "--workers", 0]], standalone_mode=False
    )
    options = stage3_options(target_root, tmp_path / "run", stage1.run_dir / BEST, features=features)
    with pytest.raises(CacheError, match=r"split train-tiny are not this model's.*weights"):
        run_training(options)
