"""What the command line asked for, and the config that follows from it. Imports no torch."""

import json
import logging
import shlex
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from train.stages import STAGES, Stage, find_stage
from vox.config import Config, load_config
from vox.disk import write_whole
from vox.errors import CheckpointError, ConfigError, name_first
from vox.runs.layout import OPTIONS

log = logging.getLogger(__name__)

CONFIGS_DIR = Path(__file__).resolve().parent.parent / "configs"
RUN_ID = "run_id"  # in OPTIONS

# What --resume does with an option of TrainOptions. One that is in none of these is the recorded one, and
# giving another is refused.
OF_THE_COMMAND = frozenset({"run", "resume", "restore_from"})  # as the resuming command has it
CHANGEABLE = frozenset({"root", "features", "device", "backup"})  # the recorded one, unless it is given
_REPLAY = ("replay_split", "no_replay")
# Part of the run's saved config or weights by now: refused.
IN_CONFIG = frozenset(
    {"config_path", "overrides", "train_split", "dev_split", "wavlm", "from_checkpoint", *_REPLAY}
)
CUT_KEYS = "data.micro_batch_"  # how an update is cut is no part of what a run learns: --set may change it
FLAGS = {"config_path": "--config", "overrides": "--set", "from_checkpoint": "--from"}  # others: --name


@dataclass(frozen=True)
class TrainOptions:
    """The options of `vox train`, in the order of its help."""

    stage: int
    cached: bool = False
    config_path: Path | None = None
    overrides: tuple[str, ...] = ()
    root: Path = Path("data")
    train_split: tuple[str, ...] = ()
    dev_split: tuple[str, ...] = ()
    wavlm: str | None = None
    features: Path | None = None
    run: Path | None = None
    resume: bool = False
    restore_from: str | None = None  # URL or folder of a backup, to be copied back before resuming
    from_checkpoint: Path | None = None
    device: str = "auto"
    backup: str | None = None
    skip_bad: bool = False
    replay_split: tuple[str, ...] = ()
    no_replay: bool = False

    @property
    def run_dir(self) -> Path:
        """The run's folder: --run, else runs/stageN."""
        return self.run or Path("runs") / find_stage(self.stage).run_name

    @property
    def features_dir(self) -> Path:
        """The caches' folder: --features, else ROOT/features."""
        return self.features or self.root / "features"


def resolve_config(options: TrainOptions) -> Config:
    """Read the stage's config, lay --config over it, then --set and the options that are config keys.

    Raises ConfigError.
    """
    stage = find_stage(options.stage)
    shortcuts: Sequence[tuple[str, Any]] = (
        ("train.stage", options.stage),
        ("data.train_split", options.train_split),
        ("data.dev_split", options.dev_split),
        ("features.wavlm", options.wavlm),
        ("adapt.replay_split", options.replay_split),
        ("adapt.replay", 0 if options.no_replay else None),
    )
    _check_adapting(stage, options)
    paths = [CONFIGS_DIR / stage.config]
    if options.config_path is not None:
        paths.append(options.config_path)
    given = [f"{key}={json.dumps(value)}" for key, value in shortcuts if value not in (None, ())]
    config = load_config(paths, [*options.overrides, *given])
    _check_learning(stage, config, where=paths[-1])
    _check_unfreezing(stage, config, is_cached=options.cached, where=paths[-1])
    return config


def _check_adapting(stage: Stage, options: TrainOptions) -> None:
    """Raise ConfigError where the options and what the stage does contradict each other."""
    if not stage.adapts and (options.replay_split or options.no_replay):
        raise ConfigError(
            f"stage {stage.number} replays nothing", remedy="leave --replay-split and --no-replay out"
        )
    if options.replay_split and options.no_replay:
        raise ConfigError("--replay-split and --no-replay contradict each other", remedy="leave one out")


def _check_learning(stage: Stage, config: Config, where: Path) -> None:
    """Raise ConfigError where adapt.learns contradicts the stage or train.unfreeze_layers."""
    if config.adapt.ctc_learns:
        return
    if not stage.adapts:
        other = next(each.number for each in STAGES.values() if each.adapts)
        raise ConfigError(
            f"adapt.learns={config.adapt.learns} is for stage {other}, and this is stage {stage.number}",
            where=where,
            remedy="unset it",
        )
    if config.train.unfreeze_layers:
        raise ConfigError(
            "adapt.learns=decoder freezes all but the decoder, but train.unfreeze_layers is set",
            where=where,
            remedy="unset one of them",
        )


