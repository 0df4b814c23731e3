"""Ways to keep features on disk: Vox's, and those it is compared with in reading and writing.

Each writes the features of all utterances and puts them on disk, and opens them again for reading. lhotse is
compared with where it is installed; it is no dependency.

T frames, C channels.
"""

import importlib.util
import mmap
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from vox.check.reading import Features, write_shard
from vox.features.cache import FeatureCache
from vox.features.shard import Shard

CHANNELS = 768
SHARD_BYTES = 1_000_000_000

Fill = Callable[[int, np.ndarray], None]  # writes an utterance's features into memory of their shape


@dataclass(frozen=True)
class Store:
    """One way to keep features: write them into a folder, and open the folder for reading."""

    name: str
    write: Callable[[Path, Features], None]
    open: Callable[[Path, Features], Fill]
    is_installed: bool = True


def total_bytes(features: Features) -> int:
    """Count the bytes of all utterances."""
    return sum(features_TC.nbytes for features_TC in features)


def write_vox(folder: Path, features: Features) -> None:
    """Write shards of about 1 GB."""
    num_shards = max(1, round(total_bytes(features) / SHARD_BYTES))
    for index, numbers in enumerate(np.array_split(np.arange(len(features)), num_shards)):
        chosen = [features[number] for number in numbers]
        write_shard(folder / f"shard-{index:05d}.h5", chosen, first=int(numbers[0]))


def open_cache(folder: Path) -> FeatureCache:
    """Open what `write_vox` wrote."""
    return FeatureCache(folder, [Shard(path) for path in sorted(folder.glob("*.h5"))])


def open_vox(folder: Path, features: Features) -> Fill:
    """Read as training does, one utterance at a time."""
    cache = open_cache(folder)

    def fill(number: int, out_TC: np.ndarray) -> None:
        shard, row = cache.locate(str(number))
        shard.read_into(row, out_TC)

    return fill


def write_plain(folder: Path, features: Features) -> None:
    """Write the bytes of all utterances, one after the other, and nothing else."""
    with (folder / "frames").open("wb") as file:
        for features_TC in features:
            file.write(features_TC.data)
        _put_on_disk(file.fileno())


def open_map(folder: Path, features: Features) -> Fill:
    """Copy from a memory map: the least that reading can cost."""
    offsets = _offsets(features)
    with (folder / "frames").open("rb") as file:
        frames = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), "<f2")
    frames_NC = frames.reshape(-1, CHANNELS)

    def fill(number: int, out_TC: np.ndarray) -> None:
        out_TC[...] = frames_NC[offsets[number] : offsets[number + 1]]

    return fill


def _write_h5py(folder: Path, features: Features, is_chunked: bool) -> None:
    offsets = _offsets(features)
    path = folder / "features.h5"
    with h5py.File(path, "w") as file:
        shape = (offsets[-1], CHANNELS)
        frames = file.create_dataset("frames", shape, "<f2", chunks=True if is_chunked else None)
        for number, features_TC in enumerate(features):
            frames[offsets[number] : offsets[number + 1]] = features_TC
    _put_files_on_disk(folder)


def _open_h5py(folder: Path, features: Features) -> Fill:
    offsets = _offsets(features)
    frames = h5py.File(folder / "features.h5", "r")["frames"]

    def fill(number: int, out_TC: np.ndarray) -> None:
        frames.read_direct(out_TC, np.s_[offsets[number] : offsets[number + 1]])

    return fill


def _write_files(folder: Path, features: Features) -> None:
    for number, features_TC in enumerate(features):
        np.save(folder / f"{number}.npy", features_TC)
    _put_files_on_disk(folder)


def _open_files(folder: Path, features: Features) -> Fill:
    def fill(number: int, out_TC: np.ndarray) -> None:
        out_TC[...] = np.load(folder / f"{number}.npy")

    return fill


def _write_lhotse(folder: Path, features: Features, kind: str) -> None:
    import lhotse

    writer_class = getattr(lhotse, f"{kind}Writer")
    keys = []
    with writer_class(folder / "features") as writer:
        for number, features_TC in enumerate(features):
            # lilcom compresses float32 only.
            values = features_TC.astype(np.float32) if kind == "LilcomChunky" else features_TC
            keys.append(writer.write(f"utterance-{number}", values))
    (folder / "keys").write_text("\n".join(keys), encoding="utf-8")
    _put_files_on_disk(folder)


def _open_lhotse(folder: Path, features: Features, kind: str) -> Fill:
    import lhotse

    keys = (folder / "keys").read_text(encoding="utf-8").split("\n")
    (path,) = folder.glob("features*")
    reader = getattr(lhotse, f"{kind}Reader")(path)

    def fill(number: int, out_TC: np.ndarray) -> None:
        out_TC[...] = reader.read(keys[number])

    return fill


def _lhotse_store(kind: str) -> Store:
    return Store(
        f"lhotse {kind}",
        lambda folder, features: _write_lhotse(folder, features, kind),
        lambda folder, features: _open_lhotse(folder, features, kind),
        has_lhotse(),
    )


def has_lhotse() -> bool:
    """Say whether lhotse and lilcom can be imported (pip install lhotse lilcom)."""
    if importlib.util.find_spec("lhotse") is None or importlib.util.find_spec("lilcom") is None:
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import lhotse  # noqa: F401
    except ImportError:  # without what it needs itself
        return False
    return True


def all_stores() -> list[Store]:
    """Return Vox's shards first, the bare memory map next, and the rest."""
    return [
        Store("Vox", write_vox, open_vox),
        Store("bare memory map", write_plain, open_map),
        Store("h5py contiguous", lambda to, features: _write_h5py(to, features, False), _open_h5py),
        Store("h5py chunked", lambda to, features: _write_h5py(to, features, True), _open_h5py),
        _lhotse_store("NumpyHdf5"),
        _lhotse_store("LilcomChunky"),
        Store("one .npy an utterance", _write_files, _open_files),
    ]


def _offsets(features: Features) -> list[int]:
    return np.concatenate([[0], np.cumsum([len(features_TC) for features_TC in features])]).tolist()


def _put_files_on_disk(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            _put_on_disk(file.fileno())


def _put_on_disk(fd: int) -> None:
    os.fsync(fd)
