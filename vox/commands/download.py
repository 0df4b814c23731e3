"""`vox download`: LibriSpeech splits from OpenSLR or a mirror of it."""

from pathlib import Path

import click

from vox.options import root_option


@click.command("download")
@click.option("--split", "splits", multiple=True, required=True, help="Split to fetch; may be repeated.")
@root_option
@click.option("--mirror", metavar="URL", help="Folder of archives to use in place of OpenSLR's.")
def download(splits: tuple[str, ...], root: Path, mirror: str | None) -> None:
    """Fetch, check and unpack LibriSpeech splits; an interrupted download continues."""
    from vox.download import check_split, download_split, librispeech_checksums

    checksums = librispeech_checksums()
    for split in splits:
        check_split(split, checksums)
    for split in splits:
        click.echo(download_split(split, root, mirror=mirror, checksums=checksums))
