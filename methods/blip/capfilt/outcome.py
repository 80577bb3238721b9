"""What became of texts: pairs in the input's own format, and a line of captions.jsonl for each."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from methods.blip.capfilt.running import Row
from methods.blip.capfilt.settings import Settings
from shared.data.captioned.decoding import Decoder, UnusableError
from shared.data.captioned.records import Record, Source, Write
from shared.data.captioned.working import CHANGED
from shared.data.errors import WorkError
from shared.tools.tool import Told

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


class Pairs:
    """Writes the pairs that stay, and counts texts by their source. An entry is an example of a
    fate: what became of its texts."""

    def __init__(self, source: Source, settings: Settings, write: Write) -> None:
        self._source, self._settings, self._write = source, settings, write
        self._decoder = Decoder(source.root, (), settings.max_pixels)
        self._texts: Counter[str] = Counter()
        self._kept: Counter[str] = Counter()
        self._scores: Counter[tuple[str, int]] = Counter()  # by source and bin

    def add(self, record: Record, row: Row) -> Told:
        texts = judged_texts(record, row, self._settings)
        for text in texts:
            self._texts[text.source] += 1
            self._kept[text.source] += text.kept
            if text.score is not None:
                self._scores[text.source, min(BINS - 1, int(text.score * BINS))] += 1
        image, kept = b"", [text for text in texts if text.kept]
        if self._source.copies and kept:
            with suppress(UnusableError):
                image = self._decoder.read(record)
            if hashlib.sha256(image).hexdigest() != row["sha256"]:
                raise WorkError(f"{CHANGED} ({record.name})")
        for text in kept:
            self._write(record, text.origin, text.caption, image)
        fates = [(text.source, "kept" if text.kept else "dropped") for text in texts[-2:]]
        title = ", ".join(f"{source} text {fate}" for source, fate in fates)
        # Texts of different fates first: there the filter had to choose.
        group = (-len({fate for _, fate in fates}), title) if texts else None
        return Told([text._asdict() for text in texts], group, texts)

    def facts(self) -> dict[str, Any]:
        texts = {
            source: {
                "texts": (number := self._texts[source]),
                "kept": (kept := self._kept[source]),
                "accept_rate": round(kept / number, 4) if number else None,
                "scores": [self._scores[source, place] for place in range(BINS)],
            }
            for source in ("web", "synthetic")
        }
        return {"texts": texts, "pairs": self._kept.total(), "output": self._source.output}


@contextmanager
def pairs(folder: Path, source: Source, settings: Settings) -> Iterator[Pairs]:
    """The pairs in a folder, whole when the context ends without an error."""
    with source.writer(folder) as write:
        yield Pairs(source, settings, write)


def judged_texts(record: Record, row: Row, settings: Settings) -> Sequence[Judged]:
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
