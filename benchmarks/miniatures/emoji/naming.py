"""How concepts are spoken of in questions and sentences, and which of them people tell apart."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.miniatures.emoji.concepts import Concept


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Names that one could give to the other, or drawings that differ by a detail.
LIKE = tuple(
    _names(names)
    for names in (
        "dog poodle",
        "wolf fox",
        "cat tiger leopard",
        "ox cow",
        "pig boar",
        "mouse rat hamster",
        "ewe ram goat",
        "chicken rooster turkey",
        "whale dolphin",
        "fish blowfish shark",
        "squid octopus",
        "melon watermelon",
        "candy lollipop",
        "blossom rose hibiscus sunflower tulip bouquet rosette",
        "herb shamrock seedling",
        "house houses",
        "mountain volcano",
        "sun sunrise sunset",
        "cloud fog tornado",
        "tornado cyclone",
        "train locomotive metro tram monorail station trolleybus",
        "bus minibus trolleybus",
        "automobile taxi minibus",
        "ship ferry sailboat speedboat",
        "watch stopwatch",
        "fireworks sparkler sparkles star",
        "glasses sunglasses",
        "purse handbag",
        "megaphone loudspeaker",
        "books notebook ledger newspaper memo clipboard",
        "label bookmark",
        "link chains",
        "pen pencil crayon paintbrush",
        "keyboard laptop",
    )
)
_LIKE_IT = {
    name: frozenset().union(*(names for names in LIKE if name in names))
    for name in frozenset().union(*LIKE)
}
WHOLE_SUBGROUPS = {"bird": "animal-bird", "bug": "animal-bug"}  # labels that name all of them
# Adjectives, what one does rather than has, and what OpenMoji draws as a computer's mouse (scroll).
NO_NOUNS = _names(
    "foggy locked unlocked camping cooking construction wedding tennis bowling badminton scroll"
)
NO_ALIASES = {"date", "compression", "mega", "city sunrise", "flipper", "racehorse", "ski"}
PLURAL = _names(
    "grapes cherries peanuts pancakes houses fireworks sparkles skis glasses sunglasses jeans "
    "books scissors chains"
)
UNCOUNTED = _names("bread bacon popcorn spaghetti oden sushi dango custard sake fog")
PLACE_WORDS = _names(
    "left right top bottom upper lower middle center centre above below under front behind near "
    "next side corner first second last"
)
KINDS = ("animal", "plant", "food", "place", "transport", "object")
# Some would call these another kind, or none of the kinds.
DISPUTED_KINDS = _names(
    "crab shrimp squid octopus fish turkey chicken chestnut mushroom herb sunset sunrise cityscape "
    "fountain tent seat anchor satellite"
)


@dataclass(frozen=True)
class Ground:
    """What a photograph behind a scene shows by itself: labels, sub-groups and kinds."""

    names: frozenset[str] = frozenset()
    subgroups: frozenset[str] = frozenset()
    kinds: frozenset[str] = frozenset()


FLOWERS = _names("blossom rose hibiscus sunflower tulip bouquet rosette")
GROUNDS = {
    "astronaut": Ground(_names("rocket")),
    "chelsea": Ground(_names("cat tiger leopard lion"), _names("animal-mammal"), _names("animal")),
    "grass": Ground(_names("herb seedling shamrock"), kinds=_names("plant")),
    "hubble_deep_field": Ground(_names("star sparkles sparkler fireworks comet snowflake")),
    "china": Ground(
        _names("castle house houses hotel bank school hospital synagogue mosque church")
    ),
    "coffee": Ground(_names("spoon"), kinds=_names("food")),
    "rocket": Ground(_names("rocket")),
    "flower": Ground(FLOWERS, _names("plant-flower"), _names("plant")),
}  # "brick" and "gravel" show nothing of the sort


@dataclass(frozen=True)
class Noun:
    """What a concept is called.

    Attributes:
        name: its label in lower case. aliases: other names.
    """

    concept: int
    name: str
    aliases: tuple[str, ...]
    group: str
    subgroup: str

    @property
    def kind(self) -> str | None:
        """One of KINDS; None where people would not agree."""
        first = "object" if self.group == "objects" else self.subgroup.split("-")[0]
        return first if first in KINDS and not self.is_disputed else None

    @property
    def is_disputed(self) -> bool:
        return self.name in DISPUTED_KINDS

    @property
    def phrase(self) -> str:
        """With the article that it takes: "a dog", "an owl", "cherries"."""
        if self.name in PLURAL or self.name in UNCOUNTED:
            return self.name
        vowel = self.name[0] in "aeiou" and self.name not in ("unicorn", "ewe")
        return f"{'an' if vowel else 'a'} {self.name}"

    @property
    def verb(self) -> str:
        return "are" if self.name in PLURAL else "is"


def nouns(
    concepts: Iterable[Concept], names: Callable[[Concept], Sequence[str]]
) -> dict[int, Noun]:
    """The concepts that can be spoken of, by id. `names(concept)`: its label, then its aliases.

    Aliases of more than two words, with digits or words of place ("dog2", "lower left crayon"), and
    NO_ALIASES are left out.
    """
    return {
        concept.id: Noun(
            concept.id,
            concept.label.lower(),
            tuple(alias for alias in names(concept)[1:] if _is_plain(alias)),
            concept.group,
            concept.subgroup,
        )
        for concept in concepts
        if concept.label.lower() not in NO_NOUNS
    }


def confusable(one: Noun, other: Noun) -> bool:
    """Whether a person might give one the other's name: a poodle is a dog, too."""
    return (
        other.name in _LIKE_IT.get(one.name, ())
        or WHOLE_SUBGROUPS.get(one.name) == other.subgroup
        or WHOLE_SUBGROUPS.get(other.name) == one.subgroup
    )


def is_apart(noun: Noun, others: Iterable[Noun]) -> bool:
    """Whether it is none of the others and confusable with none of them."""
    return not any(noun.concept == other.concept or confusable(noun, other) for other in others)


def siblings(noun: Noun, pool: Iterable[Noun]) -> list[Noun]:
    """Other concepts of its sub-group that nobody would confuse with it."""
    return [n for n in pool if n.subgroup == noun.subgroup and is_apart(n, [noun])]


def draw_contents(
    pool: Sequence[Noun],
    count: int,
    generator: np.random.Generator,
    given: Sequence[Noun] = (),
    without: Collection[str] = (),
) -> list[Noun]:
    """`given` and others drawn evenly, `count` in all, no two of them confusable.

    Args:
        without: sub-groups that the others don't belong to.

    Raises:
        ValueError: the pool has too few.
    """
    chosen = list(given)
    for i in generator.permutation(len(pool)):
        if len(chosen) < count and pool[i].subgroup not in without and is_apart(pool[i], chosen):
            chosen.append(pool[i])
    if len(chosen) < count:
        raise ValueError(
            f"{count} concepts asked for that one can tell apart, but only {len(chosen)} of the "
            f"{len(pool)} are: give more classes"
        )
    return chosen


def _is_plain(alias: str) -> bool:
    words = alias.lower().split()
    plain = all(word.isalpha() and word not in PLACE_WORDS for word in words)
    return plain and len(words) <= 2 and alias not in NO_ALIASES
