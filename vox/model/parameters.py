"""Count parameters by part and by stage of training, on torch's meta device: no memory, no weights read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vox.config import ModelConfig
from vox.defaults import NUM_UNFROZEN_LAYERS
from vox.model.recogniser import Recogniser


@dataclass(frozen=True)
class ParameterRow:
    """One part's parameters, and how many of them train in each way of training."""

    part: str
    total: int
    stage_1_cached: int
    stage_1_live: int
    stage_2: int


def parameter_table(
    config: ModelConfig,
    wavlm_config: Mapping[str, Any] | None = None,
    unfreeze_layers: Sequence[int] | None = None,
) -> list[ParameterRow]:
    """Count every part of a recogniser; the last row is the total.

    wavlm_config: the WavLM's configuration as Hugging Face writes it; None means WavLM-base.
    unfreeze_layers: WavLM layers that stage 2 trains, counted from 0; None means the top three.

    Raises ConfigError if config does not fit that WavLM, WavLMError if it is no WavLM.
    """
    with torch.device("meta"):
        recogniser = _build(config, wavlm_config)
    wavlm, mix = recogniser.extractor.wavlm, recogniser.extractor.mix
    if unfreeze_layers is None:
        unfreeze_layers = range(max(0, wavlm.num_layers - NUM_UNFROZEN_LAYERS), wavlm.num_layers)
    wavlm.freeze_except(unfreeze_layers)
    num_unfrozen = sum(parameter.numel() for parameter in wavlm.parameters() if parameter.requires_grad)
    num_mix = _count(mix)
    rows = [
        ParameterRow("WavLM", _count(wavlm), 0, 0, num_unfrozen),
        ParameterRow("layer mix", num_mix, 0, num_mix, num_mix),
    ]
    for part, module in (
        ("adapter", recogniser.adapter),
        ("Zipformer encoder", recogniser.encoder),
        ("Transformer decoder", recogniser.decoder),
        ("CTC head", recogniser.ctc_head),
    ):
        rows.append(ParameterRow(part, *[_count(module)] * 4))
    return [*rows, _add(rows)]


def format_table(rows: Sequence[ParameterRow]) -> str:
    """Lay a parameter table out as text, one line a part."""
    header = ("part", "parameters", "stage 1 cached", "stage 1 live", "stage 2")
    cells = [header] + [
        (
            row.part,
            *(f"{count:,}" for count in (row.total, row.stage_1_cached, row.stage_1_live, row.stage_2)),
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in cells) for column in range(len(header))]
    lines = [
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))]
        )
        for line in cells
    ]
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def _build(config: ModelConfig, wavlm_config: Mapping[str, Any] | None) -> Recogniser:
    from transformers import WavLMConfig

    from vox.wavlm.extractor import FeatureExtractor
    from vox.wavlm.load import build_wavlm
    from vox.wavlm.mix import LayerMix

    if wavlm_config is None:
        wavlm_config = WavLMConfig().to_dict()  # its defaults are WavLM-base
    wavlm = build_wavlm({"do_normalize": False, **wavlm_config})  # which has no parameters
    mix = LayerMix.mean_of(range(1, wavlm.num_layers + 1), wavlm.num_layers)
    return Recogniser(config, FeatureExtractor(wavlm, mix))


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _add(rows: Sequence[ParameterRow]) -> ParameterRow:
    return ParameterRow(
        "total",
        sum(row.total for row in rows),
        sum(row.stage_1_cached for row in rows),
        sum(row.stage_1_live for row in rows),
        sum(row.stage_2 for row in rows),
    )
