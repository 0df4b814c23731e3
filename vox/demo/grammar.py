"""A small language of spoken game commands: 64 words, 921 clauses, said alone or in pairs."""

import random

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

PAIR_SHARE = 0.4  # of the sentences

# Each clause is a list of places; a place is a word or the words to choose one from.
CLAUSES: tuple[tuple[str | tuple[str, ...], ...], ...] = (
    (MOVES, DIRECTIONS),
    (MOVES, DIRECTIONS, NUMBERS, "steps"),
    (FIGHTS, "the", BEINGS),
    (FIGHTS, "the", COLOURS, BEINGS),
    (FIGHTS, "the", BEINGS, "with", "the", ITEMS),
    (HANDLINGS, "the", COLOURS, ITEMS),
    (HANDLINGS, NUMBERS, COLOURS, "arrows"),
    (SHIFTS, "the", COLOURS, OPENINGS),
    (SHIFTS, "the", OPENINGS, "with", "the", ITEMS),
    ("cast", SPELLS, "at", "the", COLOURS, BEINGS),
    ("jump", "to", "the", DIRECTIONS),
    ("wait", NUMBERS, "turns"),
)


def list_words() -> set[str]:
    """List every word that the grammar can say."""
    words: set[str] = set()
    for clause in CLAUSES:
        for place in clause:
            words.update((place,) if isinstance(place, str) else place)
    return words | {"then"}


def make_sentence(generator: random.Random) -> str:
    """Say one command, or two of them joined by `then`, in lower case."""
    clauses = [_say_clause(generator)]
    if generator.random() < PAIR_SHARE:
        clauses.append(_say_clause(generator))
    return " then ".join(clauses)


def make_sentences(counts: dict[str, int], seed: int) -> dict[str, list[str]]:
    """Make so many sentences for each split, all different within a split and between splits."""
    generator = random.Random(f"sentences {seed}")
    seen: set[str] = set()
    sentences: dict[str, list[str]] = {}
    for split, count in counts.items():
        sentences[split] = []
        while len(sentences[split]) < count:
            sentence = make_sentence(generator)
            if sentence not in seen:
                seen.add(sentence)
                sentences[split].append(sentence)
    return sentences


def _say_clause(generator: random.Random) -> str:
    clause = generator.choice(CLAUSES)
    return " ".join(place if isinstance(place, str) else generator.choice(place) for place in clause)
