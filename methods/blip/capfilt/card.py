"""The data card: what was done to which data by which models, for people and for programs."""

import shlex
from dataclasses import asdict, fields
from typing import Any

from methods.blip.capfilt.outcome import Outcome
from methods.blip.capfilt.settings import Settings
from shared.showing import code, escaped, printable, table

# Of each setting how the command says it; the others are not said.
_OPTIONS = {
    "threshold": "--threshold",
    "beams": "--beams",
    "top_p": "--top-p",
    "top_k": "--top-k",
    "max_length": "--max-length",
    "min_length": "--min-length",
    "prompt": "--prompt",
    "batch_size": "--batch-size",
    "seed": "--seed",
    "limit": "--limit",
    "max_pixels": "--max-pixels",
    "licence": "--licence",
}
_SWITCHES = {"web": "--no-web", "synthetic": "--no-synthetic", "filtered": "--caption-only"}


def command(header: Any) -> str:
    """The command that makes this result, without what does not change it: shards, workers, the
    place of the output."""
    where, settings, usual = header["where"], header["settings"], asdict(Settings())
    words = ["tenfold-capfilt", "run", *where["inputs"]]
    words += ["--image-root", where["image_root"]] if where["image_root"] else []
    for name in ("captioner", "filter"):
        words += [f"--{name}", where[name]] if where[name] else []
    for name, option in _OPTIONS.items():
        if settings[name] != usual[name]:
            words += [option, str(settings[name])]
    words += [option for name, option in _SWITCHES.items() if not settings[name]]
    return shlex.join([*words, "--device", header["device"]])


def facts(outcome: Outcome, header: Any, content: str, output: str) -> dict[str, Any]:
    """Everything that the card says, in JSON."""
    texts = {
        origin: {
            "texts": counts.texts,
            "kept": counts.kept,
            "accept_rate": round(counts.kept / counts.texts, 4) if counts.texts else None,
            "scores": counts.scores,
        }
        for origin, counts in outcome.texts.items()
    }
    kinds = {
        kind: {"entries": number, "examples": [printable(name) for name in outcome.named[kind]]}
        for kind, number in sorted(outcome.faults.items())
    }
    return {
        "tool": header["tool"],
        "git_commit": header["git_commit"],
        "git_dirty": header["where"]["git_dirty"],
        "torch": header["torch"],
        "command": printable(command(header)),
        "licence": header["settings"]["licence"],
        "settings": {f.name: header["settings"][f.name] for f in fields(Settings)},
        "device": header["device"],
        "models": header["models"],
        "input": {**header["input"], "sha256_of_content": content},
        "entries": outcome.entries,
        "usable_images": outcome.usable_images,
        "texts": texts,
        "pairs": sum(counts.kept for counts in outcome.texts.values()),
        "output": output,
        "unusable": {"entries": sum(outcome.faults.values()), "kinds": kinds},
    }


def markdown(facts: dict[str, Any]) -> str:
    """The card as people read it."""
    given, settings = facts["input"], facts["settings"]
    lines = [
        "# Data card",
        "",
        f"{facts['pairs']:,} image-text pairs of {facts['entries']:,} entries, by captioning and "
        "filtering (BLIP, section 3.3). A text stays if its match probability is above the "
        "threshold; each is judged alone, so that an image may be in several pairs or in none.",
        "",
        f"- licence, as stated by the user: {escaped(facts['licence'] or 'not stated')}",
        f"- command: {code(facts['command'])}",
        f"- code: {facts['tool']}, commit {facts['git_commit'] or 'unknown'}"
        f"{' with uncommitted changes' if facts['git_dirty'] else ''}, torch {facts['torch']}, "
        f"device {facts['device']}",
        f"- input: {given['kind']}, files: {given['files']:,}, bytes: {given['bytes']:,}",
        f"- SHA-256 of the input's {'file' if 'json' in given['kind'] else 'names and sizes'}: "
        f"`{given['sha256']}`",
        f"- SHA-256 of all entries and image files in order: `{given['sha256_of_content']}`",
    ]
    for name, about in facts["models"].items():
        lines.append(f"- {name}: {escaped(about['name'])}, SHA-256 `{about['sha256']}`")
    lines += ["", "## Texts", ""]
    rows = []
    for origin, counts in facts["texts"].items():
        rate = counts["accept_rate"]
        share = "-" if rate is None else f"{100 * rate:.1f} %"
        rows.append([origin, f"{counts['texts']:,}", f"{counts['kept']:,}", share])
    lines += [table(["texts", "of usable images", "kept", "accept rate"], rows)]
    if not settings["filtered"]:
        lines += ["", "No filter judged: all texts stay."]
    lines += ["", "## Settings", "", table(["setting", "value"], _settings(settings))]
    bad = facts["unusable"]
    lines += ["", "## Unusable", "", f"{bad['entries']:,} entries, wholly or in part."]
    for kind, found in bad["kinds"].items():
        lines += ["", f"- {escaped(kind)}: {found['entries']:,}"]
        lines += [f"  - {escaped(name)}" for name in found["examples"]]
        if found["entries"] > len(found["examples"]):
            lines.append("  - the others are named in `captions.jsonl`")
    return "\n".join(lines) + "\n"


def _settings(settings: dict[str, Any]) -> list[list[str]]:
    return [[name, printable(repr(value))] for name, value in settings.items()]
