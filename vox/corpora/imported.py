"""The result of a corpus parser, and text reading shared by the parsers."""

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vox.errors import CorpusError
from vox.manifest import Entry


@dataclass
class Imported:
    """Entries with absolute or relative paths of recordings, and the excluded ones: a name and a reason."""

    folder: Path  # the base of relative paths
    entries: list[Entry] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)

    def leave_out(self, name: object, reason: str) -> None:
        """Record an excluded entry."""
        self.left_out.append((str(name), reason))


def read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a text file without line ends; gzipped if its name ends in .gz.

    Raises CorpusError if it is not UTF-8 or not gzip.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file):
                yield line.decode("utf-8-sig" if number == 0 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        raise CorpusError("not UTF-8 text", where=path, remedy="convert it to UTF-8") from None
    except (gzip.BadGzipFile, EOFError):
        raise CorpusError("a damaged gzip file", where=path, remedy="copy it again") from None


def read_objects(path: Path, imported: Imported) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each JSON object of a JSON-lines file with its line's name; exclude all other lines."""
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        where = f"{path.name} line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            yield where, value
        else:
            imported.leave_out(where, "not a JSON object")
