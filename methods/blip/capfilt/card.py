"""The data card: what was done to which data by which models, for people and for programs."""

import shlex
from dataclasses import asdict
from typing import Any

from methods.blip.capfilt.outcome import BINS, Outcome
from methods.blip.capfilt.settings import Settings
from shared.showing import code, escaped, printable, table

_SWITCHES = {"web": "--no-web", "synthetic": "--no-synthetic", "filtered": "--caption-only"}


def command(header: Any) -> str:
    """The command that makes this result, without what does not change it: shards, workers, the
    place of the output."""
    where, usual = header["where"], asdict(Settings())
    given = {name: where[name] for name in ("image_root", "captioner", "filter")}
    given |= {n: v for n, v in header["settings"].items() if v != usual[n] and n not in _SWITCHES}
    given["device"] = header["device"]
    words = ["tenfold-capfilt", "run", *where["inputs"]]
    for name, value in given.items():
        words += [f"--{name.replace('_', '-')}", str(value)] if value is not None else []
    words += [option for name, option in _SWITCHES.items() if not header["settings"][name]]
    return shlex.join(words)


def facts(outcome: Outcome, header: Any, content: str, output: str) -> dict[str, Any]:
    """Everything that the card says, in JSON."""
    texts = {
        source: {
            "texts": (number := outcome.texts[source]),
            "kept": (kept := outcome.kept[source]),
            "accept_rate": round(kept / number, 4) if number else None,
            "scores": [outcome.scores[source, place] for place in range(BINS)],
        }
        for source in ("web", "synthetic")
    }
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
        "input": {**header["input"], "sha256_of_content": content},
        "entries": outcome.entries,
        "usable_images": outcome.usable_images,
        "texts": texts,
        "pairs": outcome.kept.total(),
        "output": output,
        "unusable": {"entries": outcome.faults.total(), "kinds": kinds},
    }


def text_rows(facts: dict[str, Any]) -> list[list[str]]:
    """For web and synthetic texts: how many there are of usable images, are kept, and which share
    that is."""
    rows = []
    for source, counts in facts["texts"].items():
        rate = counts["accept_rate"]
        share = "-" if rate is None else f"{100 * rate:.1f} %"
        rows.append([source, f"{counts['texts']:,}", f"{counts['kept']:,}", share])
    return rows


def markdown(facts: dict[str, Any]) -> str:
    """The card as people read it."""
    given, bad, settings = facts["input"], facts["unusable"], facts["settings"]
    told = "names and sizes" if "json" not in given["kind"] else "file"
    models = [
        f"- {name}: {escaped(about['name'])}, SHA-256 `{about['sha256']}`"
        for name, about in facts["models"].items()
    ]
    faults: list[str] = []
    for kind, found in bad["kinds"].items():
        faults += ["", f"- {escaped(kind)}: {found['entries']:,}"]
        faults += [f"  - {escaped(name)}" for name in found["examples"]]
    lines = [
        "# Data card",
        "",
        f"{facts['pairs']:,} image-text pairs of {facts['entries']:,} entries, by captioning and "
        "filtering (BLIP, section 3.3).",
        "A text stays if its match probability is above the threshold. Each is judged alone: an "
        "image may be in several pairs or in none."
        if settings["filtered"]
        else "No filter judged: all texts stay.",
        "",
        f"- licence, as stated by the user: {escaped(facts['licence'] or 'not stated')}",
        f"- command: {code(facts['command'])}",
        f"- code: {facts['tool']}, commit {facts['git_commit'] or 'unknown'}"
        f"{' with uncommitted changes' if facts['git_dirty'] else ''}, torch {facts['torch']}",
        f"- input: {given['kind']}, files: {given['files']:,}, bytes: {given['bytes']:,}",
        f"- SHA-256 of the input's {told}: `{given['sha256']}`",
        f"- SHA-256 of all entries and image files in order: `{given['sha256_of_content']}`",
        *models,
        "",
        "## Texts",
        "",
        table(["texts", "of usable images", "kept", "accept rate"], text_rows(facts)),
        "",
        "## Settings",
        "",
        table(["setting", "value"], [[n, printable(repr(v))] for n, v in settings.items()]),
        "",
        "## Unusable",
        "",
        f"{bad['entries']:,} entries, wholly or in part; `captions.jsonl` names them all.",
        *faults,
    ]
    return "\n".join(lines) + "\n"
