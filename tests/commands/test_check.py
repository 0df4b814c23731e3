"""`vox check`: kept promises pass, each broken one is found, and one line names what a machine lacks."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml

import precompute.check
import train.check.gradients
import train.update.step
import vox.check.subject
from tests.support.speech import tiny_wavlm_kwargs
from tests.support.training import MODEL
from vox.check import decoding, promises
from vox.check.environment import Gpu, Machine, find_pitfalls, look_at_machine
from vox.check.plan import Training, make_plan
from vox.check.rates import count_flops
from vox.check.report import format_finding
from vox.check.results import Findings, Promise, Rate, Step, run_steps
from vox.check.subject import CheckSubject, make_subject
from vox.commands.check import check
from vox.config import load_config
from vox.errors import ConfigError, WavLMError
from vox.model.attention import KeyValueBuffer
from vox.wavlm.extractor import FeatureExtractor
from vox.wavlm.linear import Linear
from vox.wavlm.model import WavLM

CPU = torch.device("cpu")
Patch = pytest.MonkeyPatch
Check = Callable[[CheckSubject], Iterator[Promise]]


@pytest.fixture(scope="module")
def config_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the config of a tiny recogniser."""
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(yaml.safe_dump({"model": MODEL, "features": {"layers": [3, 4]}}))
    return path


@pytest.fixture
def subject(tiny_wavlm_dir: Path, config_path: Path, tmp_path: Path) -> CheckSubject:
    """Build the objects to check: tiny models on a CPU."""
    return make_subject(str(tiny_wavlm_dir), load_config(config_path), CPU, tmp_path, is_quick=True)


def run_check(*arguments: object) -> object:
    """Run the command; return its exit status, or None for success."""
    return check.main(
        [str(each) for each in ("--quick", "--device", "cpu", *arguments)], standalone_mode=False
    )


