"""A shard of the feature cache: its content, and detection of any damage to it (promise T9)."""

import errno
import multiprocessing
import os
import pickle
import resource
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.support.caches import flip_byte
from vox.disk import is_abandoned, remove_leftovers
from vox.errors import CacheError
from vox.features.fingerprint import Fingerprint
from vox.features.shard import USER_BLOCK_BYTES, Shard, check_bytes
from vox.features.writer import ShardWriter

FINGERPRINT = Fingerprint("ab" * 32, (3, 4), {"sample_rate": "16000", "do_normalize": "false"})
IDS = ["1-1-0000", "1-1-0001", "1-1-0002", "émile-0003"]
NUM_FRAMES = [7, 3, 11, 5]
FEATURE_DIM = 6
SKIPPED_ROW = 2


def make_features() -> list[np.ndarray]:
    """Make float16 features for every utterance of IDS."""
    generator = np.random.default_rng(0)
    return [generator.standard_normal((count, FEATURE_DIM)).astype("<f2") for count in NUM_FRAMES]


def start_shard(path: Path) -> ShardWriter:
    """Open a writer for the utterances of IDS."""
    return ShardWriter(
        path,
        ids=IDS,
        num_samples=[400 + 320 * (count - 1) for count in NUM_FRAMES],
        num_frames=NUM_FRAMES,
        feature_dim=FEATURE_DIM,
        fingerprint=FINGERPRINT,
        notes={"precision": "float32"},
    )


def write_shard(path: Path, order: tuple[int, ...] = (2, 0, 3, 1)) -> Path:
    """Write a shard in a given order of its rows, one of them skipped."""
    writer = start_shard(path)
    for row in order:
        if row == SKIPPED_ROW:
            writer.skip(row, "no good")
        else:
            writer.write(row, make_features()[row], audio_sha256=f"{row:064x}")
    writer.finish()
    return path


@pytest.fixture
def shard_path(tmp_path: Path) -> Path:
    return write_shard(tmp_path / "shard-00000.h5")


def test_what_is_written_is_read(shard_path: Path) -> None:
    shard = Shard(shard_path)
    assert shard.ids == IDS
    assert shard.skipped == ["", "", "no good", ""]
    assert shard.fingerprint == FINGERPRINT
    assert shard.notes["precision"] == "float32"
    assert [shard.audio_sha256(row) for row in range(4)] == [f"{0:064x}", f"{1:064x}", "", f"{3:064x}"]
    for row, features_TC in enumerate(make_features()):
        if row != SKIPPED_ROW:
            np.testing.assert_array_equal(shard.read(row), features_TC)


def test_any_hdf5_reader_sees_the_same_frames(shard_path: Path) -> None:
    shard = Shard(shard_path)
    with h5py.File(shard_path) as file:
        frames, offsets = file["frames"], file["offsets"][:]
        assert frames.dtype == np.float16 and frames.chunks is None and frames.compression is None
        assert frames.shape == (sum(NUM_FRAMES), FEATURE_DIM)
        assert list(file["ids"].asstr()) == IDS
        assert file.attrs["weights_sha256"].decode() == FINGERPRINT.weights_sha256
        for row in (0, 1, 3):
            np.testing.assert_array_equal(frames[offsets[row] : offsets[row + 1]], shard.read(row))
        assert not frames[offsets[SKIPPED_ROW] : offsets[SKIPPED_ROW + 1]].any()


def test_bytes_depend_on_the_content_only(tmp_path: Path) -> None:
    first = write_shard(tmp_path / "a.h5", (0, 1, 2, 3)).read_bytes()
    time.sleep(1.1)  # HDF5's time stamps count seconds
    assert write_shard(tmp_path / "b.h5", (3, 1, 0, 2)).read_bytes() == first


def test_every_changed_byte_is_found(shard_path: Path) -> None:
    assert check_bytes(shard_path)
    original = shard_path.read_bytes()
    generator = np.random.default_rng(0)
    for position in range(len(original)):
        bits = int(generator.integers(1, 256))
        flip_byte(shard_path, position, bits)
        assert not check_bytes(shard_path), f"byte {position} changed by {bits:08b} went unseen"
        flip_byte(shard_path, position, bits)
    assert check_bytes(shard_path)


def test_a_changed_byte_never_gives_wrong_features(shard_path: Path) -> None:
    """Damage anywhere gives either a CacheError that names the shard, or the right features."""
    size, truth = shard_path.stat().st_size, make_features()
    num_errors = 0
    for position in np.random.default_rng(1).permutation(size)[:400].tolist():
        flip_byte(shard_path, position, 0xFF)
        try:
            shard = Shard(shard_path)
            for row, name in enumerate(shard.ids):
                if not shard.skipped[row]:
                    np.testing.assert_array_equal(shard.read(row), truth[IDS.index(name)])
        except CacheError as error:
            num_errors += 1
            assert shard_path.name in str(error)
        flip_byte(shard_path, position, 0xFF)
    assert num_errors > 20


