"""The work on a shard: block after block through the models, each into the journal when done."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from methods.blip.capfilt.decoding import Decoded, Decoder, Picture
from methods.blip.capfilt.journal import Journal
from methods.blip.capfilt.models import Models, Network
from methods.blip.capfilt.records import Block, Record, Source, blocks
from methods.blip.capfilt.settings import CapFiltError, Settings
from shared.data.readers.files import shortened
from shared.data.views.interface import normalise, planes
from shared.randomness import sample_keys

EARLY = 1_000  # entries after which a share is judged before the end
CHANGED = "the input has changed since this work began: put it back, or take another --out"
Row = dict[str, Any]


@dataclass
class Tally:
    """Entries that were done, and the unusable ones of them."""

    entries: int = 0
    unusable: int = 0
    replayed: int = 0  # of the entries, done by earlier runs
    end: int = 0  # bytes of the input up to here
    examples: list[str] = field(default_factory=list)

    def add(self, record: Record, fault: str) -> None:
        self.entries += 1
        self.end = record.end
        if fault:
            self.unusable += 1
            if len(self.examples) < 10:
                self.examples.append(f"{record.name} ({fault})")


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


def work(
    job: Job,
    models: Models,
    journal: Journal,
    replayed: Iterator[Any],
    tell: Callable[[Tally], None] = lambda tally: None,
) -> Tally:
    """Go on where the journal ends, and end it with the number of all blocks; CapFiltError if the
    input is not what it was, or has too many unusable entries: what is done stays."""
    tally, total = Tally(), 0

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
        block = next(mine, None)
        check_block(block, content)
        assert block is not None
        _count(tally, job, block, content["rows"])
        tally.replayed = tally.entries
        tell(tally)
    root, pixels = job.source.root, job.settings.max_pixels
    loader: DataLoader = DataLoader(
        Decoder(root, models.sizes, pixels),  # type: ignore[arg-type]
        batch_size=None,
        sampler=mine,  # read as far ahead as the workers need
        num_workers=job.workers,
        collate_fn=_unchanged,
        generator=torch.Generator(),
    )
    try:
        for decoded in loader:
            rows = judged(decoded, models, job.settings)
            journal.append({"block": decoded.block.number, "rows": rows})
            _count(tally, job, decoded.block, rows)
            tell(tally)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        said = f"a worker process ended ({error}), perhaps for want of memory"
        raise CapFiltError(f"{said}: the same command goes on; try fewer --workers") from error
    _refuse_bad(tally, job)
    if not total:
        raise CapFiltError("the input has no entries")
    journal.append({"end": total})
    return tally


def judged(decoded: Decoded, models: Models, settings: Settings) -> list[Row]:
    """What the models say of each entry: {key, fault} or {key, sha256, web: scores of its texts,
    synthetic: text, score: of that}, without what the settings do not ask for."""
    records, pictures = decoded.block.records, decoded.pictures
    rows: list[Row] = [{"key": record.key} for record in records]
    usable: list[tuple[Row, Record, Picture]] = []
    for row, record, picture in zip(rows, records, pictures, strict=True):
        if isinstance(picture, str):
            row["fault"] = picture
        else:
            row["sha256"] = picture.sha256
            usable.append((row, record, picture))
    if not usable:
        return rows
    with torch.inference_mode():
        if models.captioner is not None:
            ids = np.array([int(row["key"], 16) for row, _, _ in usable], np.uint64)
            keys = sample_keys(settings.seed, 0, ids, "caption")
            texts = models.captioner.write(_seen(models.captioner, usable), keys)
            for (row, _, _), text in zip(usable, texts, strict=True):
                row["synthetic"] = " ".join(text.split())
        if models.filter is not None:
            owners, texts, fates = [], [], []
            for owner, (row, record, _) in enumerate(usable):
                web = record.texts if settings.web else ()
                row["web"] = []
                own = [*web, *filter(None, [row.get("synthetic")])]
                owners += [owner] * len(own)
                texts += own
                fates += [(row, "web")] * len(web) + [(row, "score")] * (len(own) - len(web))
            scores = _scores(models, usable, texts, torch.tensor(owners)) if texts else []
            for (row, fate), score in zip(fates, scores, strict=True):
                if fate == "web":
                    row["web"].append(score)
                else:
                    row["score"] = score
    return rows


def fault_of(record: Record, row: Row, settings: Settings) -> str:
    """Why an entry is unusable, or not wholly usable, or ""."""
    if fault := row.get("fault") or (record.text_fault if settings.web else ""):
        return fault
    return "nothing written: the captioner's text is empty" if row.get("synthetic") == "" else ""


def check_block(block: Block | None, content: Any) -> None:
    """CapFiltError unless what was worked out is of this block of the input."""
    same = block is not None and content["block"] == block.number
    if not same or [row["key"] for row in content["rows"]] != [r.key for r in block.records]:  # type: ignore[union-attr]
        where = f"around {shortened(block.records[0].name)}" if block else "it is shorter"
        raise CapFiltError(f"{CHANGED} ({where})")


def _scores(
    models: Models, usable: Sequence[tuple[Row, Record, Picture]], texts: list[str], owners: Tensor
) -> list[float]:
    """Scores as the shortest numbers that stand for their float32."""
    assert models.filter is not None
    found = models.filter.score(_seen(models.filter, usable), texts, owners).float().cpu()
    if found.shape != (len(texts),):
        raise CapFiltError(
            f"the filter gave scores of shape {tuple(found.shape)}, not {len(texts)}"
        )
    good = (found >= 0) & (found <= 1)
    if not good.all():
        first = int((~good).int().argmax())
        name = shortened(usable[int(owners[first])][1].name)
        said = (
            f"the filter scores a text of {name} as {found[first].item()}, which is no probability"
        )
        raise CapFiltError(f"{said}: its weights are damaged, or it is no filter")
    return [float(str(score)) for score in found.numpy()]


def _seen(network: Network, usable: Sequence[tuple[Row, Record, Picture]]) -> Tensor:
    images = np.stack([picture.views[network.size] for _, _, picture in usable])
    return normalise(planes(images), network.mean, network.std)


def _count(tally: Tally, job: Job, block: Block, rows: Sequence[Row]) -> None:
    for record, row in zip(block.records, rows, strict=True):
        tally.add(record, fault_of(record, row, job.settings))
        if record.lost > job.most_bad:
            said = f"{record.name}: {record.fault}; that is more than --max-bad {job.most_bad:g}"
            raise CapFiltError(f"{said}. Repair the input or raise it; what is done stays")
    if tally.entries >= EARLY:
        _refuse_bad(tally, job)


def _refuse_bad(tally: Tally, job: Job) -> None:
    if tally.unusable > job.most_bad * tally.entries:
        count = f"{tally.unusable:,} of {tally.entries:,} entries are unusable"
        first = f"the first is {tally.examples[0]}"
        said = f"{count}, more than --max-bad {job.most_bad:g}; {first}"
        raise CapFiltError(f"{said}. Raise it to go on, or repair them and take another --out")


def _unchanged(decoded: Any) -> Any:
    return decoded
