"""The utterances of a run when it began: from this list a resumed run names what has changed since."""

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from vox.corpus import Utterance
from vox.disk import write_whole
from vox.errors import name_count, name_first
from vox.features.plan import parse_lines
from vox.runs.layout import UTTERANCES

Splits = Mapping[str, Sequence[Utterance]]  # by what the run uses them for: train, dev, source_dev


def save_utterances(run_dir: Path, splits: Splits) -> None:
    """Write the list: a line an utterance, with its use, id, samples and the CRC-32 of its text."""
    lines = [json.dumps([*key, *facts]) + "\n" for key, facts in _list_facts(splits).items()]
    write_whole(run_dir / UTTERANCES, "".join(lines).encode())


def describe_changes(run_dir: Path, splits: Splits) -> str:
    """Count and name the utterances that were added, removed or changed since the list was written.

    Returns "" where there is no list that can be read (in runs of older versions), or nothing differs.
    """
    try:
        rows = parse_lines((run_dir / UTTERANCES).read_bytes())
        before = {(use, name): (length, text) for use, name, length, text in rows if use in splits}
    except (OSError, ValueError, TypeError):
        return ""
    now = _list_facts(splits)
    kinds = {
        "added": now.keys() - before.keys(),
        "removed": before.keys() - now.keys(),
        "of another length or text": {key for key in now.keys() & before.keys() if now[key] != before[key]},
    }
    return "; ".join(
        f"{name_count(len(keys), 'utterance')} {kind}: {name_first(sorted(name for _, name in keys))}"
        for kind, keys in kinds.items()
        if keys
    )


def _list_facts(splits: Splits) -> dict[tuple[str, str], tuple[int, int]]:
    return {
        (use, utterance.id): (utterance.num_samples or 0, zlib.crc32(utterance.text.encode()))
        for use, utterances in splits.items()
        for utterance in utterances
    }
