"""A recording replaced under the same name and length is detected: it does not keep its old features."""

import os
import re
import shutil
from pathlib import Path

import pytest
import soundfile

from tests.support.caches import flip_byte
from tests.support.speech import make_speech, write_split
from vox.audio import hash_recording, read_header
from vox.cli import main
from vox.features.shard import Shard
from vox.features.verify import verify_cache
from vox.units import SAMPLE_RATE

SPLIT = "train-tiny"


def precompute(root: Path, wavlm: Path, *more: str, shard_gb: float = 0.000008) -> int:
    """Cache the split in several small shards, under ROOT/features."""
    line = f"precompute --split {SPLIT} --layers 3,4 --shard-gb {shard_gb:f} --batch-seconds 2.5 --workers 0"
    return main([*line.split(), "--root", str(root), "--wavlm", str(wavlm), *more])


@pytest.fixture(scope="module")
def cached_root(tmp_path_factory: pytest.TempPathFactory, tiny_wavlm_dir: Path) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_split(root, SPLIT, 6)
    assert precompute(root, tiny_wavlm_dir) == 0
    return root


@pytest.fixture
def root(cached_root: Path, tmp_path: Path) -> Path:
    """Copy corpus and cache, including the files' times."""
    return shutil.copytree(cached_root, tmp_path / "data")


def audio_path(root: Path, number: int) -> Path:
    """Return the path of one of the recordings."""
    return root / "LibriSpeech" / SPLIT / "7" / "1" / f"7-1-{number:04d}.flac"


def replace_speech(path: Path) -> None:
    """Replace a recording with other speech of the same length."""
    soundfile.write(path, make_speech(read_header(path).num_samples, 99), SAMPLE_RATE)


def cache_folder(root: Path) -> Path:
    (folder,) = (root / "features" / SPLIT).iterdir()
    return folder


def shard_of(root: Path, number: int) -> int:
    """Return the shard that holds a recording."""
    paths = sorted(cache_folder(root).glob("*.h5"))
    return next(n for n, path in enumerate(paths) if f"7-1-{number:04d}" in Shard(path).ids)


def test_shards_hold_the_recordings_sha256(cached_root: Path) -> None:
    found = {}
    for path in cache_folder(cached_root).glob("*.h5"):
        shard = Shard(path)
        found |= {name: shard.audio_sha256(row) for row, name in enumerate(shard.ids)}
    assert found == {f"7-1-{n:04d}": hash_recording(audio_path(cached_root, n)) for n in range(6)}


