"""`vox evaluate`: error rates of a checkpoint on a split, for each decoder."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evaluate.standard import STANDARDS, UNCHANGED, load_standard
from vox.options import (
    BEAM_OPTION,
    VAD_OPTION,
    add_scorer_options,
    batch_seconds_option,
    checkpoint_option,
    device_option,
    root_option,
    skip_bad_option,
    workers_option,
)

if TYPE_CHECKING:
    from evaluate.intervals import EarlierReport
    from evaluate.results import Evaluation
    from vox.corpus import Utterance


@click.command()
@click.option(
    "--split",
    "splits",
    multiple=True,
    required=True,
    help="A split in LibriSpeech's layout, or of ROOT/SPLIT.jsonl; repeatable, a row each and the total.",
)
@checkpoint_option
@click.option(
    "--decoder",
    "decoders",
    multiple=True,
    metavar="NAME",
    help="ctc, attention (greedy), ctc_beam, attention_beam, rescore or joint; repeatable. "
    "[default: the greedy ones, and the search that vox tune chose or an option here needs]",
)
@BEAM_OPTION
@add_scorer_options
@click.option(
    "--words",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Words or phrases, one a line, to count each by itself. [default: the hotwords of --domain]",
)
@root_option
@device_option
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where the report goes. [default: evaluate/CHECKPOINT-SPLIT beside the checkpoint]",
)
@batch_seconds_option(120.0)
@workers_option(2)
@skip_bad_option
@click.option(
    "--whole",
    is_flag=True,
    help="Transcribe each recording whole, as vox transcribe does, and score it against the joined texts of "
    "its segments.",
)
@VAD_OPTION
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The report of an earlier evaluation of this split, to compare with.",
)
@click.option(
    "--normalise",
    type=click.Choice(STANDARDS),
    help="Change the transcripts, as they are written, and the hypotheses alike before they are scored: by "
    "Whisper's rules, to compare with its published figures. [default: the transcripts as for training]",
)
def evaluate(
    splits: tuple[str, ...],
    checkpoint: Path | None,
    decoders: tuple[str, ...],
    beam: int | None,
    lm: Path | None,
    lm_weight: float | None,
    hotwords: Path | None,
    hotword: tuple[str, ...],
    hotword_weight: float | None,
    domain: Path | None,
    words: Path | None,
    root: Path,
    device: str,
    out: Path | None,
    batch_seconds: float,
    workers: int,
    skip_bad: bool,
    whole: bool,
    vad: bool,
    against: Path | None,
    normalise: str | None,
) -> None:
    """Measure WER and CER on a split, or on several.

    Prints a line for each decoder, and of several splits one for each of them. Writes the hypotheses, a
    report and an HTML page.
    """
    from vox.checkpoint.series import find_checkpoint
    from vox.corpus import find_split
    from vox.decoder_names import VALIDATION_DECODERS, check_decoders
    from vox.vad import SpeechDetector, check_installed

    # Before torch is imported, which takes seconds.
    if decoders:
        check_decoders(decoders, beam)
    if vad and not whole:
        raise click.UsageError("--vad is for recordings that are transcribed whole: add --whole")
    if vad:
        check_installed()
    folder = find_checkpoint(checkpoint)
    for split in splits:
        find_split(root, split)

    from evaluate.intervals import read_earlier
    from evaluate.report import default_out_dir, describe_checkpoint, prepare_out_dir
    from evaluate.run import evaluate_split
    from evaluate.splits import TranscriptNormaliser, check_words, load_splits
    from evaluate.tally import add_words
    from evaluate.whole import evaluate_whole, join_segments, refuse_left_out
    from evaluate.word_table import read_words
    from vox.additions import plan_search
    from vox.checkpoint.files import load_recogniser
    from vox.device import pick_device
    from vox.text import accept_any_text

    # Check everything before the work: names, folders, headers of the recordings, weights.
    place = pick_device(device)
    # Resolve the link once: training may move `best` to another checkpoint at any time.
    resolved = folder.resolve()
    plan = plan_search(
        resolved,
        decoders,
        beam=beam,
        lm=lm,
        lm_weight=lm_weight,
        hotword_file=hotwords,
        hotwords=hotword,
        hotword_weight=hotword_weight,
        domain=domain,
    )
    names = tuple(dict.fromkeys(decoders or (*VALIDATION_DECODERS, *plan.decoders)))
    loaded = load_recogniser(resolved, place)
    identity = describe_checkpoint(folder, loaded)
    options = plan.options_for(loaded, place)
    listed = plan.additions.hotwords if domain is not None else ()
    if words is not None:
        listed = read_words(words, loaded.normaliser)
    splits = tuple(dict.fromkeys(splits))
    title = "-".join(filter(None, ("+".join(splits), "whole" * whole, "vad" * vad, normalise)))
    standard = UNCHANGED if normalise is None else load_standard(normalise, loaded.normaliser)
    # Whisper's rules want punctuation, digits and symbols, which the checkpoint's alphabet would refuse.
    read = TranscriptNormaliser(loaded.config.text) if normalise is None else accept_any_text
    utterances, left_out = load_splits(root, splits, skip_bad=skip_bad, normalise=read)
    check_words(utterances, standard)
    if whole:
        refuse_left_out(left_out)
        utterances = join_segments(utterances, " " if loaded.tokenizer.has_words else "")
    earlier = None if against is None else read_earlier(against, names, utterances, standard)
    out_dir = prepare_out_dir(out or default_out_dir(folder, title))

    decode_and_score: Callable[..., Evaluation]
    if whole:
        decode_and_score = partial(evaluate_whole, detector=SpeechDetector() if vad else None)
    else:
        decode_and_score = partial(
            evaluate_split, batch_seconds=batch_seconds, workers=workers, left_out=left_out
        )
    evaluation = decode_and_score(
        loaded,
        utterances,
        title,
        names,
        options,
        hotwords=plan.additions.hotwords,
        temperature=plan.temperature,
        standard=standard,
    )
    if listed:
        evaluation = add_words(evaluation, listed, loaded.tokenizer, loaded.normaliser)
    _report(out_dir, evaluation, identity, utterances, earlier)


def _report(
    out_dir: Path,
    evaluation: "Evaluation",
    identity: dict[str, Any],
    utterances: Sequence["Utterance"],
    earlier: "EarlierReport | None",
) -> None:
    """Print the table and write the report, in place of a former one, which is named."""
    from evaluate.report import describe_former_report, format_comparison, format_table, write_report

    click.echo(format_table(evaluation))
    former = describe_former_report(out_dir)
    intervals = write_report(out_dir, evaluation, identity, utterances, earlier)
    for comparison in intervals.against:
        click.echo(format_comparison(comparison))
    click.echo(f"report: {out_dir / 'report.json'}")
    click.echo(f"page: {out_dir / 'report.html'}")
    if former is not None:
        click.echo(f"replaced the report of {former}")
