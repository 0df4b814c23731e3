"""`vox corpus check` and `vox corpus import`."""

from pathlib import Path

import click

from vox.errors import name_count
from vox.options import add_text_options, root_option


@click.group()
def corpus() -> None:
    """Check a corpus, or take over one that was made for another tool."""


@corpus.command("check")
@click.option("--split", "splits", multiple=True, required=True, help="The split; repeatable.")
@root_option
@click.option(
    "--workers", type=click.IntRange(1, 256), default=4, show_default=True, help="Threads that decode audio."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.jsonl",
    help="Also write every finding there, a JSON object a line.",
)
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.html",
    help="Also write a page with tables and histograms.",
)
@add_text_options
def check_command(
    splits: tuple[str, ...],
    root: Path,
    workers: int,
    out: Path | None,
    html: Path | None,
    config_path: Path | None,
    overrides: tuple[str, ...],
) -> None:
    """Read every recording and text once, and print what is there and what to look at.

    Exit status 0, also with findings; 2 where nothing in a split can be used.
    """
    from vox.corpora.check import check_split, describe, find_shared, list_findings, summarise
    from vox.disk import check_writable, write_whole
    from vox.text import load_normaliser

    for path, option in ((out, "--out"), (html, "--html")):
        if path is not None:  # found before everything is decoded
            check_writable(path, option, folder=path.parent)
    names = list(dict.fromkeys(splits))
    normalise = load_normaliser(config_path, overrides)
    checked = [check_split(root, split, workers, normalise) for split in names]
    found = []
    for each in checked:
        click.echo(each.split)
        for row in describe(each):
            click.echo(f"  {row[0]:<12}{row[1]}")
        found.append((each.split, each.findings))
    found.append((", ".join(names), list(find_shared(checked, workers))))
    findings = [finding for _, some in found for finding in some]
    if not findings:
        click.echo("nothing to look at")
    for kind, count, hours, examples, remedy in summarise(findings):
        amount = f"{count}, {hours} hours" if hours else count
        click.echo(f"{kind} ({amount}): {examples}\n  -> {remedy}")
    for path in filter(None, (out, html)):
        path.parent.mkdir(parents=True, exist_ok=True)
    if out is not None:
        write_whole(out, "".join(list_findings(*each) for each in found).encode())
        click.echo(f"{name_count(len(findings), 'finding')}: {out}")
    if html is not None:
        from vox.corpora.check_page import render_check

        write_whole(html, render_check(checked, found).encode("utf-8", "replace"))
        click.echo(f"page: {html}")


@corpus.command("import")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--split", required=True, metavar="NAME", help="What to call the new split.")
@click.option(
    "--no-speech", is_flag=True, help="A folder of recordings in which nothing is spoken: noise, music."
)
@root_option
@add_text_options
def import_command(
    source: Path,
    split: str,
    no_speech: bool,
    root: Path,
    config_path: Path | None,
    overrides: tuple[str, ...],
) -> None:
    """Write a manifest for a corpus that was made for another tool.

    Reads those of Kaldi, NeMo, lhotse, CommonVoice and Hugging Face, LibriSpeech's layout, and folders of
    recordings with a text file beside each.
    Copies no audio. Lists what it leaves out.
    """
    from vox.corpora.convert import import_corpus
    from vox.text import load_normaliser

    normalise = load_normaliser(config_path, overrides)
    for line in import_corpus(source, root, split, normalise, is_speech=not no_speech):
        click.echo(line)
