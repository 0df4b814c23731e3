"""A small language of spoken game commands, and strings of digits and letters.

A sentence follows a grammar, which tells a listener what may come next. A string follows none: each digit
or letter is as likely as any other, so a recogniser must have understood the audio to get it right.
"""

import itertools
import math
import random
from collections.abc import Sequence

from vox.errors import VoxError

MOVES = ("move", "run", "walk", "turn")
DIRECTIONS = ("left", "right", "forward", "back", "north", "south", "east", "west")
NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
FIGHTS = ("attack", "follow", "defend", "find")
COLOURS = ("red", "blue", "green", "black")
BEINGS = ("dragon", "wizard", "soldier", "giant")
HANDLINGS = ("take", "drop", "use", "throw")
ITEMS = ("sword", "shield", "potion", "key", "lamp", "rope")
SHIFTS = ("open", "close", "lock")
OPENINGS = ("door", "gate", "chest", "window")
SPELLS = ("fire", "ice", "light")

DIGITS = ("zero", "one", *NUMBERS[:-1])
LETTERS = ("b", "h", "k", "m", "q", "r", "w", "x")  # names that sound different
STRINGS = ((DIGITS, 3, 6), (LETTERS, 3, 5))  # what is said, at least and at most how many
STRING_SHARE = 0.15  # of what is drawn; short sentences come twice and are dropped, so more of what is left

# Each template is a list of places; a place is a word, or the words to choose one from.
TEMPLATES: tuple[tuple[str | tuple[str, ...], ...], ...] = (
    (MOVES, DIRECTIONS, NUMBERS, "steps"),
    (MOVES, DIRECTIONS, "then", SHIFTS, "the", OPENINGS),
    (FIGHTS, "the", COLOURS, BEINGS),
    (FIGHTS, "the", BEINGS, "with", "the", ITEMS),
    (FIGHTS, "the", COLOURS, BEINGS, "then", MOVES, DIRECTIONS),
    (HANDLINGS, "the", COLOURS, ITEMS),
    (HANDLINGS, NUMBERS, COLOURS, "arrows"),
    (HANDLINGS, "the", ITEMS, "then", FIGHTS, "the", BEINGS),
    (SHIFTS, "the", COLOURS, OPENINGS),
    (SHIFTS, "the", OPENINGS, "then", "wait", NUMBERS, "turns"),
    ("cast", SPELLS, "at", "the", COLOURS, BEINGS),
    ("cast", SPELLS, "at", "the", BEINGS, "then", MOVES, DIRECTIONS),
    ("jump", "to", "the", DIRECTIONS, "then", "wait", NUMBERS, "turns"),
)


# Invented names, which stage 3 learns: no sentence and no string above has one.
NAMES = (
    "alric", "belkor", "cindra", "dorvan", "elowen", "fenwick", "garrok", "hesper", "ishara", "jorath",
    "kelda", "lorimer", "mirak", "nemoria", "orsin", "pyrala", "quillon", "rovena", "sylvar", "thandor",
)  # fmt: skip
NAME_TEMPLATES: tuple[tuple[str | tuple[str, ...], ...], ...] = (
    (FIGHTS, NAMES, "with", "the", ITEMS),
    (FIGHTS, NAMES, "then", MOVES, DIRECTIONS),
    ("cast", SPELLS, "at", NAMES, "then", MOVES, DIRECTIONS),
    (HANDLINGS, "the", ITEMS, "then", FIGHTS, NAMES),
)


def list_words() -> set[str]:
    """List every word that can be said."""
    words: set[str] = {*DIGITS, *LETTERS}
    for template in TEMPLATES:
        for place in template:
            words.update((place,) if isinstance(place, str) else place)
    return words


def count_sentences() -> int:
    """Count the sentences of the grammar, strings left out."""
    return sum(math.prod(1 if isinstance(place, str) else len(place) for place in t) for t in TEMPLATES)


def is_string(text: str) -> bool:
    """Say whether a text is a string of digits or letters, and no sentence of the grammar."""
    return any(set(text.split()) <= set(words) for words, _, _ in STRINGS)


def has_name(text: str) -> bool:
    """Return whether a text has one of the invented names."""
    return not set(text.split()).isdisjoint(NAMES)


def make_sentences(counts: dict[str, int], seed: int) -> dict[str, list[str]]:
    """Make so many texts for each split, all different within a split and between splits.

    About a quarter of them are strings. Raises VoxError when more are asked for than there are sentences.
    """
    total = sum(counts.values())
    if total > count_sentences():
        raise VoxError(f"the grammar has {count_sentences()} sentences, not {total}", remedy="ask for fewer")
    generator = random.Random(f"sentences {seed}")
    drawn: dict[str, None] = {}  # a set that keeps the order
    while len(drawn) < total:
        drawn[_say(generator)] = None
    # Shuffled, because short templates run out: every split gets its share of what is drawn early and late.
    sentences = list(drawn)
    generator.shuffle(sentences)
    remaining = iter(sentences)
    return {split: list(itertools.islice(remaining, count)) for split, count in counts.items()}


def make_name_sentences(counts: dict[str, int], seed: int) -> dict[str, list[str]]:
    """Make sentences with each name so many times for each split, all different, in random order."""
    generator = random.Random(f"names {seed}")
    drawn: set[str] = set()
    sentences: dict[str, list[str]] = {split: [] for split in counts}
    for split, name in itertools.product(counts, NAMES):
        while sum(name in text.split() for text in sentences[split]) < counts[split]:
            template = generator.choice(NAME_TEMPLATES)
            text = _fill([name if place is NAMES else place for place in template], generator)
            if text not in drawn:
                drawn.add(text)
                sentences[split].append(text)
    for texts in sentences.values():
        generator.shuffle(texts)
    return sentences


def _fill(template: Sequence[str | tuple[str, ...]], generator: random.Random) -> str:
    return " ".join(place if isinstance(place, str) else generator.choice(place) for place in template)


def _say(generator: random.Random) -> str:
    if generator.random() < STRING_SHARE:
        words, least, most = generator.choice(STRINGS)
        return " ".join(generator.choices(words, k=generator.randint(least, most)))
    return _fill(generator.choice(TEMPLATES), generator)