@pytest.mark.parametrize("change", ["other size", "same size"])
def test_changed_recordings_are_named_until_rebuilt(
    root: Path, tiny_wavlm_dir: Path, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    for number in (1, 4):
        if change == "other size":
            replace_speech(audio_path(root, number))
        else:
            flip_byte(audio_path(root, number), 6_000)
    before = {path: path.read_bytes() for path in cache_folder(root).iterdir()}
    for more in ([], ["--dry-run"]):
        assert precompute(root, tiny_wavlm_dir, *more) == 2
        told = capsys.readouterr().err
        assert "2 recordings changed" in told and "7-1-0001, 7-1-0004" in told and "--rebuild" in told
    assert {path: path.read_bytes() for path in cache_folder(root).iterdir()} == before
    assert precompute(root, tiny_wavlm_dir, "--rebuild") == 0
    assert precompute(root, tiny_wavlm_dir) == 0
    assert list(verify_cache(cache_folder(root))) == []
    assert (
        main(["cache", "verify", "--audio", "--root", str(root), "--features", str(root / "features")]) == 0
    )


def test_the_shards_named_may_be_made_anew_alone(
    root: Path, tiny_wavlm_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flip_byte(audio_path(root, 1), 6_000)
    assert precompute(root, tiny_wavlm_dir) == 2
    (name,) = re.findall(r"delete their shards \((\S+)\)", capsys.readouterr().err)
    kept = {path: path.stat().st_ino for path in cache_folder(root).glob("*.h5") if path.name != name}
    (cache_folder(root) / name).unlink()
    assert precompute(root, tiny_wavlm_dir) == 0
    assert {path: path.stat().st_ino for path in cache_folder(root).glob("*.h5") if path.name != name} == kept
    audio = ["cache", "verify", "--audio", "--root", str(root), "--features", str(root / "features")]
    assert main(audio) == 0


def test_a_recording_that_was_truncated_is_tried_again_when_it_is_whole(
    root: Path, tiny_wavlm_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The content differs from the shard's sha256; the shard's other recordings stay."""
    path = audio_path(root, 3)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])  # its header is as it was
    shutil.rmtree(root / "features")
    assert precompute(root, tiny_wavlm_dir, shard_gb=1) == 0
    assert "skipped 7-1-0003" in capsys.readouterr().err
    path.write_bytes(content)
    assert precompute(root, tiny_wavlm_dir, shard_gb=1) == 0
    told = capsys.readouterr().err
    assert "1 recording skipped before can be read now: 7-1-0003" in told and "skipped 7" not in told
    assert "train-tiny: 1 s of audio in" in told
    audio = ["cache", "verify", "--audio", "--root", str(root), "--features", str(root / "features")]
    assert main(audio) == 0


def test_new_times_alone_are_recorded_quietly(
    root: Path, tiny_wavlm_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(6):
        os.utime(audio_path(root, number), ns=(7, 7_000 + number))
    shards = {path: path.stat().st_mtime_ns for path in cache_folder(root).glob("*.h5")}
    assert precompute(root, tiny_wavlm_dir) == 0
    told = capsys.readouterr()
    assert "nothing to do" in told.out and "changed" not in told.err
    assert {path: path.stat().st_mtime_ns for path in cache_folder(root).glob("*.h5")} == shards
    assert list(verify_cache(cache_folder(root))) == []
    # Recorded: now neither contents nor headers are read.
    monkeypatch.delattr("precompute.audio_changes.hash_recording")
    monkeypatch.delattr("vox.corpus.load.read_header")
    assert precompute(root, tiny_wavlm_dir) == 0


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_without_the_record_contents_are_compared(
    root: Path, tiny_wavlm_dir: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    record = cache_folder(root) / "audio.jsonl"
    content = record.read_bytes()
    record.unlink()
    if damage == "damaged":
        record.write_bytes(content[:-3])
    assert any(f"recordings is {damage}" in fault for fault in verify_cache(cache_folder(root)))
    flip_byte(audio_path(root, 2), 6_000)
    assert precompute(root, tiny_wavlm_dir) == 2
    assert "1 recording changed" in capsys.readouterr().err
    flip_byte(audio_path(root, 2), 6_000)
    assert precompute(root, tiny_wavlm_dir) == 0
    assert list(verify_cache(cache_folder(root))) == []


def test_a_rank_answers_for_its_own_shards_only(
    root: Path, tiny_wavlm_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A rank that sees a changed recording of another rank neither stops nor hides the change."""
    ranks = [["--rank", str(rank), "--world-size", "2"] for rank in range(2)]
    replace_speech(audio_path(root, 1))
    (lost,) = cache_folder(root).glob(f"shard-{shard_of(root, 5):05d}.h5")
    lost.unlink()
    assert sorted(precompute(root, tiny_wavlm_dir, *rank) for rank in ranks) == [0, 2]
    assert sorted(precompute(root, tiny_wavlm_dir, *rank) for rank in ranks) == [0, 2]
    assert "7-1-0001" in capsys.readouterr().err


def test_verify_hashes_the_recordings(
    root: Path, tiny_wavlm_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["cache", "verify", "--features", str(root / "features")]
    audio = ["--audio", "--root", str(root)]
    assert main(command + audio) == 0
    changed, gone = audio_path(root, 3), audio_path(root, 5)
    times = changed.stat()
    flip_byte(changed, 6_000)
    os.utime(changed, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert precompute(root, tiny_wavlm_dir) == 0  # neither size nor time tells: this is what verify is for
    gone.unlink()
    capsys.readouterr()
    assert main(command) == 0
    assert main(command + audio) == 2
    told = capsys.readouterr()
    lines = [line for line in told.out.splitlines() if "recording" in line]
    assert len(lines) == 2
    assert re.match(rf"changed recording: 7-1-0003: {changed} \(.*shard-\d+\.h5\)", lines[0])
    assert lines[1] == "no recording, or no longer in the split: 1 utterance (7-1-0005)"
    assert "2 faults" in told.err
    # Another root than the corpus's: every split that is not there is a fault, and the rest is still told.
    assert main([*command, "--audio", "--root", str(root / "nowhere")]) == 2
    told = capsys.readouterr()
    assert (
        "recordings that cannot be compared: no split train-tiny" in told.out
        and "1 fault in 1 cache" in told.err
    )


def change_length(path: Path) -> None:
    soundfile.write(path, make_speech(read_header(path).num_samples + 3_200, 99), SAMPLE_RATE)


def test_a_rebuild_killed_before_its_plan_leaves_no_old_lengths(
    root: Path, tiny_wavlm_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With stamps of new recordings and lengths of old ones, changed recordings would always be skipped."""

    def be_killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    change_length(audio_path(root, 5))
    with monkeypatch.context() as patch:
        patch.setattr("precompute.prepare.write_plan", be_killed)
        assert precompute(root, tiny_wavlm_dir, "--rebuild") == 130
    assert precompute(root, tiny_wavlm_dir) == 0
    told = capsys.readouterr().err
    assert "1 changed length: 7-1-0005" in told and "skipped" not in told
    assert list(verify_cache(cache_folder(root))) == []


def test_a_rebuild_replaces_shard_by_shard(
    root: Path, tiny_wavlm_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed immediately, it has deleted only the shards of changed recordings."""

    def be_killed(*arguments: object, **keywords: object) -> None:
        raise KeyboardInterrupt

    shards = {path.name: path.read_bytes() for path in cache_folder(root).glob("*.h5")}
    with monkeypatch.context() as patch:
        patch.setattr("precompute.extract.compute_shards", be_killed)
        assert precompute(root, tiny_wavlm_dir, "--rebuild") == 130
        assert {path.name: path.read_bytes() for path in cache_folder(root).glob("*.h5")} == shards
        replace_speech(audio_path(root, 1))
        assert precompute(root, tiny_wavlm_dir, "--rebuild") == 130
    gone = {f"shard-{n:05d}.h5" for n in range(len(shards))} - {
        p.name for p in cache_folder(root).glob("*.h5")
    }
    assert len(gone) == 1
    assert precompute(root, tiny_wavlm_dir) == 0
    assert list(verify_cache(cache_folder(root))) == []
    told = main(["cache", "verify", "--audio", "--root", str(root), "--features", str(root / "features")])
    assert told == 0


def test_an_id_that_names_another_file_is_another_recording(
    tmp_path: Path, tiny_wavlm_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both files have the same size and time."""
    for number in range(2):
        soundfile.write(tmp_path / f"{number}.wav", make_speech(16_000, number), SAMPLE_RATE)
        os.utime(tmp_path / f"{number}.wav", ns=(5, 5))
    manifest = tmp_path / f"{SPLIT}.jsonl"
    manifest.write_text('{"audio": "0.wav", "text": "go", "id": "a"}\n')
    assert precompute(tmp_path, tiny_wavlm_dir) == 0
    manifest.write_text('{"audio": "1.wav", "text": "go", "id": "a"}\n')
    assert precompute(tmp_path, tiny_wavlm_dir) == 2
    assert "1 recording changed" in capsys.readouterr().err


def test_another_part_of_the_same_recording_is_another_recording(
    tmp_path: Path, tiny_wavlm_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile.write(tmp_path / "a.wav", make_speech(32_000, 0), SAMPLE_RATE)
    manifest = tmp_path / f"{SPLIT}.jsonl"
    line = '{"audio": "a.wav", "text": "go", "id": "a", "offset": %s, "duration": 1.0}\n'
    manifest.write_text(line % 0.5)
    assert precompute(tmp_path, tiny_wavlm_dir) == 0
    assert precompute(tmp_path, tiny_wavlm_dir) == 0
    audio = ["cache", "verify", "--audio", "--root", str(tmp_path), "--features", str(tmp_path / "features")]
    assert main(audio) == 0
    manifest.write_text(line % 0.75)
    assert main(audio) == 2
    assert precompute(tmp_path, tiny_wavlm_dir) == 2
    assert "1 recording changed" in capsys.readouterr().err
