"""The layer probe: it finds the layer that carries the words, and leaves only its report behind.

T frames, N frames of a split, L layers, C channels.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from precompute.probe.heads import HeadResult, HeadSpec, evaluate_heads, fit_heads
from precompute.probe.layers import LayerFeatures, open_scratch
from precompute.probe.report import recommend_layers
from precompute.probe.run import measure_layers, plan_heads
from precompute.probe.select import ENGLISH_CHARACTERS, choose_characters, select_utterances
from tests.support.precomputing import override
from tests.support.speech import make_text
from vox.audio import read_audio
from vox.cli import main
from vox.config import TextConfig
from vox.corpus import Utterance, load_split
from vox.errors import CorpusError
from vox.text import Normaliser
from vox.wavlm.load import load_wavlm

NUM_LAYERS = 4
TELLING_LAYER = 2
NUM_LABELS = ENGLISH_CHARACTERS.num_labels
CHANNELS = NUM_LABELS + 3


encode, decode = ENGLISH_CHARACTERS.encode, ENGLISH_CHARACTERS.decode


def make_layers(num_utterances: int, first_seed: int) -> LayerFeatures:
    """Make layers of noise and one layer whose channels encode the character, with a large offset."""
    generator = np.random.default_rng(first_seed)
    parts, spans, texts, start = [], [], [], 0
    for seed in range(first_seed, first_seed + num_utterances):
        texts.append(make_text(seed).lower())
        labels_T = [label for character in encode(texts[-1]) for label in (character, character, 0)]
        layers_TLC = generator.standard_normal((len(labels_T), NUM_LAYERS, CHANNELS))
        layers_TLC[:, TELLING_LAYER - 1] *= 0.03
        layers_TLC[:, TELLING_LAYER - 1] += np.eye(CHANNELS)[labels_T] + 2
        layers_TLC[:, 0] *= 100
        parts.append(layers_TLC.astype(np.float16))
        spans.append((start, start + len(labels_T)))
        start += len(labels_T)
    return LayerFeatures(np.concatenate(parts), spans, [f"made-{row}" for row in range(len(texts))], texts)


def make_result(cer: float, *layers: int, is_learned: bool = False) -> HeadResult:
    """Make a head's result with only the CER set."""
    return HeadResult(HeadSpec("made", layers, is_learned), loss=cer, cer=cer, wer=1.0, mix_weights=None)


def test_the_layer_that_holds_the_characters_wins() -> None:
    heads = fit_heads(make_layers(40, 0), plan_heads(NUM_LAYERS, None), num_updates=200)
    results = evaluate_heads(heads, make_layers(8, 100))
    cers = {result.spec.name: result.cer for result in results}
    assert cers["2"] < 0.05
    assert all(cers[name] > 0.5 for name in ("1", "3", "4", "mean of 3,4"))
    mix = results[-1].mix_weights
    assert mix is not None and sum(mix) == pytest.approx(1)
    assert mix[TELLING_LAYER - 1] > 0.5
    assert recommend_layers(results) == (TELLING_LAYER,)


def test_heads_fitted_together_are_those_fitted_alone() -> None:
    features = make_layers(20, 0)
    specs = [HeadSpec("2", (2,)), HeadSpec("mean", (2, 4)), HeadSpec("mix", (1, 2, 3, 4), is_learned=True)]
    together = fit_heads(features, specs, num_updates=12, seed=3)
    for spec, head in zip(specs, together, strict=True):
        (alone,) = fit_heads(features, [spec], num_updates=12, seed=3)
        assert head.linear.weight.abs().max() > 0.01  # it has moved
        for name, parameter in head.named_parameters():
            torch.testing.assert_close(parameter, dict(alone.named_parameters())[name], rtol=1e-4, atol=1e-6)


def test_a_seed_fixes_the_heads_to_the_bit() -> None:
    features, specs = make_layers(20, 0), plan_heads(NUM_LAYERS, None)
    first, again, other = (fit_heads(features, specs, num_updates=3, seed=seed) for seed in (1, 1, 2))
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a.linear.weight, b.linear.weight)
        assert not torch.equal(a.linear.weight, c.linear.weight)


