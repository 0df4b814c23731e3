"""The files of a run, read leniently: of any version, cut short by a crash, or being written this moment.

What cannot be read is left out and named in a list of faults; nothing here raises for what a file holds.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from vox.errors import name_count
from vox.runs.layout import CONFIG

Tree = dict[str, Any]


def read_json(path: Path, faults: list[str]) -> Tree:
    """Read a JSON object; empty when there is none, and a fault when it cannot be read."""
    try:
        tree = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        tree = None
    if not isinstance(tree, dict):
        faults.append(f"{path.name} cannot be read")
        return {}
    return tree


def read_config_sections(run: Path, faults: list[str]) -> tuple[Tree, Tree]:
    """Read the sections `train` and `text` of a config of any version: their keys are not checked.

    Older configs have no `text`: it is empty then.
    """
    path = run / CONFIG
    try:
        tree = yaml.safe_load(path.read_bytes())
        sections = tree["train"], tree.get("text", {})
    except FileNotFoundError:
        return {}, {}
    except (OSError, yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        sections = None, None
    train, text = sections
    if not isinstance(train, dict) or not isinstance(text, dict):
        faults.append(f"{path.name} cannot be read")
        return {}, {}
    return train, text


def read_metrics(path: Path, faults: list[str]) -> tuple[Tree, Tree, list[Tree]]:
    """Return the newest event that counts, the newest train event, and all dev events, newest first.

    Of the many train lines only the newest is parsed. The last line may be half written; any other that
    cannot be read is a fault.
    """
    try:
        *lines, tail = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return {}, {}, []
    except OSError as error:
        faults.append(f"{path.name} cannot be read ({error.strerror})")
        return {}, {}, []
    newest: Tree = {}
    train: Tree = {}
    devs = []
    num_damaged = 0
    for line in (tail, *reversed(lines)):
        if train and line.startswith(b'{"kind": "train"'):
            continue
        event = _parse_event(line)
        if event is None:
            num_damaged += line is not tail
            continue
        kind = text_in(event, "kind") or ""
        is_dev = kind.partition("_")[0] == "dev"  # dev, and dev_ema and the like for other weights
        if is_dev:
            devs.append(event)
        elif kind == "train":
            train = train or event
        if is_dev or kind == "train":
            newest = newest or event
    if num_damaged:
        faults.append(f"{path.name}: {name_count(num_damaged, 'line')} cannot be read")
    return newest, train, devs


def _parse_event(line: bytes) -> Tree | None:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) else None


def modification_time(path: Path) -> float | None:
    """Return when a file was last written (unix time); None when there is none."""
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def number_in(tree: Mapping[str, Any], name: str) -> float | None:
    """Return a figure; None when it is missing or no number."""
    value = tree.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def whole_number_in(tree: Mapping[str, Any], name: str) -> int | None:
    """Return a count; None when it is missing or no whole number."""
    value = tree.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def text_in(tree: Mapping[str, Any], name: str) -> str | None:
    """Return a text; None when it is missing or no text."""
    value = tree.get(name)
    return value if isinstance(value, str) else None
