"""What a run begins with is checked at once, and what does not fit is named in one error."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.caches import SPLIT, write_cache
from train.inputs import check_inputs
from train.options import TrainOptions
from vox.errors import CheckpointError, ConfigError, CorpusError, WavLMError


@pytest.fixture
def options(tmp_path: Path) -> TrainOptions:
    """Return options of stage 1 on a split that is there, with a WavLM without weights."""
    (tmp_path / "wavlm").mkdir()
    (tmp_path / "mine.jsonl").write_text('{"audio": "a.wav", "text": "go"}\n')
    write_shape(tmp_path / "wavlm", 128, 4)
    return TrainOptions(
        1,
        root=tmp_path,
        run=tmp_path / "run",
        train_split=("mine",),
        dev_split=("mine",),
        wavlm=str(tmp_path / "wavlm"),
    )


def write_shape(folder: Path, hidden_size: int, num_layers: int) -> None:
    shape = {"hidden_size": hidden_size, "num_hidden_layers": num_layers}
    (folder / "config.json").write_text(json.dumps(shape))


@pytest.mark.parametrize(
    ("shape", "settings"),
    [
        (
            (128, 4),
            ["features.layers=[1,2,3,4]", "model.feature_dim=128", "model.num_wavlm_layers=4"],
        ),
        ((1024, 24), ["model.feature_dim=1024", "model.num_wavlm_layers=24"]),
    ],
)
def test_all_settings_of_another_wavlm_are_one_error(
    options: TrainOptions, shape: tuple[int, int], settings: list[str]
) -> None:
    write_shape(Path(options.wavlm or ""), *shape)
    with pytest.raises(ConfigError, match=f"{shape[0]} channels wide and {shape[1]} layers deep") as caught:
        check_inputs(options)
    found = [each.rstrip(",") for each in re.findall(r"--set '?([^ ']+)", str(caught.value))]
    assert found == settings
    check_inputs(replace(options, overrides=tuple(settings)))


def test_a_wavlm_that_is_not_there_and_the_one_of_the_cache_are_named(options: TrainOptions) -> None:
    write_cache(options.features_dir)
    (options.root / f"{SPLIT}.jsonl").write_text('{"audio": "a.wav", "text": "go"}\n')
    lost = replace(options, wavlm="~nobody_of_this_name/wavlm", train_split=(SPLIT,))
    with pytest.raises(WavLMError, match=r"no such WavLM folder.*; the cached features.*of --wavlm a/wavlm$"):
        check_inputs(replace(lost, cached=True))
    with pytest.raises(WavLMError, match=r"--wavlm FOLDER$"):
        check_inputs(lost)


def test_what_is_not_there_is_named(options: TrainOptions, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="no split other in"):
        check_inputs(replace(options, dev_split=("other",)))
    with pytest.raises(CheckpointError, match=f"no checkpoint: {tmp_path / 'nowhere'}"):
        check_inputs(replace(options, from_checkpoint=tmp_path / "nowhere"))
    with pytest.raises(CheckpointError, match="no run to resume"):
        check_inputs(replace(options, resume=True))
