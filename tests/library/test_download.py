"""Downloads from a real server on localhost: complete, interrupted and continued, refused, corrupt."""

import functools
import hashlib
import http.server
import io
import re
import tarfile
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from vox.commands.download import download
from vox.download import OPENSLR_URL, download_split, librispeech_checksums
from vox.errors import CorpusError

SPLIT = "dev-clean"
NOISE = np.random.default_rng(0).bytes(300_000)  # does not compress, as FLAC does not


def make_archive(entries: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, contents in entries.items():
            member = tarfile.TarInfo(name)
            member.size = len(contents)
            archive.addfile(member, io.BytesIO(contents))
    return buffer.getvalue()


ARCHIVE = make_archive(
    {
        "LibriSpeech/README.TXT": b"read me",
        f"LibriSpeech/{SPLIT}/84/1/84-1-0000.flac": NOISE,
        f"LibriSpeech/{SPLIT}/84/1/84-1.trans.txt": b"84-1-0000 GO LEFT\n",
    }
)


def sha256_of(contents: bytes) -> dict[str, str]:
    return {SPLIT: hashlib.sha256(contents).hexdigest()}


@dataclass
class Server:
    """The server's behaviour, and the requests it received."""

    contents: bytes = ARCHIVE
    dies_after: int | None = None  # bytes of a body
    honours_range: bool = True
    begins_at_zero: bool = False  # a range other than the one asked for
    claimed_length: int | None = None
    url: str = ""
    asked: list[tuple[str, str | None]] = field(default_factory=list)  # path, Range
    num_sent: int = 0


class Handler(http.server.BaseHTTPRequestHandler):
    def __init__(self, server_state: Server, *args: object) -> None:
        self.state = server_state
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        state, asked_range = self.state, self.headers.get("Range")
        state.asked.append((self.path, asked_range))
        if self.path != f"/12/{SPLIT}.tar.gz":
            return self.send_error(404)
        start = int(asked_range.removeprefix("bytes=").rstrip("-")) if asked_range else 0
        if asked_range and state.honours_range:
            if start >= len(state.contents):
                return self.send_error(416)
            self.send_response(206)
            start = 0 if state.begins_at_zero else start
            end = len(state.contents)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{end}")
        else:
            start = 0
            self.send_response(200)
        body = state.contents[start:]
        self.send_header("Content-Length", str(state.claimed_length or len(body)))
        self.end_headers()
        body = body[: state.dies_after]
        state.num_sent += len(body)
        self.wfile.write(body)  # the connection closes after it: HTTP/1.0
        return None

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, state)) as listening:
        state.url = f"http://127.0.0.1:{listening.server_address[1]}/12/"
        threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True).start()
        yield state
        listening.shutdown()


def fetch(server: Server, root: Path, contents: bytes = ARCHIVE) -> Path:
    return download_split(SPLIT, root, mirror=server.url, checksums=sha256_of(contents))


def assert_complete(root: Path) -> None:
    """Check every file under the root: the split, the page beside it, and nothing left over."""
    split_dir = root / "LibriSpeech" / SPLIT
    assert (split_dir / "84" / "1" / "84-1-0000.flac").read_bytes() == NOISE
    assert (split_dir / "84" / "1" / "84-1.trans.txt").read_bytes() == b"84-1-0000 GO LEFT\n"
    assert [path.name for path in root.iterdir()] == ["LibriSpeech"]
    assert sorted(path.name for path in (root / "LibriSpeech").iterdir()) == ["README.TXT", SPLIT]


def test_a_split_is_fetched_once(server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    root = tmp_path / "new" / "data"
    assert fetch(server, root) == root / "LibriSpeech" / SPLIT
    assert_complete(root)
    assert server.asked == [(f"/12/{SPLIT}.tar.gz", None)]
    assert any(re.fullmatch(r"fetched: 0 MB in .* s, [\d.]+ MB/s", r.message) for r in caplog.records)
    fetch(server, root)
    assert len(server.asked) == 1
    assert "already there" in caplog.records[-1].message


def test_a_broken_off_download_continues(server: Server, tmp_path: Path) -> None:
    server.dies_after = half = len(ARCHIVE) // 2
    with pytest.raises(CorpusError, match=rf"ended at {half} of {len(ARCHIVE)} bytes.*run again.*--mirror"):
        fetch(server, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f"{SPLIT}.tar.gz.part"]
    server.dies_after = None
    fetch(server, tmp_path)
    assert server.asked[1][1] == f"bytes={half}-"
    assert server.num_sent == len(ARCHIVE)  # not a byte twice
    assert_complete(tmp_path)


def test_a_server_that_ignores_ranges_starts_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / f"{SPLIT}.tar.gz.part").write_bytes(ARCHIVE[:1000])
    server.honours_range = False
    fetch(server, tmp_path)
    assert server.asked[0][1] == "bytes=1000-"
    assert_complete(tmp_path)


def test_a_continuation_from_another_place_starts_again(server: Server, tmp_path: Path) -> None:
    """A 206 response may have another range than the one requested: here the whole file."""
    (tmp_path / f"{SPLIT}.tar.gz.part").write_bytes(ARCHIVE[:1000])
    server.begins_at_zero = True
    fetch(server, tmp_path)
    assert_complete(tmp_path)


