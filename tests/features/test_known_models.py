"""The digests of a model's files are remembered, so that a run with nothing to do ends at once."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.support.precomputing import LAYERS, SPLIT, command
from vox.cli import main
from vox.disk import add_checksum
from vox.features import known_models
from vox.features.fingerprint import ModelIdentity, identify_model
from vox.features.known_models import MODELS_NAME, recall_model, remember_model
from vox.wavlm.files import FileStamp, stamp_files
from vox.wavlm.load import load_wavlm

MODEL = ModelIdentity(weights_sha256="ab", do_normalize=False, config="heads=4", hidden_size=64, num_layers=4)

WITHOUT_TORCH = """
import json, sys
from vox.cli import main
status = main(json.loads(sys.argv[1]))
print(sorted({"torch", "transformers", "h5py"} & set(sys.modules)))
raise SystemExit(status)
"""


@pytest.fixture
def wavlm_dir(tiny_wavlm_dir: Path, tmp_path: Path) -> Path:
    """Copy the tiny WavLM for changes."""
    return Path(shutil.copytree(tiny_wavlm_dir, tmp_path / "wavlm"))


@pytest.fixture
def any_age(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trust the times of files that were just created."""
    monkeypatch.setattr(known_models, "MIN_AGE_SECONDS", 0.0)


def stamps_of(folder: Path) -> list[FileStamp]:
    """Read the stamps of a folder without links."""
    stamps = stamp_files(folder)
    assert stamps is not None
    return stamps


def change_weights(wavlm_dir: Path) -> None:
    """Change one weight but keep the file's size and time of change."""
    path = wavlm_dir / "model.safetensors"
    status = path.stat()
    weights = load_file(path)
    weights["feature_projection.projection.bias"][0] += 1
    save_file(weights, path, {"format": "pt"})
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size


