"""What became of texts, and what the card and the sheet tell of a whole input."""

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from methods.blip.capfilt.records import Record
from methods.blip.capfilt.running import Row
from methods.blip.capfilt.settings import Settings

EXAMPLES = 12  # images of each fate on the sheet, and faults of each kind on the card
BINS = 20  # of scores


class Judged(NamedTuple):
    """A text and what became of it; `score` is None where no filter judged."""

    origin: str
    caption: str
    score: float | None
    kept: bool

    @property
    def source(self) -> str:
        """ "web" or "synthetic"."""
        return self.origin.partition("-")[0]


@dataclass
class Texts:
    """Counts of the texts of one origin."""

    texts: int = 0
    kept: int = 0
    scores: list[int] = field(default_factory=lambda: [0] * BINS)

    def add(self, text: Judged) -> None:
        self.texts += 1
        self.kept += text.kept
        if text.score is not None:
            self.scores[min(BINS - 1, int(text.score * BINS))] += 1


class Example(NamedTuple):
    record: Record
    texts: tuple[Judged, ...]


@dataclass
class Outcome:
    """Counts, and a bounded number of examples."""

    entries: int = 0
    usable_images: int = 0
    texts: dict[str, Texts] = field(default_factory=lambda: {"web": Texts(), "synthetic": Texts()})
    faults: Counter[str] = field(default_factory=Counter)  # by kind
    named: dict[str, list[str]] = field(default_factory=dict)  # some entries of each kind
    examples: dict[tuple[str, ...], list[tuple[int, int, Example]]] = field(default_factory=dict)

    def add(self, record: Record, texts: Sequence[Judged], fault: str, usable_image: bool) -> None:
        for text in texts:
            self.texts[text.source].add(text)
        if texts:
            self._keep_example(record, texts)
        if fault:
            self._add_fault(record, fault)
        self.usable_images += usable_image
        self.entries += 1

    def _add_fault(self, record: Record, fault: str) -> None:
        kind = fault.partition(":")[0]
        self.faults[kind] += 1
        names = self.named.setdefault(kind, [])
        if len(names) < EXAMPLES:
            names.append(f"{record.name} ({fault})")

    def _keep_example(self, record: Record, texts: Sequence[Judged]) -> None:
        """Keep an even sample of each fate: the entries with the smallest keys."""
        fate = tuple(f"{t.source} {'kept' if t.kept else 'dropped'}" for t in texts[-2:])
        heap = self.examples.setdefault(fate, [])
        item = (-int(record.key, 16), -self.entries, Example(record, tuple(texts)))
        heapq.heappush(heap, item)
        if len(heap) > EXAMPLES:
            heapq.heappop(heap)


def judged_texts(record: Record, row: Row, settings: Settings) -> list[Judged]:
    """The texts of an entry: those of the web, then the written one."""
    if "sha256" not in row:
        return []
    found = []
    if settings.web:
        scores = row.get("web", [None] * len(record.texts))
        for number, (text, score) in enumerate(zip(record.texts, scores, strict=True), 1):
            found.append((f"web-{number}" if number > 1 else "web", text, score))
    if row.get("synthetic"):
        found.append(("synthetic", row["synthetic"], row.get("score")))
    return [
        Judged(origin, text, score, score is None or score > settings.threshold)
        for origin, text, score in found
    ]
