"""`vox check`: does Vox hold on this machine, and how long will a corpus take?"""

import json
import logging
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import click

from vox.cli import import_stage
from vox.commands.status import to_json
from vox.options import PositiveFloat, device_option, overrides_option, root_option, wavlm_option

if TYPE_CHECKING:
    from vox.check.plan import Plan
    from vox.check.results import Finding, Findings
    from vox.check.subject import CheckSubject

log = logging.getLogger(__name__)

EXIT_BROKEN = 2
STAGE_CHECKS = ("precompute.check", "train.check.steps")  # a stage checks what it does


@click.command()
@wavlm_option
@click.option("--config", "config_path", type=click.Path(path_type=Path), help="The recogniser's config.")
@overrides_option
@device_option
@root_option
@click.option("--hours", type=PositiveFloat(), default=100.0, show_default=True, help="A corpus to plan for.")
@click.option("--price", type=PositiveFloat(), help="What an hour of this machine costs, for the plan.")
@click.option("--quick", is_flag=True, help="Smaller shapes and fewer repeats: rates are rough.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout, when all is done.")
@click.pass_context
def check(
    context: click.Context,
    wavlm: str,
    config_path: Path | None,
    overrides: tuple[str, ...],
    device: str,
    root: Path,
    hours: float,
    price: float | None,
    quick: bool,
    as_json: bool,
) -> None:
    """Check that Vox holds what it promises on this machine, and measure how fast it is.

    Needs no corpus; without WavLM's weights it takes random ones. A minute or so on a GPU, a few on a CPU.
    Exit status 2 if a promise is broken.
    """
    from tqdm import tqdm

    from vox.check import environment, report, steps
    from vox.check.results import Findings, run_steps
    from vox.check.subject import make_subject
    from vox.config import load_config
    from vox.device import pick_device

    start = time.perf_counter()
    config, place = load_config(config_path, overrides), pick_device(device)
    log.info("loading %s", wavlm)
    subject = make_subject(wavlm, config, place, root, quick)
    machine = environment.look_at_machine(place, root, subject.weights, subject.missing_weights)
    pitfalls = environment.find_pitfalls(machine)

    def show(text: str) -> None:
        if not as_json:
            tqdm.write(text, file=sys.stdout)  # above a progress bar

    def show_finding(finding: "Finding") -> None:
        show(report.format_finding(finding))

    show(report.format_machine(machine, pitfalls))
    findings = Findings()
    modules = [steps, *import_stages()]
    show("\npromises")
    run_steps([step for each in modules for step in each.list_promises()], subject, findings, show_finding)
    show(f"\nrates{' (rough: --quick)' if quick else ''}")
    run_steps([step for each in modules for step in each.list_rates()], subject, findings, show_finding)
    plan = plan_corpus(findings, subject, hours, price)
    if plan is not None:
        show(f"\n{report.format_plan(plan)}")
    seconds = time.perf_counter() - start
    show(f"\n{report.format_verdict(findings, seconds)}")
    if as_json:
        tree = report.to_tree(findings, plan) | {
            "machine": environment.to_dict(machine),
            "pitfalls": [vars(pitfall) for pitfall in pitfalls],
            "is_quick": quick,
            "seconds": seconds,
        }
        click.echo(json.dumps(to_json(tree), indent=1, allow_nan=False))
    if not findings.is_good:
        context.exit(EXIT_BROKEN)


def import_stages() -> list[ModuleType]:
    """Import what the stages check; nothing where there is no checkout, which is logged."""
    found = [module for name in STAGE_CHECKS if (module := import_stage(name)) is not None]
    if len(found) < len(STAGE_CHECKS):
        log.warning("this is an installed package: what needs a checkout (extraction, training) is left out")
    return found


def plan_corpus(
    findings: "Findings", subject: "CheckSubject", hours: float, price: float | None
) -> "Plan | None":
    """Plan a corpus, where the stages are there to be planned for."""
    from vox.check.plan import make_plan

    precompute, train = (import_stage(name) for name in STAGE_CHECKS)
    if precompute is None or train is None:
        return None
    training, workers = train.describe_training(subject), precompute.count_workers(subject.device)
    return make_plan(findings, training, hours, workers, price)
