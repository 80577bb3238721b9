"""The work on a shard: block after block through the models, each into the journal when done."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from methods.blip.capfilt.decoding import Decoded, Picture
from methods.blip.capfilt.journal import Journal
from methods.blip.capfilt.models import Filter, Models, Network
from methods.blip.capfilt.records import Block, Record, Source, blocks
from methods.blip.capfilt.settings import CapFiltError, Settings
from shared.data.readers.files import shortened
from shared.data.views.interface import normalise, planes
from shared.randomness import sample_keys

EARLY = 1_000  # entries after which a share is judged before the end
CHANGED = "the input has changed since this work began: put it back, or take another --out"
Row = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """A shard of an input: of its blocks, every `count`-th from `number` on. More than a share
    `most_bad` of unusable entries is an error."""

    source: Source
    settings: Settings
    number: int = 0
    count: int = 1
    workers: int = 0
    most_bad: float = 0.05


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
        """Count a block; CapFiltError if too much is unusable."""
        most = self.job.most_bad
        for record, row in zip(block.records, rows, strict=True):
            self.entries, self.end = self.entries + 1, record.end
            if fault := fault_of(record, row, self.job.settings):
                self.unusable += 1
                self.examples += [f"{record.name} ({fault})"] if self.unusable <= 10 else []
            if record.lost > most:
                said = f"{record.name}: {record.fault}; that is more than --max-bad {most:g}"
                raise CapFiltError(f"{said}. Repair the input or raise it; what is done stays")
        if self.entries >= EARLY:
            self.refuse()

    def refuse(self) -> None:
        most = self.job.most_bad
        if self.unusable > most * self.entries:
            count = f"{self.unusable:,} of {self.entries:,} entries are unusable"
            said = f"{count}, more than --max-bad {most:g}; the first is {self.examples[0]}"
            raise CapFiltError(f"{said}. Raise it to go on, or repair them and take another --out")


def work(
    job: Job,
    models: Models,
    journal: Journal,
    replayed: Iterator[Any],
    tell: Callable[[Tally], None] = lambda tally: None,
) -> Tally:
    """Go on where the journal ends, and end it with the number of all blocks; CapFiltError if the
    input is not what it was, or has too many unusable entries: what is done stays."""
    tally, total = Tally(job), 0

    def own() -> Iterator[Block]:
        nonlocal total
        records = islice(job.source.records(), job.settings.limit)
        for block in blocks(records, job.settings.batch_size):
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
    decoder: Any = models.decoder(job.source.root, job.settings.max_pixels)
    loader: DataLoader = DataLoader(
        decoder,
        batch_size=None,
        sampler=mine,  # read as far ahead as the workers need
        num_workers=job.workers,
        collate_fn=_unchanged,
        worker_init_fn=_end_with_parent,
        generator=torch.Generator(),
    )
    try:
        for decoded in loader:
            rows = judged(decoded, models, job.settings)
            journal.append({"block": decoded.block.number, "rows": rows})
            tally.add(decoded.block, rows)
            tell(tally)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        said = f"a worker process ended ({error}), perhaps for want of memory"
        raise CapFiltError(f"{said}: the same command goes on; try fewer --workers") from error
    tally.refuse()
    if not total:
        raise CapFiltError("the input has no entries")
    journal.append({"end": total})
    return tally


def judged(decoded: Decoded, models: Models, settings: Settings) -> list[Row]:
    """What the models say of each entry: {key, fault} or {key, sha256, web: scores of its texts,
    synthetic: text, score: of that}, without what the settings do not ask for."""
    rows: list[Row] = []
    usable: list[tuple[Row, Record, Picture]] = []
    for record, picture in zip(decoded.block.records, decoded.pictures, strict=True):
        rows.append({"key": record.key})
        if isinstance(picture, str):
            rows[-1]["fault"] = picture
        else:
            rows[-1]["sha256"] = picture.sha256
            usable.append((rows[-1], record, picture))
    with torch.inference_mode():
        if usable and models.captioner is not None:
            ids = np.array([int(row["key"], 16) for row, _, _ in usable], np.uint64)
            keys = sample_keys(settings.seed, 0, ids, "caption")
            texts = models.captioner.write(_seen(models.captioner, usable), keys)
            for (row, _, _), text in zip(usable, texts, strict=True):
                row["synthetic"] = " ".join(text.split())
        if usable and models.filter is not None:
            web = [list(record.texts) if settings.web else [] for _, record, _ in usable]
            own = [[row["synthetic"]] if row.get("synthetic") else [] for row, _, _ in usable]
            texts = [text for pair in zip(web, own, strict=True) for part in pair for text in part]
            counts = [len(a) + len(b) for a, b in zip(web, own, strict=True)]
            owners = torch.arange(len(usable)).repeat_interleave(torch.tensor(counts))
            scores = iter(_scores(models.filter, usable, texts, owners) if texts else [])
            for (row, _, _), found, written in zip(usable, web, own, strict=True):
                row["web"] = list(islice(scores, len(found)))
                row |= {"score": next(scores)} if written else {}
    return rows


def fault_of(record: Record, row: Row, settings: Settings) -> str:
    """Why an entry is unusable, or not wholly usable, or ""."""
    if fault := row.get("fault") or (record.text_fault if settings.web else ""):
        return fault
    return "nothing written: the captioner's text is empty" if row.get("synthetic") == "" else ""


def check_block(block: Block | None, content: Any) -> Block:
    """The block; CapFiltError unless what was worked out is of this block of the input."""
    if block is None or "end" in content:
        raise CapFiltError(f"{CHANGED} (it has another length)")
    keys = [record.key for record in block.records]
    if content["block"] != block.number or keys != [row["key"] for row in content["rows"]]:
        raise CapFiltError(f"{CHANGED} (around {shortened(block.records[0].name)})")
    return block


def _scores(
    judge: Filter, usable: Sequence[tuple[Row, Record, Picture]], texts: list[str], owners: Tensor
) -> list[float]:
    """Scores as the shortest numbers that stand for their float32."""
    found = judge.score(_seen(judge, usable), texts, owners).float().cpu()
    if found.shape != (len(texts),):
        raise CapFiltError(f"the filter gave {tuple(found.shape)} scores for {len(texts)} texts")
    good = (found >= 0) & (found <= 1)
    if not good.all():
        first = int((~good).int().argmax())
        name = shortened(usable[int(owners[first])][1].name)
        said = f"the filter's score of a text of {name} is {found[first].item()}, no probability"
        raise CapFiltError(f"{said}: its weights are damaged, or it is no filter")
    return [float(str(score)) for score in found.numpy()]


def _seen(network: Network, usable: Sequence[tuple[Row, Record, Picture]]) -> Tensor:
    images = np.stack([picture.views[network.size] for _, _, picture in usable])
    return normalise(planes(images), network.mean, network.std)


def _unchanged(decoded: Any) -> Any:
    return decoded


def _end_with_parent(worker: int) -> None:
    """End this worker when its parent was killed, even while nobody takes what it hands over."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
