"""`vox lm`: an n-gram language model from text."""

from pathlib import Path

import click

from vox.errors import ConfigError
from vox.options import texts_option


@click.command()
@texts_option("A sentence a line")
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="LM.arpa", help="The model.")
@click.option(
    "--order",
    type=click.IntRange(1, 10),
    default=4,
    show_default=True,
    help="How many pieces or words an n-gram has at most.",
)
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Make a model over this checkpoint's pieces; with --words, in its alphabet. "
    "[default: the newest stage's best under runs/; with --words: English]",
)
@click.option("--words", is_flag=True, help="Make a model over words, which scores whole texts only.")
@click.option(
    "--held-out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Text to measure the perplexity on; several --text get weights by it (else they count as one).",
)
@click.option("--skip-bad", is_flag=True, help="Leave out lines that cannot be used; they are counted.")
def lm(
    texts: tuple[Path, ...],
    out: Path,
    order: int,
    checkpoint: Path | None,
    words: bool,
    held_out: Path | None,
    skip_bad: bool,
) -> None:
    """Make an n-gram language model of a text.

    Interpolated modified Kneser-Ney, over the pieces that a checkpoint writes or over words, as an ARPA file.
    """
    from vox.lm.make import make_model
    from vox.text import ENGLISH, Tokenizer

    tokenizer, normalise = None, ENGLISH
    if checkpoint is not None or not words:
        from vox.checkpoint.files import read_normaliser
        from vox.checkpoint.series import newest_checkpoint
        from vox.runs.layout import CONFIG, TOKENIZER

        folder = checkpoint or newest_checkpoint()
        tokenizer = None if words else Tokenizer.load(folder / TOKENIZER)
        if words or (folder / CONFIG).is_file():  # a folder with a tokenizer alone will do
            normalise = read_normaliser(folder)
    if words and not normalise.has_words:
        raise ConfigError("the checkpoint's alphabet (characters) has no words", remedy="leave --words out")
    for line in make_model(
        texts, out, order, tokenizer, held_out=held_out, skip_bad=skip_bad, normalise=normalise
    ):
        click.echo(line)