def test_a_changed_feature_is_refused_by_name(shard_path: Path) -> None:
    with h5py.File(shard_path) as file:
        frames_at = file["frames"].id.get_offset()
    row, first_byte = 1, frames_at + NUM_FRAMES[0] * FEATURE_DIM * 2
    shard = Shard(shard_path)
    shard.read(row)
    flip_byte(shard_path, first_byte, 0x10)
    with pytest.raises(CacheError, match=rf"1-1-0001.*{shard_path.name}.*delete this file"):
        Shard(shard_path).read(row)
    with pytest.raises(CacheError, match="1-1-0001"):  # through a map that was open already
        shard.read(row)
    np.testing.assert_array_equal(shard.read(0), make_features()[0])


@pytest.mark.parametrize("what", ["ids", "num_samples", "offsets", "crc32", "skipped", "audio_sha256"])
def test_a_changed_index_is_refused(shard_path: Path, what: str) -> None:
    with h5py.File(shard_path) as file:
        array_at = file[what].id.get_offset()
    flip_byte(shard_path, array_at, 1)
    with pytest.raises(CacheError, match=rf"index does not have its checksum.*{shard_path.name}"):
        Shard(shard_path)


@pytest.mark.parametrize("what", ["truncated", "one byte short", "empty", "not HDF5", "text"])
def test_a_ruined_file_is_one_error(shard_path: Path, what: str) -> None:
    content = shard_path.read_bytes()
    ruined = {
        "truncated": content[: len(content) // 2],
        "one byte short": content[:-1],
        "empty": b"",
        "not HDF5": content[:USER_BLOCK_BYTES] + b"x" * 4000,
        "text": b"hello\n",
    }[what]
    shard_path.write_bytes(ruined)
    assert not check_bytes(shard_path)
    with pytest.raises(CacheError, match=rf"damaged shard.*{shard_path.name}.*run vox precompute"):
        Shard(shard_path)


def test_a_shard_that_shrinks_or_goes_is_one_error(shard_path: Path) -> None:
    shard = Shard(shard_path)
    content = shard_path.read_bytes()
    shard_path.write_bytes(content[:2600])
    with pytest.raises(CacheError, match="truncated"):
        shard.read(3)
    shard_path.unlink()
    with pytest.raises(CacheError, match="missing shard"):
        shard.read(3)


def test_another_format_version_says_so(shard_path: Path) -> None:
    content = shard_path.read_bytes()
    shard_path.write_bytes(content.replace(b"VOX SHARD 2 ", b"VOX SHARD 9 ", 1))
    with pytest.raises(CacheError, match="format version 9, this Vox reads 2"):
        Shard(shard_path)


def _read_row(shard: Shard, row: int) -> np.ndarray:
    return shard.read(row)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_reading_survives_other_processes(shard_path: Path, method: str) -> None:
    shard = Shard(shard_path)
    expected = shard.read(0)  # the map is open now
    assert len(pickle.dumps(shard)) < 4000
    with multiprocessing.get_context(method).Pool(1) as pool:
        np.testing.assert_array_equal(pool.apply(_read_row, (shard, 0)), expected)


def test_threads_read_the_same(shard_path: Path) -> None:
    shard, truth = Shard(shard_path), make_features()
    rows = [0, 1, 3] * 100
    with ThreadPoolExecutor(8) as pool:
        for row, features_TC in zip(rows, pool.map(shard.read, rows), strict=True):
            np.testing.assert_array_equal(features_TC, truth[row])


def test_nothing_has_the_final_name_before_the_end(tmp_path: Path) -> None:
    path = tmp_path / "shard-00000.h5"
    writer = start_shard(path)
    for row, features_TC in enumerate(make_features()):
        writer.write(row, features_TC)
        assert not path.exists()
    assert remove_leftovers(tmp_path) == []  # its writer lives
    writer.finish()
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_an_aborted_shard_leaves_nothing(tmp_path: Path) -> None:
    writer = start_shard(tmp_path / "shard-00000.h5")
    writer.write(0, make_features()[0])
    writer.abort()
    assert not list(tmp_path.iterdir())


def _begin_and_die(folder: Path) -> None:
    writer = start_shard(folder / "shard-00000.h5")
    writer.write(0, make_features()[0])
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_dead_writer_left_is_removed(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=_begin_and_die, args=(tmp_path,))
    process.start()
    process.join()
    (leftover,) = tmp_path.iterdir()
    assert process.exitcode == -signal.SIGKILL and is_abandoned(leftover)
    assert remove_leftovers(tmp_path) == [leftover.name]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("max_bytes", [0, 700, 2_700])
def test_a_disk_that_takes_no_more_is_an_os_error(tmp_path: Path, max_bytes: int) -> None:
    """A limit on file sizes simulates a full disk; wherever it is hit, nothing is left behind."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, limits[1]))
    try:
        with pytest.raises(OSError, match=r"shard-00000\.h5") as caught:
            write_shard(tmp_path / "shard-00000.h5")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert not list(tmp_path.iterdir())
