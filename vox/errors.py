"""Errors that a user can cause or fix: one line on stderr, exit status 2.

Everything else that is raised is a defect in Vox and keeps its traceback.
"""

import errno
from collections.abc import Sequence

DISK_FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT})


def escape_surrogates(text: str) -> str:
    """Return text that UTF-8 can write: file names that are not UTF-8 come with half surrogate pairs."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


class VoxError(Exception):
    """A problem to report in one line: what is wrong, where, and what to do."""

    def __init__(self, what: str, *, where: object = None, remedy: str | None = None) -> None:
        line = what if where is None else f"{what}: {where}"
        if remedy is not None:
            line = f"{line}; {remedy}"
        super().__init__(escape_surrogates(" ".join(line.split())))


class ConfigError(VoxError):
    """A configuration key is unknown, of the wrong type, or impossible."""


class CorpusError(VoxError):
    """A split is missing or empty, or utterances in it cannot be used."""


class AudioError(VoxError):
    """A recording is unreadable, empty, truncated, or not finite."""


class TextError(VoxError):
    """A transcript or a tokenizer cannot be used."""


class LanguageModelError(VoxError):
    """A language model or its text cannot be read, or does not fit the recogniser."""


class DomainError(VoxError):
    """A domain folder cannot be used: it is missing, damaged, or made for another tokenizer."""


class WavLMError(VoxError):
    """WavLM's weights cannot be had, or are not WavLM's."""


class CacheError(VoxError):
    """A feature cache is missing, stale or damaged."""


class CheckpointError(VoxError):
    """A checkpoint is missing, damaged, or of another shape."""


class TrainingError(VoxError):
    """Training goes on without learning anything."""


class HandoffError(VoxError):
    """Stage 2 does not start where stage 1 ended."""


class ReportError(VoxError):
    """A report of an earlier evaluation is missing, damaged, or of something else."""


class DeviceError(VoxError):
    """The device asked for is not there, or its memory is too small."""


WORKER_DEATH = (
    "a process that decodes audio was ended, most likely because memory is short; take fewer: --workers 0 "
    "or 1, and for training --set data.workers=0 (in a container, more memory or docker --shm-size=1g)"
)


def is_worker_death(error: BaseException) -> bool:
    """Say whether an error is a DataLoader's report that a worker process died.

    torch raises it in a signal handler, so it may come up anywhere in the main thread.
    """
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid")


def name_count(count: int, noun: str, plural: str = "") -> str:
    """Return a count with its noun: `1 utterance`, `2,000 utterances`. plural: if it is not noun + s."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def name_first(names: Sequence[str], limit: int = 3) -> str:
    """Return the first names of a list and how many more there are, for one line."""
    shown = ", ".join(names[:limit])
    rest = len(names) - limit
    return f"{shown} and {rest} more" if rest > 0 else shown
