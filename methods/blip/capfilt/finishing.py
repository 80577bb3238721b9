"""From finished journals to the outputs, in the order of the input: each whole or not at all.

pairs.json, pairs.jsonl or pairs/   the texts that stay, in the input's own format
captions.jsonl                      every text with its score, and every fault
sheet.html                          examples that stay and go
card.md, card.json                  what was done; card.json comes last
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from methods.blip.capfilt import card, sheet
from methods.blip.capfilt.outcome import Outcome, judged_texts
from methods.blip.capfilt.settings import Settings
from shared.data.captioned.decoding import Decoder, UnusableError
from shared.data.captioned.working import CHANGED, Job, all_rows
from shared.data.errors import WorkError
from shared.files import remove_unfinished, replacing, write_json

OTHERS = CAPTIONS, SHEET, CARD, CARD_JSON = "captions.jsonl", "sheet.html", "card.md", "card.json"


def finish(
    folder: Path,
    job: Job,
    settings: Settings,
    header: Any,
    journals: Sequence[Path],
    tell: Callable[[int], None] = lambda entries: None,
) -> dict[str, Any]:
    """Write the outputs from journals in the order of their shards, which have all ended; returns
    what the card says."""
    remove_unfinished(folder)
    source, outcome, state = job.source, Outcome(), hashlib.sha256()
    decoder = Decoder(source.root, (), settings.max_pixels)
    with source.writer(folder) as write, replacing(folder / CAPTIONS) as captions:
        for record, row in all_rows(job, journals):
            texts = judged_texts(record, row, settings)
            fault = job.fault_of(record, row)
            state.update(_packed([record.key, row.get("sha256"), row.get("fault")]))
            image, kept = b"", [text for text in texts if text.kept]
            if source.copies and kept:
                with suppress(UnusableError):
                    image = decoder.read(record)
                if hashlib.sha256(image).hexdigest() != row["sha256"]:
                    raise WorkError(f"{CHANGED} ({record.name})")
            for text in kept:
                write(record, text.origin, text.caption, image)
            about = {"entry": outcome.entries, "image": record.name}
            for told in [*(text._asdict() for text in texts), *[{"fault": fault}][: bool(fault)]]:
                captions.write(_packed(about | told))
            outcome.add(record, texts, fault, "sha256" in row)
            tell(outcome.entries)
    facts = card.facts(outcome, header, state.hexdigest(), source.output)
    sheet.write(folder / SHEET, outcome, facts, decoder)
    with replacing(folder / CARD) as file:
        file.write(card.markdown(facts).encode())
    write_json(folder / CARD_JSON, facts)
    return facts


def _packed(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
