"""Typed configuration: every key, its default and its bounds.

A config is read once (YAML file, then `--set key=value`, then command-line options), is frozen, and is
saved with the run. The defaults are the reference run's; `configs/stage1.yaml` and
`configs/stage2.yaml` spell them out, and a test keeps both equal to what stands here.
"""

from vox.config.corpus import DataConfig, TextConfig
from vox.config.load import dump_config, load_config, load_saved_config
from vox.config.section import MAX_COUNT
from vox.config.sections import (
    AugmentConfig,
    Config,
    FeaturesConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
    switch_is_on,
)

__all__ = [
    "MAX_COUNT",
    "AugmentConfig",
    "Config",
    "DataConfig",
    "FeaturesConfig",
    "ModelConfig",
    "OptimizerConfig",
    "TextConfig",
    "TrainConfig",
    "dump_config",
    "load_config",
    "load_saved_config",
    "switch_is_on",
]
