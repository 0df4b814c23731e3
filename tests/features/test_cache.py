"""A stale, incomplete or damaged cache is refused, and the message says which part differs (promise T9)."""

import errno
import fcntl
import multiprocessing
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import WavLMConfig

from tests.support.caches import (
    FEATURE_DIM,
    FINGERPRINT,
    SKIPPED,
    SPLIT,
    flip_byte,
    make_features,
    open_here,
    write_cache,
)
from tests.support.power import assert_durable, watch_renames
from tests.support.speech import tiny_wavlm_kwargs
from vox.cli import main
from vox.disk import remove_leftovers
from vox.errors import CacheError
from vox.features.cache import (
    FeatureCache,
    cache_dir,
    open_cache,
    summarise_cache,
)
from vox.features.fingerprint import (
    CONFIG_KEYS,
    ModelIdentity,
    describe_config,
    make_fingerprint,
)
from vox.features.verify import verify_cache
from vox.wavlm.model import WavLM


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_cache(tmp_path)


def test_a_cache_gives_what_was_put_into_it(folder: Path) -> None:
    cache = open_here(folder)
    assert cache.ids == ["utt-0", "utt-1", "utt-2", "utt-4", "utt-5"]
    assert cache.skipped == {SKIPPED: "cannot be decoded"}
    assert cache.feature_dim == FEATURE_DIM
    for name in cache.ids:
        expected = make_features(name, cache.num_samples[name])
        np.testing.assert_array_equal(cache.read(name), expected)
        assert cache.num_frames(name) == len(expected)


def test_utterances_that_are_not_there_are_errors(folder: Path) -> None:
    cache = open_here(folder)
    with pytest.raises(CacheError, match=r"utt-3 was skipped \(cannot be decoded\)"):
        cache.read(SKIPPED)
    with pytest.raises(CacheError, match=r"nobody is not cached.*vox precompute --split dev-small"):
        cache.read("nobody")


def _read_all(cache: FeatureCache) -> list[np.ndarray]:
    return [cache.read(name) for name in cache.ids]


def test_a_cache_travels_to_a_spawned_process(folder: Path) -> None:
    cache = open_here(folder)
    here = _read_all(cache)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        for ours, theirs in zip(here, pool.apply(_read_all, (cache,)), strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights_sha256": "cd" * 32}, "weights: cache abababab…, model cdcdcdcd…"),
        ({"layers": (4,)}, "layers: cache 3,4, model 4.*--layers 4`"),
        (
            {"preprocessing": {"sample_rate": "16000", "do_normalize": "true"}},
            "do_normalize: cache false, model true",
        ),
        ({"format_version": 3}, "format version: cache 2, this Vox 3"),
    ],
    ids=["weights", "layers", "preprocessing", "format"],
)
def test_another_models_cache_is_refused_by_part(folder: Path, change: dict, message: str) -> None:
    wanted = replace(FINGERPRINT, **change)
    with pytest.raises(CacheError, match=message):
        open_here(folder, wanted)
    # Also when its folder has the right name: the parts are compared, not the name.
    shutil.copytree(folder, cache_dir(folder.parent.parent, SPLIT, wanted))
    with pytest.raises(CacheError, match=message.partition(".*")[0]):
        open_here(folder, wanted)


def test_a_shard_of_another_cache_is_refused(folder: Path, tmp_path: Path) -> None:
    """Same utterances, same place, other weights."""
    other = write_cache(tmp_path / "other", replace(FINGERPRINT, weights_sha256="cd" * 32))
    shutil.copy(other / "shard-00001.h5", folder / "shard-00001.h5")
    with pytest.raises(CacheError, match=r"weights: cache cdcdcdcd…, model abababab….*shard-00001\.h5"):
        open_here(folder)
    shutil.copy(folder / "shard-00000.h5", folder / "shard-00001.h5")
    with pytest.raises(CacheError, match=r"other utterances than planned.*shard-00001\.h5"):
        open_here(folder)


def test_no_cache_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"no cached features for split nope.*vox precompute --split nope"):
        open_cache(tmp_path, "nope", FINGERPRINT)


def test_missing_shards_are_named(folder: Path) -> None:
    (folder / "shard-00001.h5").unlink()
    with pytest.raises(CacheError, match=r"1 of 3 shards missing \(shard-00001\.h5\).*vox precompute"):
        open_here(folder)
    assert any("missing shard" in fault for fault in verify_cache(folder))


