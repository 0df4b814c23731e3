"""An alphabet of the user's own: a table of characters, and of what is written otherwise (docs/languages.md).

    # Hausa. A line that begins with # is a comment.
    abcdefghijklmnorstuwyz\u0253\u0257\u0199\u01b4'
    q -> k
    U+20A6 -> U+0020naira

A line without an arrow lists characters that are allowed; spaces in it do not count. A line with an arrow
replaces what is left of it, the longest first; nothing on the right deletes it.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from vox.errors import TextError

_ARROW = "->"
_CODE = re.compile(r"U\+([0-9A-Fa-f]{4,6})(?![0-9A-Fa-f])")


@dataclass(frozen=True)
class Table:
    """The characters of an alphabet, and replacements made before it is applied."""

    characters: frozenset[str]
    replacements: dict[str, str]

    def replace(self, text: str) -> str:
        """Return a text (lower case, NFC) with all replacements made, from the left, the longest first."""
        if not self.replacements:
            return text
        longest_first = sorted(self.replacements, key=len, reverse=True)
        pattern = "|".join(map(re.escape, longest_first))
        return re.sub(pattern, lambda found: self.replacements[found[0]], text)


def parse_table(lines: Sequence[str], where: object) -> Table:
    """Read a table's lines; raise TextError for one that cannot be right.

    A character is in lower case, and what a replacement writes is allowed.
    """
    characters: set[str] = set()
    replacements: dict[str, str] = {}
    for line in lines:
        left, arrow, right = (_read_codes(part.strip()) for part in line.partition(_ARROW))
        if not arrow:
            characters |= {character for character in left if not character.isspace()}
        elif not left or left in replacements:
            what = "replaces nothing" if not left else "replaces what another line does"
            raise TextError(f"the line `{line}` {what}", where=where, remedy="correct it")
        else:
            replacements[left] = right
    for some, what in ((characters, "allows"), (replacements, "replaces")):
        if capital := next((each for each in sorted(some) if each != each.lower()), None):
            raise TextError(
                f"the table {what} {capital}, but texts are in lower case before it is applied",
                where=where,
                remedy=f"write {capital.lower()}",
            )
    if not characters - {"'"}:
        raise TextError("a table without letters", where=where, remedy="list those that are allowed")
    if unknown := sorted(set().union(*replacements.values()) - characters - {" "}):
        raise TextError(
            f"the table writes what it does not allow ({' '.join(unknown)})", where=where, remedy="allow it"
        )
    return Table(frozenset(characters), replacements)


def _read_codes(text: str) -> str:
    return unicodedata.normalize("NFC", _CODE.sub(lambda found: chr(int(found[1], 16)), text))