def test_measures_are_those_of_each_utterance_alone() -> None:
    """Compare with the definition: standardise, mix, project, one utterance at a time, in float64."""
    train, dev = make_layers(12, 0), make_layers(5, 50)
    specs = [HeadSpec("1", (1,)), HeadSpec("mean", (2, 4)), HeadSpec("mix", (2, 3), is_learned=True)]
    heads = fit_heads(train, specs, num_updates=20)
    all_NLC = train.frames_NLC.astype(np.float64)
    for head, result in zip(heads, evaluate_heads(heads, dev), strict=True):
        weight_VC, bias_V = head.linear.weight.double(), head.linear.bias.double()
        total = 0.0
        for row, labels in enumerate(dev.labels):
            layers_TLC = dev.read(row).astype(np.float64)
            if head.spec.is_learned:
                assert result.mix_weights is not None
                given_TC = sum(
                    share
                    * (layers_TLC[:, layer - 1] - all_NLC[:, layer - 1].mean(0))
                    / all_NLC[:, layer - 1].std(0)
                    for share, layer in zip(result.mix_weights, head.spec.layers, strict=True)
                )
            else:
                chosen = [layer - 1 for layer in head.spec.layers]
                pooled_NC = all_NLC[:, chosen].mean(1)
                given_TC = (layers_TLC[:, chosen].mean(1) - pooled_NC.mean(0)) / pooled_NC.std(0)
            logits_TV = torch.from_numpy(given_TC) @ weight_VC.T + bias_V
            targets, lengths = torch.tensor([labels]), torch.tensor([len(labels)])
            log_probs_TV = logits_TV.log_softmax(-1)[:, None]
            total += functional.ctc_loss(
                log_probs_TV, targets, torch.tensor([len(logits_TV)]), lengths, reduction="sum"
            ).item()
        assert result.loss == pytest.approx(total / sum(map(len, dev.labels)), rel=1e-4)


@pytest.mark.parametrize(
    ("cers", "layers"),
    [
        ((0.50, 0.32, 0.30, 0.329, 0.90, 0.30), (2, 3, 4)),  # the sixth is as good, and not beside them
        ((0.30, 0.90, 0.29), (3,)),
        ((0.30, 0.31, 0.32), (1, 2, 3)),
    ],
)
def test_recommended_are_the_layers_beside_the_best_within_a_tenth(
    cers: tuple[float, ...], layers: tuple[int, ...]
) -> None:
    results = [make_result(cer, layer) for layer, cer in enumerate(cers, start=1)]
    results += [make_result(0.01, 1, 2), make_result(0.01, 1, is_learned=True)]  # no single layers
    assert recommend_layers(results) == layers


def test_layers_whose_mean_says_nothing_are_not_recommended_together() -> None:
    """Layers 1 and 2 hold the same with opposite signs: each is informative, and their mean is not."""
    train, dev = make_layers(40, 0), make_layers(8, 100)
    for features in (train, dev):
        features.frames_NLC[:, 0] = -features.frames_NLC[:, 1]
    results, layers = measure_layers(
        train, dev, compared=None, num_updates=100, seed=0, device=torch.device("cpu")
    )
    assert recommend_layers(results) == (1, 2)
    assert results[-1].spec.layers == (1, 2) and results[-1].cer > 0.5
    assert layers in ((1,), (2,))


def test_labels_spell_the_text() -> None:
    text = "the quick brown fox's jump over a lazy dog"
    assert NUM_LABELS == 1 + 26 + 2
    assert decode(encode(text)) == text
    assert sorted(set(encode(text))) == list(range(1, NUM_LABELS))
    assert decode(encode(" a  b ")) == "a b"
    letters = choose_characters(Normaliser(TextConfig(alphabet="letters")), ["über", "ß ü"])
    assert letters.encode("beü ß") == [1, 2, 5, 6, 4]
    characters = choose_characters(Normaliser(TextConfig(alphabet="characters")), ["北京"])
    assert (characters.num_labels, characters.decode([1, 2])) == (3, "京北")


