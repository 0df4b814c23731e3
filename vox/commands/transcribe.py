"""`vox transcribe`: one's own audio to text."""

from pathlib import Path

import click

from vox.options import BEAM_OPTION

STDIN = Path("/dev/stdin")


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
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
def transcribe(
    files: tuple[Path, ...], checkpoint: Path | None, decoder: str | None, beam: int | None, device: str
) -> None:
    """Write down what is said in audio files.

    Prints the text; for several files, one line each: path, tab, text. Any sample rate, mono or not. A FILE
    may be a pipe, and - is the standard input.
    """
    from vox.checkpoint import load_recogniser, newest_checkpoint
    from vox.decode import make_options
    from vox.device import pick_device
    from vox.transcribe import transcribe_files

    # A typo is found before the weights are read.
    options = make_options([] if decoder is None else [decoder], beam)
    files = tuple(STDIN if str(path) == "-" else path for path in files)
    loaded = load_recogniser(checkpoint or newest_checkpoint(), pick_device(device))
    for path, text in transcribe_files(loaded, files, decoder, options):
        click.echo(text if len(files) == 1 else f"{click.format_filename(path)}\t{text}")
