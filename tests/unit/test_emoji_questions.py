"""Questions and sentences about pictures: each is true, plain, and says nothing by itself."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from emoji_truth import Seen, answer, holds
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.miniatures.emoji.concepts import Concept
from benchmarks.miniatures.emoji.naming import (
    GROUNDS,
    PLACE_WORDS,
    Noun,
    confusable,
    draw_contents,
    is_apart,
    nouns,
    siblings,
)
from benchmarks.miniatures.emoji.questions import (
    PAIR_TEMPLATES,
    Pair,
    Picture,
    Question,
    Statement,
    Thing,
    absent,
    balanced,
    beside,
    draw_pair,
    draw_referred,
    draw_single,
    expression,
    matched,
    presence_question,
    quadrants,
    scene_questions,
    statements,
    ten_answers,
    words,
)
from benchmarks.miniatures.emoji.render import renderings
from benchmarks.miniatures.emoji.scenes import scene_concepts

SUBGROUPS = {
    "animal-mammal": "dog poodle cat lion elephant",
    "animal-bird": "bird eagle owl",
    "animal-marine": "whale crab",
    "plant-flower": "rose tulip",
    "plant-other": "cactus",
    "food-fruit": "cherries lemon banana",
    "food-prepared": "bread taco",
    "dishware": "spoon",
    "transport-ground": "bus bicycle",
    "sky-weather": "sun cloud",
    "place-building": "castle bank",
    "tool": "wrench bomb",
    "sport": "volleyball",
}
GROUPS = {"tool": "objects", "sport": "activities"}
ALIASES = {"lion": ("lion face",), "bicycle": ("bike",)}
POOL = [
    Noun(number, name, ALIASES.get(name, ()), GROUPS.get(subgroup, "others"), subgroup)
    for number, (name, subgroup) in enumerate(
        (name, subgroup) for subgroup, names in SUBGROUPS.items() for name in names.split()
    )
]
BY_NAME = {noun.name: noun for noun in POOL}


def picture(ground: str = "brick", **boxes: tuple[int, int, int, int]) -> Picture:
    return Picture(tuple(Thing(BY_NAME[n], box) for n, box in boxes.items()), ground, 96)


def seen(shown: Picture) -> Seen:
    things = tuple((t.noun.name, t.noun.subgroup, t.box) for t in shown.things)
    return Seen(things, shown.ground, shown.size)


def test_names() -> None:
    table = [
        Concept(3, "1", "Dog", ["dog2", "hound", "lower left dog"], [], "animals", "animal-mammal"),
        Concept(4, "2", "foggy", [], [], "travel-places", "place-other"),
        Concept(5, "3", "calendar", ["date", "a big old calendar"], [], "objects", "office"),
    ]
    found = nouns(table, lambda concept: [concept.label, *concept.aliases])
    assert set(found) == {3, 5}, "an adjective is nothing to ask for"
    assert found[3] == Noun(3, "dog", ("hound",), "animals", "animal-mammal")
    assert found[5].aliases == ()
    assert [found[3].kind, found[5].kind] == ["animal", "object"]


@pytest.mark.parametrize(
    ("name", "phrase", "verb"),
    [
        ("dog", "a dog", "is"),
        ("eagle", "an eagle", "is"),
        ("cherries", "cherries", "are"),
        ("bread", "bread", "is"),
        ("ewe", "a ewe", "is"),
    ],
)
def test_articles(name: str, phrase: str, verb: str) -> None:
    noun = Noun(0, name, (), "", "")
    assert (noun.phrase, noun.verb) == (phrase, verb)


def test_kinds_that_nobody_disputes() -> None:
    kinds = {name: noun.kind for name, noun in BY_NAME.items()}
    assert kinds["crab"] is None, "some would call it food"
    assert kinds["spoon"] is kinds["sun"] is kinds["volleyball"] is None
    assert [kinds[n] for n in ("owl", "cactus", "taco", "bank", "bus", "bomb")] == [
        *("animal", "plant", "food", "place", "transport", "object")
    ]


def test_look_alikes() -> None:
    dog, poodle, cat, bird, owl, eagle = (
        BY_NAME[n] for n in ("dog", "poodle", "cat", "bird", "owl", "eagle")
    )
    assert confusable(dog, poodle)
    assert confusable(owl, bird)
    assert confusable(bird, owl)
    assert not confusable(owl, eagle)
    assert not confusable(dog, bird)
    assert not is_apart(dog, [cat, poodle])
    assert not is_apart(dog, [dog])
    assert is_apart(dog, [cat, owl])
    assert [n.name for n in siblings(dog, POOL)] == ["cat", "lion", "elephant"]
    assert siblings(bird, POOL) == []


@given(st.integers(0, 10_000), st.integers(1, 4))
def test_contents_can_be_told_apart(seed: int, count: int) -> None:
    generator = np.random.default_rng(seed)
    given_ones = [BY_NAME["dog"]]
    drawn = draw_contents(POOL, count, generator, given_ones, without={"animal-mammal"})
    assert len(drawn) == count
    assert drawn[0].name == "dog"
    assert all(noun.subgroup != "animal-mammal" for noun in drawn[1:])
    assert all(is_apart(noun, drawn[:i]) for i, noun in enumerate(drawn))


def test_too_small_a_pool() -> None:
    pool = [BY_NAME["dog"], BY_NAME["poodle"]]
    with pytest.raises(ValueError, match=r"2 concepts asked for .* but only 1 of the 2 are: give"):
        draw_contents(pool, 2, np.random.default_rng(0))


@given(st.lists(st.sampled_from("abc"), max_size=40), st.integers(1, 40))
def test_balanced(letters: list[str], count: int) -> None:
    items = list(enumerate(letters))
    chosen = balanced(items, lambda item: item[1], count)
    assert len(chosen) == min(count, len(items))
    assert len(set(chosen)) == len(chosen)
    there, kept = Counter(letters), Counter(letter for _, letter in chosen)
    for letter in there:
        own = [item for item in chosen if item[1] == letter]
        assert own == [item for item in items if item[1] == letter][: len(own)], "the earliest"
        if kept[letter] < there[letter]:  # only what has run out may be the rarer by more than one
            assert kept[letter] >= max(kept.values()) - 1


@given(st.lists(st.sampled_from("abc")), st.lists(st.sampled_from("bcd")))
def test_matched(ones: list[str], others: list[str]) -> None:
    first = [(letter, f"one {i}") for i, letter in enumerate(ones)]
    second = [(letter, f"other {i}") for i, letter in enumerate(others)]
    pairs = matched(first, second, lambda item: item[0])
    assert all(one[0] == other[0] for one, other in pairs)
    assert Counter(one[0] for one, _ in pairs) == Counter(ones) & Counter(others)
    flat = [item for pair in pairs for item in pair]
    assert len(set(flat)) == len(flat)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0, 0, 20, 20), ["top left"]),
        ((70, 60, 20, 20), ["bottom right"]),
        ((30, 0, 24, 20), ["top left"]),  # the centre is at 42: six to the left of the middle
        ((31, 0, 24, 20), ["top left", "top right"]),
        ((38, 38, 20, 20), ["top left", "top right", "bottom left", "bottom right"]),
    ],
)
def test_quadrants(box: tuple[int, int, int, int], expected: list[str]) -> None:
    assert quadrants(Thing(BY_NAME["dog"], box), 96) == expected


def test_beside() -> None:
    shown = picture(
        dog=(40, 40, 20, 20), cat=(0, 0, 20, 20), owl=(70, 70, 20, 20), bus=(50, 0, 20, 20)
    )
    dog, cat, owl, bus = shown.things
    assert beside(dog, shown.things, "left") == cat
    assert beside(dog, shown.things, "right") is None, "the bus leans to the right but overlaps"
    assert beside(owl, shown.things, "left") is None, "three are on the left"
    assert beside(bus, shown.things, "right") == owl
    assert beside(cat, shown.things, "left") is None
    touching = picture(dog=(40, 40, 20, 20), cat=(20, 40, 20, 20))
    assert beside(touching.things[0], touching.things, "left") == touching.things[1]


def test_all_questions_about_a_picture() -> None:
    shown = picture(lion=(0, 0, 20, 20), wrench=(70, 60, 20, 30))
    found = [(q.family, q.text, q.answer, q.alternative) for q in scene_questions(7, shown)]
    assert all(q.scene == 7 for q in scene_questions(7, shown))
    assert sorted(found, key=str) == [
        ("beside", "what is left of the wrench?", "lion", "lion face"),
        ("beside", "what is right of the lion?", "wrench", None),
        ("count", "how many animals are there?", "1", "one"),
        ("count", "how many foods are there?", "0", "zero"),
        ("kind", "what kind of thing is in the bottom right?", "object", None),
        ("kind", "what kind of thing is in the top left?", "animal", None),
        ("objects", "how many objects are there?", "2", "two"),
        ("where", "where is the lion?", "top left", "upper left"),
        ("where", "where is the wrench?", "bottom right", "lower right"),
    ]


def test_what_is_in_doubt_is_not_asked() -> None:
    boxes = {"wrench": (0, 0, 20, 20), "sun": (38, 70, 20, 20)}
    texts = [q.text for q in scene_questions(0, picture("chelsea", **boxes))]
    assert "how many animals are there?" not in texts, "there is a cat behind"
    assert "how many foods are there?" in texts
    assert not any("where is the sun" in t or "bottom" in t for t in texts), "it's in the middle"
    crab = [q.text for q in scene_questions(0, picture(crab=(0, 0, 20, 20), dog=(60, 60, 20, 20)))]
    assert not any("animals" in t or "foods" in t or "top left" in t for t in crab)


def test_absent() -> None:
    shown = picture("flower", dog=(0, 0, 20, 20), lemon=(60, 60, 20, 20))
    akin, other = ({noun.name for noun in those} for those in absent(shown, POOL))
    assert akin == {"cat", "lion", "elephant", "cherries", "banana"}, "a poodle is a dog"
    assert {"rose", "tulip"}.isdisjoint(akin | other), "there is a flower behind"
    assert "owl" in other
    _, without_flower_behind = absent(replace(shown, ground="brick"), POOL)
    assert {"rose", "tulip"} <= {noun.name for noun in without_flower_behind}


def test_presence() -> None:
    assert presence_question(2, BY_NAME["eagle"], True) == Question(
        2, "presence", "is there an eagle?", "yes"
    )
    assert presence_question(2, BY_NAME["cherries"], False).text == "are there cherries?"


def test_ten_answers() -> None:
    assert ten_answers("yes", None, True) == ["yes"] * 10
    assert ten_answers("2", "two", False) == ["2"] * 9 + ["two"]
    assert ten_answers("2", "two", True) == ["2"] * 7 + ["two"] * 3


def test_all_statements_about_a_picture() -> None:
    shown = picture("chelsea", lemon=(0, 0, 20, 20), owl=(38, 38, 20, 20))
    found = Counter((s.form, s.text, s.label) for s in statements(3, shown, POOL))
    assert set(found.values()) == {1}
    texts = {label: {text for _, text, own in found if own == label} for *_, label in found}
    assert texts["entailment"] == {
        *("there is a lemon", "there is an owl", "there is a bird", "there is a fruit"),
        "the lemon is in the top left",
    }
    assert texts["contradiction"] == {
        *("there are cherries", "there is a banana", "there is an eagle"),
        *("there is a bug", "there is a marine animal", "there is a reptile", "there is a flower"),
        *("there is a vegetable", "there is a sweet"),
        *(f"the lemon is in the {q}" for q in ("top right", "bottom left", "bottom right")),
    }, "no mammal: there is a cat behind; no bird: an owl is one"
    assert texts["neutral"] == {
        f"the {name} is {how}"
        for name in ("lemon", "owl")
        for how in ("old", "new", "expensive", "famous")
    }
    assert isinstance(statements(3, shown, POOL)[0], Statement)


def test_a_whale_may_be_meant_by_a_mammal() -> None:
    shown = picture(whale=(0, 0, 20, 20))
    texts = {s.text for s in statements(0, shown, POOL)}
    assert "there is a mammal" not in texts
    assert "there is a marine animal" in texts


@settings(max_examples=200)
@given(st.integers(0, 10_000), st.sampled_from(list(PAIR_TEMPLATES)))
def test_pairs(seed: int, template: str) -> None:
    pair = draw_pair(template, POOL, np.random.default_rng(seed))
    assert isinstance(pair, Pair)
    images = [
        Seen(tuple((noun.name, noun.subgroup, (0, 0, 1, 1)) for noun in image), "brick")
        for image in pair.images
    ]
    assert holds(pair.true, *images) is True
    assert holds(pair.false, *images) is False
    for image in pair.images:
        assert 2 <= len(image) <= 4
        kinds = list(dict.fromkeys(image))
        assert all(is_apart(noun, kinds[:i]) for i, noun in enumerate(kinds))
        assert len(kinds) == len(image) or template == "twice"
    if pair.denied is not None:
        assert f" {pair.denied.name}" in pair.false
        others = [n for image in pair.images for n in image if n != pair.denied]
        assert is_apart(pair.denied, others)
        assert pair.denied in pair.named


@pytest.mark.parametrize("template", PAIR_TEMPLATES)
def test_sentences_about_pairs_tell_nothing_alone(template: str) -> None:
    generator = np.random.default_rng(0)
    pairs = [draw_pair(template, POOL, generator) for _ in range(6000)]
    true, false = Counter(p.true for p in pairs), Counter(p.false for p in pairs)
    better = sum(max(true[text], false[text]) for text in true | false) / 12_000
    expected = 0.4 * np.sqrt(len(true | false) / 12_000)  # of fair coins, one for each text
    assert better < 0.5 + 2 * expected
    if template == "total":
        numbers = ("four", "five", "six", "seven", "eight")
        assert set(true) == {f"there are {number} objects in total" for number in numbers}


@pytest.mark.parametrize("template", ["one has", "both have", "twice"])
def test_names_with_many_look_alikes_are_as_often_in_true_as_in_false(template: str) -> None:
    """Scenes hold but one of them, so that they are seldom drawn late."""
    trains = ("train", "locomotive", "metro", "tram", "monorail", "station", "trolleybus")
    pool = [Noun(100 + i, name, (), "", "transport-ground") for i, name in enumerate(trains)]
    pool += [noun for noun in POOL if noun.name not in ("dog", "bird", "rose", "bus")]
    generator = np.random.default_rng(0)
    pairs = [draw_pair(template, pool, generator) for _ in range(3000)]
    true, false = (
        sum(any(text.split()[-1] == t or f" {t} " in text for t in trains) for text in texts)
        for texts in ([p.true for p in pairs], [p.false for p in pairs])
    )
    assert abs(true - false) < 3 * np.sqrt(true + false)
    assert true > 300


def test_half_of_the_false_sides_name_what_the_other_side_has() -> None:
    generator = np.random.default_rng(0)
    pairs = [draw_pair("one has", POOL, generator) for _ in range(1000)]
    elsewhere = [p.denied in {n for image in p.images for n in image} for p in pairs]
    assert 0.45 < np.mean(elsewhere) < 0.55


@settings(max_examples=200)
@given(st.integers(0, 10_000), st.booleans(), st.sampled_from([None, True, False]))
def test_referred(seed: int, akin: bool, animal: bool | None) -> None:
    generator = np.random.default_rng(seed)
    referred = draw_referred(POOL, akin, animal, generator)
    ((*contents,),) = referred.images
    others = [noun for noun in contents if noun != referred.meant]
    assert len(others) == len(contents) - 1
    assert is_apart(referred.meant, others)
    assert sum(noun.subgroup == referred.meant.subgroup for noun in others) == int(akin)
    if animal is not None:
        assert referred.meant.subgroup.startswith("animal-") == animal
    text = expression(referred.meant, others, generator)
    bare = text.removeprefix("the ").removeprefix("an ").removeprefix("a ")
    assert bare in (referred.meant.name, *(() if akin else referred.meant.aliases))
    assert PLACE_WORDS.isdisjoint(text.split())


def test_nothing_of_that_sort_to_refer_to() -> None:
    pool = [BY_NAME["dog"], BY_NAME["owl"], BY_NAME["bus"]]
    with pytest.raises(ValueError, match="no concept with akin=True, animal=False: give more"):
        draw_referred(pool, True, False, np.random.default_rng(0))


def test_expressions_are_of_several_forms() -> None:
    generator = np.random.default_rng(0)
    lion, cat, owl = BY_NAME["lion"], BY_NAME["cat"], BY_NAME["owl"]
    texts = {expression(lion, [owl], generator) for _ in range(60)}
    assert texts == {"the lion", "lion", "a lion", "the lion face", "lion face"}
    texts = {expression(lion, [owl, cat], generator) for _ in range(60)}
    assert texts == {"the lion", "lion", "a lion"}


def test_single_pictures() -> None:
    generator = np.random.default_rng(0)
    sizes = Counter(len(draw_single(POOL, generator).images[0]) for _ in range(300))
    assert set(sizes) == {2, 3, 4}
    assert min(sizes.values()) > 70


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000))
def test_truth_found_again(seed: int) -> None:
    """Things anywhere: every question and statement agrees with a reading of its own."""
    generator = np.random.default_rng(seed)
    (contents,) = draw_single(POOL, generator).images
    boxes = [(*generator.integers(0, 70, 2).tolist(), 20, 20) for _ in contents]
    things = tuple(Thing(noun, box) for noun, box in zip(contents, boxes, strict=True))
    shown = Picture(things, "brick", 96)
    for question in scene_questions(0, shown):
        assert answer(question.text, seen(shown)) == question.answer
    expected = {"entailment": True, "contradiction": False, "neutral": None}
    for statement in statements(0, shown, POOL):
        assert holds(statement.text, seen(shown)) is expected[statement.label]


def test_words_are_those_of_all_templates() -> None:
    known = words() | {word for noun in POOL for word in noun.name.split()}
    shown = picture("brick", lion=(0, 0, 20, 20), wrench=(70, 60, 20, 30), cherries=(0, 70, 20, 20))
    texts = [s.text for s in statements(0, shown, POOL)]
    for question in scene_questions(0, shown):
        texts += [question.text.removesuffix("?"), question.answer, question.alternative or ""]
    generator = np.random.default_rng(0)
    for _ in range(100):
        for template in PAIR_TEMPLATES:
            pair = draw_pair(template, POOL, generator)
            texts += [pair.true, pair.false]
    assert {word for text in texts for word in text.split()} <= known
    assert words() >= {"yes", "no", "0", "zero", "upper", "lower", "twice", "eight", "marine"}
    assert not {word for word in words() if "{" in word or "?" in word}


@pytest.mark.slow
def test_tables_name_real_labels() -> None:
    """A label that changes with the source's version would leave a table without effect."""
    from benchmarks.miniatures.emoji import naming

    labels = {concept.label for concept in renderings().concepts}
    listed = set().union(*naming.LIKE, naming.PLURAL, naming.UNCOUNTED, naming.NO_NOUNS)
    listed |= naming.DISPUTED_KINDS | naming.WHOLE_SUBGROUPS.keys()
    listed = listed.union(*(ground.names for ground in GROUNDS.values()))
    assert listed <= labels
    concepts = scene_concepts(renderings(), 0)
    assert len(concepts) == 120
