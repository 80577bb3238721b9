"""Predictions for images alone: class probabilities, or groups of their embeddings."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from shared.data.images import FolderImages
from shared.evaluation.clustering import assign, kmeans
from shared.files import own_folder
from shared.predict.inputs import PredictError, Predictor, batches
from shared.predict.sheets import Cell, Section, percent, sheet, thumbnail
from shared.predict.tables import refuse_not_finite, write_csv, write_picture


@dataclass(frozen=True)
class Prediction:
    """One image: `path`, `values` and a `thumbnail` if the sheet shows it.

    The values are probabilities (C,) of the classes or an embedding (d,); `name` and `confidence`
    are the most probable class and its probability, or the group and the cosine to its centre.
    """

    path: Path
    values: NDArray[np.float32]
    thumbnail: Image.Image | None
    name: str = ""
    confidence: float = float("nan")


def predict_images(
    predictor: Predictor,
    images: FolderImages,
    base: Path,
    output: Path,
    batch_size: int,
    sheet_images: int,
    groups: int,
) -> list[Path]:
    """Writes predictions.csv and contact_sheet.png; returns their paths.

    Raises:
        PredictError: class names that do not fit.
    """
    found = list(_predictions(predictor, images, batch_size, sheet_images))
    width, names = len(found[0].values), predictor.class_names
    if getattr(predictor.module, "predicts", "probabilities") == "embeddings":
        columns = ["path", "group", "cosine", *(f"e{number}" for number in range(width))]
        found = grouped(found, groups)
    else:
        names = names or [f"class {number}" for number in range(width)]
        if len(names) != width:
            raise PredictError(f"the checkpoint has {len(names)} class names for {width} classes")
        columns = ["path", "class", "probability", *names]
        found = [_classified(item, names) for item in found]
    rows = (
        [item.path.relative_to(base).as_posix(), item.name, item.confidence, *item.values]
        for item in found
    )
    cells = [
        Cell(item.thumbnail, item.name, percent(item.confidence))
        for item in found
        if item.thumbnail is not None
    ]
    own_folder(output)
    page = sheet([Section(f"{len(cells)} of {len(found)} images", cells)])
    write_picture(output / "contact_sheet.png", page)
    return [write_csv(output / "predictions.csv", columns, rows), output / "contact_sheet.png"]


def _predictions(
    predictor: Predictor, images: FolderImages, batch_size: int, sheet_images: int
) -> Iterator[Prediction]:
    shown = 0
    for number, (_, paths, pixels) in enumerate(batches(images, batch_size)):
        batch = {"images": predictor.views(pixels), "paths": list(map(str, paths))}
        with torch.inference_mode():
            values = predictor.module.predict_step(batch, number).float().cpu().numpy()
        for path, picture, row in zip(paths, pixels, values, strict=True):
            refuse_not_finite(row, path)
            yield Prediction(path, row, thumbnail(picture) if shown < sheet_images else None)
            shown += 1


def _classified(item: Prediction, names: Sequence[str]) -> Prediction:
    best = int(item.values.argmax())
    return replace(item, name=names[best], confidence=float(item.values[best]))


def grouped(found: Sequence[Prediction], groups: int) -> list[Prediction]:
    """The predictions by k-means group of their embeddings, the most central first within each.

    There are at most `groups` groups, and no more than a quarter as many as images.
    """
    embeddings = torch.from_numpy(np.stack([item.values for item in found])).float()
    centroids = kmeans(embeddings, max(1, min(groups, len(found) // 4)), seed=0)
    group, _ = assign(embeddings, centroids)
    cosines = torch.cosine_similarity(embeddings, centroids[group], dim=1)
    named = [
        replace(item, name=f"group {int(number)}", confidence=float(cosine))
        for item, number, cosine in zip(found, group, cosines, strict=True)
    ]
    order = sorted(range(len(found)), key=lambda i: (int(group[i]), -float(cosines[i])))
    return [named[i] for i in order]
