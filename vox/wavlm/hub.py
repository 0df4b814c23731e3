"""A WavLM's folder, fetched from the Hugging Face hub if it is not on this machine. Imports no torch."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from vox.errors import WavLMError
from vox.wavlm.files import (
    CONFIG_FILE,
    PREPROCESSOR_FILE,
    REMEDY,
    WEIGHTS_PATTERNS,
    find_folder,
    find_snapshot,
)

log = logging.getLogger(__name__)

HUB_TIMEOUT_SECONDS = 5.0


def obtain_folder(name_or_folder: str) -> Path:
    """Return a WavLM's folder: a local one, the hub's cached snapshot, or one that is downloaded now.

    The network is used only for what is not there. Raises WavLMError where none can be had.
    """
    return find_folder(name_or_folder) or _fetch_from_hub(name_or_folder)


def _fetch_from_hub(name: str) -> Path:
    """Return the local snapshot of a hub model, downloading what the cache lacks."""
    trouble = _find_hub_trouble()
    if trouble is None:
        return _download(name)
    cached = find_snapshot(name)
    if cached is not None:
        return cached
    what = f"no folder of this name, not in the hub's cache, and the Hugging Face hub is {trouble}"
    raise WavLMError(what, where=name, remedy=REMEDY)


def _find_hub_trouble() -> str | None:
    """Say why the hub cannot be used, or None: one request, where the hub's own client retries for 20 s."""
    import huggingface_hub
    from huggingface_hub.errors import HTTPError

    endpoint = huggingface_hub.constants.ENDPOINT
    try:
        huggingface_hub.get_session().head(endpoint, timeout=HUB_TIMEOUT_SECONDS)
    except (HTTPError, OSError) as error:
        return f"unreachable ({endpoint}: {type(error).__name__})"
    return None


def _download(name: str) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HTTPError

    log.info("fetching %s from %s (kept in its cache)", name, huggingface_hub.constants.ENDPOINT)
    try:
        files = [Path(file) for file in huggingface_hub.list_repo_files(name)]
        weights = next((p for p in WEIGHTS_PATTERNS if any(file.match(p) for file in files)), None)
        patterns = [CONFIG_FILE, PREPROCESSOR_FILE] + ([] if weights is None else [weights])
        with nullcontext() if sys.stderr.isatty() else _quiet_hub():
            return Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
    except (HTTPError, OSError) as error:
        what = f"cannot fetch WavLM from the Hugging Face hub ({first_line(error)})"
        raise WavLMError(what, where=name, remedy=REMEDY) from error


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, or its kind where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """Keep the hub's bars off a log."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    had_bars = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if had_bars:
            enable_progress_bars()
