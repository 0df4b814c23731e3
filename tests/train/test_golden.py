"""Golden curves: two tiny runs, recorded line by line, to detect any change of what is learnt.

Every other test of training compares two runs of the same code with each other. This one compares with
the code at the time when the curves were recorded. A refactor that changes the learning rate, the losses,
their normalisation, dropout, SpecAugment or the order of the data fails here; any other refactor passes.

After an intended change of learning, record them again and give the reason in the commit:

    python -m tests.train.test_golden
"""

import json
import math
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.speech import tiny_wavlm_kwargs, write_split
from tests.support.training import stage1_options, stage2_options
from train.run import run_training
from vox.runs.layout import METRICS

GOLDEN_DIR = Path(__file__).resolve().parents[1] / "golden"
STAGES = ("stage1", "stage2")

# What a line is compared in. WERs are left out: of a model that has learnt little they are coin tosses.
CURVES = {
    "train": ("ctc", "attention", "grad_norm", "learning_rate", "ctc_weight"),
    "dev": ("ctc", "attention"),
}
EXACT = ("learning_rate", "ctc_weight")  # computed from the update's number alone
EXACT_TOLERANCE = 1e-9

# Rounding differs between processors and builds of the libraries, and every update carries it further.
# Measured: AVX2, no vector instructions, and two threads were each 1e-5 off AVX-512 and one thread at
# worst, over all lines. The smallest change of learning tried (label smoothing 0.09 for 0.1) is 2e-3 off.
FIRST_TOLERANCE = 5e-4  # relative, at a run's first line
LAST_TOLERANCE = 2e-3

# A line an update; a warm-up, a moving CTC weight and a weight decay that show in nine updates.
OVERRIDES = (
    "train.log_updates=1",
    "train.ctc_weight_start=0.6",
    "optimizer.learning_rate=0.003",
    "optimizer.warmup_fraction=0.4",
    "optimizer.weight_decay=1.0",
)

Line = dict[str, Any]


@pytest.fixture(scope="module")
def curves(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Line]]:
    """Both runs, with the current code."""
    recorded = read_golden("stage1")["random"]
    if recorded != draw_random():
        pytest.skip(f"torch draws other random numbers on this machine ({platform.machine()})")
    return run_stages(tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize("stage", STAGES)
def test_training_still_learns_what_it_learnt(curves: dict[str, list[Line]], stage: str) -> None:
    """Every loss, gradient norm and learning rate is as recorded, within a tolerance for rounding."""
    golden = read_golden(stage)
    expected, found = golden["lines"], curves[stage]
    assert [(line["kind"], line["update"]) for line in found] == [
        (line["kind"], line["update"]) for line in expected
    ]
    differences = list(compare(expected, found))
    if differences:
        head = f"{stage} was recorded with {golden['recorded with']}; here: {describe_libraries()}"
        last = "Where this is meant, record it: python -m tests.train.test_golden"
        pytest.fail("\n".join([head, *differences, last]), pytrace=False)


def compare(expected: list[Line], found: list[Line]) -> Iterator[str]:
    """Yield a sentence for every figure outside its tolerance."""
    for position, (golden, line) in enumerate(zip(expected, found, strict=True)):
        passed = position / max(1, len(expected) - 1)
        for name in CURVES[golden["kind"]]:
            tolerance = FIRST_TOLERANCE + passed * (LAST_TOLERANCE - FIRST_TOLERANCE)
            if name in EXACT:
                tolerance = EXACT_TOLERANCE
            if not math.isclose(line[name], golden[name], rel_tol=tolerance):
                off = abs(line[name] / golden[name] - 1)
                yield (
                    f"  {golden['kind']} at update {golden['update']}: {name} {line[name]:.6g}, recorded "
                    f"{golden[name]:.6g}: {off:.1e} off, {tolerance:.1e} allowed"
                )


def run_stages(folder: Path) -> dict[str, list[Line]]:
    """Train stage 1 on live audio, then stage 2 from its last weights, with dropout and masks."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a sum's rounding depends on who adds up what
    try:
        root, wavlm_dir = make_inputs(folder)
        run_training(stage1_options(root, wavlm_dir, folder / "stage1", overrides=OVERRIDES))
        # The last: which is best is decided by word error rates.
        origin = folder / "stage1" / "last"
        run_training(stage2_options(root, folder / "stage2", origin, overrides=OVERRIDES))
    finally:
        torch.set_num_threads(threads)
    return {stage: read_curves(folder / stage) for stage in STAGES}


def make_inputs(folder: Path) -> tuple[Path, Path]:
    """Write the corpus and the WavLM of the curves."""
    from transformers import WavLMConfig, WavLMModel

    write_split(folder, "train-tiny", 12, speaker=7, first_seed=0)
    write_split(folder, "dev-tiny", 4, speaker=8, first_seed=100)
    torch.manual_seed(0)
    wavlm_dir = folder / "wavlm"
    WavLMModel(WavLMConfig(**tiny_wavlm_kwargs())).eval().save_pretrained(wavlm_dir)
    return folder, wavlm_dir


def read_curves(run_dir: Path) -> list[Line]:
    """Read the compared figures from a run's metric lines."""
    lines = [json.loads(line) for line in (run_dir / METRICS).read_text(encoding="utf-8").splitlines()]
    return [
        {name: line[name] for name in ("kind", "update", *CURVES[line["kind"]])}
        for line in lines
        if line["kind"] in CURVES
    ]


def draw_random() -> str:
    """Draw a dropout mask as this torch build does: builds with Intel's library draw another."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mask = torch.nn.functional.dropout(torch.ones(64), 0.5) > 0
    return "".join(str(int(kept)) for kept in mask)


def describe_libraries() -> str:
    """Return the properties of the machine that rounding and random weights depend on."""
    import numpy
    import sentencepiece
    import transformers

    libraries = (torch, transformers, numpy, sentencepiece)
    versions = ", ".join(f"{library.__name__} {library.__version__}" for library in libraries)
    return f"{versions}, {torch.backends.cpu.get_cpu_capability()}"


def read_golden(stage: str) -> dict[str, Any]:
    """Read a recorded run."""
    recorded: dict[str, Any] = json.loads((GOLDEN_DIR / f"{stage}.json").read_text(encoding="utf-8"))
    return recorded


def write_golden(stage: str, lines: list[Line]) -> None:
    """Record a run: each line of the file is a line of the curve."""
    head = {"recorded with": describe_libraries(), "random": draw_random()}
    rows = [f' "{key}": {json.dumps(value)}' for key, value in head.items()]
    rows.append(' "lines": [\n' + ",\n".join(f"  {json.dumps(line)}" for line in lines) + "\n ]")
    GOLDEN_DIR.mkdir(exist_ok=True)
    text = "{\n" + ",\n".join(rows) + "\n}\n"
    (GOLDEN_DIR / f"{stage}.json").write_text(text, encoding="utf-8")


def main() -> None:
    """Record both curves."""
    with tempfile.TemporaryDirectory() as folder:
        for stage, lines in run_stages(Path(folder)).items():
            write_golden(stage, lines)
            print(f"recorded {len(lines)} lines in {GOLDEN_DIR / stage}.json")


if __name__ == "__main__":
    main()
