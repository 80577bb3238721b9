"""Reads questions and sentences about scenes and finds the truth, from labels and boxes alone.

Written without the code that makes them. Anything that can be argued about is an error.
"""

import re
from dataclasses import dataclass
from itertools import combinations

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")


@dataclass(frozen=True)
class Seen:
    """`things`: (name, sub-group, box) of each."""

    things: tuple[tuple[str, str, tuple[int, int, int, int]], ...]
    ground: str
    size: int = 96

    @property
    def names(self) -> list[str]:
        return [name for name, _, _ in self.things]

    @property
    def subgroups(self) -> list[str]:
        return [subgroup for _, subgroup, _ in self.things]

    def box(self, name: str) -> tuple[int, int, int, int]:
        (found,) = [box for other, _, box in self.things if other == name]
        return found


PHRASE = r"(?:an? )?([a-z]+)"
SPECIES = {
    "mammal": "animal-mammal",
    "bird": "animal-bird",
    "bug": "animal-bug",
    "marine animal": "animal-marine",
    "reptile": "animal-reptile",
    "flower": "plant-flower",
    "fruit": "food-fruit",
    "vegetable": "food-vegetable",
    "sweet": "food-sweet",
}


def answer(question: str, seen: Seen) -> str:
    """The only right answer."""
    if found := re.fullmatch(r"what is (left|right) of the ([a-z]+)\?", question):
        return _neighbour(seen, found[1], found[2])
    if found := re.fullmatch(r"how many ([a-z]+) are there\?", question):
        return str(_number(seen, found[1]))
    if found := re.fullmatch(rf"(?:is|are) there {PHRASE}\?", question):
        return "yes" if found[1] in seen.names else "no"
    if found := re.fullmatch(r"what kind of thing is in the (.+)\?", question):
        (inside,) = [name for name in seen.names if found[1] in quadrants(seen, name)]
        assert len(quadrants(seen, inside)) == 1
        (subgroup,) = [s for n, s, _ in seen.things if n == inside]
        return kind(subgroup)
    found = re.fullmatch(r"where (?:is|are) the ([a-z]+)\?", question)
    assert found, question
    (place,) = quadrants(seen, found[1])
    return place


def holds(sentence: str, *seen: Seen) -> bool | None:
    """Whether it is true; None for what can't be seen."""
    left, right = seen[0], seen[-1]
    if found := re.fullmatch(rf"the (left|right) image has {PHRASE}", sentence):
        return found[2] in (left if found[1] == "left" else right).names
    if found := re.fullmatch(rf"both images contain {PHRASE}", sentence):
        return all(found[1] in image.names for image in seen)
    if found := re.fullmatch(rf"one image shows {PHRASE} twice", sentence):
        counts = [image.names.count(found[1]) for image in seen]
        assert max(counts) <= 2
        return counts.count(2) == 1
    if found := re.fullmatch(r"there are ([a-z]+) objects in total", sentence):
        return NUMBERS.index(found[1]) == len(left.things) + len(right.things)
    if (found := re.fullmatch(r"there is a (.+)", sentence)) and found[1] in SPECIES:
        return SPECIES[found[1]] in left.subgroups
    if found := re.fullmatch(rf"there (?:is|are) {PHRASE}", sentence):
        return found[1] in left.names
    if found := re.fullmatch(r"the ([a-z]+) (?:is|are) in the (.+)", sentence):
        (place,) = quadrants(left, found[1])
        return place == found[2]
    found = re.fullmatch(r"the ([a-z]+) (?:is|are) (?:old|new|expensive|famous)", sentence)
    assert found, sentence
    assert found[1] in left.names
    return None


def quadrants(seen: Seen, name: str) -> set[str]:
    """All of them that the middle of the box is in, or nearer to than 6 of 96 pixels."""
    x, y, width, height = seen.box(name)
    across, down = x + width / 2 - seen.size / 2, y + height / 2 - seen.size / 2
    near = seen.size / 16
    return {
        f"{row} {column}"
        for row, below in (("top", -down), ("bottom", down))
        for column, aside in (("left", -across), ("right", across))
        if below > -near and aside > -near
    }


def kind(subgroup: str) -> str:
    first = subgroup.split("-")[0]
    return first if first in ("animal", "plant", "food", "place", "transport") else "object"


def overlap(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return all(one[i] < other[i] + other[i + 2] and other[i] < one[i] + one[i + 2] for i in (0, 1))


def check_picture(seen: Seen) -> None:
    """Boxes inside, none on another."""
    for _, _, (x, y, width, height) in seen.things:
        assert min(x, y) >= 0
        assert max(x + width, y + height) <= seen.size
    for (_, _, one), (_, _, other) in combinations(seen.things, 2):
        assert not overlap(one, other)


def _neighbour(seen: Seen, side: str, name: str) -> str:
    x, _, width, _ = seen.box(name)
    beyond = []
    for other, _, (left, _, extent, _) in seen.things:
        if other == name:
            continue
        ends = left + extent <= x if side == "left" else left >= x + width
        middle = left + extent / 2 - x - width / 2
        leans = middle < 0 if side == "left" else middle > 0
        assert ends or not leans, f"{other} is neither on the {side} of {name} nor elsewhere"
        if ends:
            beyond.append(other)
    (found,) = beyond
    return found


def _number(seen: Seen, things: str) -> int:
    if things == "objects":
        return len(seen.things)
    first = {"animals": "animal-", "foods": "food-"}[things]
    return sum(subgroup.startswith(first) for subgroup in seen.subgroups)