def make_utterance(name: str, text: str, num_frames: int) -> Utterance:
    """Make an utterance with exactly this number of frames."""
    return Utterance(name, Path(name), text, "", 400 + 320 * (num_frames - 1))


def test_unalignable_utterances_are_named_and_left_out() -> None:
    too_short = make_utterance("short", "all", 3)  # four frames: a blank between the two l
    kept = make_utterance("kept", "all", 4)
    without_speech = make_utterance("noise", "", 9)
    selection = select_utterances("made", [too_short, kept, without_speech], 1.0, seed=0)
    assert selection.utterances == (kept,)
    assert [problem.name for problem in selection.too_short] == ["short"]
    with pytest.raises(CorpusError, match="short: its 3 characters need 4 frames, and it has 3"):
        select_utterances("made", [too_short], 1.0, seed=0)


def test_a_seed_chooses_hours_at_random() -> None:
    corpus = [make_utterance(f"u{index:03d}", "a", 50 * 18) for index in range(100)]  # 18 s each
    chosen = select_utterances("made", corpus, 0.1, seed=0)
    assert 19 <= len(chosen.utterances) <= 20 and chosen.hours <= 0.1
    assert list(chosen.utterances) == sorted(chosen.utterances, key=lambda u: u.id) != corpus[:20]
    assert (
        select_utterances("made", corpus, 0.1, seed=0) == chosen != select_utterances("made", corpus, 0.1, 1)
    )
    assert len(select_utterances("made", corpus, 0.001, seed=0).utterances) == 1


def command(root: Path, wavlm: Path, features: Path, *more: str) -> list[str]:
    """Return the options of a short `vox probe` of the tiny corpus."""
    options = "--split train-tiny --dev-split dev-tiny --updates 3 --workers 0"
    places = ["--root", str(root), "--wavlm", str(wavlm), "--features", str(features)]
    return ["probe", *override([*options.split(), *places], more)]


