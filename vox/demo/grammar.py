"""A small language of spoken game commands: 64 words, 4,164 sentences."""

import itertools
import math
import random

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

# Each template is a list of places; a place is a word, or the words to choose one from. Nothing but `the`
# comes twice in a sentence: an attention decoder as small as the demo's loses its place in repetitions.
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


def list_words() -> set[str]:
    """List every word that the grammar can say."""
    words: set[str] = set()
    for template in TEMPLATES:
        for place in template:
            words.update((place,) if isinstance(place, str) else place)
    return words


def count_sentences() -> int:
    """Count the sentences that the grammar can say."""
    return sum(math.prod(1 if isinstance(place, str) else len(place) for place in t) for t in TEMPLATES)


def make_sentences(counts: dict[str, int], seed: int) -> dict[str, list[str]]:
    """Make so many sentences for each split, all different within a split and between splits.

    Raises VoxError when more are asked for than there are.
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


def _say(generator: random.Random) -> str:
    template = generator.choice(TEMPLATES)
    return " ".join(place if isinstance(place, str) else generator.choice(place) for place in template)
