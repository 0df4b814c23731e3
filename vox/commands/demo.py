"""`vox demo`: the whole pipeline on speech that it synthesizes itself."""

from pathlib import Path

import click

from vox.runs.layout import BEST


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("runs/demo"),
    show_default=True,
    help="Where everything goes. What an earlier demo made there is deleted.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Draws sentences and weights."
)
def demo(out: Path, seed: int) -> None:
    """Run the whole pipeline on synthesized speech, in minutes, on CPU.

    It shows that the machinery learns. The speech is espeak-ng's and the WavLM is tiny and untrained, so
    its figures say nothing about real recordings.
    """
    from vox.demo.run import format_outcome, run_demo

    click.echo("\n" + format_outcome(run_demo(out, seed)))
    best, data = out / "stage2" / BEST, out / "data"
    click.echo(f"\nTry it: vox transcribe --checkpoint {best} {data}/LibriSpeech/demo-test/*/*/*-0001.flac")
    click.echo(f"        vox evaluate --split demo-dev --root {data} --checkpoint {best}")
    click.echo(f"        vox status {out / 'stage1'}; vox cache list --root {data}")