def test_the_command_prints_every_layer_and_leaves_only_its_report(
    tiny_root: Path, tiny_wavlm_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leftover = tmp_path / ".probe-old.train.npy.host-1-abcdef.part"
    leftover.write_bytes(b"of a killed run")
    assert main(command(tiny_root, tiny_wavlm_dir, tmp_path)) == 0
    said = capsys.readouterr().out
    (report_path,) = tmp_path.iterdir()
    assert report_path.match("probe-train-tiny-*.json") and str(report_path) in said
    report = json.loads(report_path.read_text())
    names = [row["name"] for row in report["results"]]
    assert names[:6] == ["1", "2", "3", "4", "mean of 3,4", "learned mix"]
    for row in report["results"]:
        line = next(line for line in said.splitlines() if line.startswith(f"{row['name']} "))
        assert (
            f"{row['ctc_loss']:.3f}" in line and f"{row['cer']:.1%}" in line and f"{row['wer']:.1%}" in line
        )
    assert f"--layers {','.join(map(str, report['recommended_layers']))} " in said

    before = report_path.read_bytes()
    assert main(command(tiny_root, tiny_wavlm_dir, tmp_path)) == 0
    assert report_path.read_bytes() == before


@pytest.mark.parametrize(("alphabet", "text"), [("letters", "ГРОМ и ёж"), ("characters", "我 爱 北京。")])
def test_transcripts_of_another_alphabet_are_spelled_in_it(
    alphabet: str,
    text: str,
    tiny_root: Path,
    tiny_wavlm_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(tiny_root / "LibriSpeech", tmp_path / "LibriSpeech")
    for path in tmp_path.rglob("*.trans.txt"):
        names = [line.split()[0] for line in path.read_text().splitlines()]
        path.write_text("".join(f"{name} {text}\n" for name in names), encoding="utf-8")
    setting = ("--set", f"text.alphabet={alphabet}")
    assert main(command(tmp_path, tiny_wavlm_dir, tmp_path / "features", "--hours", "0.002", *setting)) == 0
    said = capsys.readouterr()
    assert ("WER" in said.out) == (alphabet == "letters")


def test_kept_frames_are_the_layers_of_each_utterance_alone(
    tiny_root: Path, tiny_wavlm_dir: Path, tmp_path: Path
) -> None:
    assert main(command(tiny_root, tiny_wavlm_dir, tmp_path, "--keep")) == 0
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".npy", ".npy"]
    (report_path,) = tmp_path.glob("*.json")
    wavlm = load_wavlm(str(tiny_wavlm_dir))
    for role, split in (("train", "train-tiny"), ("dev", "dev-tiny")):
        kept = json.loads(report_path.read_text())["kept"][role]
        frames_NLC = np.load(report_path.with_suffix(f".{role}.npy"))
        utterances = load_split(tiny_root, split)
        assert kept["split"] == split and list(kept["frames"]) == [u.id for u in utterances]
        for utterance in utterances:
            waveform = torch.from_numpy(read_audio(utterance.audio_path))[None]
            states, _ = wavlm(waveform, torch.tensor([waveform.shape[1]]))
            alone_TLC = torch.stack(states[1:], dim=2)[0].detach().numpy()
            start, stop = kept["frames"][utterance.id]
            assert frames_NLC[start:stop].shape == alone_TLC.shape
            error = np.linalg.norm(frames_NLC[start:stop].astype(np.float32) - alone_TLC)
            assert error <= 1e-3 * np.linalg.norm(alone_TLC), utterance.id


def test_a_damaged_recording_is_named_and_left_out(
    tiny_root: Path, tiny_wavlm_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, features = tmp_path / "data", tmp_path / "features"
    shutil.copytree(tiny_root / "LibriSpeech", root / "LibriSpeech")
    (damaged,) = root.rglob("7-1-0003.flac")
    damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
    assert main(command(root, tiny_wavlm_dir, features, "--keep")) == 0
    assert "left out 7-1-0003: " in capsys.readouterr().err
    (report_path,) = features.glob("*.json")
    kept = json.loads(report_path.read_text())["kept"]["train"]["frames"]
    assert len(kept) == 11 and "7-1-0003" not in kept


def test_nothing_is_left_of_a_probe_that_fails(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="in the middle"),
        open_scratch(tmp_path / "frames.npy", (7000, 2, 3), keep=True) as frames_NLC,
    ):
        (part,) = tmp_path.iterdir()
        assert part.stat().st_blocks * 512 >= frames_NLC.nbytes  # taken, not sparse
        raise RuntimeError("in the middle")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (["--split", "other"], "--split takes one split: train-tiny and other"),
        (["--dev-split", "train-tiny"], "--split and --dev-split are the same"),
        (["--dev-split", "nowhere"], "nowhere"),
        (["--layers", "3,9"], "ask for layer 9, and this WavLM has 4"),
    ],
)
def test_mistakes_are_one_line_and_status_2(
    more: list[str],
    line: str,
    tiny_root: Path,
    tiny_wavlm_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(command(tiny_root, tiny_wavlm_dir, tmp_path / "features", *more)) == 2
    (error,) = (text for text in capsys.readouterr().err.splitlines() if text.startswith("vox: error"))
    assert line in error
    assert not (tmp_path / "features").exists()


def test_a_probe_is_one_process(
    tiny_root: Path,
    tiny_wavlm_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(command(tiny_root, tiny_wavlm_dir, tmp_path / "features")) == 2
    assert "vox probe runs in one process: world size 2" in capsys.readouterr().err


def test_a_dry_run_says_the_size_and_stops(
    tiny_root: Path, tiny_wavlm_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(tiny_root, tiny_wavlm_dir, tmp_path / "features", "--dry-run")) == 0
    corpus = load_split(tiny_root, "train-tiny") + load_split(tiny_root, "dev-tiny")
    num_frames = sum(((utterance.num_samples or 0) - 400) // 320 + 1 for utterance in corpus)
    assert f"4 layers of 32 channels in float16: {num_frames * 4 * 32 * 2 / 1e9:.4f} GB" in (
        capsys.readouterr().out
    )
    assert not (tmp_path / "features").exists()