@pytest.mark.usefixtures("any_age")
def test_a_run_with_nothing_to_do_does_not_load_torch(
    tiny_root: Path, wavlm_dir: Path, tmp_path: Path
) -> None:
    arguments = command(tiny_root, wavlm_dir, tmp_path / "features")
    assert main(arguments) == 0
    for more, told in (([], "nothing to do"), (["--dry-run"], "nothing to compute here")):
        result = subprocess.run(
            [sys.executable, "-c", WITHOUT_TORCH, json.dumps([*arguments, *more])],
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        assert told in result.stdout
        assert result.stdout.splitlines()[-1] == "['h5py']"
    assert main([*arguments, "--device", "gpu"]) == 2  # a misspelt option is told all the same


@pytest.mark.usefixtures("any_age")
def test_other_weights_under_the_same_name_size_and_time_are_noticed(
    tiny_root: Path, wavlm_dir: Path, tmp_path: Path
) -> None:
    features = tmp_path / "features"
    assert main(command(tiny_root, wavlm_dir, features)) == 0
    assert recall_model(features, wavlm_dir) == identify_model(load_wavlm(str(wavlm_dir)))
    change_weights(wavlm_dir)
    assert recall_model(features, wavlm_dir) is None
    assert main(command(tiny_root, wavlm_dir, features)) == 0
    changed = identify_model(load_wavlm(str(wavlm_dir)))
    assert recall_model(features, wavlm_dir) == changed
    assert changed.fingerprint(LAYERS).prefix in {path.name for path in (features / SPLIT).iterdir()}
    assert len(list((features / SPLIT).iterdir())) == 2


@pytest.mark.usefixtures("any_age")
@pytest.mark.parametrize("change", ["config_key", "transformers", "damaged", "foreign", "gone"])
def test_what_may_not_hold_any_more_is_forgotten(
    tmp_path: Path, wavlm_dir: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    remember_model(tmp_path, wavlm_dir, stamps_of(wavlm_dir), MODEL)
    assert recall_model(tmp_path, wavlm_dir) == MODEL
    path = tmp_path / MODELS_NAME
    if change == "config_key":
        monkeypatch.setattr(known_models, "CONFIG_KEYS", (*known_models.CONFIG_KEYS, "another"))
    elif change == "transformers":
        monkeypatch.setattr(known_models, "version", lambda package: "99.0")
    elif change == "damaged":
        path.write_bytes(path.read_bytes().replace(b'"ab"', b'"ac"'))
    elif change == "foreign":
        path.write_bytes(add_checksum(b'[{"origin": {}, "model": {"digest": "ab"}}]'))
    else:
        path.unlink()
    assert recall_model(tmp_path, wavlm_dir) is None
    remember_model(tmp_path, wavlm_dir, stamps_of(wavlm_dir), MODEL)
    assert recall_model(tmp_path, wavlm_dir) == MODEL


def test_files_that_may_change_unseen_are_not_remembered(
    tmp_path: Path, wavlm_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change within one tick of the clock, or behind a link, or of files with a made-up time."""
    before = stamps_of(wavlm_dir)
    remember_model(tmp_path, wavlm_dir, before, MODEL)  # made a moment ago
    assert recall_model(tmp_path, wavlm_dir) is None
    monkeypatch.setattr(known_models, "MIN_AGE_SECONDS", 0.0)
    made_up = [(name, size, changed, 1_700_000_000 * known_models.NS) for name, size, changed, _ in before]
    monkeypatch.setattr(known_models, "stamp_files", lambda folder: made_up)
    remember_model(tmp_path, wavlm_dir, made_up, MODEL)
    assert recall_model(tmp_path, wavlm_dir) is None
    (wavlm_dir / "parts").symlink_to(tmp_path)
    assert stamp_files(wavlm_dir) is None


@pytest.mark.usefixtures("any_age")
def test_what_is_remembered_describes_nothing_that_is_computed(
    tiny_root: Path, wavlm_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the fault, the shards of two models are never in one cache."""
    features = tmp_path / "features"
    assert main(command(tiny_root, wavlm_dir, features)) == 0
    before = identify_model(load_wavlm(str(wavlm_dir)))
    folder = features / SPLIT / before.fingerprint(LAYERS).prefix
    (folder / "shard-00001.h5").unlink()
    change_weights(wavlm_dir)
    monkeypatch.setattr("precompute.run.recall_model", lambda *_: before)
    assert main(command(tiny_root, wavlm_dir, features)) == 0
    assert not (folder / "shard-00001.h5").exists()
    now = identify_model(load_wavlm(str(wavlm_dir)))
    assert (features / SPLIT / now.fingerprint(LAYERS).prefix / "shard-00001.h5").exists()


@pytest.mark.usefixtures("any_age")
def test_several_models_are_remembered(tmp_path: Path, tiny_wavlm_dir: Path, wavlm_dir: Path) -> None:
    remember_model(tmp_path, tiny_wavlm_dir, stamps_of(tiny_wavlm_dir), MODEL)
    remember_model(tmp_path, wavlm_dir, stamps_of(wavlm_dir), MODEL)
    change_weights(wavlm_dir)
    remember_model(tmp_path, wavlm_dir, stamps_of(wavlm_dir), MODEL)
    assert recall_model(tmp_path, tiny_wavlm_dir) == MODEL == recall_model(tmp_path, wavlm_dir)
    assert (tmp_path / MODELS_NAME).read_text().count("weights_sha256") == 2


@pytest.mark.usefixtures("any_age")
def test_weights_further_down_count_too(tmp_path: Path, wavlm_dir: Path) -> None:
    part = wavlm_dir / "parts" / "model-00001-of-00002.safetensors"
    part.parent.mkdir()
    part.write_bytes(b"weights")
    remember_model(tmp_path, wavlm_dir, stamps_of(wavlm_dir), MODEL)
    assert recall_model(tmp_path, wavlm_dir) == MODEL
    part.write_bytes(b"WEIGHTS")
    assert recall_model(tmp_path, wavlm_dir) is None
