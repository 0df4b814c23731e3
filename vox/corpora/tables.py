"""Read tables of recordings and texts: CommonVoice's TSV, and metadata of Hugging Face audio folders."""

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from vox.corpora.imported import Imported, read_lines, read_objects
from vox.errors import CorpusError, name_first
from vox.manifest import Entry

# Names of the text column in audio folders of the Hugging Face hub; the first is the one in its docs.
TEXT_COLUMNS = ("transcription", "text", "sentence", "transcript", "normalized_text", "raw_transcription")
SPEAKER_COLUMNS = ("speaker_id", "speaker", "client_id")

Row = tuple[str, dict[str, Any]]  # the line's name, and its cells by column


def read_common_voice(path: Path) -> Imported:
    """Read one CommonVoice TSV (train.tsv, validated.tsv, …); its recordings are in clips/ beside it."""
    imported = Imported(path.parent / "clips")
    rows = csv.DictReader(read_lines(path), delimiter="\t", quoting=csv.QUOTE_NONE)
    _add_rows(imported, _number(path, rows), "path", ("sentence",), path)
    return imported


def read_audio_folder(path: Path) -> Imported:
    """Read metadata.csv or metadata.jsonl: `file_name` and a column of texts."""
    imported = Imported(path.parent)
    if path.suffix == ".csv":
        rows = _number(path, csv.DictReader(f"{line}\n" for line in read_lines(path)))
    else:
        rows = read_objects(path, imported)
    _add_rows(imported, rows, "file_name", TEXT_COLUMNS, path)
    return imported


def _number(path: Path, rows: Iterable[dict[str, Any]]) -> Iterator[Row]:
    for number, row in enumerate(rows, start=1):
        yield f"{path.name} row {number}", row


def _add_rows(
    imported: Imported, rows: Iterator[Row], audio_column: str, text_columns: tuple[str, ...], path: Path
) -> None:
    text_column = None
    for where, row in rows:
        if text_column is None:
            text_column = next((column for column in text_columns if column in row), None)
            if audio_column not in row or text_column is None:
                there, texts = name_first(list(map(str, row))), ", ".join(text_columns)
                raise CorpusError(
                    f"its columns are {there}: there must be {audio_column}, and one of {texts}",
                    where=path,
                    remedy="rename them, or add a first line with their names",
                )
        audio, text = row.get(audio_column), row.get(text_column)
        speaker = next((row[column] for column in SPEAKER_COLUMNS if row.get(column)), "")
        if not isinstance(audio, str) or not audio:
            imported.leave_out(where, f"no {audio_column}")
        elif not isinstance(text, str):
            imported.leave_out(where, f"no {text_column}")
        else:
            imported.entries.append(Entry(audio, text, None, str(speaker)))
