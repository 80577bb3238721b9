"""The data card: what was done to which data by which models, for people and for programs."""

import heapq
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shared.data.captioned.records import Record
from shared.showing import code, escaped, printable, table
from shared.tools.tool import Card, Told

EXAMPLES = 12  # images of each group on the sheet, and faults of each kind on the card
SHOWN = 50  # rows of the card's table
ELSEWHERE = {"format", "input", "shard", "where"}  # of a header: what the card says differently

Group = tuple[int, str]


@dataclass
class Counts:
    """Entries of a whole input, and a bounded number of examples of each group and each fault."""

    entries: int = 0
    usable_images: int = 0
    faults: Counter[str] = field(default_factory=Counter)  # by kind
    named: dict[str, list[str]] = field(default_factory=dict)  # some entries of each kind
    examples: dict[Group, list[tuple[int, int, Record, Any]]] = field(default_factory=dict)

    def add(self, record: Record, usable_image: bool, fault: str, told: Told) -> None:
        if told.group is not None:  # an even sample: the entries with the smallest keys
            heap = self.examples.setdefault(told.group, [])
            heapq.heappush(heap, (-int(record.key, 16), -self.entries, record, told.shown))
            if len(heap) > EXAMPLES:
                heapq.heappop(heap)
        if fault:
            kind = fault.partition(":")[0]
            self.faults[kind] += 1
            if len(names := self.named.setdefault(kind, [])) < EXAMPLES:
                names.append(f"{record.name} ({fault})")
        self.usable_images += usable_image
        self.entries += 1

    def examples_of(self, group: Group) -> list[tuple[Record, Any]]:
        ordered = sorted(self.examples[group], key=lambda item: item[:2], reverse=True)
        return [(record, shown) for _, _, record, shown in ordered]


def facts(counts: Counts, header: Mapping[str, Any], command: str, content: str) -> dict[str, Any]:
    """What every card says, in JSON; `content` is a SHA-256 of all entries and image files."""
    kinds = {
        kind: {"entries": number, "examples": [printable(name) for name in counts.named[kind]]}
        for kind, number in sorted(counts.faults.items())
    }
    return {name: value for name, value in header.items() if name not in ELSEWHERE} | {
        "git_dirty": header["where"]["git_dirty"],
        "command": printable(command),
        "licence": header["settings"]["licence"],
        "input": {**header["input"], "sha256_of_content": content},
        "entries": counts.entries,
        "usable_images": counts.usable_images,
        "unusable": {"entries": counts.faults.total(), "kinds": kinds},
    }


def markdown(facts: Mapping[str, Any], card: Card) -> str:
    """The card as people read it."""
    given, bad = facts["input"], facts["unusable"]
    told = "names and sizes" if "json" not in given["kind"] else "file"
    models = [
        f"- {name}: {escaped(about['name'])}, SHA-256 `{about['sha256']}`"
        for name, about in facts["models"].items()
    ]
    more = len(card.rows) - SHOWN
    faults: list[str] = []
    for kind, found in bad["kinds"].items():
        faults += ["", f"- {escaped(kind)}: {found['entries']:,}"]
        faults += [f"  - {escaped(name)}" for name in found["examples"]]
    lines = [
        "# Data card",
        "",
        *map(escaped, card.summary),
        "",
        f"- licence, as stated by the user: {escaped(facts['licence'] or 'not stated')}",
        f"- command: {code(facts['command'])}",
        f"- code: {facts['tool']}, commit {facts['git_commit'] or 'unknown'}"
        f"{' with uncommitted changes' if facts['git_dirty'] else ''}, torch {facts['torch']}",
        f"- input: {given['kind']}, files: {given['files']:,}, bytes: {given['bytes']:,}",
        f"- SHA-256 of the input's {told}: `{given['sha256']}`",
        f"- SHA-256 of all entries and image files in order: `{given['sha256_of_content']}`",
        *models,
        *(f"- {escaped(item)}" for item in card.items),
        "",
        f"## {card.title}",
        "",
        table(card.columns, card.rows[:SHOWN]),
        *([f"and {more:,} more, see card.json"] if more > 0 else []),
        "",
        "## Settings",
        "",
        table(
            ["setting", "value"], [[n, printable(repr(v))] for n, v in facts["settings"].items()]
        ),
        "",
        "## Unusable",
        "",
        f"{bad['entries']:,} entries, wholly or in part; all are named in a file beside this one.",
        *faults,
    ]
    return "\n".join(lines) + "\n"
