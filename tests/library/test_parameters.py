"""Every number of the parameter table, and the command that prints it."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.support.speech import tiny_wavlm_kwargs
from tests.support.tiny_model import TINY
from train.build import choose_trainable, count_trainable
from vox.commands.info import info
from vox.config import Config, ModelConfig, TrainConfig, dump_config
from vox.errors import CheckpointError, ConfigError
from vox.model.conformer import ConformerLayer
from vox.model.decoder import Decoder
from vox.model.parameters import ParameterRow, format_table, parameter_table
from vox.model.recogniser import Recogniser
from vox.model.zipformer import Zipformer

TABLE = [
    # part, total, trained in stage 1 from a cache, in stage 1 live, in stage 2
    ParameterRow("WavLM", 94_381_936, 0, 0, 3 * 7_088_404),
    ParameterRow("layer mix", 12, 0, 12, 12),
    ParameterRow("adapter", 657_920, 657_920, 657_920, 657_920),
    ParameterRow("Zipformer encoder", 85_675_008, 85_675_008, 85_675_008, 85_675_008),
    ParameterRow("Transformer decoder", 23_036_928, 23_036_928, 23_036_928, 23_036_928),
    ParameterRow("CTC head", 1_026_000, 1_026_000, 1_026_000, 1_026_000),
    ParameterRow("total", 204_777_804, 110_395_856, 110_395_868, 131_661_080),
]


def count(module: object) -> int:
    return sum(parameter.numel() for parameter in module.parameters())  # type: ignore[attr-defined]


def test_full_size_has_the_counts_of_the_reference_run() -> None:
    assert parameter_table(ModelConfig()) == TABLE


def test_parts_have_the_counts_of_the_reference_run() -> None:
    import torch

    with torch.device("meta"):
        layer = ConformerLayer(d_model=512, num_heads=8, d_ff=2048, conv_kernel=31, dropout=0.1)
        encoder = Zipformer(ModelConfig())
        decoder = Decoder(ModelConfig())
    conv = 512 * 1024 + 512 * 31 + 2 * 512 + 512 * 512  # no biases but LayerNorm's
    assert count(layer.convolution) == conv
    assert count(layer) == 8_147_456 == 2 * 3 * 512 * 2048 + 4 * 512**2 + conv + 4 * 2 * 512
    assert len(encoder.descending) + 1 + len(encoder.ascending) == 5
    assert count(encoder) - 10 * count(layer) == 4 * (3 * 512**2 + 1024) + 2 * (1024 * 512 + 512) + 1024
    decoder_layer = 2 * 4 * 512**2 + 3 * 512 * 2048 + 4 * 2 * 512
    assert count(decoder) == 2 * 2000 * 512 + 4 * decoder_layer + 2 * 512
    assert decoder.output.weight is not decoder.embedding.weight


def test_a_table_of_any_shape_counts_what_is_built() -> None:
    from transformers import WavLMConfig

    from vox.wavlm.extractor import FeatureExtractor
    from vox.wavlm.load import build_wavlm
    from vox.wavlm.mix import LayerMix

    wavlm_config = WavLMConfig(**tiny_wavlm_kwargs()).to_dict() | {"do_normalize": False}
    config = ModelConfig(**(TINY | {"feature_dim": 32}))
    rows = {row.part: row for row in parameter_table(config, wavlm_config, unfreeze_layers=(0, 3))}
    wavlm = build_wavlm(wavlm_config)
    recogniser = Recogniser(config, FeatureExtractor(wavlm, LayerMix.mean_of((3, 4), 4)))
    assert rows["total"].total == count(recogniser)
    for stage, cached, expected in (
        (1, True, rows["total"].stage_1_cached),
        (1, False, rows["total"].stage_1_live),
        (2, False, rows["total"].stage_2),
    ):
        train = TrainConfig(stage=stage, unfreeze_layers=(0, 3) if stage == 2 else ())
        choose_trainable(recogniser, Config(model=config, train=train), cached=cached)
        assert count_trainable(recogniser) == expected, (stage, cached)


def test_table_as_text() -> None:
    rows = [ParameterRow("one", 1234, 0, 5, 6), ParameterRow("total", 1_000_000, 0, 5, 6)]
    assert format_table(rows) == (
        "part   parameters  stage 1 cached  stage 1 live  stage 2\n"
        "--------------------------------------------------------\n"
        "one         1,234               0             5        6\n"
        "--------------------------------------------------------\n"
        "total   1,000,000               0             5        6"
    )


def test_info_prints_the_default_table() -> None:
    result = CliRunner().invoke(info, [], catch_exceptions=False)
    assert result.output == format_table(TABLE) + "\n"


def test_info_reads_a_checkpoint(tmp_path: Path) -> None:
    from transformers import WavLMConfig

    config = Config(model=ModelConfig(**(TINY | {"feature_dim": 32})))
    wavlm_config = WavLMConfig(**tiny_wavlm_kwargs()).to_dict() | {"do_normalize": True}
    (tmp_path / "config.yaml").write_text(dump_config(config))
    (tmp_path / "wavlm.json").write_text(json.dumps(wavlm_config))
    result = CliRunner().invoke(info, ["--checkpoint", str(tmp_path)], catch_exceptions=False)
    assert result.output == format_table(parameter_table(config.model, wavlm_config)) + "\n"


def test_info_reads_the_shape_of_a_local_wavlm(tmp_path: Path, tiny_wavlm_dir: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"features: {{wavlm: {tiny_wavlm_dir}}}\n")
    with pytest.raises(ConfigError, match=r"--set model\.feature_dim=32"):
        CliRunner().invoke(info, ["--config", str(path)], catch_exceptions=False)
    path.write_text(
        f"features: {{wavlm: {tiny_wavlm_dir}}}\n"
        "model: {feature_dim: 32, num_wavlm_layers: 4, d_model: 32}\n"
    )
    result = CliRunner().invoke(info, ["--config", str(path)], catch_exceptions=False)
    assert result.exit_code == 0 and "layer mix" in result.output


@pytest.mark.parametrize("missing", ["folder", "wavlm.json"])
def test_info_names_what_a_checkpoint_lacks(tmp_path: Path, missing: str) -> None:
    if missing != "folder":
        (tmp_path / "config.yaml").write_text(dump_config(Config()))
    folder = tmp_path / "gone" if missing == "folder" else tmp_path
    with pytest.raises(CheckpointError, match=missing):
        CliRunner().invoke(info, ["--checkpoint", str(folder)], catch_exceptions=False)
