"""Configs: the files agree with the code, and a wrong key is an error."""

from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from precompute.cli import precompute
from vox.config import Config, dump_config, load_config, load_saved_config
from vox.defaults import NUM_UNFROZEN_LAYERS
from vox.errors import ConfigError
from vox.features.cache import precompute_command
from vox.features.fingerprint import Fingerprint
from vox.options import parse_layers
from vox.runs.lenient import read_config_sections

CONFIGS = Path(__file__).parents[2] / "configs"


def test_stage1_file_spells_out_every_default():
    expected = Config().model_dump(mode="json")
    del expected["adapt"]  # stage 3's
    assert yaml.safe_load((CONFIGS / "stage1.yaml").read_text()) == expected


def test_stage2_file_differs_where_it_should_only():
    tree = yaml.safe_load((CONFIGS / "stage2.yaml").read_text())
    expected = Config().model_dump(mode="json")
    del expected["model"], expected["features"], expected["text"]  # from the checkpoint
    del expected["adapt"]  # stage 3's
    top = list(range(12 - NUM_UNFROZEN_LAYERS, 12))  # of WavLM-base
    expected["train"] |= {"stage": 2, "epochs": 5, "unfreeze_layers": top}
    expected["optimizer"] |= {"learning_rate": 1e-5}
    assert tree == expected


def test_stage3_file_differs_where_it_should_only():
    tree = yaml.safe_load((CONFIGS / "stage3.yaml").read_text())
    expected = Config().model_dump(mode="json")
    del expected["model"], expected["features"], expected["text"]  # from the checkpoint
    expected["data"] |= {"utterances_per_update": 8}
    expected["train"] |= {"stage": 3, "epochs": 30, "max_updates": 300}
    expected["optimizer"] |= {"learning_rate": expected["optimizer"]["learning_rate"] / 10}
    assert tree == expected


@pytest.mark.parametrize("name", ["stage1.yaml", "stage2.yaml", "stage3.yaml"])
def test_comments_of_the_stages_files_are_the_descriptions_of_their_keys(name: str) -> None:
    section: Any = None
    num_keys = 0
    for line in (CONFIGS / name).read_text().splitlines():
        if line.startswith("  "):
            key = line.split(":")[0].strip()
            description = section.model_fields[key].description
            wanted = f"  # {description}" if description else ""
            assert line == line.partition("  # ")[0] + wanted, f"{name}: write {key}: ...{wanted}"
            num_keys += 1
        elif line.endswith(":"):
            section = Config.model_fields[line[:-1]].annotation
    assert num_keys > 20


def test_what_is_cached_by_default_is_what_is_trained_on_by_default():
    options = {option.name: option.default for option in precompute.params}
    features = Config().features
    assert parse_layers(options["layers"]) == features.layers
    assert options["wavlm"] == features.wavlm
    fingerprint = Fingerprint("ab" * 32, features.layers, {})
    assert precompute_command("s", fingerprint, wavlm=features.wavlm) == "vox precompute --split s"


def test_dumped_config_loads_as_itself(tmp_path):
    config = load_config(None, ["train.epochs=3", "features.layers=[2,3]", "data.train_split='1e5'"])
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "config.yaml") == config
    assert config.data.train_split == ("1e5",)


