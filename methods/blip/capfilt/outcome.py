"""What became of texts, and what the card and the sheet tell of a whole input."""

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from methods.blip.capfilt.running import Row
from methods.blip.capfilt.settings import Settings
from shared.data.captioned.records import Record

EXAMPLES = 12  # images of each fate on the sheet, and faults of each kind on the card
BINS = 20  # of scores


class Judged(NamedTuple):
    """A text and what became of it; `score` is None where no filter judged."""

    origin: str  # "web", "web-2", ..., "synthetic"
    caption: str
    score: float | None
    kept: bool

    @property
    def source(self) -> str:
        """ "web" or "synthetic"."""
        return self.origin.partition("-")[0]


class Example(NamedTuple):
    record: Record
    texts: Sequence[Judged]


@dataclass
class Outcome:
    """Counts, and a bounded number of examples. A fate is what became of the texts of an image."""

    entries: int = 0
    usable_images: int = 0
    texts: Counter[str] = field(default_factory=Counter)  # by source
    kept: Counter[str] = field(default_factory=Counter)
    scores: Counter[tuple[str, int]] = field(default_factory=Counter)  # by source and bin
    faults: Counter[str] = field(default_factory=Counter)  # by kind
    named: dict[str, list[str]] = field(default_factory=dict)  # some entries of each kind
    examples: dict[tuple[str, ...], list[tuple[int, int, Example]]] = field(default_factory=dict)

    def add(self, record: Record, texts: Sequence[Judged], fault: str, usable_image: bool) -> None:
        for text in texts:
            self.texts[text.source] += 1
            self.kept[text.source] += text.kept
            if text.score is not None:
                self.scores[text.source, min(BINS - 1, int(text.score * BINS))] += 1
        if texts:  # an even sample of each fate: the entries with the smallest keys
            fate = tuple(f"{t.source} {'kept' if t.kept else 'dropped'}" for t in texts[-2:])
            heap = self.examples.setdefault(fate, [])
            heapq.heappush(heap, (-int(record.key, 16), -self.entries, Example(record, texts)))
            if len(heap) > EXAMPLES:
                heapq.heappop(heap)
        if fault:
            kind = fault.partition(":")[0]
            self.faults[kind] += 1
            if len(names := self.named.setdefault(kind, [])) < EXAMPLES:
                names.append(f"{record.name} ({fault})")
        self.usable_images += usable_image
        self.entries += 1

    def examples_of(self, fate: tuple[str, ...]) -> list[Example]:
        ordered = sorted(self.examples[fate], key=lambda item: item[:2], reverse=True)
        return [example for _, _, example in ordered]


def judged_texts(record: Record, row: Row, settings: Settings) -> list[Judged]:
    """The texts of an entry: those of the web, then the written one."""
    if "sha256" not in row:
        return []
    texts = record.texts if settings.web else ()
    scores = row.get("web") or [None] * len(texts)
    names = ["web", *(f"web-{number}" for number in range(2, len(texts) + 1))]
    found = list(zip(names, texts, scores, strict=False))
    if row.get("synthetic"):
        found.append(("synthetic", row["synthetic"], row.get("score")))
    return [
        Judged(origin, text, score, score is None or score > settings.threshold)
        for origin, text, score in found
    ]
