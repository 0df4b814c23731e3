"""What the command line asked for, and the config that follows from it. Imports no torch."""

import json
import logging
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vox.config import Config, load_config
from vox.errors import CheckpointError, ConfigError
from vox.features.files import write_whole

log = logging.getLogger(__name__)

CONFIGS_DIR = Path(__file__).resolve().parent.parent / "configs"
OPTIONS = "options.json"  # in the run's folder: what --resume starts from
RUN_ID = "run_id"  # in it


@dataclass(frozen=True)
class TrainOptions:
    """The options of `vox train`, in the order of its help."""

    stage: int
    cached: bool = False
    config_path: Path | None = None
    overrides: tuple[str, ...] = ()
    root: Path = Path("data")
    train_split: str | None = None
    dev_split: str | None = None
    wavlm: str | None = None
    features: Path | None = None
    run: Path | None = None
    resume: bool = False
    restore_from: str | None = None  # URL or folder of a backup, to be copied back before resuming
    from_checkpoint: Path | None = None
    device: str = "auto"
    backup: str | None = None
    skip_bad: bool = False

    @property
    def run_dir(self) -> Path:
        """The run's folder: --run, else runs/stageN."""
        return self.run or Path("runs") / f"stage{self.stage}"

    @property
    def features_dir(self) -> Path:
        """The caches' folder: --features, else ROOT/features."""
        return self.features or self.root / "features"


def resolve_config(options: TrainOptions) -> Config:
    """Read the stage's config, lay --config over it, then --set and the options that are config keys.

    Raises ConfigError.
    """
    shortcuts: Sequence[tuple[str, Any]] = (
        ("train.stage", options.stage),
        ("data.train_split", options.train_split),
        ("data.dev_split", options.dev_split),
        ("features.wavlm", options.wavlm),
    )
    paths = [CONFIGS_DIR / f"stage{options.stage}.yaml"]
    if options.config_path is not None:
        paths.append(options.config_path)
    given = [f"{key}={json.dumps(value)}" for key, value in shortcuts if value is not None]
    config = load_config(paths, [*options.overrides, *given])
    if options.stage == 2 and options.cached and not config.train.unfreeze_layers:
        raise ConfigError(
            "stage 2 caches the layer below those it trains, and train.unfreeze_layers names none",
            remedy="set it, or leave --cached out",
        )
    if options.stage == 1 and config.train.unfreeze_layers:
        raise ConfigError(
            "stage 1 trains on a frozen WavLM, but train.unfreeze_layers is set",
            where=paths[-1],
            remedy="use --stage 2, or unset it",
        )
    if options.stage == 2 and not config.train.unfreeze_layers:
        log.warning(
            "no WavLM layer is unfrozen (train.unfreeze_layers): this stage 2 trains what stage 1 did"
        )
    return config


def save_options(options: TrainOptions) -> None:
    """Keep the options of a new run with it, so that --resume needs no others, and give it its id."""
    tree = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(options).items()}
    options.run_dir.mkdir(parents=True, exist_ok=True)
    content = json.dumps(tree | {RUN_ID: uuid.uuid4().hex}, indent=1) + "\n"
    write_whole(options.run_dir / OPTIONS, content.encode())


def find_run_id(content: bytes) -> str | None:
    """Find what tells a run from others of its name, in its options' file; None in older runs.

    Raises ValueError for what is no such file.
    """
    tree = json.loads(content)
    if not isinstance(tree, dict):
        raise ValueError("not a table of options")
    run_id = tree.get(RUN_ID)
    return run_id if isinstance(run_id, str) else None


def resume_options(options: TrainOptions) -> TrainOptions:
    """Return the interrupted run's own options; --device and --backup may be given anew.

    Raises CheckpointError when there is no run to resume, ConfigError when an option would change it.
    """
    path = options.run_dir / OPTIONS
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise CheckpointError(
            "no run to resume", where=options.run_dir, remedy="start it without --resume"
        ) from None
    changed = [
        flag
        for flag, given in (
            ("--config", options.config_path),
            ("--set", options.overrides),
            ("--train-split", options.train_split),
            ("--dev-split", options.dev_split),
            ("--wavlm", options.wavlm),
            ("--from", options.from_checkpoint),
            ("--cached", options.cached and not tree["cached"]),
            ("--skip-bad", options.skip_bad and not tree["skip_bad"]),
        )
        if given
    ]
    if changed or tree["stage"] != options.stage:
        raise ConfigError(
            f"a resumed run keeps its settings: {', '.join(changed) or '--stage'} cannot be given",
            where=options.run_dir,
            remedy=f"write vox train --stage {tree['stage']} --resume --run DIR alone, or start another run",
        )
    recorded = TrainOptions(
        stage=tree["stage"],
        cached=tree["cached"],
        root=Path(tree["root"]),
        features=Path(tree["features"]) if tree["features"] else None,
        run=options.run,
        resume=True,
        device=tree["device"],
        backup=tree["backup"],
        skip_bad=tree["skip_bad"],
    )
    return replace(
        recorded,
        root=options.root if options.root != TrainOptions.root else recorded.root,
        features=options.features or recorded.features,
        device=options.device if options.device != "auto" else recorded.device,
        backup=options.backup or recorded.backup,
    )