def test_scientific_notation_is_a_number():
    assert load_config(None, ["optimizer.learning_rate=1e-5"]).optimizer.learning_rate == 1e-5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=3", "unknown config key train.epoch.*epochs"),
        ("optimiser.learning_rate=1", "unknown config key optimiser.*optimizer"),
        ("max_updates=3", r"key max_updates: --set max_updates=3; did you mean train.max_updates\?"),
        ("train.max_updatess=3", r"did you mean train.max_updates\?.* known here: stage, "),
        ("max_updatess=3", r"did you mean train.max_updates\?"),
        ("traim.max_updates=3", r"did you mean train\?"),
        ("zzz=3", "; known here: "),
        ("train.epochs=many", "bad value for train.epochs"),
        ("train.epochs=0", "bad value for train.epochs"),
        ("model.dropout=1.5", "bad value for model.dropout"),
        ("model.d_model=100", "d_model 100 must be a multiple"),
        ("features.layers=[0]", "layers"),
        ("train.epochs", "not of the form key=value"),
        ("train=3", "bad value for train"),
        ("data.train_split=2020-13-45", "not valid YAML"),
        ("optimizer.betas=[2,3]", "bad value for optimizer.betas.0"),
        ("optimizer.betas=[0.9,1.0]", "bad value for optimizer.betas.1"),
        ("data.micro_batch_seconds=.inf", "bad value for data.micro_batch_seconds .*finite"),
        ("optimizer.learning_rate=inf", "bad value for optimizer.learning_rate .*finite"),
        ("optimizer.weight_decay=.nan", "bad value for optimizer.weight_decay .*finite"),
        ("train.seed=4294967296", "bad value for train.seed"),
        ("model.vocab_size=10000000", "bad value for model.vocab_size .*auto, or a number from 5"),
        ("model.vocab_size=large", "bad value for model.vocab_size .*auto, or a number from 5"),
        ("model.d_model=1048576", "bad value for model.d_model"),
        ("model.decoder_layers=100000", "bad value for model.decoder_layers"),
    ],
)
def test_wrong_overrides_are_named(override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(CONFIGS / "stage1.yaml", [override])


def test_malformed_files_are_one_line(tmp_path):
    with pytest.raises(ConfigError, match="no such config file"):
        load_config(tmp_path / "none.yaml")
    for text in ("train: [1\n  x: {", "data: {train_split: 2020-13-45}", "[" * 5000):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(ConfigError, match="not valid YAML") as caught:
            load_config(tmp_path / "bad.yaml")
        assert "\n" not in str(caught.value)


def test_a_wrong_override_is_named_and_not_the_file(tmp_path):
    (tmp_path / "mine.yaml").write_text("train: {epochs: 3}\n")
    for override in ("features.layers=1,2", "optimizer.lr=1", "train.ctc_weight=2"):
        with pytest.raises(ConfigError, match=f": --set {override};"):
            load_config(tmp_path / "mine.yaml", [override])
    with pytest.raises(ConfigError, match=r"mine\.yaml"):
        (tmp_path / "mine.yaml").write_text("train: {epoch: 3}\n")
        load_config(tmp_path / "mine.yaml", ["optimizer.learning_rate=1"])


def test_reading_yaml_executes_no_code(tmp_path):
    payload = f"!!python/object/apply:os.mkdir [{tmp_path / 'executed'}]"
    path = tmp_path / "config.yaml"
    path.write_text(f"train: {{epochs: {payload}}}\n")
    for load in (load_config, load_saved_config, lambda _: load_config(None, [f"train.epochs={payload}"])):
        with pytest.raises(ConfigError, match="not valid YAML"):
            load(path)
    faults: list[str] = []
    read_config_sections(tmp_path, faults)
    assert len(faults) == 1
    assert not (tmp_path / "executed").exists()


MAY_BE_ZERO = {
    *("model.dropout", "data.workers", "data.concatenate"),
    *("augment.time_masks", "augment.time_mask_fraction"),
    *("augment.channel_masks", "augment.channel_mask_fraction", "optimizer.weight_decay"),
    *("train.ctc_weight", "train.ctc_weight_start", "train.label_smoothing", "train.seed"),
    *("train.keep_checkpoints", "train.average_checkpoints", "adapt.replay", "adapt.tolerance"),
    "adapt.l2_sp",
}
SHARES = {
    *("model.dropout", "data.concatenate", "augment.time_mask_fraction", "augment.channel_mask_fraction"),
    *("optimizer.warmup_fraction", "train.ctc_weight", "train.ctc_weight_start"),
    *("train.label_smoothing", "train.ema_decay"),
}


def numeric_keys() -> dict[str, bool]:
    """Return every key of a single number, and whether it is an integer, from the config itself."""
    found = {}
    for section, part in Config.model_fields.items():
        for key, field in part.annotation.model_fields.items():  # type: ignore[union-attr]
            kinds = {field.annotation, *get_args(field.annotation)} & {int, float}
            if kinds and field.annotation is not bool:
                found[f"{section}.{key}"] = kinds == {int}
    return found


@pytest.mark.parametrize(("key", "is_whole"), numeric_keys().items())
def test_every_number_has_bounds(key, is_whole):
    """A typing error stops the run: negative, zero, a share above one, far too large."""
    wrong: list[object] = [-1, *([] if key in MAY_BE_ZERO else [0]), *([1.5] if key in SHARES else [])]
    for value in [*wrong, *([10**10] if is_whole else [])]:
        with pytest.raises(ConfigError, match="bad value"):
            load_config(None, [f"{key}={value}"])
    if key in MAY_BE_ZERO:
        load_config(None, [f"{key}=0"])
