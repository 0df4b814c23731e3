"""A split that changes costs only what changed: old shards are kept, the rest goes into new ones."""

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile

import vox.features.cache
from tests.support.precomputing import LAYERS, SPLIT, command
from tests.support.processes import run_ranks
from tests.support.speech import make_speech
from vox.cli import main
from vox.features.cache import open_cache
from vox.features.fingerprint import Fingerprint, make_fingerprint
from vox.features.shard import Shard
from vox.features.verify import verify_cache
from vox.units import SAMPLE_RATE
from vox.wavlm.extractor import build_extractor

NUM_RECORDINGS = 14

Features = dict[tuple[int, int], np.ndarray]  # by number and version of a recording


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write recordings 0 … 13, each in two versions of different lengths, and no manifest."""
    root = tmp_path_factory.mktemp("data")
    for number in range(NUM_RECORDINGS):
        for version in (0, 1):
            waveform = make_speech(9_000 + 700 * number + 3_200 * version, number + 100 * version)
            soundfile.write(root / f"{number:02d}.{version}.wav", waveform, SAMPLE_RATE)
    return root


@pytest.fixture(scope="module")
def fingerprint(tiny_wavlm_dir: Path) -> Fingerprint:
    return make_fingerprint(build_extractor(str(tiny_wavlm_dir), LAYERS).wavlm, LAYERS)


def write_manifest(root: Path, content: dict[int, int], cyrillic: Sequence[int] = ()) -> None:
    """List recordings, number to version; some with a text that English refuses."""
    rows = [
        {"audio": f"{n:02d}.{v}.wav", "text": "да" if n in cyrillic else "go", "id": f"u{n:02d}"}
        for n, v in content.items()
    ]
    (root / f"{SPLIT}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def read_all(features: Path, fingerprint: Fingerprint) -> dict[str, np.ndarray]:
    cache = open_cache(features, SPLIT, fingerprint)
    return {name: cache.read(name) for name in cache.ids}


@pytest.fixture
def fresh(root: Path, tiny_wavlm_dir: Path, fingerprint: Fingerprint, tmp_path: Path) -> Features:
    """Compute the features of every recording and version, by number and version."""
    found = {}
    for version in (0, 1):
        write_manifest(root, dict.fromkeys(range(NUM_RECORDINGS), version))
        assert main(command(root, tiny_wavlm_dir, tmp_path / f"fresh{version}")) == 0
        for name, features in read_all(tmp_path / f"fresh{version}", fingerprint).items():
            found[int(name[1:]), version] = features
    return found


def check(
    features: Path,
    fingerprint: Fingerprint,
    content: dict[int, int],
    fresh: Features,
) -> None:
    """Assert that a cache holds exactly the features of this content, and is whole."""
    found = read_all(features, fingerprint)
    assert found.keys() == {f"u{number:02d}" for number in content}
    for number, version in content.items():
        np.testing.assert_allclose(found[f"u{number:02d}"], fresh[number, version], atol=2e-3)
    (folder,) = (features / SPLIT).iterdir()
    assert list(verify_cache(folder)) == []


def list_shards(features: Path) -> dict[str, int]:
    """Return the shards of the only cache, name to inode."""
    return {path.name: path.stat().st_ino for path in features.glob(f"{SPLIT}/*/*.h5")}


def count_stored_frames(features: Path) -> int:
    """Count the frames in the shards of the only cache, those of retired rows too."""
    return sum(int(Shard(path).offsets[-1]) for path in features.glob(f"{SPLIT}/*/*.h5"))


@pytest.mark.parametrize("seed", range(2))
def test_any_changes_leave_the_cache_of_the_split_as_it_is(
    root: Path,
    tiny_wavlm_dir: Path,
    fingerprint: Fingerprint,
    fresh: Features,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    seed: int,
) -> None:
    """Utterances come, go, come back and change their length; shards that are kept are not written again."""
    chance = random.Random(seed)
    content = dict.fromkeys(range(10), 0)
    write_manifest(root, content)
    line = command(root, tiny_wavlm_dir, tmp_path / "features")
    assert main(line) == 0
    for _ in range(5):
        before, shards = dict(content), list_shards(tmp_path / "features")
        for number in chance.sample(range(NUM_RECORDINGS), 3):
            content.pop(number, None)
            if chance.random() < 0.6:
                content[number] = chance.randrange(2)
        num_new = len(content.items() - before.items())
        write_manifest(root, content)
        capsys.readouterr()
        assert main([*line, "--dry-run"]) == 0
        assert list_shards(tmp_path / "features") == shards
        assert main(line) == 0
        check(tmp_path / "features", fingerprint, content, fresh)
        after = list_shards(tmp_path / "features")
        assert len(shards.items() & after.items()) >= len(shards) - 3
        assert num_new or after.keys() <= shards.keys()
        assert main(line) == 0
        described = capsys.readouterr().out
        num_frames = sum(map(len, read_all(tmp_path / "features", fingerprint).values()))
        assert "nothing to do" in described and f", {num_frames:,} frames, " in described
        assert (" retired row" in described) == (num_frames < count_stored_frames(tmp_path / "features"))


def test_what_changed_is_listed_and_computed_alone(
    root: Path, tiny_wavlm_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_manifest(root, dict.fromkeys(range(8), 0))
    line = command(root, tiny_wavlm_dir, tmp_path / "features")
    assert main(line) == 0
    shards = list_shards(tmp_path / "features")
    write_manifest(root, {**dict.fromkeys(range(1, 9), 0), 2: 1})
    capsys.readouterr()
    assert main(command(root, tiny_wavlm_dir, tmp_path / "features", "--shard-gb", "1")) == 0
    told = capsys.readouterr()
    assert "(utterances: 1 added, 1 removed, 1 changed length: u02)" in told.err
    new = list_shards(tmp_path / "features").keys() - shards.keys()
    assert new == {f"shard-{len(shards):05d}.h5"}
    (path,) = tmp_path.glob(f"features/{SPLIT}/*/{new.pop()}")
    assert Shard(path).ids == ["u02", "u08"]
    verify = ["cache", "verify", "--audio", "--root", str(root), "--features", str(tmp_path / "features")]
    assert main(verify) == 0


def test_a_text_that_is_refused_costs_no_features(
    root: Path,
    tiny_wavlm_dir: Path,
    fingerprint: Fingerprint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As where --set text.alphabet was forgotten. Each shard is opened once."""
    line = command(root, tiny_wavlm_dir, tmp_path / "features")
    write_manifest(root, dict.fromkeys(range(6), 0), cyrillic=(1, 4))
    assert main([*line, "--set", "text.alphabet=letters"]) == 0
    before = list_shards(tmp_path / "features")
    opened: list[Path] = []
    monkeypatch.setattr(vox.features.cache, "Shard", lambda path: opened.append(path) or Shard(path))
    write_manifest(root, dict.fromkeys(range(7), 0), cyrillic=(1, 4, 6))
    assert main([*line, "--skip-bad"]) == 0
    told = capsys.readouterr()
    assert "nothing to do" in told.out and "the features of 2 utterances stay" in told.err
    assert list_shards(tmp_path / "features") == before
    assert sorted(path.name for path in opened) == sorted(before)
    assert read_all(tmp_path / "features", fingerprint).keys() == {f"u{number:02d}" for number in range(6)}
    write_manifest(root, dict.fromkeys([0, 2, 3, 4, 5], 0), cyrillic=(4,))
    assert main([*line, "--skip-bad"]) == 0
    assert "u01" not in read_all(tmp_path / "features", fingerprint)
    write_manifest(root, {0: 0, 2: 0, 3: 0, 4: 0, 5: 2}, cyrillic=(4,))  # a file that is not there
    assert main([*line, "--skip-bad"]) == 0
    told = capsys.readouterr().err
    assert (
        "the features of 1 utterance are given up, because their recordings cannot be read now: u05" in told
    )
    assert "the features of 1 utterance stay" in told


