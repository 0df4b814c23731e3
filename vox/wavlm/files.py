"""A WavLM's files on this machine: where they are, and what the file system says of them.

Nothing here reads weights, so nothing here needs torch.
"""

from pathlib import Path

from vox.errors import WavLMError

CONFIG_FILE = "config.json"
PREPROCESSOR_FILE = "preprocessor_config.json"
WEIGHTS_PATTERNS = ("model*.safetensors*", "pytorch_model*.bin*")  # the first that a repository has
REMEDY = "give a WavLM saved by transformers with --wavlm FOLDER"

FileStamp = tuple[str, int, int, int]  # path, bytes, times of change of the content and of the entry, in ns


def find_folder(name_or_folder: str) -> Path | None:
    """Return the local folder, or the hub's cached snapshot if it is complete; None when there is neither.

    Raises WavLMError for what can be neither a folder nor a name on the hub.
    """
    try:
        folder = Path(name_or_folder).expanduser()
    except RuntimeError:  # of a user who is not there
        raise WavLMError("no such WavLM folder", where=name_or_folder, remedy=REMEDY) from None
    if folder.is_dir():
        return folder
    cached = find_snapshot(name_or_folder)
    return cached if cached is not None and (cached / PREPROCESSOR_FILE).exists() else None


def find_snapshot(name: str) -> Path | None:
    """Return the hub's cached snapshot if it has a configuration and weights."""
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError

    try:
        path = huggingface_hub.try_to_load_from_cache(name, CONFIG_FILE)
    except HFValidationError:
        raise WavLMError("no such WavLM folder", where=name, remedy=REMEDY) from None
    if not isinstance(path, str):
        return None
    folder = Path(path).parent
    return folder if any(any(folder.glob(pattern)) for pattern in WEIGHTS_PATTERNS) else None


def stamp_files(folder: Path) -> list[FileStamp] | None:
    """Look at all files in a folder, by path in there; None where they cannot all be looked at.

    A file copied over with its old size and time has another time of its entry (ctime).
    """
    stamps = []
    try:
        for path in sorted(folder.rglob("*")):  # an index of weights may name files further down
            if path.is_file():
                status = path.stat()  # behind a link: the hub's snapshots are links
                name = str(path.relative_to(folder))
                stamps.append((name, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
            elif path.is_symlink():  # to a folder, which is not looked through
                return None
    except OSError:
        return None
    return stamps