def test_a_machine_that_holds_passes_and_gets_a_plan(
    tiny_wavlm_dir: Path, config_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--wavlm", tiny_wavlm_dir, "--config", config_path, "--root", tmp_path / "data")
    assert not run_check(*options, "--hours", 10, "--price", 2.5, "--json")
    tree = json.loads(capsys.readouterr().out)
    assert tree["is_good"] and not tree["failures"]
    assert {each["name"] for each in tree["promises"]} == {"T1", "T2", "T3", "T4", "T5", "T6", "T10", ""}
    assert all(each["is_kept"] for each in tree["promises"])
    rates = {each["key"]: each["value"] for each in tree["rates"]}
    assert all(value > 0 for value in rates.values())
    hours = [row["hours"] for row in tree["plan"]["rows"]]
    assert hours[1] == pytest.approx(20 * 10 / min(rates["stage1_cached"], rates["read_disk"]))
    assert tree["plan"]["cost"] == pytest.approx(2.5 * sum(hours))
    assert tree["plan"]["rows"][0]["disk_gb"] == pytest.approx(10 * 180_000 * 32 * 2 / 1e9)
    assert not (tmp_path / "data").exists()  # and nothing is left beside it
    assert list(tmp_path.iterdir()) == []


def test_layers_that_this_wavlm_lacks_are_named_with_what_to_set(
    tiny_wavlm_dir: Path, tmp_path: Path
) -> None:
    options = ("--wavlm", tiny_wavlm_dir, "--root", tmp_path)
    with pytest.raises(
        ConfigError, match=r"layer 9, and this WavLM has 4.*--set features.layers=\[1,2,3,4\]"
    ):
        run_check(*options, "--set", "features.layers=[9]")


def test_a_broken_promise_is_named_and_ends_with_status_2(
    tiny_wavlm_dir: Path, config_path: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also from a wheel: checks that need the stages are left out."""
    monkeypatch.setattr("vox.commands.check.import_stage", lambda name: None)
    forget_all_but_the_first_key(monkeypatch)
    assert run_check("--wavlm", tiny_wavlm_dir, "--config", config_path) == 2
    lines = capsys.readouterr().out.splitlines()
    (broken,) = (line for line in lines if line.endswith("FAIL"))
    assert broken.split()[0] == "T5"
    assert sum(line.endswith("pass") for line in lines) >= 7
    assert not any("stage 1" in line or "corpus" in line for line in lines)
    assert "1 of" in lines[-1] and "FAILED" in lines[-1]


def mask_nothing(patch: Patch, module: str) -> None:
    def see_all(lengths_B: torch.Tensor, max_length: int) -> torch.Tensor:
        return torch.ones(len(lengths_B), max_length, dtype=torch.bool)

    patch.setattr(f"{module}.lengths_to_mask", see_all)


def forget_all_but_the_first_key(patch: Patch) -> None:
    append = KeyValueBuffer.append

    def append_and_forget(self: KeyValueBuffer, key: torch.Tensor, value: torch.Tensor):
        keys, values = append(self, key, value)
        return keys[:, :, :1], values[:, :, :1]

    patch.setattr(KeyValueBuffer, "append", append_and_forget)


def round_up_frames(patch: Patch) -> None:
    patch.setattr(WavLM, "num_frames", lambda self, num_samples: num_samples // 320)


def divide_by_loudness(patch: Patch) -> None:
    forward = FeatureExtractor.forward

    def divide(self: FeatureExtractor, waveforms_BS: torch.Tensor, num_samples_B: torch.Tensor):
        loudness_B11 = waveforms_BS.square().mean(1)[:, None, None]
        features_BTC, num_frames_B = forward(self, waveforms_BS, num_samples_B)
        return features_BTC / loudness_B11, num_frames_B

    patch.setattr(FeatureExtractor, "forward", divide)


def round_under_autocast(patch: Patch) -> None:
    forward = FeatureExtractor.forward

    def round_features(self: FeatureExtractor, *arguments: torch.Tensor):
        features_BTC, num_frames_B = forward(self, *arguments)
        is_mixed = torch.is_autocast_enabled("cpu")
        return features_BTC.bfloat16().float() if is_mixed else features_BTC, num_frames_B

    patch.setattr(FeatureExtractor, "forward", round_features)


def round_twice(patch: Patch) -> None:
    compute = precompute.check.compute_batch

    def compute_roughly(*arguments):
        computed = compute(*arguments)
        return replace(computed, features_BTC=computed.features_BTC.bfloat16().half())

    patch.setattr(precompute.check, "compute_batch", compute_roughly)


def weigh_by_itself(patch: Patch) -> None:
    patch.setattr(train.update.step, "_weigh", lambda sums, *_: sums.ctc / sums.ctc.detach())


def round_the_loss(patch: Patch) -> None:
    ctc_loss = F.ctc_loss

    def compute_roughly(scores, *rest, **more):
        rough = scores.bfloat16().float() if scores.dtype is torch.float32 else scores
        return ctc_loss(rough, *rest, **more)

    patch.setattr(F, "ctc_loss", compute_roughly)


def always_step(patch: Patch) -> None:
    step = train.update.step._step_if
    patch.setattr(
        train.update.step, "_step_if", lambda is_wanted, *rest: step(torch.ones_like(is_wanted), *rest)
    )


def lose_gradients(patch: Patch) -> None:
    attend = F.scaled_dot_product_attention

    def attend_badly(query, *rest, dropout_p=0.0, **more):
        mixed = attend(query, *rest, **more)
        return mixed * math.nan if dropout_p else mixed

    patch.setattr(F, "scaled_dot_product_attention", attend_badly)


FAULTS: dict[str, tuple[Check, Callable[[Patch], None]]] = {
    "padding seen by WavLM": (promises.check_batching, lambda patch: mask_nothing(patch, "vox.wavlm.model")),
    "live features of fewer digits": (promises.check_precision, round_under_autocast),
    "a clamped frame count": (promises.check_lengths, round_up_frames),
    "a division by zero": (promises.check_extremes, divide_by_loudness),
    "a cache of fewer digits": (precompute.check.check_cached, round_twice),
    "padding seen by the encoder": (
        decoding.check_scores,
        lambda patch: mask_nothing(patch, "vox.model.zipformer"),
    ),
    "a cache of the first step": (decoding.check_steps, forget_all_but_the_first_key),
    "means of micro-batches": (train.check.gradients.check_cut, weigh_by_itself),
    "a loss of fewer digits": (train.check.gradients.check_gradients, round_the_loss),
    "a step that is always taken": (train.check.gradients.check_infinity, always_step),
    "attention without gradients": (train.check.gradients.check_finite, lose_gradients),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_breaks_its_promise_and_no_check_is_vacuous(
    fault: str, subject: CheckSubject, monkeypatch: Patch
) -> None:
    run, plant = FAULTS[fault]
    assert all(promise.is_kept for promise in run(subject))
    plant(monkeypatch)
    assert not all(promise.is_kept for promise in run(subject))


def test_other_weights_than_hugging_faces_break_t10(subject: CheckSubject) -> None:
    (promise,) = promises.check_reference(subject)
    assert promise.is_kept
    with torch.no_grad():
        subject.reference.encoder.layers[2].feed_forward.output_dense.weight.mul_(1.01)
    (promise,) = promises.check_reference(subject)
    assert not promise.is_kept


def test_without_weights_random_ones_are_checked_and_it_is_said(
    config_path: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    def refuse(*_: object) -> None:
        raise WavLMError("the hub is unreachable")

    tiny = vox.check.subject.WavLMConfig(**tiny_wavlm_kwargs())
    monkeypatch.setattr(vox.check.subject, "build_extractor", refuse)
    monkeypatch.setattr(vox.check.subject, "WavLMConfig", lambda: tiny)
    subject = make_subject("a/name", load_config(config_path), CPU, tmp_path, is_quick=True)
    assert next(promises.check_reference(subject)).is_kept
    machine = look_at_machine(CPU, tmp_path, subject.weights, subject.missing_weights)
    (pitfall,) = (each for each in find_pitfalls(machine) if "weights" in each.what)
    assert pitfall.remedy == "the hub is unreachable"
    with pytest.raises(WavLMError):  # what is here and damaged is no reason to take another
        make_subject(str(tmp_path), load_config(config_path), CPU, tmp_path, is_quick=True)


def test_an_error_ends_its_own_step_only() -> None:
    def fail(_: None) -> Iterator[Promise]:
        yield Promise("T1", "before", 0.0, 1.0)
        raise RuntimeError("CUDA error:\n  an illegal memory access")

    shown: list[str] = []
    findings = Findings()
    steps = [Step("one", fail), Step("two", lambda _: [Rate("speed", "a speed", 12_345.6, "m/s")])]
    run_steps(steps, None, findings, lambda finding: shown.append(format_finding(finding)))
    assert len(findings.promises) == len(findings.rates) == len(findings.failures) == 1
    assert not findings.is_good
    assert "one: RuntimeError: CUDA error: an illegal memory access" in shown[1]
    assert shown[1].endswith("FAIL") and "12,346 m/s" in shown[2]


def test_a_figure_that_is_not_a_number_breaks_its_promise() -> None:
    assert not Promise("T1", "", math.nan, 1.0).is_kept
    assert Promise("T4", "", 0, 0).is_kept


TRAINING = Training(20, None, 5, 768, 204_777_804, 131_661_080, workers=2)


def test_a_plan_takes_the_slowest_of_what_runs_side_by_side() -> None:
    rates = {
        "extraction": 1000.0,
        "decode_audio": 100.0,
        "write_disk": 500.0,
        "stage1_cached": 2000.0,
        "read_disk": 1e6,
        "stage2_live": 1000.0,
    }
    findings = Findings(rates=[Rate(key, key, value, "") for key, value in rates.items()])
    plan = make_plan(findings, TRAINING, 100.0, workers=4, price=3.0)
    assert plan is not None
    # 100 h decoded at 4 x 100, 20 epochs at 2000, 5 epochs decoded at 2 x 100.
    assert [row.hours for row in plan.rows] == pytest.approx([0.25, 1.0, 2.5])
    assert [row.limit for row in plan.rows] == ["4 decoding workers", "updates", "2 decoding workers"]
    assert plan.rows[0].disk_gb == pytest.approx(27.648)
    assert plan.cost == pytest.approx(3.75 * 3)
    short = make_plan(findings, replace(TRAINING, stage1_most_seconds=36_000.0), 100.0, workers=4)
    assert short is not None and short.rows[1].hours == pytest.approx(0.005)  # a tenth of an epoch
    findings.add(Rate("extraction_new", "", 100.0, ""))
    slower = make_plan(findings, TRAINING, 100.0, workers=4)
    assert slower is not None and slower.cost is None
    assert (slower.rows[0].hours, slower.rows[0].limit) == (pytest.approx(1.0), "WavLM")
    del findings.rates[4]
    assert make_plan(findings, TRAINING, 100.0, workers=4) is None


GPU = Gpu("NVIDIA H100", (9, 0), 80.0, 79.0, 1, ("flash", "math"))
GOOD = Machine(
    versions={"torch": "2.11.0"},
    device="cuda",
    gpu=GPU,
    has_nvidia=True,
    is_usable=True,
    is_hidden=False,
    driver="580.65.06",
    driver_cuda=(13, 0),
    torch_cuda="13.0",
    cudnn=91900,
    cores=16,
    busy_share=0.1,
    memory_gb=128,
    shared_gb=64,
    disk_gb=100,
    audio_formats=("FLAC", "WAV"),
    torchaudio_error=None,
    weights="microsoft/wavlm-base",
    missing_weights=None,
)
UNUSED = {"gpu": None, "is_usable": False, "device": "cpu"}


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({}, None),
        ({"gpu": None, "device": "cpu"}, None),  # --device cpu
        ({**UNUSED, "has_nvidia": False}, None),
        ({**UNUSED, "torch_cuda": None}, "this torch is for CPUs only"),
        ({**UNUSED, "driver_cuda": (12, 4)}, "driver runs CUDA up to 12.4, and this torch needs 13.0"),
        ({**UNUSED, "is_hidden": True}, "CUDA_VISIBLE_DEVICES hides"),
        (UNUSED, "torch does not use"),
        ({"gpu": replace(GPU, capability=(7, 5))}, "no bfloat16"),
        ({"gpu": replace(GPU, free_gb=30.0)}, "another process holds 50.0 GB"),
        ({"torchaudio_error": "undefined symbol"}, "torchaudio does not load (undefined symbol)"),
        ({"shared_gb": 0.064}, "/dev/shm has 64 MB free"),
        ({"audio_formats": ("WAV",)}, "without FLAC"),
        ({"busy_share": 1.5}, "150% of the cores"),
        ({"missing_weights": "unreachable"}, "random ones"),
    ],
)
def test_each_pitfall_is_named_with_a_remedy(changes: dict, what: str | None) -> None:
    pitfalls = find_pitfalls(replace(GOOD, **changes))
    assert len(pitfalls) == (what is not None)
    for pitfall in pitfalls:
        assert what is not None and what in pitfall.what
        assert pitfall.remedy


def test_packed_products_are_counted_as_ordinary_ones_are() -> None:
    layer, inputs = Linear(48, 32).requires_grad_(False), torch.randn(2, 5, 48)
    layer_that_learns = Linear(48, 32)
    with torch.inference_mode():
        assert count_flops(lambda: layer(inputs)) == 2 * 2 * 5 * 48 * 32
    assert count_flops(lambda: layer_that_learns(inputs)) == 2 * 2 * 5 * 48 * 32
