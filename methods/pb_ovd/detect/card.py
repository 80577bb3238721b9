"""The data card: what was done to which data by which models, for people and for programs."""

import shlex
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from methods.pb_ovd.detect.settings import Settings
from methods.pb_ovd.pseudo_labels import CocoLabels
from shared.data.captioned.records import Record
from shared.data.captioned.working import Row
from shared.showing import code, escaped, printable, table

EXAMPLES = 12  # entries of each kind of fault
SHOWN = 50  # classes of the card's table
_SWITCHES = ("every_caption", "official")


@dataclass
class Outcome:
    """Counts over a whole input, and some entries of each kind of fault."""

    entries: int = 0
    usable_images: int = 0
    without_mention: int = 0  # of the usable entries
    mentions: int = 0
    boxes: Counter[str] = field(default_factory=Counter)  # by name, before one is chosen
    faults: Counter[str] = field(default_factory=Counter)  # by kind
    named: dict[str, list[str]] = field(default_factory=dict)

    def add(self, record: Record, row: Row, fault: str) -> None:
        self.entries += 1
        if "sha256" in row:
            self.usable_images += 1
            self.mentions += row["mentions"]
            self.without_mention += not row["mentions"]
            self.boxes.update(name.lower() for name, _, _ in row["objects"])
        if fault:
            kind = fault.partition(":")[0]
            self.faults[kind] += 1
            if len(names := self.named.setdefault(kind, [])) < EXAMPLES:
                names.append(f"{record.name} ({fault})")


def command(header: Any) -> str:
    """The command that makes this result, without what does not change it."""
    where, usual = header["where"], asdict(Settings())
    given = {n: where[n] for n in ("vocabulary", "teacher", "experiment", "proposals")}
    given |= {"image_root": where["image_root"]}
    given |= {n: v for n, v in header["settings"].items() if v != usual[n] and n not in _SWITCHES}
    given["device"] = header["device"]
    words = ["tenfold-detect", "label", *where["inputs"]]
    for name, value in given.items():
        words += [f"--{name.replace('_', '-')}", str(value)] if value is not None else []
    words += [word for text in where["overrides"] for word in ("--override", text)]
    words += [f"--{n.replace('_', '-')}" for n in _SWITCHES if header["settings"][n]]
    return shlex.join(words)


def facts(outcome: Outcome, labels: CocoLabels, header: Any, content: str) -> dict[str, Any]:
    """Everything that the card says, in JSON."""
    kinds = {
        kind: {"entries": number, "examples": [printable(name) for name in outcome.named[kind]]}
        for kind, number in sorted(outcome.faults.items())
    }
    own = {name: header[name] for name in ("tool", "git_commit", "torch", "device")}
    return own | {
        "git_dirty": header["where"]["git_dirty"],
        "command": printable(command(header)),
        "licence": header["settings"]["licence"],
        "settings": header["settings"],
        "models": header["models"],
        "unmatched_words": header["unmatched_words"],
        "input": {**header["input"], "sha256_of_content": content},
        "entries": outcome.entries,
        "usable_images": outcome.usable_images,
        "entries_without_mention": outcome.without_mention,
        "mentions": outcome.mentions,
        "boxes": outcome.boxes.total(),
        "images": labels.images,
        "annotations": labels.annotations,
        "classes": {name: outcome.boxes[name] for name in labels.numbers},
        "unusable": {"entries": outcome.faults.total(), "kinds": kinds},
    }


def markdown(facts: dict[str, Any]) -> str:
    """The card as people read it."""
    given, bad, settings = facts["input"], facts["unusable"], facts["settings"]
    models = [
        f"- {name}: {escaped(about['name'])}, SHA-256 `{about['sha256']}`"
        for name, about in facts["models"].items()
    ]
    often = sorted(facts["classes"].items(), key=lambda item: -item[1])
    more = [f"and {len(often) - SHOWN:,} more, see card.json"] if len(often) > SHOWN else []
    unmatched = ", ".join(map(escaped, facts["unmatched_words"][:SHOWN])) or "none"
    faults: list[str] = []
    for kind, found in bad["kinds"].items():
        faults += ["", f"- {escaped(kind)}: {found['entries']:,}"]
        faults += [f"  - {escaped(name)}" for name in found["examples"]]
    lines = [
        "# Data card",
        "",
        f"{facts['annotations']:,} pseudo boxes of {len(often):,} classes on "
        f"{facts['images']:,} images, of {facts['entries']:,} captioned entries (PB-OVD).",
        "Nobody drew or checked a box: each is the proposal that covers best what the teacher "
        "looks at for a word of the caption. An object that no caption names has none, and of "
        "several of one name in an image one was taken by lot.",
        "",
        f"- licence, as stated by the user: {escaped(facts['licence'] or 'not stated')}",
        f"- command: {code(facts['command'])}",
        f"- code: {facts['tool']}, commit {facts['git_commit'] or 'unknown'}"
        f"{' with uncommitted changes' if facts['git_dirty'] else ''}, torch {facts['torch']}",
        f"- input: {given['kind']}, files: {given['files']:,}, bytes: {given['bytes']:,}, "
        f"SHA-256 `{given['sha256']}`",
        f"- SHA-256 of all entries and image files in order: `{given['sha256_of_content']}`",
        *models,
        f"- {facts['mentions']:,} mentions, {facts['boxes']:,} of them with a box; "
        f"{facts['entries_without_mention']:,} usable entries mention nothing",
        f"- words left out, since the teacher does not know them: {unmatched}",
        "",
        "## Classes",
        "",
        table(["class", "boxes"], [[name, f"{count:,}"] for name, count in often[:SHOWN]]),
        *more,
        "",
        "## Settings",
        "",
        table(["setting", "value"], [[n, printable(repr(v))] for n, v in settings.items()]),
        "",
        "## Unusable",
        "",
        f"{bad['entries']:,} entries, wholly or in part; `unusable.jsonl` names them all.",
        *faults,
    ]
    return "\n".join(lines) + "\n"
