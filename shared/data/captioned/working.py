"""The work on a shard: block after block to a judge, whose rows go into the journal when done."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from shared.data.captioned import journal as journals
from shared.data.captioned.decoding import Decoded, Decoder
from shared.data.captioned.journal import Journal
from shared.data.captioned.records import Block, Record, Source, blocks
from shared.data.errors import WorkError
from shared.data.loading.loader import unchanged
from shared.data.readers.files import shortened

EARLY = 1_000  # entries after which a share is judged before the end
CHANGED = "the input has changed since this work began: put it back, or take another --out"
Row = dict[str, Any]
"""What is known of an entry: its `key`, and a `fault` or what a judge made of it."""


@dataclass(frozen=True)
class Job:
    """A shard of an input: of its blocks, every `count`-th from `number` on. `fault_of` says why an
    entry with its row is unusable, or ""; more than a share `most_bad` of those is an error."""

    source: Source
    batch_size: int
    limit: int | None
    fault_of: Callable[[Record, Row], str]
    number: int = 0
    count: int = 1
    workers: int = 0
    most_bad: float = 0.05

    def blocks(self) -> Iterator[Block]:
        """All blocks of the input, those of other shards too."""
        return blocks(islice(self.source.records(), self.limit), self.batch_size)


@dataclass
class Tally:
    """Entries of a shard that are done, and the unusable ones of them."""

    job: Job
    entries: int = 0
    unusable: int = 0
    replayed: int = 0  # of the entries, done by earlier runs
    end: int = 0  # bytes of the input up to here
    examples: list[str] = field(default_factory=list)

    def add(self, block: Block, rows: Sequence[Row]) -> None:
        """Count a block; WorkError if too much is unusable."""
        most = self.job.most_bad
        for record, row in zip(block.records, rows, strict=True):
            self.entries, self.end = self.entries + 1, record.end
            if fault := self.job.fault_of(record, row):
                self.unusable += 1
                self.examples += [f"{record.name} ({fault})"] if self.unusable <= 10 else []
            if record.lost > most:
                said = f"{record.name}: {record.fault}; that is more than --max-bad {most:g}"
                raise WorkError(f"{said}. Repair the input or raise it; what is done stays")
        if self.entries >= EARLY:
            self.refuse()

    def refuse(self) -> None:
        most = self.job.most_bad
        if self.unusable > most * self.entries:
            count = f"{self.unusable:,} of {self.entries:,} entries are unusable"
            said = f"{count}, more than --max-bad {most:g}; the first is {self.examples[0]}"
            raise WorkError(f"{said}. Raise it to go on, or repair them and take another --out")


def work(
    job: Job,
    judge: Callable[[Decoded], list[Row]],
    decoder: Decoder,
    journal: Journal,
    replayed: Iterator[Any],
    tell: Callable[[Tally], None] = lambda tally: None,
) -> Tally:
    """Go on where the journal ends, and end it with the number of all blocks; WorkError if the
    input is not what it was, or has too many unusable entries: what is done stays."""
    tally, total = Tally(job), 0

    def own() -> Iterator[Block]:
        nonlocal total
        for block in job.blocks():
            total = block.number + 1
            if block.number % job.count == job.number:
                yield block

    mine = own()
    for content in replayed:
        if "end" in content:
            return tally
        tally.add(check_block(next(mine, None), content), content["rows"])
        tally.replayed = tally.entries
        tell(tally)
    images: Any = decoder
    loader: DataLoader = DataLoader(
        images,
        batch_size=None,
        sampler=mine,  # read as far ahead as the workers need
        num_workers=job.workers,
        collate_fn=unchanged,
        worker_init_fn=_end_with_parent,
        generator=torch.Generator(),
    )
    try:
        for decoded in loader:
            rows = judge(decoded)
            journal.append({"block": decoded.block.number, "rows": rows})
            tally.add(decoded.block, rows)
            tell(tally)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        said = f"a worker process ended ({error}), perhaps for want of memory"
        raise WorkError(f"{said}: the same command goes on; try fewer --workers") from error
    tally.refuse()
    if not total:
        raise WorkError("the input has no entries")
    journal.append({"end": total})
    return tally


def check_block(block: Block | None, content: Any) -> Block:
    """The block; WorkError unless what was worked out is of this block of the input."""
    if block is None or "end" in content:
        raise WorkError(f"{CHANGED} (it has another length)")
    keys = [record.key for record in block.records]
    if content["block"] != block.number or keys != [row["key"] for row in content["rows"]]:
        raise WorkError(f"{CHANGED} (around {shortened(block.records[0].name)})")
    return block


def all_rows(job: Job, paths: Sequence[Path]) -> Iterator[tuple[Record, Row]]:
    """Yield the entries of the input with their rows, of each shard's journal in turn."""
    contents = [islice(journals.read(path), 1, None) for path in paths]  # behind the header
    found = job.blocks()
    for number in count():
        content, block = next(contents[number % len(contents)]), next(found, None)
        if "end" in content and block is None:
            return
        yield from zip(check_block(block, content).records, content["rows"], strict=True)


def _end_with_parent(worker: int) -> None:
    """End this worker when its parent was killed, even while nobody takes what it hands over."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
