"""Files on disk: atomic writes, links, hashes, free space."""

import errno
import hashlib
import io
import os
from pathlib import Path

import pytest

from tests.support.power import assert_durable, watch_renames
from vox.disk import (
    check_space,
    digest_file,
    free_bytes,
    hash_file,
    hash_stream,
    nearest_folder,
    replace_link,
    take_blocks,
    write_whole,
)
from vox.errors import CacheError


def test_a_durable_write_is_on_disk_with_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    renames = watch_renames(monkeypatch)
    write_whole(tmp_path / "file", b"content")
    assert_durable(renames, tmp_path / "file")


def test_a_write_that_is_not_durable_is_atomic_and_waits_for_no_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int) -> None:
        raise AssertionError("fsync")

    monkeypatch.setattr(os, "fsync", fail)
    write_whole(tmp_path / "file", b"old", is_durable=False)
    write_whole(tmp_path / "file", b"new", is_durable=False)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"new"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_whole(path, b"old")
    write, sizes = os.write, iter([100, None])

    def fill_disk(descriptor: int, view: memoryview) -> int:
        if (size := next(sizes)) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, view[:size])

    monkeypatch.setattr(os, "write", fill_disk)
    with pytest.raises(OSError, match=r"No space left on device: .*file"):
        write_whole(path, b"new" * 100)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_link_is_replaced_atomically_and_lasts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folders" / "one").mkdir(parents=True)
    (tmp_path / "folders" / "two").mkdir()
    link = tmp_path / "link"
    (tmp_path / ".link.partial").symlink_to("nowhere")  # left by a killed process
    renames = watch_renames(monkeypatch)
    for name in ("one", "two"):
        replace_link(link, tmp_path / "folders" / name)
        assert link.readlink() == Path("folders") / name
    assert_durable(renames, link)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folders", "link"]


def test_hashes_of_files_and_streams_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytes(range(256)) * 10
    expected = hashlib.sha256(content).hexdigest()
    path = tmp_path / "file"
    path.write_bytes(content)
    monkeypatch.setattr("vox.disk.CHUNK_BYTES", 100)
    chunks: list[bytes] = []
    assert hash_stream(io.BytesIO(content), chunks.append) == hash_file(path) == expected
    assert b"".join(chunks) == content and len(chunks) == 26
    digest = digest_file(path)
    digest.update(b"more")
    assert digest.hexdigest() == hashlib.sha256(content + b"more").hexdigest()


def test_space_is_checked_where_a_folder_will_be(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "yet"
    assert nearest_folder(folder) == tmp_path
    check_space(folder, 1, CacheError, what="it", remedy="go elsewhere")
    with pytest.raises(CacheError, match=r"space for it: .* needed, .* free: .*/yet; go elsewhere"):
        check_space(folder, 2 * free_bytes(tmp_path), CacheError, what="it", remedy="go elsewhere")


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOSPC])
def test_blocks_are_taken_where_the_disk_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*arguments: int) -> None:
        raise OSError(number, os.strerror(number))

    with (tmp_path / "file").open("w+b") as file:
        file.truncate(1 << 20)
        take_blocks(file.fileno())
        assert os.fstat(file.fileno()).st_blocks * 512 >= 1 << 20
        monkeypatch.setattr(os, "posix_fallocate", fail)
        if number == errno.ENOSPC:
            with pytest.raises(OSError, match="No space"):
                take_blocks(file.fileno())
        else:
            take_blocks(file.fileno())