def test_a_split_of_other_recordings_is_refused(
    root: Path, tiny_wavlm_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Most of the cache would be of no use: perhaps it is another corpus of the same name."""
    write_manifest(root, dict.fromkeys(range(6), 0))
    line = command(root, tiny_wavlm_dir, tmp_path / "features")
    assert main(line) == 0
    shards = list_shards(tmp_path / "features")
    write_manifest(root, dict.fromkeys(range(4, 12), 0))
    assert main(line) == 2
    assert "6 added, 4 removed" in (told := capsys.readouterr().err) and "--rebuild" in told
    assert list_shards(tmp_path / "features") == shards
    assert main([*line, "--rebuild"]) == 0


@pytest.mark.parametrize("when", ["list", "shard", "computing"])
def test_a_change_that_was_interrupted_is_finished(
    root: Path,
    tiny_wavlm_dir: Path,
    fingerprint: Fingerprint,
    fresh: Features,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    when: str,
) -> None:
    def be_killed(*arguments: object, **keywords: object) -> None:
        raise KeyboardInterrupt

    write_manifest(root, dict.fromkeys(range(8), 0))
    features = tmp_path / "features"
    line = command(root, tiny_wavlm_dir, features)
    assert main(line) == 0
    content = {**dict.fromkeys(range(1, 12), 0), 3: 1}
    write_manifest(root, content)
    with monkeypatch.context() as patch:
        if when == "computing":
            patch.setattr("precompute.extract.compute_shards", be_killed)
        assert main(line) == (130 if when == "computing" else 0)
    (folder,) = (features / SPLIT).iterdir()
    if when == "list":  # of another plan
        (folder / "utterances.jsonl").write_text("")
    if when != "computing":  # a shard with retired rows
        (folder / "shard-00000.h5").unlink()
    assert main(line) == 0
    check(features, fingerprint, content, fresh)


def test_two_ranks_at_once_extend_a_cache(
    root: Path,
    tiny_wavlm_dir: Path,
    fingerprint: Fingerprint,
    fresh: Features,
    tmp_path: Path,
) -> None:
    write_manifest(root, dict.fromkeys(range(8), 0))
    line = command(root, tiny_wavlm_dir, tmp_path / "one")
    assert main(line) == 0
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    content = {**dict.fromkeys(range(2, 14), 0), 5: 1}
    write_manifest(root, content)
    assert main(line) == 0

    def work(rank: int) -> None:
        raise SystemExit(main(command(root, tiny_wavlm_dir, tmp_path / "two")))

    assert run_ranks(2, work) == [0, 0]
    check(tmp_path / "two", fingerprint, content, fresh)
    plans = [next((tmp_path / name).glob("*/*/plan.json")).read_text() for name in ("one", "two")]
    assert plans[0] == plans[1]


def test_a_deleted_shard_with_retired_rows_is_computed_again(
    root: Path, tiny_wavlm_dir: Path, fingerprint: Fingerprint, fresh: Features, tmp_path: Path
) -> None:
    """As a message about a damaged shard advises; nothing of the split is lost, so nothing is refused."""
    line = command(root, tiny_wavlm_dir, tmp_path / "features", "--shard-gb", "1")
    write_manifest(root, dict.fromkeys(range(8), 0))
    assert main(line) == 0
    content = dict.fromkeys(range(1, 10), 0)
    write_manifest(root, content)
    assert main(line) == 0
    (folder,) = (tmp_path / "features" / SPLIT).iterdir()
    (folder / "shard-00000.h5").unlink()
    assert main(line) == 0
    check(tmp_path / "features", fingerprint, content, fresh)


def test_a_stale_shard_left_by_a_kill_is_replaced(
    root: Path,
    tiny_wavlm_dir: Path,
    fingerprint: Fingerprint,
    fresh: Features,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed after the new plan, before the shard that it no longer names was deleted."""

    def be_killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    line = command(root, tiny_wavlm_dir, tmp_path / "features")
    write_manifest(root, dict.fromkeys(range(8), 0))
    assert main(line) == 0
    last = max(list_shards(tmp_path / "features"))
    (path,) = tmp_path.glob(f"features/{SPLIT}/*/{last}")
    content = {number: 0 for number in range(8) if f"u{number:02d}" not in Shard(path).ids}
    write_manifest(root, content)
    with monkeypatch.context() as patch:
        patch.setattr("precompute.prepare._find_unplanned", be_killed)
        assert main(line) == 130
    content |= {12: 0, 13: 0}
    write_manifest(root, content)
    assert main(line) == 0
    check(tmp_path / "features", fingerprint, content, fresh)
