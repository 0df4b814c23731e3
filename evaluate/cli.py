"""`vox evaluate`: error rates of a checkpoint on a split, decoder by decoder."""

from pathlib import Path

import click

from vox.options import BEAM_OPTION, PositiveFloat, add_scorer_options


@click.command()
@click.option("--split", required=True, help="A split in LibriSpeech's layout, or of ROOT/SPLIT.jsonl.")
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="A checkpoint folder. [default: the newest stage's best under runs/]",
)
@click.option(
    "--decoder",
    "decoders",
    multiple=True,
    metavar="NAME",
    help="ctc, attention (greedy), ctc_beam, attention_beam, rescore or joint; repeatable. "
    "[default: the greedy ones]",
)
@BEAM_OPTION
@add_scorer_options
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    default=Path("data"),
    show_default=True,
    help="Where corpora are.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where the report goes. [default: evaluate/CHECKPOINT-SPLIT beside the checkpoint]",
)
@click.option(
    "--batch-seconds",
    type=PositiveFloat(),
    default=120.0,
    show_default=True,
    help="Padded seconds of audio in a batch.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    default=2,
    show_default=True,
    help="Processes that decode audio files; 0: none of their own.",
)
@click.option("--skip-bad", is_flag=True, help="Leave out utterances that cannot be used; they are listed.")
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The report of an earlier evaluation of this split, to compare with.",
)
def evaluate(
    split: str,
    checkpoint: Path | None,
    decoders: tuple[str, ...],
    beam: int | None,
    lm: Path | None,
    lm_weight: float | None,
    hotwords: Path | None,
    hotword: tuple[str, ...],
    hotword_weight: float | None,
    root: Path,
    device: str,
    out: Path | None,
    batch_seconds: float,
    workers: int,
    skip_bad: bool,
    against: Path | None,
) -> None:
    """Measure WER and CER on a split.

    Prints a line for each decoder, and writes hypotheses, a report and a page to look at.
    """
    from evaluate.intervals import read_earlier
    from evaluate.report import (
        default_out_dir,
        describe_checkpoint,
        format_table,
        prepare_out_dir,
        write_report,
    )
    from evaluate.run import evaluate_split
    from vox.additions import plan_search
    from vox.checkpoint.files import load_recogniser
    from vox.checkpoint.series import newest_checkpoint
    from vox.corpus import load_split_and_problems
    from vox.decode import VALIDATION_DECODERS, make_options
    from vox.device import pick_device

    # Whatever can be wrong is met before the work: names, folders, headers of the recordings, weights.
    if decoders:
        make_options(decoders, beam)
    place = pick_device(device)
    folder = checkpoint or newest_checkpoint()
    plan = plan_search(
        folder,
        decoders,
        beam=beam,
        lm=lm,
        lm_weight=lm_weight,
        hotword_file=hotwords,
        hotwords=hotword,
        hotword_weight=hotword_weight,
    )
    names = tuple(dict.fromkeys(decoders or (*VALIDATION_DECODERS, *plan.decoders)))
    # Resolved, because training moves the link `best` to another checkpoint, perhaps just now.
    loaded = load_recogniser(folder.resolve(), place)
    identity = describe_checkpoint(folder, loaded)
    options = plan.options_for(loaded, place)
    utterances, problems = load_split_and_problems(root, split, skip_bad=skip_bad)
    earlier = None if against is None else read_earlier(against, names, utterances)
    out_dir = prepare_out_dir(out or default_out_dir(folder, split))

    evaluation = evaluate_split(
        loaded,
        utterances,
        split,
        names,
        options,
        hotwords=plan.additions.hotwords,
        temperature=plan.temperature,
        batch_seconds=batch_seconds,
        workers=workers,
        left_out={problem.name: problem.reason for problem in problems},
    )
    click.echo(format_table(evaluation))
    write_report(out_dir, evaluation, identity, utterances, earlier)
    click.echo(f"report: {out_dir / 'report.json'}")
    click.echo(f"page: {out_dir / 'report.html'}")