def test_a_shard_deleted_while_in_use_is_one_error(folder: Path) -> None:
    cache = open_here(folder)
    (folder / "shard-00002.h5").unlink()
    assert len(cache.read("utt-0"))
    with pytest.raises(CacheError, match=r"missing shard.*shard-00002\.h5"):
        cache.read("utt-5")


def test_verify_finds_every_changed_byte_beside_the_shards(folder: Path) -> None:
    for path in (folder / "plan.json", folder / "utterances.jsonl", folder / "audio.jsonl"):
        content = path.read_bytes()
        for position in range(len(content)):
            path.write_bytes(content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :])
            # The first fault is enough: the shards behind it are another test's.
            fault = next(verify_cache(folder), None)
            assert fault is not None and str(folder) in fault, f"byte {position} of {path.name}"
        path.write_bytes(content)
    assert list(verify_cache(folder)) == []


def test_verify_lists_every_fault_and_exits_2(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["cache", "verify", "--features", str(folder.parent.parent)]
    assert main(command) == 0
    size = (folder / "shard-00000.h5").stat().st_size
    flip_byte(folder / "shard-00000.h5", size // 2)
    (folder / "shard-00001.h5").unlink()
    os.truncate(folder / "shard-00002.h5", size // 2)
    (folder / "notes.txt").write_text("not ours")
    (folder / ".shard-00001.h5.host-1-aa.part").write_text("of a run that died")
    capsys.readouterr()
    assert main(command) == 2
    told = capsys.readouterr()
    for name in ("shard-00000", "shard-00001", "shard-00002", "notes.txt", "shard-00001.h5.host"):
        assert any(name in line for line in told.out.splitlines()), name
    assert "5 faults" in told.err and len(told.err.splitlines()) == 1


def test_list_says_what_there_is(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vox.commands.cache.samples_to_seconds", lambda samples: samples / 6)  # 21,600
    (folder / "shard-00002.h5").unlink()
    assert main(["cache", "list", "--features", str(folder.parent.parent), "--split", SPLIT]) == 0
    header, line = capsys.readouterr().out.splitlines()
    assert header.split() == [
        "split",
        "speed",
        "fingerprint",
        "layers",
        "weights",
        "hours",
        "GB",
        "shards",
        "skipped",
    ]
    assert line.split() == [
        SPLIT,
        "1.0",
        FINGERPRINT.prefix,
        "3,4",
        "a/wavlm",
        "(abababab)",
        "1.00",
        "0.000",
        "2/3",
        "1",
    ]
    assert summarise_cache(folder).num_bytes == sum(path.stat().st_size for path in folder.glob("*.h5"))


def test_list_without_caches_is_one_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "list", "--features", str(tmp_path / "none")]) == 2
    assert "no cached features" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"{", b'{"format_version": 99}'], ids=["damaged", "version"])
