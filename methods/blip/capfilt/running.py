"""What captioner and filter say of the entries of a block."""

from collections.abc import Sequence
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from methods.blip.capfilt.networks import Loaded, Models, ModuleFilter
from methods.blip.capfilt.settings import Settings
from shared.data.captioned.decoding import Decoded, Picture
from shared.data.captioned.records import Record
from shared.data.captioned.working import Row
from shared.data.errors import WorkError
from shared.data.readers.files import shortened
from shared.data.views.interface import normalise, planes
from shared.randomness import sample_keys


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


def _scores(
    judge: ModuleFilter,
    usable: Sequence[tuple[Row, Record, Picture]],
    texts: list[str],
    owners: Tensor,
) -> list[float]:
    """Scores as the shortest numbers that stand for their float32."""
    found = judge.score(_seen(judge, usable), texts, owners).float().cpu()
    if found.shape != (len(texts),):
        raise WorkError(f"the filter gave {tuple(found.shape)} scores for {len(texts)} texts")
    good = (found >= 0) & (found <= 1)
    if not good.all():
        first = int((~good).int().argmax())
        name = shortened(usable[int(owners[first])][1].name)
        said = f"the filter's score of a text of {name} is {found[first].item()}, no probability"
        raise WorkError(f"{said}: its weights are damaged, or it is no filter")
    return [float(str(score)) for score in found.numpy()]


def _seen(network: Loaded, usable: Sequence[tuple[Row, Record, Picture]]) -> Tensor:
    images = np.stack([picture.views[network.size] for _, _, picture in usable])
    return normalise(planes(images), network.mean, network.std)