def test_no_request_waits_for_ever(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    urlopen, timeouts = urllib.request.urlopen, []

    def note_timeout(request: urllib.request.Request, *, timeout: float) -> object:
        timeouts.append(timeout)
        return urlopen(request, timeout=timeout)

    monkeypatch.setattr(urllib.request, "urlopen", note_timeout)
    fetch(server, tmp_path)
    assert len(timeouts) == 1 and 0 < timeouts[0] <= 120


def test_another_split_that_is_there_is_not_the_one_asked_for(server: Server, tmp_path: Path) -> None:
    (tmp_path / "LibriSpeech" / "train-clean-100").mkdir(parents=True)
    fetch(server, tmp_path)
    assert (tmp_path / "LibriSpeech" / SPLIT / "84" / "1" / "84-1-0000.flac").read_bytes() == NOISE


def test_a_complete_part_is_unpacked_without_the_network(server: Server, tmp_path: Path) -> None:
    (tmp_path / f"{SPLIT}.tar.gz.part").write_bytes(ARCHIVE)
    fetch(server, tmp_path)
    assert server.asked == []
    assert_complete(tmp_path)


def test_a_part_longer_than_the_archive_is_replaced(server: Server, tmp_path: Path) -> None:
    (tmp_path / f"{SPLIT}.tar.gz.part").write_bytes(b"x" * (len(ARCHIVE) + 5))
    fetch(server, tmp_path)
    assert [asked for _, asked in server.asked] == [f"bytes={len(ARCHIVE) + 5}-", None]
    assert_complete(tmp_path)


def test_corrupt_contents_are_removed(server: Server, tmp_path: Path) -> None:
    corrupt = bytearray(ARCHIVE)
    corrupt[len(ARCHIVE) // 2] ^= 1
    server.contents = bytes(corrupt)
    with pytest.raises(CorpusError, match=r"checksum mismatch; the download was removed.*run again"):
        fetch(server, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_archive_brought_by_hand_is_used_and_kept(server: Server, tmp_path: Path) -> None:
    archive_path = tmp_path / f"{SPLIT}.tar.gz"
    archive_path.write_bytes(ARCHIVE[:-1])
    with pytest.raises(CorpusError, match=r"checksum mismatch.*dev-clean\.tar\.gz; delete it"):
        fetch(server, tmp_path)
    archive_path.write_bytes(ARCHIVE)
    fetch(server, tmp_path)
    assert server.asked == []
    assert archive_path.read_bytes() == ARCHIVE
    archive_path.unlink()
    assert_complete(tmp_path)


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        (b"not an archive", "cannot unpack"),
        (ARCHIVE[:-20_000], "cannot unpack"),
        (make_archive({"LibriSpeech/dev-other/1/1/a.flac": b"a"}), f"no LibriSpeech/{SPLIT} in it"),
        (make_archive({f"LibriSpeech/{SPLIT}/a": b"a", "../outside": b"bad"}), "outside"),
    ],
)
def test_an_archive_that_cannot_be_unpacked_leaves_no_split(
    server: Server, tmp_path: Path, contents: bytes, reason: str
) -> None:
    server.contents = contents
    root = tmp_path / "data"
    with pytest.raises(CorpusError, match=reason):
        fetch(server, root, contents)
    assert [path.name for path in root.iterdir()] == [f"{SPLIT}.tar.gz.part"]
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_disk_space_is_checked_before_anything_is_written(server: Server, tmp_path: Path) -> None:
    server.claimed_length = 10**15
    with pytest.raises(CorpusError, match=r"too little disk space .*: 2000000\.00 GB needed"):
        fetch(server, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_network_failures_are_one_line_with_a_remedy(server: Server, tmp_path: Path) -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as unused:
        closed_url = f"http://127.0.0.1:{unused.server_address[1]}"
    failures = {
        closed_url: "refused.*run again",
        server.url + "elsewhere": "answers 404.*--mirror",
        "nonsense": "not a web address.*--mirror",
    }
    for mirror, message in failures.items():
        with pytest.raises(CorpusError, match=message):
            download_split(SPLIT, tmp_path, mirror=mirror, checksums=sha256_of(ARCHIVE))


def test_the_table_is_openslrs() -> None:
    checksums = librispeech_checksums()
    assert OPENSLR_URL == "http://www.openslr.org/resources/12"
    assert sorted(checksums) == [
        *("dev-clean", "dev-other", "test-clean", "test-other"),
        *("train-clean-100", "train-clean-360", "train-other-500"),
    ]
    assert all(len(bytes.fromhex(sha256)) == 32 for sha256 in checksums.values())


def test_command_checks_every_split_before_it_starts(server: Server, tmp_path: Path) -> None:
    options = ["--split", SPLIT, "--split", "dev-cleen", "--root", str(tmp_path), "--mirror", server.url]
    result = CliRunner().invoke(download, options)
    assert isinstance(result.exception, CorpusError)
    assert "no split dev-cleen; choose one of dev-clean, dev-other" in str(result.exception)
    assert server.asked == []


def test_command_passes_the_mirror_on_and_checks_the_published_sum(server: Server, tmp_path: Path) -> None:
    result = CliRunner().invoke(download, ["--split", SPLIT, "--root", str(tmp_path), "--mirror", server.url])
    assert isinstance(result.exception, CorpusError)  # ours is not the real dev-clean
    assert "checksum mismatch" in str(result.exception)
    assert server.asked == [(f"/12/{SPLIT}.tar.gz", None)]
