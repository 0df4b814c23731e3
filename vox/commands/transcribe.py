"""`vox transcribe`: one's own audio to text."""

from pathlib import Path

import click

from vox.options import BEAM_OPTION, add_scorer_options, checkpoint_option, device_option
from vox.transcript import FORMATS

STDIN = Path("/dev/stdin")


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
@checkpoint_option
@click.option(
    "--decoder",
    metavar="NAME",
    help="ctc, attention (greedy), ctc_beam, attention_beam, rescore or joint. "
    "[default: what vox tune chose; rescore where an option asks for a search; else the better of ctc and "
    "attention on the dev split]",
)
@BEAM_OPTION
@add_scorer_options
@click.option(
    "--nbest",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="How many texts of a search to write, best first.",
)
@click.option(
    "--format",
    "format_name",
    type=click.Choice(["text", *FORMATS]),
    default="text",
    show_default=True,
    help="text, or with the words' times: json and tsv (confidences too), ctm, and captions as srt or vtt.",
)
@device_option
def transcribe(
    files: tuple[Path, ...],
    checkpoint: Path | None,
    decoder: str | None,
    beam: int | None,
    lm: Path | None,
    lm_weight: float | None,
    hotwords: Path | None,
    hotword: tuple[str, ...],
    hotword_weight: float | None,
    domain: Path | None,
    nbest: int,
    format_name: str,
    device: str,
) -> None:
    """Write down what is said in audio files.

    Prints the text; for several files, one line each: path, tab, text. With --nbest, a line for each text,
    its score before it. Any sample rate, mono or not. A FILE may be a pipe, and - is the standard input.
    """
    import vox

    if format_name in ("srt", "vtt", "tsv") and len(files) > 1:
        raise click.UsageError(f"--format {format_name} is for one FILE: it has no place for a name")
    transcriber = vox.load(
        checkpoint,
        decoder=decoder,
        beam=beam,
        nbest=nbest,
        lm=lm,
        lm_weight=lm_weight,
        hotwords=hotword,
        hotword_file=hotwords,
        hotword_weight=hotword_weight,
        domain=domain,
        device=device,
    )
    for transcript in transcriber.transcribe(STDIN if str(path) == "-" else path for path in files):
        if format_name != "text":
            click.echo(FORMATS[format_name](transcript), nl=False)
            continue
        name = f"{click.format_filename(transcript.audio)}\t" if len(files) > 1 else ""
        for found in transcript.alternatives:
            score = "" if nbest == 1 or found.score is None else f"{found.score:.3f}\t"
            click.echo(f"{name}{score}{found.text}")
