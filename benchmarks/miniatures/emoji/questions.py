"""What can be asked and said about scenes, with the truth that the scenes' records hold.

All functions are pure: pictures' contents in, texts with their answers out. What people could argue
about is not asked: a poodle is never "no dog", nothing near the middle is on the left, and animals
are not counted in front of a photograph of a cat.

Coordinates are pixels, y downwards; a box is (x, y, width, height).
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from benchmarks.miniatures.emoji.naming import (
    GROUNDS,
    KINDS,
    Ground,
    Noun,
    draw_contents,
    is_apart,
    siblings,
)

T = TypeVar("T")
Box = tuple[int, int, int, int]

QUADRANTS = ("top left", "top right", "bottom left", "bottom right")
SIDES = ("left", "right")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")
COUNTED = {"animal": "animals", "food": "foods"}
UNSEEN = ("old", "new", "expensive", "famous")  # what no drawing shows
OBJECTS = (2, 4)  # of a scene, fewest and most

# Sub-groups that have a name of their own, and labels of others that some would call so, too.
CALLED = {
    "animal-mammal": ("a mammal", "whale dolphin"),
    "animal-bird": ("a bird", ""),
    "animal-bug": ("a bug", ""),
    "animal-marine": ("a marine animal", "crocodile turtle penguin frog"),
    "animal-reptile": ("a reptile", "frog"),
    "plant-flower": ("a flower", "cactus shamrock herb seedling"),
    "food-fruit": ("a fruit", "avocado eggplant cucumber chestnut peanuts potato carrot"),
    "food-vegetable": ("a vegetable", "tomato mushroom herb"),
    "food-sweet": ("a sweet", "pancakes croissant dango oden popcorn"),
}

BESIDE = "what is {side} of the {name}?"
HOW_MANY = "how many {things} are there?"
IS_THERE = "{verb} there {phrase}?"
WHAT_KIND = "what kind of thing is in the {quadrant}?"
WHERE = "where {verb} the {name}?"

ONE_HAS = "the {side} image has {phrase}"
BOTH_HAVE = "both images contain {phrase}"
TWICE = "one image shows {phrase} twice"
IN_TOTAL = "there are {number} objects in total"

THERE_IS = "there {verb} {phrase}"
IS_IN = "the {name} {verb} in the {quadrant}"
IS_UNSEEN = "the {name} {verb} {adjective}"

EXPRESSIONS = ("the {name}", "{name}", "{phrase}")
TEMPLATES = (
    *(BESIDE, HOW_MANY, IS_THERE, WHAT_KIND, WHERE, ONE_HAS, BOTH_HAVE, TWICE, IN_TOTAL),
    *(THERE_IS, IS_IN, IS_UNSEEN, *EXPRESSIONS),
)


@dataclass(frozen=True)
class Thing:
    """An object of a scene."""

    noun: Noun
    box: Box

    @property
    def centre(self) -> tuple[float, float]:
        x, y, width, height = self.box
        return x + width / 2, y + height / 2


@dataclass(frozen=True)
class Picture:
    """Things in front of a photograph, whose id is `ground`; its sides are `size` px."""

    things: tuple[Thing, ...]
    ground: str
    size: int

    @property
    def nouns(self) -> list[Noun]:
        return [thing.noun for thing in self.things]

    @property
    def behind(self) -> Ground:
        return GROUNDS.get(self.ground, Ground())


@dataclass(frozen=True)
class Question:
    """`scene`: its place among those given; `alternative`: another right answer, which few give."""

    scene: int
    family: str
    text: str
    answer: str
    alternative: str | None = None


@dataclass(frozen=True)
class Statement:
    """`form`: the template; `label`: "entailment", "neutral" or "contradiction"."""

    scene: int
    form: str
    text: str
    label: str


@dataclass(frozen=True)
class Contents:
    """What one or two pictures shall hold; `named` is all that is told of them as well."""

    images: tuple[tuple[Noun, ...], ...]

    @property
    def named(self) -> set[Noun]:
        return {noun for image in self.images for noun in image}


@dataclass(frozen=True)
class Pair(Contents):
    """Left and right picture, a true and a false sentence, and what the latter is about."""

    template: str
    true: str
    false: str
    denied: Noun | None = None

    @property
    def named(self) -> set[Noun]:
        return super().named | ({self.denied} if self.denied else set())


@dataclass(frozen=True)
class Referred(Contents):
    """One picture, and which of its contents is meant."""

    meant: Noun


def words() -> set[str]:
    """All words of questions, answers and sentences, beside the names of concepts."""
    fixed = [re.sub(r"{\w+}|\?", " ", template) for template in TEMPLATES]
    places = [other for quadrant in QUADRANTS for other in (quadrant, _other_place(quadrant))]
    values = [*places, *SIDES, *NUMBERS, *UNSEEN, *KINDS, *COUNTED.values(), "objects"]
    values += [phrase for phrase, _ in CALLED.values()]
    values += ["a", "an", "is", "are", "yes", "no", *map(str, range(OBJECTS[1] + 1))]
    return {word for text in (*fixed, *values) for word in text.split()}


def balanced(items: Iterable[T], stratum: Callable[[T], str], count: int) -> list[T]:
    """Up to `count` items, the strata as equally frequent as can be, earlier items first.

    The first item of every stratum, then the second of every one, and so on.
    """
    seen: Counter[str] = Counter()
    rounds: list[tuple[int, T]] = []
    for item in items:
        rounds.append((seen[stratum(item)], item))
        seen[stratum(item)] += 1
    return [item for _, item in sorted(rounds, key=lambda pair: pair[0])[:count]]


def matched(ones: Iterable[T], others: Iterable[T], text: Callable[[T], str]) -> list[tuple[T, T]]:
    """Pairs of one and another of the same text, each used once, in the order of `ones`.

    A set of such pairs says each text as often with either answer: the text alone tells nothing.
    """
    waiting: defaultdict[str, list[T]] = defaultdict(list)
    for other in others:
        waiting[text(other)].append(other)
    for stack in waiting.values():
        stack.reverse()
    return [(one, waiting[text(one)].pop()) for one in ones if waiting[text(one)]]


def quadrants(thing: Thing, size: int) -> list[str]:
    """The quadrants of the picture that a person could see its centre in; one if that is clear.

    Nearer than 1/16 of the side to a middle line, a centre is on both sides of the line.
    """
    x, y = thing.centre
    low, high = size / 2 - size / 16, size / 2 + size / 16
    down = [name for name, inside in (("top", y < high), ("bottom", y > low)) if inside]
    across = [name for name, inside in (("left", x < high), ("right", x > low)) if inside]
    return [f"{row} {column}" for row in down for column in across]


def beside(thing: Thing, things: Sequence[Thing], side: str) -> Thing | None:
    """The only other thing on that side of it; None if there is none, several, or one in doubt.

    On the left is what ends before the thing begins. What overlaps it across and has its centre
    further left is in doubt.
    """
    found = []
    x, _, width, _ = thing.box
    for other in things:
        if other == thing:
            continue
        left, _, extent, _ = other.box
        ahead = thing.centre[0] - other.centre[0]
        if side == "right":
            ahead = -ahead
        if left + extent <= x if side == "left" else left >= x + width:
            found.append(other)
        elif ahead > 0:
            return None
    return found[0] if len(found) == 1 else None


def scene_questions(scene: int, picture: Picture) -> list[Question]:
    """All questions of the families "beside", "objects", "count", "kind" and "where"."""
    things, size = picture.things, picture.size
    found = [_how_many(scene, "objects", "objects", len(things))]
    for thing in things:
        for side in SIDES:
            neighbour = beside(thing, things, side)
            if neighbour is not None:
                noun = neighbour.noun
                text = BESIDE.format(side=side, name=thing.noun.name)
                alias = noun.aliases[0] if noun.aliases else None
                found.append(Question(scene, "beside", text, noun.name, alias))
        possible = quadrants(thing, size)
        if len(possible) == 1:
            text = WHERE.format(verb=thing.noun.verb, name=thing.noun.name)
            place = possible[0]
            found.append(Question(scene, "where", text, place, _other_place(place)))
    kinds = [noun.kind for noun in picture.nouns]
    for kind, plural in COUNTED.items():
        in_doubt = kind in picture.behind.kinds or any(n.is_disputed for n in picture.nouns)
        if not in_doubt:
            found.append(_how_many(scene, "count", plural, kinds.count(kind)))
    for quadrant in QUADRANTS:
        inside = [thing for thing in things if quadrant in quadrants(thing, size)]
        if len(inside) == 1 and len(quadrants(inside[0], size)) == 1:
            answer = inside[0].noun.kind
            if answer is not None:
                text = WHAT_KIND.format(quadrant=quadrant)
                found.append(Question(scene, "kind", text, answer))
    return found


def presence_question(scene: int, noun: Noun, present: bool) -> Question:
    """ "is there a dog?" """
    text = IS_THERE.format(verb=noun.verb, phrase=noun.phrase)
    return Question(scene, "presence", text, "yes" if present else "no")


def absent(picture: Picture, pool: Iterable[Noun]) -> tuple[list[Noun], list[Noun]]:
    """Concepts that are absent without doubt: of the sub-group of a thing that is there (akin), and
    of other sub-groups."""
    there = {noun.subgroup for noun in picture.nouns}
    missing = [
        noun
        for noun in pool
        if noun.name not in picture.behind.names and is_apart(noun, picture.nouns)
    ]
    akin = [noun for noun in missing if noun.subgroup in there]
    return akin, [noun for noun in missing if noun.subgroup not in there]


def ten_answers(answer: str, alternative: str | None, disputed: bool) -> list[str]:
    """What ten people say: all the same, or one of them the alternative, or three if disputed."""
    if alternative is None:
        return [answer] * 10
    others = 3 if disputed else 1
    return [answer] * (10 - others) + [alternative] * others


def draw_pair(
    template: str,
    pool: Sequence[Noun],
    generator: np.random.Generator,
    objects: Sequence[int] = OBJECTS,
) -> Pair:
    """Contents of two images and a true and a false sentence of PAIR_TEMPLATES about them.

    Each image has `objects[0]` to `objects[1]` things.

    Over many pairs a template's true sentences name the same things as often as its false ones.
    """
    return PAIR_TEMPLATES[template](pool, generator, objects)


def statements(scene: int, picture: Picture, pool: Iterable[Noun]) -> list[Statement]:
    """All that is said about a picture in SNLI-VE's manner, by the templates of `form`.

    "object": it is there, or absent while one of its sub-group is there. "sub-group": one of it is
    there, or none. "place": the right quadrant, or a wrong one. "unseen": of what is there, what no
    drawing shows.
    """
    found: list[Statement] = []

    def say(form: str, label: str, template: str, **values: str) -> None:
        found.append(Statement(scene, form, template.format(**values), label))

    akin, _ = absent(picture, pool)
    for label, named in (("entailment", picture.nouns), ("contradiction", akin)):
        for noun in named:
            say("object", label, THERE_IS, verb=noun.verb, phrase=noun.phrase)
    there = {noun.subgroup for noun in picture.nouns}
    doubtful = {noun.name for noun in picture.nouns}
    for subgroup, (phrase, others) in CALLED.items():
        if subgroup in there:
            say("sub-group", "entailment", THERE_IS, verb="is", phrase=phrase)
        elif subgroup not in picture.behind.subgroups and doubtful.isdisjoint(others.split()):
            say("sub-group", "contradiction", THERE_IS, verb="is", phrase=phrase)
    for thing in picture.things:
        told = {"name": thing.noun.name, "verb": thing.noun.verb}
        possible = quadrants(thing, picture.size)
        for quadrant in QUADRANTS if len(possible) == 1 else ():
            label = "entailment" if quadrant in possible else "contradiction"
            say("place", label, IS_IN, quadrant=quadrant, **told)
        for adjective in UNSEEN:
            say("unseen", "neutral", IS_UNSEEN, adjective=adjective, **told)
    return found


def draw_single(
    pool: Sequence[Noun], generator: np.random.Generator, objects: Sequence[int] = OBJECTS
) -> Contents:
    """Some concepts that one can tell apart, drawn evenly; as many as `objects` says."""
    count = _count(objects, generator)
    return Contents((tuple(draw_contents(pool, count, generator)),))


def draw_referred(
    pool: Sequence[Noun],
    akin: bool,
    animal: bool | None,
    generator: np.random.Generator,
    objects: Sequence[int] = OBJECTS,
) -> Referred:
    """A picture's contents, and which of it is meant.

    Args:
        akin: whether another thing is of its sub-group (a distractor), or none is.
        animal: whether it is an animal; None leaves that open.
        objects: fewest and most of the picture; two at least, if one is akin.

    Raises:
        ValueError: no concept of the pool is of that sort.
    """
    fit = [
        noun
        for noun in pool
        if animal in (None, noun.subgroup.startswith("animal-"))
        and (not akin or siblings(noun, pool))
    ]
    if not fit:
        raise ValueError(f"no concept with akin={akin}, animal={animal}: give more classes")
    meant = _one_of(fit, generator)
    given = [meant, _one_of(siblings(meant, pool), generator)] if akin else [meant]
    count = max(_count(objects, generator), len(given))
    contents = draw_contents(pool, count, generator, given, without={meant.subgroup})
    return Referred((tuple(_mixed(contents, generator)),), meant)


def expression(noun: Noun, others: Iterable[Noun], generator: np.random.Generator) -> str:
    """A few words that fit `noun` and none of the other things, without words of place.

    An alias may be wider than the label ("boat" of a sailboat), so that the label alone is used
    where another thing is of the sub-group.
    """
    alone = all(other.subgroup != noun.subgroup for other in others)
    names = [noun.name, *(noun.aliases if alone else ())]
    name = _one_of(names, generator)
    phrase = noun.phrase if name == noun.name else f"the {name}"
    return _one_of(EXPRESSIONS, generator).format(name=name, phrase=phrase)


def _how_many(scene: int, family: str, things: str, number: int) -> Question:
    text = HOW_MANY.format(things=things)
    return Question(scene, family, text, str(number), NUMBERS[number])


def _other_place(quadrant: str) -> str:
    return quadrant.replace("top", "upper").replace("bottom", "lower")


def _one_has(pool: Sequence[Noun], generator: np.random.Generator, objects: Sequence[int]) -> Pair:
    """The false sentence names what the other image has, or, as often, what neither has."""
    left, right = _count(objects, generator), _count(objects, generator)
    missing, *contents = _roles(pool, left + right + 1, generator)
    images = {"left": contents[:left], "right": contents[left:]}
    side = _one_of(SIDES, generator)
    other = images["right" if side == "left" else "left"]
    true = _one_of(images[side], generator)
    false = _one_of(other, generator) if generator.random() < 0.5 else missing
    texts = [ONE_HAS.format(side=side, phrase=noun.phrase) for noun in (true, false)]
    return _pair("one has", list(images.values()), texts, generator, false)


def _both_have(
    pool: Sequence[Noun], generator: np.random.Generator, objects: Sequence[int]
) -> Pair:
    """The false sentence names what one of them has."""
    left, right = _not_alone(objects, generator)
    shared, *others = _roles(pool, left + right - 1, generator)
    false = _one_of(others, generator)
    texts = [BOTH_HAVE.format(phrase=noun.phrase) for noun in (shared, false)]
    images = [shared, *others[: left - 1]], [shared, *others[left - 1 :]]
    return _pair("both have", images, texts, generator, false)


def _twice(pool: Sequence[Noun], generator: np.random.Generator, objects: Sequence[int]) -> Pair:
    """The false sentence names what is there once."""
    one, other = _not_alone(objects, generator)
    if one < 2:
        one, other = other, one
    double, *others = _roles(pool, one + other - 1, generator)
    false = _one_of(others, generator)
    texts = [TWICE.format(phrase=noun.phrase) for noun in (double, false)]
    images = [[double, double, *others[: one - 2]], others[one - 2 :]]
    return _pair("twice", _mixed(images, generator), texts, generator, false)


def _total(pool: Sequence[Noun], generator: np.random.Generator, objects: Sequence[int]) -> Pair:
    """All totals are equally frequent, in true and in false sentences."""
    fewest, most = objects
    totals = range(2 * fewest, 2 * most + 1)
    true = _one_of(totals, generator)
    false = _one_of([number for number in totals if number != true], generator)
    left = int(generator.integers(max(fewest, true - most), min(most, true - fewest) + 1))
    images = [draw_contents(pool, count, generator) for count in (left, true - left)]
    texts = [IN_TOTAL.format(number=NUMBERS[number]) for number in (true, false)]
    return _pair("total", images, texts, generator)


PAIR_TEMPLATES = {"one has": _one_has, "both have": _both_have, "twice": _twice, "total": _total}


def _pair(
    template: str,
    images: Sequence[Sequence[Noun]],
    texts: Sequence[str],
    generator: np.random.Generator,
    denied: Noun | None = None,
) -> Pair:
    contents = tuple(tuple(_mixed(image, generator)) for image in images)
    return Pair(contents, template, texts[0], texts[1], denied)


def _roles(pool: Sequence[Noun], count: int, generator: np.random.Generator) -> list[Noun]:
    """Different concepts, any of which is as likely in any place: with a true or a false sentence.

    Those drawn later are seldom such as have many look-alikes.
    """
    return _mixed(draw_contents(pool, count, generator), generator)


def _count(objects: Sequence[int], generator: np.random.Generator) -> int:
    return int(generator.integers(objects[0], objects[1] + 1))


def _not_alone(objects: Sequence[int], generator: np.random.Generator) -> tuple[int, int]:
    """Numbers of things in two pictures, more than one in one of them."""
    while True:
        left, right = _count(objects, generator), _count(objects, generator)
        if left + right > 2:
            return left, right


def _one_of(values: Sequence[T], generator: np.random.Generator) -> T:
    return values[int(generator.integers(len(values)))]


def _mixed(values: Sequence[T], generator: np.random.Generator) -> list[T]:
    """In random order: the first of a picture's contents finds its place the easiest."""
    return [values[i] for i in generator.permutation(len(values))]
