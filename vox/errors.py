"""Errors that a user can cause or mend: one line on stderr, exit status 2.

Everything else that is raised is a defect in Vox and keeps its traceback.
"""

from collections.abc import Sequence


class VoxError(Exception):
    """A problem to report in one line: what is wrong, where, and what to do."""

    def __init__(self, what: str, *, where: object = None, remedy: str | None = None) -> None:
        line = what if where is None else f"{what}: {where}"
        if remedy is not None:
            line = f"{line}; {remedy}"
        super().__init__(" ".join(line.split()))


class ConfigError(VoxError):
    """A configuration key is unknown, of the wrong type, or impossible."""


class CorpusError(VoxError):
    """A split is missing or empty, or utterances in it cannot be used."""


class AudioError(VoxError):
    """A recording is unreadable, empty, truncated, or not finite."""


class TextError(VoxError):
    """A transcript or a tokenizer cannot be used."""


class WavLMError(VoxError):
    """WavLM's weights cannot be had, or are not WavLM's."""


class CacheError(VoxError):
    """A feature cache is missing, stale or damaged."""


class CheckpointError(VoxError):
    """A checkpoint is missing, damaged, or of another shape."""


class HandoffError(VoxError):
    """Stage 2 does not start where stage 1 ended."""


class DeviceError(VoxError):
    """The device asked for is not there, or its memory is too small."""


def name_first(names: Sequence[str], limit: int = 3) -> str:
    """Return the first names of a list and how many more there are, for one line."""
    shown = ", ".join(names[:limit])
    rest = len(names) - limit
    return f"{shown} and {rest} more" if rest > 0 else shown
