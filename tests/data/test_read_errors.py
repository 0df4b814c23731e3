"""An error of the machine, a disk or a network is never taken for a damaged file."""

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.support.caches import open_here, write_cache
from tests.support.precomputing import SPLIT, command
from tests.support.speech import make_speech, write_split
from vox.audio import hash_recording, read_audio, read_header
from vox.cli import main
from vox.errors import AudioError, CacheError, VoxError
from vox.features.cache import FeatureCache
from vox.features.shard import Shard
from vox.features.verify import verify_cache
from vox.units import SAMPLE_RATE


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Prevent this process from opening more files."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.open(os.devnull, os.O_RDONLY)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken[0] + 1, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        os.close(taken[0])


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    soundfile.write(tmp_path / "a.flac", make_speech(8_000, 1), SAMPLE_RATE)
    return tmp_path / "a.flac"


@pytest.mark.parametrize("read", [read_audio, read_header, hash_recording])
def test_a_recording_that_cannot_be_opened_now_is_not_damaged(recording: Path, read: Any) -> None:
    read(recording)  # whatever it imports
    with no_descriptor_left(), pytest.raises(OSError, match=r"a\.flac") as caught:
        read(recording)
    assert caught.value.errno == errno.EMFILE


@pytest.mark.parametrize("is_over", [True, False])
def test_a_read_that_fails_below_libsndfile_is_tried_again(
    recording: Path, monkeypatch: pytest.MonkeyPatch, is_over: bool
) -> None:
    """libsndfile treats a read error as the end of the file."""
    expected = read_audio(recording)
    monkeypatch.setattr(soundfile.SoundFile, "read", cut_short(soundfile.SoundFile.read))
    if is_over:
        np.testing.assert_array_equal(read_audio(recording), expected)
        return
    monkeypatch.setattr(Path, "read_bytes", fail_to_read)
    with pytest.raises(OSError, match=r"a\.flac") as caught:
        read_audio(recording)
    assert caught.value.errno == errno.EIO


def cut_short(read: Any) -> Any:
    """Make the first call return only half of its result."""
    calls = []

    def read_half(*arguments: Any, **keywords: Any) -> np.ndarray:
        calls.append(0)
        samples = read(*arguments, **keywords)
        return samples[: len(samples) // 2] if len(calls) == 1 else samples

    return read_half


def fail_to_read(*arguments: Any) -> Any:
    """Simulate a failing disk; it only sees a file descriptor."""
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_too_little_memory_ends_the_work(recording: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_out(*arguments: Any, **keywords: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(soundfile.SoundFile, "read", run_out)
    with pytest.raises(VoxError, match=r"too little memory.*a\.flac.*--workers") as caught:
        read_audio(recording)
    assert not isinstance(caught.value, AudioError)  # by which it would be left out


def test_what_was_skipped_and_can_be_read_now_is_computed(
    tiny_wavlm_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a recording is computed alone; the shards that are there stay as they are."""
    write_split(tmp_path, SPLIT, 6)
    assert main(command(tmp_path, tiny_wavlm_dir, tmp_path / "expected")) == 0

    def fail_once(path: Path, speed: float, segment: object, warn: object) -> np.ndarray:
        if path.stem == "7-1-0002":
            raise AudioError("a bad moment", where=path)
        return read_audio(path, speed)

    features = tmp_path / "features"
    with monkeypatch.context() as patch:
        patch.setattr("vox.data.workers.read_audio", fail_once)
        assert main(command(tmp_path, tiny_wavlm_dir, features)) == 0
    shards = {path.name: path.read_bytes() for path in features.rglob("*.h5")}
    capsys.readouterr()
    assert main(command(tmp_path, tiny_wavlm_dir, features)) == 0
    told = capsys.readouterr().err
    assert "1 recording skipped before can be read now: 7-1-0002" in told and "skipped 7" not in told
    after = {path.name: path.read_bytes() for path in features.rglob("*.h5")}
    assert shards.items() < after.items() and len(after) == len(shards) + 1
    mended, expected = (
        FeatureCache(folder, [Shard(path) for path in folder.glob("*.h5")])
        for folder in (next(each.glob("*/*/plan.json")).parent for each in (features, tmp_path / "expected"))
    )
    np.testing.assert_allclose(mended.read("7-1-0002"), expected.read("7-1-0002"), atol=2e-3)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOMEM])
def test_verify_goes_on_past_a_disk_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    folder = write_cache(tmp_path)
    read = os.pread

    def fail_in_one(fd: int, *arguments: Any) -> bytes:
        if Path(f"/proc/self/fd/{fd}").readlink().name == "shard-00001.h5":
            raise OSError(number, os.strerror(number))
        return read(fd, *arguments)

    monkeypatch.setattr(os, "pread", fail_in_one)
    expected = f"unreadable shard ({os.strerror(number)}): {folder / 'shard-00001.h5'}"
    assert list(verify_cache(folder)) == [expected]


def test_a_shard_that_cannot_be_opened_now_is_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_cache(tmp_path) / "shard-00000.h5"
    Shard(path)
    with no_descriptor_left(), pytest.raises(OSError, match=r"shard-00000\.h5") as caught:
        Shard(path)
    assert caught.value.errno == errno.EMFILE
    import h5py

    messages = {
        errno.EMFILE: "[Errno 24] Unable to open file (errno = 24, error message = 'Too many open files')",
        errno.EIO: "Can't read data (file read failed: errno = 5, error message = 'Input/output error')",
    }
    for number, message in messages.items():
        monkeypatch.setattr(h5py, "File", raise_error(OSError(message)))
        with pytest.raises(OSError, match=r"shard-00000\.h5") as caught:
            Shard(path)
        assert caught.value.errno == number
    monkeypatch.setattr(h5py, "File", raise_error(MemoryError()))
    with pytest.raises(MemoryError):
        Shard(path)
    with path.open("r+b") as file:  # a damaged length asks for any amount of memory
        file.seek(1_000)
        file.write(b"damage")
    with pytest.raises(CacheError, match="damaged shard"):
        Shard(path)


def raise_error(error: Exception) -> Any:
    """Make a function that raises an error."""

    def fail(*arguments: Any, **keywords: Any) -> None:
        raise error

    return fail


def test_many_shards_need_few_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checked utterance stays checked if its file is closed in between."""
    cache = open_here(write_cache(tmp_path))
    monkeypatch.setattr("vox.features.open_files.MAX_OPEN_FILES", 1)
    checks = []
    check = Shard._check
    monkeypatch.setattr(Shard, "_check", lambda self, row, out: checks.append(row) or check(self, row, out))
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(3):
        for name in cache.ids:
            shard, row = cache.locate(name)
            shard.read_into(row, np.empty((cache.num_frames(name), cache.feature_dim), np.float16))
            assert len(os.listdir("/proc/self/fd")) <= before + 1  # noqa: PTH208
    assert len(checks) == len(cache.ids)
