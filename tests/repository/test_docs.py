"""Every `vox` command in the README and the docs is accepted by the command line."""

import contextlib
import re
import shlex
from pathlib import Path

import click
import pytest

from vox.cli import cli
from vox.errors import VoxError

CHECKOUT = Path(__file__).resolve().parents[2]
PAGES = [
    page
    for page in [CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").glob("*.md"))]
    if page.name not in ("log.md", "changes.md")  # they tell of commands as they were
]
# What stands for something else in a command, and a value that fits.
PLACEHOLDERS = {"N": "1", "R": "0", "W": "2"}


def find_commands(text: str) -> list[str]:
    """Return the vox commands of a page: lines of its code blocks, and code inside its text."""
    blocks = re.findall(r"^```\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [line.partition("   #")[0] for block in blocks for line in block.splitlines()]
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))
    found = [re.fullmatch(r"(?:torchrun .* -m )?vox (.+)", code.strip()) for code in (*lines, *spans)]
    return [match[1] for match in found if match]


def parse(command: str) -> None:
    """Parse a command as the command line does, without running it; raise the same errors.

    A missing required option is allowed: prose often gives only the beginning of a command.
    """
    words = [PLACEHOLDERS.get(word, word) for word in shlex.split(command)]
    if words == ["COMMAND", "--help"]:
        return
    group: click.Command = cli
    context = click.Context(cli, info_name="vox")
    while isinstance(group, click.Group) and words:
        name = words.pop(0)
        found = group.get_command(context, name)
        if found is None:
            raise click.NoSuchOption(name)
        group = found
    with contextlib.suppress(click.MissingParameter):
        group.make_context("vox", words)


def all_commands() -> list[tuple[str, str]]:
    """Return every command with its page."""
    return [(page.name, command) for page in PAGES for command in find_commands(page.read_text())]


@pytest.mark.parametrize(("page", "command"), all_commands())
def test_a_command_of_the_docs_parses(page: str, command: str) -> None:
    parse(command)


def test_the_commands_are_found_and_a_wrong_one_is_noticed() -> None:
    text = "Run `vox info`:\n```\ntorchrun --nproc-per-node 8 -m vox train --stage 1\n$ ls\n```\nand `best`."
    assert find_commands(text) == ["train --stage 1", "info"]
    assert len(all_commands()) > 30
    for wrong in ("precompute --probe", "trian", "train --stage 9", "cache list now", "train --stage"):
        with pytest.raises((click.UsageError, VoxError)):
            parse(wrong)
