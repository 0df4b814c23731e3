"""What each stage of training is: one row a stage. Imports nothing heavy."""

from dataclasses import dataclass

from vox.errors import ConfigError


@dataclass(frozen=True)
class Stage:
    """What distinguishes a stage; everything else is in its config."""

    number: int
    summary: str  # for --help
    starts_from: tuple[int, ...]  # the first of these stages that has a best checkpoint; (): from scratch
    checks_handoff: bool  # validate first; do not start where the dev loss is not the recorded one (T8)
    may_unfreeze: bool  # WavLM layers may learn: train.unfreeze_layers
    config: str  # file in configs/ with its defaults
    adapts: bool = False  # to a target, with the source replayed; what forgets the source is not kept (T15)

    @property
    def run_name(self) -> str:
        """The default name of its run's folder."""
        return f"stage{self.number}"


_STAGES = (
    Stage(1, "WavLM frozen", (), checks_handoff=False, may_unfreeze=False, config="stage1.yaml"),
    Stage(2, "its top layers train too", (1,), checks_handoff=True, may_unfreeze=True, config="stage2.yaml"),
    Stage(
        3,
        "adapts to your own recordings, with replay",
        (2, 1),
        checks_handoff=False,
        may_unfreeze=True,
        config="stage3.yaml",
        adapts=True,
    ),
)
STAGES = {stage.number: stage for stage in _STAGES}


def find_stage(number: int) -> Stage:
    """Return a stage by its number; ConfigError for one that this Vox does not know."""
    if number not in STAGES:
        known = ", ".join(map(str, STAGES))
        raise ConfigError(f"there is no stage {number} of training", remedy=f"known: {known}")
    return STAGES[number]
