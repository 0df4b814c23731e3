"""From YAML files and `--set key=value` to a config, and back."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from vox.config.sections import Config
from vox.errors import ConfigError

# What was computed before there was a key to choose it.
_BEFORE_KEY_EXISTED: dict[str, Any] = {"model": {"cross_attention": "plain"}}

# PyYAML's constructors let through what they meet: a date that does not exist is a ValueError.
_YAML_ERRORS = (yaml.YAMLError, ValueError, AttributeError, LookupError, RecursionError)


def load_config(path: Path | str | Sequence[Path | str] | None, overrides: Sequence[str] = ()) -> Config:
    """Read a config file, apply `key.path=value` overrides (values as YAML), and check everything.

    Of several files, each is laid over the ones before it, key by key.

    Raises ConfigError, in one line, for a missing or malformed file, an unknown key, a wrong type or an
    impossible value.
    """
    paths = [path] if isinstance(path, str | Path) else list(path or ())
    tree: dict[str, Any] = {}
    for each in paths:
        tree = _lay_over(tree, _read_yaml(Path(each)))
    set_keys = _apply_overrides(tree, overrides)
    return parse_config(tree, where=str(paths[-1]) if paths else "--set", where_by_key=set_keys)


def load_saved_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read the config that a run or a checkpoint was saved with, by this version or an older one.

    overrides: as in `load_config`. A key that an older version did not have gets the value by which that
    version computed, which is not always today's default. Raises ConfigError.
    """
    tree = _lay_over(_BEFORE_KEY_EXISTED, _read_yaml(path))
    return parse_config(tree, where=str(path), where_by_key=_apply_overrides(tree, overrides))


def parse_config(
    tree: Mapping[str, Any], where: str, where_by_key: Mapping[str, str] | None = None
) -> Config:
    """Check a tree of keys and values; raise ConfigError naming the first key that is wrong.

    where: what the tree was read from; where_by_key: where single keys came from, if elsewhere.
    """
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "config"
        where = (where_by_key or {}).get(key, where)
        if first["type"] == "extra_forbidden":
            guess = _guess_key(key)
            remedy = f"did you mean {guess}? " if guess else ""
            raise ConfigError(
                f"unknown config key {key}",
                where=where,
                remedy=f"{remedy}known here: {_known_keys(first['loc'])}",
            ) from None
        what = first["msg"].removeprefix("Value error, ").replace("valid tuple", "list, like [1,2,3]")
        raise ConfigError(f"bad value for {key} ({what})", where=where, remedy="correct it") from None


def dump_config(config: Config) -> str:
    """Write a config as YAML, every key spelled out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError("no such config file", where=path, remedy="see configs/ for examples") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the config file ({error})", where=path) from None
    except _YAML_ERRORS as error:
        raise ConfigError(f"not valid YAML ({error})", where=path, remedy="correct it") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(
            "a config file holds sections of keys", where=path, remedy="see configs/stage1.yaml"
        )
    return tree


def _lay_over(lower: dict[str, Any], upper: dict[str, Any]) -> dict[str, Any]:
    """Merge two trees: where both have a section its keys are merged, else the upper value counts."""
    merged = dict(lower)
    for key, value in upper.items():
        below = merged.get(key)
        if isinstance(below, dict) and isinstance(value, dict):
            value = _lay_over(below, value)
        merged[key] = value
    return merged


def _apply_overrides(tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, str]:
    """Set keys of a tree; return what each key was set by, for errors."""
    for override in overrides:
        _apply_override(tree, override)
    return {override.partition("=")[0]: f"--set {override}" for override in overrides}


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(
            f"--set {override} is not of the form key=value", remedy="write --set train.epochs=5"
        )
    try:
        value = yaml.safe_load(text)
    except _YAML_ERRORS:
        raise ConfigError(f"--set {override}: the value is not valid YAML", remedy="quote it") from None
    *parents, leaf = key.split(".")
    section = tree
    for parent in parents:
        child = section.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"unknown config key {key}", where="--set", remedy=f"{parent} is not a section")
        section = child
    section[leaf] = _yaml_number(value) if value == text else value  # value != text: it was quoted


def _yaml_number(value: Any) -> Any:
    """Read 1e-4 as a number: YAML 1.1 calls it a string unless it has a dot."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _guess_key(key: str) -> str | None:
    """Return the known key or section that an unknown one is most like; None if it is like none."""
    sections = {name: field.annotation.model_fields for name, field in Config.model_fields.items()}  # type: ignore[union-attr]
    known = {key: f"{section}.{key}" for section, keys in sections.items() for key in keys}
    known |= {name: name for name in [*sections, *known.values()]}
    near = difflib.get_close_matches(key, known, n=1)
    return known[near[0]] if near else None


def _known_keys(location: tuple[int | str, ...]) -> str:
    section: Any = Config
    for part in location[:-1]:
        section = section.model_fields[str(part)].annotation
    return ", ".join(section.model_fields)
