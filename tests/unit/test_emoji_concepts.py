"""The concept table on a tiny made-up emojibase."""

from typing import Any

import pytest

from benchmarks.miniatures.emoji.concepts import (
    Concept,
    IconSet,
    concept_table,
    drop_reason,
    kebab,
)
from benchmarks.miniatures.emoji.packages import RENDERINGS, attribution, of_split

GROUPS = {
    "groups": {"0": "smileys-emotion", "2": "component", "3": "animals-nature", "8": "symbols"}
    | {"1": "people-body", "9": "flags"},
    "subgroups": {"12": "cat-face", "30": "family", "34": "animal-mammal", "58": "time"}
    | {"94": "keycap", "95": "alphanum", "26": "person-fantasy", "85": "arrow"},
}


def entry(
    label: str, hexcode: str, order: int = 1, group: int = 3, subgroup: int = 34
) -> dict[str, Any]:
    names = {"label": label, "hexcode": hexcode, "order": order}
    return {**names, "group": group, "subgroup": subgroup, "tags": ["tag"]}


def table(
    entries: list[dict[str, Any]],
    icon_sets: dict[str, IconSet],
    shortcodes: Any = (),
    denied: Any = {},  # noqa: B006
    former_labels: Any = {},  # noqa: B006
) -> list[Concept]:
    return concept_table(entries, GROUPS, shortcodes, icon_sets, denied, former_labels)


def icon_set(*names: str, codes: dict[str, str] | None = None, **aliases: Any) -> IconSet:
    parents = {k.replace("_", "-"): v for k, v in aliases.items()}
    return IconSet({"icons": {name: {} for name in names}, "aliases": parents}, codes or {})


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        (None, {}),
        ("no group", {"group": None, "subgroup": None}),
        ("component", {"group": 2}),
        ("flag", {"group": 9}),
        ("keycap", {"subgroup": 94}),
        ("gendered", {"hexcode": "1F9D9-200D-2640-FE0F"}),
        ("man or woman", {"hexcode": "1F468-200D-1F373"}),
        (None, {"hexcode": "1F468"}),
        ("family or hair", {"subgroup": 30}),
        ("family or hair", {"hexcode": "1F9D1-200D-1F9B0"}),
        ("text or shape", {"subgroup": 95}),
        ("clock face", {"label": "one o\u2019clock", "subgroup": 58}),
        ("clock face", {"label": "one-thirty", "subgroup": 58}),
        ("facing right", {"hexcode": "1F6B6-200D-27A1-FE0F"}),
    ],
)
def test_what_is_no_concept(reason: str | None, changes: dict[str, Any]) -> None:
    row = {**entry("goat", "1F410"), **changes}
    row = {k: v for k, v in row.items() if v is not None}
    assert drop_reason(row, GROUPS) == reason


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("woman\u2019s hat", "womans-hat"),
        ("piñata", "pinata"),
        ("ON! arrow", "on-arrow"),
        ("family: adult, child", "family-adult-child"),
        ("t-shirt", "t-shirt"),
    ],
)
def test_label_as_icon_name(label: str, name: str) -> None:
    assert kebab(label) == name


def test_aliases_are_followed_to_the_drawing() -> None:
    icons = icon_set(
        "hamster-face",
        hamster={"parent": "pet"},
        pet={"parent": "hamster-face"},
        left={"parent": "hamster-face", "hFlip": True},
        ring={"parent": "ring2"},
        ring2={"parent": "ring"},
    )
    assert icons.resolve("hamster") == "hamster-face"
    assert icons.resolve("left") is None, "a mirrored drawing is another one"
    assert icons.resolve("ring") is None, "a circle of aliases ends"
    assert icons.resolve("unknown") is None
    assert icons.resolve("unknown", None, "left", "pet") == "hamster-face", (
        "the first that is there"
    )
    icons = IconSet({"icons": {"lovehotel": {}}}, {}, loose=True)
    assert icons.resolve("love-hotel") == "lovehotel"
    assert icon_set("lovehotel").resolve("love-hotel") is None


def test_table() -> None:
    entries = [
        entry("red heart", "2764-FE0F", order=5, group=0, subgroup=12),
        entry("goat", "1F410", order=2),
        entry("ewe", "1F411", order=3),  # lacks a drawing with a code point
        entry("flag", "1F1E6", group=9),
    ]
    coded = icon_set("goat", "heart", codes={"1f410": "goat", "2764": "heart"})
    named = icon_set("goat", "red-heart")
    goat, heart = table(entries, {"noto": coded, "fx": named})
    assert (goat.id, goat.label, goat.hexcode) == (0, "goat", "1F410")
    assert (heart.id, heart.label, heart.hexcode) == (1, "red heart", "2764")
    assert heart.icons == {"noto": "heart", "fx": "red-heart"}
    assert (goat.group, goat.subgroup) == ("animals-nature", "animal-mammal")


def test_icon_matching_rules() -> None:
    entries = [
        entry("tiger", "A", 1),
        entry("tiger face", "B", 2),
        entry("dog", "C", 3),
        entry("weary cat", "D", 4),
        entry("cow", "E", 5),
    ]
    codes = {c.lower(): f"icon-{c.lower()}" for c in "ABCDE"}
    coded = icon_set(*codes.values(), codes=codes)
    named = icon_set("tiger", "dog", "weary-cat-face", "icon-e", tiger_face={"parent": "tiger"})
    sets, former = {"noto": coded, "fx": named}, {"weary cat": "weary cat face"}
    made = table(entries, sets, [{"E": "moo"}], {"fx": {"dog"}}, former)
    assert {c.label: c.icons["fx"] for c in made} == {
        "tiger": None,  # claimed by two concepts: dropped for both
        "tiger face": None,
        "dog": None,  # denied
        "weary cat": "weary-cat-face",  # by its former label
        "cow": "icon-e",  # by the name that a set with code points uses
    }


def test_shortcodes_never_match_an_icon() -> None:
    coded = icon_set("goat", codes={"1f410": "goat"})
    named = icon_set("billy")
    sets = {"noto": coded, "fx": named}
    (concept,) = table([entry("nanny", "1F410")], sets, [{"1F410": ["billy"]}])
    assert concept.icons["fx"] is None
    assert concept.aliases == ["billy"]


def test_aliases_are_owned_and_no_label() -> None:
    entries = [entry("goat", "A", 1), entry("ewe", "B-FE0F", 2)]
    codes = {"a": "x", "b": "y"}
    files = [
        {"A": ["ewe", "shared_word", "billy_goat", "goat"], "B": "shared_word"},
        {"A": "billy_goat", "B": ["female_sheep"]},
    ]
    made = table(entries, {"noto": icon_set("x", "y", codes=codes)}, files)
    assert [c.aliases for c in made] == [["billy goat"], ["female sheep"]]


def test_roles_and_attribution() -> None:
    assert len(of_split("train")) == 6
    assert (of_split("val"), of_split("test")) == (["etwo"], ["fluent"])
    info = {r.id: {"name": r.id, "author": {"name": f"artist of {r.id}"}} for r in RENDERINGS}
    text = attribution(info)
    for rendering in RENDERINGS:
        assert f"artist of {rendering.id}" in text
        assert rendering.package.version in text
