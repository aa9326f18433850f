"""The text that the toy base is trained on: endless small exercises, drawn from a seeded generator.

The base learns to read a question, to copy from it and to answer briefly. The tasks of the example jobs
(`toybase.tasks`) are kept out of here, so that an adapter has something to learn. Not a benchmark.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

NAMES = ("Anna", "Tom", "Mia", "Ben", "Lena", "Omar", "Ida", "Paul", "Nora", "Max", "Ruth", "Karl")
COLOURS = ("red", "blue", "green", "yellow", "black", "white", "brown", "grey")
KINDS = {
    "animal": ("fox", "cat", "dog", "horse", "owl", "frog", "bear", "duck", "goat", "snake"),
    "fruit": ("apple", "pear", "plum", "grape", "lemon", "melon", "peach", "cherry"),
    "tool": ("hammer", "saw", "drill", "axe", "rake", "knife", "spade", "wrench"),
    "dress": ("coat", "shirt", "hat", "shoe", "scarf", "glove", "sock", "belt"),
    "furniture": ("chair", "table", "bed", "desk", "shelf", "sofa", "bench", "stool"),
}
THINGS = tuple(thing for things in KINDS.values() for thing in things)
COLOUR_OF = {
    "grass": "green", "snow": "white", "coal": "black", "blood": "red", "the sky": "blue", "the sun": "yellow",
    "milk": "white", "a leaf": "green", "the night": "black", "a lemon": "yellow", "mud": "brown", "ash": "grey",
}  # fmt: skip
CAPITAL_OF = {
    "France": "Paris", "Spain": "Madrid", "Italy": "Rome", "Norway": "Oslo", "Egypt": "Cairo", "Japan": "Tokyo",
    "Cuba": "Havana", "Kenya": "Nairobi", "Peru": "Lima", "Greece": "Athens",
}  # fmt: skip
GOOD = ("lovely", "great", "kind", "warm", "bright", "sweet", "fine", "perfect")
BAD = ("awful", "cold", "broken", "dirty", "rude", "dull", "bitter", "slow")
SUBJECTS = ("The food", "The room", "The film", "The trip", "The song", "The host", "The day", "The book")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

# Words for copying only: the base has seen them, and knows nothing about them.
OTHER_WORDS = (
    "plus", "minus", "billing", "delivery", "repair", "account", "attic", "cellar", "garage", "kitchen", "office",
    "odd", "even", "stop", "go", "wait", "noted", "hot", "cold", "big", "small", "early", "late", "open", "shut",
    "rich", "poor", "wet", "dry", "full", "empty", "hard", "soft", "river", "cloud", "stone", "paper", "window",
    "garden", "music", "winter", "silver", "bridge",
)  # fmt: skip
_COPIED = THINGS + COLOURS + OTHER_WORDS + NAMES


@dataclass(frozen=True)
class Exchange:
    """One question and its answer, without any template."""

    question: str
    answer: str


@dataclass(frozen=True)
class Document:
    """One training text: `chat` says whether its exchanges are turns of a conversation or plain lines."""

    exchanges: tuple[Exchange, ...]
    chat: bool


def documents(seed: int) -> Iterator[Document]:
    """Yield documents without end; equal seeds yield equal documents on every machine."""
    rng = random.Random(seed)
    while True:
        if rng.random() < 0.15:
            yield Document((_pattern(rng),), chat=False)
            continue
        turns = 2 if rng.random() < 0.15 else 1
        yield Document(tuple(_exchange(rng) for _ in range(turns)), chat=rng.random() < 0.8)


def _exchange(rng: random.Random) -> Exchange:
    return rng.choice(_MAKERS)(rng)


def _words(rng: random.Random, least: int, most: int) -> list[str]:
    return [rng.choice(_COPIED) for _ in range(rng.randint(least, most))]


def _letters(rng: random.Random, least: int, most: int) -> list[str]:
    return [rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(least, most))]


def _digits(rng: random.Random, least: int, most: int) -> list[str]:
    return [str(rng.randint(0, 9)) for _ in range(rng.randint(least, most))]


def _addition(rng: random.Random) -> Exchange:
    a, b = rng.randint(0, 9), rng.randint(0, 9)
    return Exchange(f"What is {a} plus {b}?", str(a + b))


def _subtraction(rng: random.Random) -> Exchange:
    a, b = sorted((rng.randint(0, 9), rng.randint(0, 9)), reverse=True)
    return Exchange(f"What is {a} minus {b}?", str(a - b))


def _copying(rng: random.Random) -> Exchange:
    items = rng.choice((_words, _letters, _digits))(rng, 1, 6)
    return Exchange("Repeat: " + " ".join(items), " ".join(items))


def _reversing(rng: random.Random) -> Exchange:
    items = rng.choice((_words, _letters, _digits))(rng, 2, 4)
    return Exchange("Reverse: " + " ".join(items), " ".join(reversed(items)))


def _sorting(rng: random.Random) -> Exchange:
    items = _digits(rng, 2, 4)
    return Exchange("Sort: " + " ".join(items), " ".join(sorted(items)))


def _counting(rng: random.Random) -> Exchange:
    items = _words(rng, 1, 6)
    return Exchange("How many words: " + " ".join(items), str(len(items)))


def _capitals(rng: random.Random) -> Exchange:
    letters = _letters(rng, 1, 4)
    return Exchange("Write large: " + " ".join(letters), " ".join(letters).upper())


def _colour(rng: random.Random) -> Exchange:
    thing, colour = rng.choice(tuple(COLOUR_OF.items()))
    return Exchange(f"What colour is {thing}?", colour)


def _kind(rng: random.Random) -> Exchange:
    kind, things = rng.choice(tuple(KINDS.items()))
    return Exchange(f"What kind of thing is a {rng.choice(things)}?", kind)


def _town(rng: random.Random) -> Exchange:
    country, town = rng.choice(tuple(CAPITAL_OF.items()))
    return Exchange(f"Name the capital of {country}.", town)


def _owner(rng: random.Random) -> Exchange:
    owners = rng.sample(NAMES, 2)
    things = rng.sample(THINGS, 2)
    colours = rng.sample(COLOURS, 2)
    story = " ".join(f"{o} has a {c} {t}." for o, c, t in zip(owners, colours, things, strict=True))
    asked = rng.randrange(2)
    if rng.random() < 0.5:
        return Exchange(f"{story} Who has the {things[asked]}?", owners[asked])
    return Exchange(f"{story} What colour is the {things[asked]}?", colours[asked])


def _feeling(rng: random.Random) -> Exchange:
    good = rng.random() < 0.5
    return Exchange(f"{rng.choice(SUBJECTS)} was {rng.choice(GOOD if good else BAD)}. Happy or sad?", _mood(good))


def _mood(good: bool) -> str:
    return "happy" if good else "sad"


def _larger(rng: random.Random) -> Exchange:
    a, b = rng.sample(range(10), 2)
    return Exchange(f"Which is larger, {a} or {b}?", str(max(a, b)))


def _follows(rng: random.Random) -> Exchange:
    items = rng.sample(THINGS, rng.randint(3, 5))
    at = rng.randrange(len(items) - 1)
    return Exchange(f"List: {' '.join(items)}. What follows {items[at]}?", items[at + 1])


def _day(rng: random.Random) -> Exchange:
    at = rng.randrange(len(DAYS))
    return Exchange(f"Which day comes after {DAYS[at]}?", DAYS[(at + 1) % len(DAYS)])


def _member(rng: random.Random) -> Exchange:
    items = _words(rng, 2, 5)
    asked = rng.choice(items) if rng.random() < 0.5 else rng.choice(THINGS)
    return Exchange(f"Is {asked} in: {' '.join(items)}?", "yes" if asked in items else "no")


def _pattern(rng: random.Random) -> Exchange:
    """A run of random items said over and over: what teaches a small model to copy soonest."""
    run = " ".join(rng.choice((_words, _letters, _digits))(rng, 3, 9))
    return Exchange(run, " ".join([run] * rng.randint(1, 3)))


_MAKERS: tuple[Callable[[random.Random], Exchange], ...] = (
    _addition, _subtraction, _copying, _copying, _reversing, _sorting, _counting, _capitals, _colour, _kind, _town,
    _owner, _owner, _feeling, _larger, _follows, _day, _member,
)  # fmt: skip
