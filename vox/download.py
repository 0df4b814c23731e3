"""LibriSpeech's splits from OpenSLR: fetched, continued where interrupted, checked, unpacked."""

import gzip
import hashlib
import http.client
import logging
import shutil
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import IO, Any

from vox.disk import check_space, check_writable, digest_file, format_gb, hash_file
from vox.errors import CorpusError
from vox.progress import MEGABYTES, ProgressBar

log = logging.getLogger(__name__)

OPENSLR_URL = "http://www.openslr.org/resources/12"

_CHUNK_BYTES = 1 << 20
_TIMEOUT_SECONDS = 60.0
_NETWORK_ERRORS = (OSError, http.client.HTTPException)
_ARCHIVE_ERRORS = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile)


def librispeech_checksums() -> dict[str, str]:
    """Return the sha256 of every LibriSpeech split's archive, as torchaudio lists them."""
    from torchaudio.datasets import librispeech  # imports torch

    return {Path(url).name.removesuffix(".tar.gz"): sha256 for url, sha256 in librispeech._CHECKSUMS.items()}


def check_split(split: str, checksums: Mapping[str, str]) -> None:
    """Raise CorpusError, listing the known splits, if `split` is not one of them."""
    if split not in checksums:
        known = ", ".join(sorted(checksums))
        raise CorpusError(f"LibriSpeech has no split {split}", remedy=f"choose one of {known}")


def download_split(
    split: str, root: Path | str, *, mirror: str | None = None, checksums: Mapping[str, str] | None = None
) -> Path:
    """Put a split at ROOT/LibriSpeech/<split>, whole or not at all, and return that folder.

    An archive ROOT/<split>.tar.gz fetched by other means is used if it is there, and kept. Otherwise the
    archive is fetched to ROOT/<split>.tar.gz.part, from where that file ends if it is there already, and
    removed once it is unpacked.

    mirror: the address of a folder with the same archives as OPENSLR_URL. checksums: sha256 by split;
    torchaudio's table by default. Raises CorpusError for an unknown split, a network failure (what has
    come is kept), a checksum that does not match (what has come is removed), too little disk space, or
    an archive that cannot be unpacked.
    """
    checksums = librispeech_checksums() if checksums is None else checksums
    check_split(split, checksums)
    root = Path(root)
    split_dir = root / "LibriSpeech" / split
    if split_dir.is_dir():
        log.info("%s is already there: %s", split, split_dir)
        return split_dir
    check_writable(root, "--root")
    root.mkdir(parents=True, exist_ok=True)
    archive_path = root / f"{split}.tar.gz"
    if archive_path.is_file():
        log.info("%s: using the archive that is there: %s", split, archive_path)
        _check_given_archive(archive_path, checksums[split])
        _unpack(archive_path, root, split)
        return split_dir
    part_path = root / f"{split}.tar.gz.part"
    _fetch(f"{(mirror or OPENSLR_URL).rstrip('/')}/{split}.tar.gz", part_path, checksums[split])
    _unpack(part_path, root, split)
    part_path.unlink()
    return split_dir


def _check_given_archive(archive_path: Path, sha256: str) -> None:
    if hash_file(archive_path) != sha256:
        raise CorpusError("checksum mismatch", where=archive_path, remedy="delete it and run again")


def _fetch(url: str, part_path: Path, sha256: str) -> None:
    """Complete `part_path` from the server, and check it."""
    digest = digest_file(part_path) if part_path.is_file() else hashlib.sha256()
    if digest.hexdigest() == sha256:  # complete; an earlier run was stopped while unpacking
        return
    num_there = part_path.stat().st_size if part_path.is_file() else 0
    with _open_url(url, num_there) as response:
        is_continued = _starts_at(response, num_there)
        if num_there and not is_continued:
            log.info("the server does not continue downloads: starting again")
        if not is_continued:
            num_there, digest = 0, hashlib.sha256()
        num_total = _total_bytes(response, num_there)
        if num_total is not None:
            # FLAC does not compress: unpacked, it is as large again.
            check_space(
                part_path.parent,
                2 * num_total - num_there,
                CorpusError,
                what="the archive and what it holds",
                remedy="make room, or choose another --root",
            )
        log.info("fetching %s (%s%s)", url, _gigabytes(num_total), _continued_at(num_there))
        with part_path.open("ab" if num_there else "wb") as file:
            num_there = _receive(response, file, digest, url, num_there, num_total)
    if num_total is not None and num_there < num_total:
        raise _broken_off(url, f"the connection ended at {num_there} of {num_total} bytes")
    if digest.hexdigest() != sha256:
        part_path.unlink()
        raise CorpusError(
            "checksum mismatch; the download was removed",
            where=url,
            remedy="run again, or try another server with --mirror",
        )


