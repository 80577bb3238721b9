"""Reads questions and sentences about scenes and finds the truth, from labels and boxes alone.

Written without the code that makes them. Anything that can be argued about is an error.
"""

import re
from dataclasses import dataclass

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")
PHRASE = r"(?:an? )?([a-z]+)"


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


def answer(question: str, seen: Seen) -> str:
    """The only right answer."""
    if question == "how many objects are there?":
        return str(len(seen.things))
    if found := re.fullmatch(rf"(?:is|are) there {PHRASE}\?", question):
        return "yes" if found[1] in seen.names else "no"
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
    if found := re.fullmatch(r"there are ([a-z]+) objects in total", sentence):
        return NUMBERS.index(found[1]) == len(left.things) + len(right.things)
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
    ((x, y, width, height),) = [box for other, _, box in seen.things if other == name]
    across, down = x + width / 2 - seen.size / 2, y + height / 2 - seen.size / 2
    near = seen.size / 16
    return {
        f"{row} {column}"
        for row, below in (("top", -down), ("bottom", down))
        for column, aside in (("left", -across), ("right", across))
        if below > -near and aside > -near
    }