def _check_unfreezing(stage: Stage, config: Config, *, is_cached: bool, where: Path) -> None:
    """Raise ConfigError where the stage and train.unfreeze_layers contradict each other."""
    unfrozen = config.train.unfreeze_layers
    if unfrozen and not stage.may_unfreeze:
        other = next(each.number for each in STAGES.values() if each.may_unfreeze)
        raise ConfigError(
            f"stage {stage.number} trains on a frozen WavLM, but train.unfreeze_layers is set",
            where=where,
            remedy=f"use --stage {other}, or unset it",
        )
    if stage.adapts and unfrozen and is_cached:
        raise ConfigError(
            f"stage {stage.number} trains WavLM's layers from live audio (train.unfreeze_layers is set)",
            where=where,
            remedy="leave --cached out, or unset it",
        )
    if stage.may_unfreeze and not stage.adapts and not unfrozen and is_cached:
        raise ConfigError(
            f"stage {stage.number} caches the layer below those it trains, and train.unfreeze_layers "
            "names none",
            remedy="set it, or leave --cached out",
        )


def warn_if_all_frozen(config: Config) -> None:
    """Log a warning if a stage that is for training WavLM's layers trains none."""
    stage = find_stage(config.train.stage)
    if stage.may_unfreeze and not stage.adapts and not config.train.unfreeze_layers:
        log.warning("no WavLM layer is unfrozen: stage %d trains what a frozen stage does", stage.number)


def save_options(options: TrainOptions) -> None:
    """Keep the options of a new run with it, so that --resume needs no others, and give it its id."""
    tree = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(options).items()}
    options.run_dir.mkdir(parents=True, exist_ok=True)
    content = json.dumps(tree | {RUN_ID: uuid.uuid4().hex}, indent=1) + "\n"
    write_whole(options.run_dir / OPTIONS, content.encode())


def find_run_id(content: bytes) -> str | None:
    """Find the id of a run in its options' file; None in older runs.

    Raises ValueError for what is no such file.
    """
    tree = json.loads(content)
    if not isinstance(tree, dict):
        raise ValueError("not a table of options")
    run_id = tree.get(RUN_ID)
    return run_id if isinstance(run_id, str) else None


def resume_options(options: TrainOptions) -> TrainOptions:
    """Return the interrupted run's own options, changed where the resuming command may change them.

    Raises CheckpointError when there is no run to resume, ConfigError when an option would change it.
    """
    recorded = _read_options(options.run_dir)
    changes: dict[str, Any] = {}
    refused = []
    for each in fields(TrainOptions):
        name, value = each.name, getattr(options, each.name)
        is_given = value != each.default
        is_cut = name == "overrides" and all(key.startswith(CUT_KEYS) for key in options.overrides)
        if name in OF_THE_COMMAND or is_cut or (name in CHANGEABLE and is_given):
            changes[name] = value
        elif name in CHANGEABLE:
            continue
        elif is_given and (name in IN_CONFIG or value != getattr(recorded, name)):
            refused.append(FLAGS.get(name, f"--{name.replace('_', '-')}"))
        elif name in IN_CONFIG:
            changes[name] = each.default
    if refused:
        raise ConfigError(
            f"a resumed run keeps its settings: {', '.join(refused)} cannot be given",
            where=options.run_dir,
            remedy=f"write {resume_command(recorded.stage, options.run)} alone, or start another run",
        )
    return replace(recorded, **changes)


def resume_command(stage: int, run: Path | None) -> str:
    words = ["vox", "train", "--stage", str(stage), "--resume", *(["--run", str(run)] if run else [])]
    return shlex.join(words)


def _read_options(run_dir: Path) -> TrainOptions:
    """Read what `save_options` wrote; options that an older version did not know get their defaults."""
    path = run_dir / OPTIONS
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        tree = None
    if not isinstance(tree, dict) or "stage" not in tree:
        raise CheckpointError("no run to resume", where=run_dir, remedy="start it without --resume")
    kinds = get_type_hints(TrainOptions)
    unknown = sorted(tree.keys() - kinds.keys() - {RUN_ID})
    if unknown:
        raise CheckpointError(
            f"the run has options that this Vox does not know ({name_first(unknown)})",
            where=path,
            remedy="resume with the version of Vox that wrote it, or a newer one",
        )
    tree.pop(RUN_ID, None)
    return TrainOptions(**{name: _from_json(value, kinds[name]) for name, value in tree.items()})


def _from_json(value: Any, kind: Any) -> Any:
    """Undo what JSON and `save_options` did to an option's value: a Path is a text there, a tuple a list."""
    if isinstance(value, str) and Path in (kind, *get_args(kind)):
        return Path(value)
    return tuple(value) if isinstance(value, list) else value