def _open_url(url: str, num_there: int) -> Any:
    """Ask for everything after the first `num_there` bytes; for all of it if there is nothing after them."""
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "vox"})
        if num_there:
            request.add_header("Range", f"bytes={num_there}-")
        return urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and num_there:
            return _open_url(url, 0)  # the part is no shorter than the archive, and wrong
        raise CorpusError(
            f"the server answers {error.code} {error.reason}", where=url, remedy="try another with --mirror"
        ) from None
    except ValueError:
        raise CorpusError("not a web address", where=url, remedy="correct --mirror") from None
    except _NETWORK_ERRORS as error:
        raise _broken_off(url, str(getattr(error, "reason", error))) from None


def _receive(
    response: Any, file: IO[bytes], digest: Any, url: str, num_there: int, num_total: int | None
) -> int:
    """Append the response to the file until it ends; return the bytes that are there then."""
    with ProgressBar(num_total, "fetched", MEGABYTES, done=num_there) as progress:
        while True:
            try:  # of these only: a full disk is no network failure
                chunk = response.read(_CHUNK_BYTES)
            except _NETWORK_ERRORS as error:
                raise _broken_off(url, f"{type(error).__name__} at {num_there} bytes") from None
            if not chunk:
                return num_there
            file.write(chunk)
            digest.update(chunk)
            num_there += len(chunk)
            progress.add(len(chunk))


def _starts_at(response: Any, num_there: int) -> bool:
    """Say whether a response holds what follows the first `num_there` bytes."""
    content_range = response.headers.get("Content-Range", "")
    return response.status == HTTPStatus.PARTIAL_CONTENT and content_range.startswith(f"bytes {num_there}-")


def _total_bytes(response: Any, num_there: int) -> int | None:
    length = response.headers.get("Content-Length", "")
    return num_there + int(length) if length.isdigit() else None


def _unpack(archive_path: Path, root: Path, split: str) -> None:
    """Unpack beside, then move the split's folder into place in one step."""
    beside = root / f".{split}.unpacking"
    shutil.rmtree(beside, ignore_errors=True)
    log.info("unpacking %s", archive_path)
    try:
        with archive_path.open("rb") as file, tarfile.open(fileobj=file, mode="r|gz") as archive:
            members = _follow(archive, file, archive_path.stat().st_size)
            archive.extractall(beside, members=members, filter="data")
        unpacked = beside / "LibriSpeech"
        if not (unpacked / split).is_dir():
            raise tarfile.ReadError(f"no LibriSpeech/{split} in it")
        _move_in(unpacked, root / "LibriSpeech", split)
    except _ARCHIVE_ERRORS as error:
        remedy = "delete it and run again"
        raise CorpusError(f"cannot unpack the archive ({error})", where=archive_path, remedy=remedy) from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    log.info("%s is ready: %s", split, root / "LibriSpeech" / split)


def _move_in(unpacked: Path, librispeech_dir: Path, split: str) -> None:
    librispeech_dir.mkdir(exist_ok=True)
    for page in unpacked.iterdir():  # README, LICENSE, SPEAKERS, BOOKS, CHAPTERS: the same in every archive
        if page.is_file() and not (librispeech_dir / page.name).exists():
            page.replace(librispeech_dir / page.name)
    (unpacked / split).replace(librispeech_dir / split)


def _follow(archive: tarfile.TarFile, file: IO[bytes], num_total: int) -> Iterator[tarfile.TarInfo]:
    with ProgressBar(num_total, "unpacked", MEGABYTES) as progress:
        position = 0
        for member in archive:
            yield member
            progress.add(file.tell() - position)
            position = file.tell()


def _broken_off(url: str, reason: str) -> CorpusError:
    return CorpusError(
        f"the download failed ({reason})",
        where=url,
        remedy="run again (it continues where it stopped), or try another server with --mirror",
    )


def _gigabytes(num_bytes: int | None) -> str:
    return "size unknown" if num_bytes is None else format_gb(num_bytes)


def _continued_at(num_bytes: int) -> str:
    return f", {_gigabytes(num_bytes)} already here" if num_bytes else ""
