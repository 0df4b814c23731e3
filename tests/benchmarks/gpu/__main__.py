"""Ask a card everything that matters, most important first, in a few minutes; a table last.

`python -m tests.benchmarks.gpu` runs on a GPU at full size. `--device cpu` runs the same program over tiny
models, so that a rented card's minutes are not spent on typing errors. Each step has its own clock, and an
error in it ends it alone; steps that would begin after `--minutes` are left out, and named.
"""

import logging
import sys
import tempfile
import time
from pathlib import Path

import click

from tests.benchmarks.gpu import commands, kernels, models
from tests.benchmarks.gpu.bench import Bench, make_bench, on_subject
from train.check import gradients
from train.check import rates as training
from vox.check import decoding, promises
from vox.check import rates as machine
from vox.check.report import format_finding
from vox.check.results import Findings, Step, run_steps
from vox.device import pick_device

STEPS: list[Step[Bench]] = [
    Step("machine", kernels.report_machine),
    Step("attention", kernels.time_attention),
    Step("low scores", kernels.check_low_scores),
    on_subject("matrices", machine.check_matrix_rate),
    on_subject("WavLM", promises.check_reference),
    on_subject("batching", promises.check_batching),
    Step("stem", models.compare_stems),
    Step("convolutions", models.compare_convolutions),
    Step("extraction", models.time_extraction),
    Step("profile of extraction", models.profile_extraction),
    Step("updates", models.time_cuts),
    Step("profile of an update", models.profile_update),
    on_subject("gradients", gradients.check_gradients),
    on_subject("cut", gradients.check_cut),
    on_subject("finite", gradients.check_finite),
    on_subject("scores", decoding.check_scores),
    on_subject("steps", decoding.check_steps),
    Step("waits", models.count_waits),
    on_subject("stage 1 live", training.check_live_updates),
    on_subject("stage 2", training.check_stage2_updates),
    on_subject("memory", training.check_memory),
    Step("precompute", commands.time_precompute),
    Step("commands", commands.check_training),
    Step("depthwise", kernels.time_depthwise),
    Step("CTC", kernels.time_ctc),
    Step("precisions", models.check_other_precisions),
    Step("long", models.check_long_gradient),
    on_subject("extremes", promises.check_extremes),
    on_subject("decoding", decoding.check_speed),
    Step("decoders", models.compare_decoders),
]


@click.command()
@click.option("--device", "device_name", default="auto", show_default=True)
@click.option("--minutes", default=8.0, show_default=True, help="No step begins later.")
@click.option("--only", multiple=True, help="Steps to run, by name (repeatable); all by default.")
def main(device_name: str, minutes: float, only: tuple[str, ...]) -> None:
    """Run the steps and print what they found."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    unknown = set(only) - {step.title for step in STEPS}
    if unknown:
        raise click.UsageError(f"no step {', '.join(unknown)}; there are {', '.join(s.title for s in STEPS)}")
    start = time.monotonic()
    device, findings = pick_device(device_name), Findings()
    with tempfile.TemporaryDirectory() as folder:
        bench = make_bench(device, Path(folder))
        for step in STEPS:
            if only and step.title not in only:
                continue
            if time.monotonic() - start > 60 * minutes:
                click.echo(f"left out, no time: {step.title}")
                continue
            bench.subject.recogniser.eval()  # a step that trains it leaves it in training mode
            run_steps([step], bench, findings, lambda found: click.echo(format_finding(found)))
    _print_table(findings, time.monotonic() - start)


def _print_table(findings: Findings, seconds: float) -> None:
    click.echo(f"\n{'=' * 40} all that was found, {seconds:.0f} s")
    for found in (*findings.promises, *findings.rates, *findings.failures):
        click.echo(format_finding(found))
    times = ", ".join(f"{title} {spent:.0f}" for title, spent in findings.seconds.items())
    click.echo(f"seconds: {times}")


if __name__ == "__main__":
    main()
