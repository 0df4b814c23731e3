"""`vox transcribe`: one's own audio to text."""

from dataclasses import replace
from pathlib import Path

import click

from vox.options import BEAM_OPTION, add_scorer_options


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="A checkpoint folder. [default: the newest stage's best under runs/]",
)
@click.option(
    "--decoder",
    metavar="NAME",
    help="ctc, attention (greedy), ctc_beam, attention_beam, rescore or joint. "
    "[default: the greedy one with the lower dev WER in training]",
)
@BEAM_OPTION
@add_scorer_options
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
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
    device: str,
) -> None:
    """Write down what is said in audio files.

    Prints the text; for several files, one line each: path, tab, text. Any sample rate, mono or not.
    """
    from vox.checkpoint import load_recogniser, newest_checkpoint
    from vox.decode import make_options
    from vox.decode.additions import read_additions
    from vox.device import pick_device
    from vox.transcribe import transcribe_files

    # A typo is found before the weights are read.
    additions = read_additions(lm, lm_weight, hotwords, hotword, hotword_weight)
    options = make_options([] if decoder is None else [decoder], beam, additions.options)
    place = pick_device(device)
    loaded = load_recogniser(checkpoint or newest_checkpoint(), place)
    options = replace(options, scorers=additions.make_scorers(loaded.tokenizer, place))
    for path, text in transcribe_files(loaded, files, decoder, options, additions.hotwords):
        click.echo(text if len(files) == 1 else f"{click.format_filename(path)}\t{text}")