def test_a_plan_that_cannot_be_read_is_a_fault_beside_the_others(
    folder: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    whole = write_cache(folder.parent.parent, replace(FINGERPRINT, weights_sha256="cd" * 32))
    (folder / "plan.json").write_bytes(content)
    (fault,) = verify_cache(folder)
    assert str(folder) in fault
    for verb in ("list", "verify"):
        assert main(["cache", verb, "--features", str(folder.parent.parent)]) == 2
        told = capsys.readouterr()
        assert fault in told.out and whole.name in told.out
        assert len(told.err.splitlines()) == 1


def test_unfinished_files_are_ours_or_foreign(folder: Path) -> None:
    """A folder, a link, and a name that no writer uses are not leftovers of a dead run."""
    (folder / ".shard-00001.h5.host-1-aa.part").mkdir()
    (folder / ".shard-00002.h5.host-1-aa.part").symlink_to(folder / "nowhere")
    (folder / ".download.part").write_text("somebody else's")
    faults = list(verify_cache(folder))
    assert len(faults) == 3 and all(fault.startswith("foreign file: ") for fault in faults)
    assert remove_leftovers(folder) == []


def test_a_lock_that_cannot_be_looked_at_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / ".shard-00001.h5.host-1-aa.part").write_text("of a run that died")
    # As NFS does: a lock of the whole file as one of a range of bytes, for which it must be open to write.
    monkeypatch.setattr(fcntl, "flock", fcntl.lockf)
    assert ["left by a run that died" in fault for fault in verify_cache(folder)] == [True]

    def have_no_locks(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", have_no_locks)
    (fault,) = verify_cache(folder)
    assert "cannot be found out whether its run is dead (No locks available)" in fault
    assert remove_leftovers(folder) == []


def test_another_configuration_of_the_same_weights_is_another_cache() -> None:
    """Norms before or after the layers: the same shapes but other features."""
    post, pre = (
        WavLM(WavLMConfig(**tiny_wavlm_kwargs(do_stable_layer_norm=is_pre)), do_normalize=False)
        for is_pre in (False, True)
    )
    pre.load_state_dict(post.state_dict())
    ours, theirs = make_fingerprint(post, (3,)), make_fingerprint(pre, (3,))
    assert ours.prefix != theirs.prefix
    assert ours.differences(theirs) == [
        "config: cache do_stable_layer_norm=false, model do_stable_layer_norm=true"
    ]


# What decides a WavLM's arithmetic and may differ between models whose weights have the same shapes.
OTHER_VALUES = {
    "do_stable_layer_norm": True,
    "feat_extract_norm": "layer",
    "feat_extract_activation": "relu",
    "hidden_act": "relu",
    "layer_norm_eps": 1e-6,
    "conv_kernel": (10, 3, 3, 3, 3, 3, 3),
    "conv_stride": (5, 2, 2, 2, 2, 2, 4),
    "conv_bias": True,
    "num_attention_heads": 2,
    "num_buckets": 64,
    "max_bucket_distance": 40,
    "num_conv_pos_embeddings": 32,
    "num_conv_pos_embedding_groups": 2,
}
# What weights of other shapes, and so other weights, say too; and what only training uses.
SAID_BY_WEIGHTS = {"hidden_size", "intermediate_size", "num_hidden_layers", "conv_dim"}
OF_TRAINING = {
    "attention_dropout",
    "activation_dropout",
    "hidden_dropout",
    "mask_time_prob",
    "mask_feature_prob",
}
OF_THE_OBJECT = {"to_dict", "json"}  # and `config.json` in texts


def test_every_part_of_a_configuration_makes_another_fingerprint() -> None:
    """T9: everything that the model reads from its configuration is in the fingerprint or in its weights."""
    read = set()
    for path in Path("vox/wavlm").glob("*.py"):
        read |= set(re.findall(r"\bconfig\.([a-z_]+)", path.read_text()))
    assert read - SAID_BY_WEIGHTS - OF_TRAINING - OF_THE_OBJECT <= OTHER_VALUES.keys()
    assert OTHER_VALUES.keys() == set(CONFIG_KEYS)
    default = WavLMConfig(**tiny_wavlm_kwargs())
    for key, value in OTHER_VALUES.items():
        changed = WavLMConfig(**tiny_wavlm_kwargs(**{key: value}))
        assert describe_config(changed) != describe_config(default), key


def test_every_part_of_a_fingerprint_makes_another_folder() -> None:
    model = ModelIdentity("ab", do_normalize=False, config="x=1", hidden_size=8, num_layers=4)
    ours = model.fingerprint((3, 4))
    others = [
        replace(model, weights_sha256="cd").fingerprint((3, 4)),
        replace(model, do_normalize=True).fingerprint((3, 4)),
        replace(model, config="x=2").fingerprint((3, 4)),
        model.fingerprint((2, 4)),
        model.fingerprint((3, 4)).at_speed(0.9),
        replace(ours, format_version=ours.format_version + 1),
        *(replace(ours, preprocessing=dict(ours.preprocessing) | {key: "x"}) for key in ours.preprocessing),
    ]
    assert len({ours.prefix, *(other.prefix for other in others)}) == 1 + len(others)
    assert ours.preprocessing.keys() == {"sample_rate", "do_normalize", "resampler", "config"}
    assert all(other.differences(ours) for other in others)


def test_a_loss_of_power_leaves_a_cache_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards, plan and stamps have their contents on disk before they are renamed."""
    renames = watch_renames(monkeypatch)
    folder = write_cache(tmp_path)
    assert_durable(renames, *folder.iterdir())
