"""From finished journals to the outputs, in the order of the input: each whole or not at all.

The tool's own outputs and its log come first, then sheet.html, card.md and card.json, the last one.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from shared.data.captioned.decoding import Decoder, UnusableError
from shared.data.captioned.records import Record, Source
from shared.data.captioned.working import Job, all_rows
from shared.files import remove_unfinished, replacing, write_json
from shared.tools import card, sheet
from shared.tools.tool import Tool

SHEET, CARD, CARD_JSON = "sheet.html", "card.md", "card.json"


def outputs(tool: Tool, source: Source) -> tuple[str, ...]:
    """Names of all that is there when the work is done."""
    return tool.output(source), tool.log, SHEET, CARD, CARD_JSON


def finish(
    tool: Tool,
    folder: Path,
    job: Job,
    header: Any,
    command: str,
    journals: Sequence[Path],
    tell: Callable[[int], None],
) -> dict[str, Any]:
    """Write the outputs from journals in the order of their shards, which have all ended; returns
    what the card says, the `command` with it."""
    remove_unfinished(folder)
    counts, state, settings = card.Counts(), hashlib.sha256(), tool.settings(**header["settings"])
    with tool.results(folder, job.source, settings) as results, replacing(folder / tool.log) as log:
        for record, row in all_rows(job, journals):
            fault, told = job.fault_of(record, row), results.add(record, row)
            state.update(packed([record.key, row.get("sha256"), row.get("fault")]))
            about = {"entry": counts.entries, "image": record.name}
            for line in [*told.lines, *([{"fault": fault}] if fault else [])]:
                log.write(packed(about | dict(line)))
            counts.add(record, "sha256" in row, fault, told)
            tell(counts.entries)
    facts = card.facts(counts, header, command, state.hexdigest()) | results.facts()
    decoder = Decoder(job.source.root, (), settings.max_pixels)

    def example(record: Record, shown: Any) -> sheet.Example:
        try:
            pixels = tool.drawn(decoder.pixels(decoder.read(record)), shown)
        except UnusableError:  # it is gone since
            return sheet.Example("", record.name, shown)
        return sheet.Example(sheet.data_address(pixels), record.name, shown)

    groups = [
        (title, [example(*one) for one in counts.examples_of((place, title))])
        for place, title in sorted(counts.examples)
    ]
    sheet.write(folder / SHEET, tool.template, facts, groups)
    with replacing(folder / CARD) as file:
        file.write(card.markdown(facts, tool.card(facts)).encode())
    write_json(folder / CARD_JSON, facts)
    return facts


def packed(content: Any) -> bytes:
    """A line of JSON; half characters are spelled out."""
    return json.dumps(content, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
