"""The table of concepts: which emoji are one drawable thing, and what each rendering calls it.

A concept is one emoji entry of emojibase without skin tones, gendered forms, flags and text in
boxes. An icon belongs to it by its code point or its label, never by a shortcode alone: "dizzy",
for one, is a face to some and a symbol to others.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

VARIATION_SELECTOR = "FE0F"
GENDER_SIGNS = {"2640", "2642"}
MAN, WOMAN, RIGHT_ARROW = "1F468", "1F469", "27A1"
TEXT_IN_BOXES = {"alphanum", "geometric"}
PEOPLE_IN_PARTS = {"family", "hair-style"}
HAIR = {"1F9B0", "1F9B1", "1F9B2", "1F9B3"}
SHORTCODES = ("cldr", "emojibase", "github", "iamcal", "joypixels", "emojibase-legacy")


@dataclass
class Concept:
    """One emoji."""

    id: int  # rank in emojibase's order
    hexcode: str  # code points without the variation selector, joined by "-", upper case
    label: str
    aliases: list[str]  # shortcodes as words, no label of any, owned by this concept alone
    tags: list[str]
    group: str
    subgroup: str
    icons: dict[str, str | None] = field(default_factory=dict)  # its name in each rendering
    near: list[int] = field(default_factory=list)  # ids that one rendering draws (almost) alike


class IconSet:
    """Names of one rendering's icons, from its package's icons.json and chars.json (code points ->
    name, empty in some packages); `loose` compares names without punctuation."""

    def __init__(
        self, icons: Mapping[str, Any], characters: Mapping[str, str], loose: bool = False
    ) -> None:
        self._icons, self._aliases = icons["icons"], icons.get("aliases", {})
        self._loose = loose
        self.codes = {_bare(code): name for code, name in characters.items()}
        self._names = {self._key(name): name for name in (*self._aliases, *self._icons)}

    def resolve(self, *names: str | None) -> str | None:
        """The icon that holds the drawing of the first of `names` that leads to one, else None. An
        alias that turns or mirrors its parent is another picture and counts as absent."""
        for name in filter(None, names):
            found, seen = self._names.get(self._key(name)), set()
            while found is not None and found not in self._icons and found not in seen:
                seen.add(found)
                alias = self._aliases.get(found, {})
                found = None if alias.keys() & {"rotate", "hFlip", "vFlip"} else alias.get("parent")
            if found in self._icons:
                return found
        return None

    def _key(self, name: str) -> str:
        return name.replace("-", "") if self._loose else name


def concept_table(
    entries: Sequence[Mapping[str, Any]],
    groups: Mapping[str, Any],
    shortcodes: Iterable[Mapping[str, str | list[str]]],
    icon_sets: Mapping[str, IconSet],
    denied: Mapping[str, Collection[str]],
    former_labels: Mapping[str, str],
) -> list[Concept]:
    """Return the concepts that every rendering with code points draws, ids 0, 1, … in order.

    `entries`, `groups` and `shortcodes` are emojibase's files. `denied`: rendering without code
    points -> labels that its icon of that name does not show; `former_labels`: label -> the one it
    had when the older renderings were named.
    """
    kept = [e for e in entries if drop_reason(e, groups) is None]
    kept.sort(key=lambda e: e["order"])
    coded = {name: icons for name, icons in icon_sets.items() if icons.codes}
    code_names = [[icons.codes.get(_bare(e["hexcode"])) for icons in coded.values()] for e in kept]
    found = {
        name: [icons.resolve(own[i]) for own in code_names]
        for i, (name, icons) in enumerate(coded.items())
    }
    whole = [i for i in range(len(kept)) if all(column[i] for column in found.values())]
    for name, icons in icon_sets.items():
        if name in coded:
            continue
        column = []
        for i in whole:
            label = kept[i]["label"]
            labels = kebab(label), kebab(former_labels.get(label, ""))
            column.append(icons.resolve(*code_names[i], *labels))
        claims = Counter(column)
        found[name] = [None] * len(kept)
        for i, icon in zip(whole, column, strict=True):
            # A name that two concepts claim draws one of them: which one can't be told.
            wrong = kept[i]["label"] in denied.get(name, ())
            found[name][i] = icon if claims[icon] == 1 and not wrong else None
    entries = [kept[i] for i in whole]
    aliases = _aliases(entries, shortcodes)
    return [
        Concept(
            id=rank,
            hexcode=_bare(entry["hexcode"]).upper(),
            label=entry["label"],
            aliases=aliases[rank],
            tags=list(entry.get("tags", [])),
            group=groups["groups"][str(entry["group"])],
            subgroup=groups["subgroups"][str(entry["subgroup"])],
            icons={name: found[name][whole[rank]] for name in icon_sets},
        )
        for rank, entry in enumerate(entries)
    ]


def drop_reason(entry: Mapping[str, Any], groups: Mapping[str, Any]) -> str | None:
    """Why an emojibase entry is no concept, the first rule that applies; None if it is one."""
    codes = [c for c in entry["hexcode"].upper().split("-") if c != VARIATION_SELECTOR]
    group = groups["groups"].get(str(entry.get("group")))
    subgroup = groups["subgroups"].get(str(entry.get("subgroup")))
    rules = {
        "no group": group is None,
        "component": group == "component",
        "flag": group == "flags",
        "keycap": subgroup == "keycap",
        "gendered": bool(GENDER_SIGNS.intersection(codes)),
        "man or woman": codes[0] in (MAN, WOMAN) and len(codes) > 1,
        "family or hair": subgroup in PEOPLE_IN_PARTS or bool(HAIR.intersection(codes)),
        "text or shape": subgroup in TEXT_IN_BOXES,
        "clock face": bool(re.search(r"o\Wclock|-thirty", entry["label"])),
        # The plain right arrow goes too: the set of 1,301 concepts is without it.
        "facing right": RIGHT_ARROW in codes,
    }
    return next((reason for reason, applies in rules.items() if applies), None)


def kebab(label: str) -> str:
    """A label as icon name: ASCII lower case, words joined by "-", other punctuation removed."""
    plain = unicodedata.normalize("NFKD", label).encode("ascii", "ignore").decode().lower()
    words = re.sub(r"[^a-z0-9\s_-]", "", plain)
    return re.sub(r"[\s_-]+", "-", words).strip("-")


def _aliases(
    entries: Sequence[Mapping[str, Any]], shortcodes: Iterable[Mapping[str, str | list[str]]]
) -> list[list[str]]:
    """Per entry its shortcodes as words, without labels and without what two entries share."""
    files = [{_bare(code): names for code, names in file.items()} for file in shortcodes]
    labels = {kebab(e["label"]) for e in entries}
    own: list[list[str]] = []
    for entry in entries:
        words: dict[str, str] = {}
        for file in files:
            names = file.get(_bare(entry["hexcode"]), [])
            for name in [names] if isinstance(names, str) else names:
                if kebab(name) not in labels:
                    words.setdefault(kebab(name), name.replace("_", " "))
        own.append(list(words.values()))
    owners = Counter(kebab(word) for words_ in own for word in words_)
    return [sorted(w for w in words_ if owners[kebab(w)] == 1) for words_ in own]


def _bare(code: str) -> str:
    """Code points in lower case without the variation selector, as in icon packages."""
    return "-".join(c for c in code.lower().split("-") if c != VARIATION_SELECTOR.lower())
