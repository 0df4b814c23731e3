"""The wheel, built and used as by a user who only installs it; and the pinned versions."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from itertools import chain
from pathlib import Path

import pytest
import soundfile
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.speech import make_speech
from tests.support.untrained import save_go_checkpoint
from vox.units import SAMPLE_RATE

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy, without the network; return its path."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, source)
    # The stages too: that they stay out of the wheel is what is tested.
    for package in ("vox", "precompute", "train", "evaluate", "tests"):
        shutil.copytree(CHECKOUT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    out_dir = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", str(out_dir)]
    command = [sys.executable, "-m", "pip", "wheel", *options, str(source)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (path,) = out_dir.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def unpacked_dir(wheel_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpack the wheel outside the checkout."""
    folder = tmp_path_factory.mktemp("unpacked")
    zipfile.ZipFile(wheel_path).extractall(folder)
    return folder


def run_vox(unpacked_dir: Path, tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the wheel's command line from an unrelated folder."""
    command = [sys.executable, "-m", "vox", *arguments]
    # No inherited variables: PYTHONPATH must be the wheel alone, PYTHONSAFEPATH as a user has it.
    return subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(unpacked_dir)}, capture_output=True, text=True
    )


def test_the_wheel_holds_the_library_alone(wheel_path: Path) -> None:
    names = zipfile.ZipFile(wheel_path).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"vox"}
    assert len(tops) == 2
    sources = {str(path.relative_to(CHECKOUT)) for path in (CHECKOUT / "vox").rglob("*.py")}
    assert sources <= set(names)
    assert "vox/py.typed" in names
    assert any(name.endswith("LICENSE") for name in names)


def test_from_the_wheel_a_stage_says_that_it_needs_a_checkout(unpacked_dir: Path, tmp_path: Path) -> None:
    result = run_vox(unpacked_dir, tmp_path, "train", "--stage", "1")
    assert result.returncode == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("vox: error: vox train needs a checkout")
    assert str(unpacked_dir) in line


def test_from_the_wheel_help_works(unpacked_dir: Path, tmp_path: Path) -> None:
    result = run_vox(unpacked_dir, tmp_path, "--help")
    assert result.returncode == 0
    assert "transcribe" in result.stdout


def test_from_the_wheel_transcribe_works(unpacked_dir: Path, tmp_path: Path, tiny_wavlm_dir: Path) -> None:
    checkpoint = save_go_checkpoint(tmp_path / "checkpoint", tiny_wavlm_dir)
    soundfile.write(tmp_path / "a.wav", make_speech(8_000, 1), SAMPLE_RATE)
    arguments = ["a.wav", "--checkpoint", str(checkpoint), "--decoder", "ctc", "--device", "cpu"]
    result = run_vox(unpacked_dir, tmp_path, "transcribe", *arguments)
    assert (result.returncode, result.stdout) == (0, "go\n"), result.stderr


def test_pinned_versions_satisfy_the_declared_ranges() -> None:
    lines = (CHECKOUT / "requirements.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    versions = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for line in chain(project["dependencies"], *extras.values()):
        wanted = Requirement(line)
        assert versions[canonicalize_name(wanted.name)] in wanted.specifier, line
