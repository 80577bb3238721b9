"""Images or videos alone: class probabilities, or k-means groups of their embeddings."""

from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image

from shared.evaluation.clustering import assign, kmeans
from shared.predict.inputs import Pictures, PredictError, Predictor, refuse_not_finite
from shared.predict.outputs import Cell, Output, Table, percent, sheet


def predict_images(
    predictor: Predictor, images: Pictures, batch_size: int, sheet_images: int, groups: int
) -> Iterator[Output]:
    """Yield predictions.csv and contact_sheet.png.

    There are at most `groups` groups, and no more than a quarter as many as images.
    """
    places, rows = [], []
    thumbnails: list[Image.Image] = []
    for number, (indices, pictures) in enumerate(images.batches(batch_size)):
        paths = [images.path(index) for index in indices]
        batch = {"images": predictor.views(pictures), "paths": paths}
        with torch.inference_mode():
            found = predictor.module.predict_step(batch, number).float().cpu().numpy()
        for path, row in zip(paths, found, strict=True):
            refuse_not_finite(row, path)
        shown = list(zip(indices, pictures, strict=True))[: max(0, sheet_images - len(thumbnails))]
        thumbnails += [images.thumbnail(index, pixels) for index, pixels in shown]
        places += indices
        rows += [*found]
    values = np.stack(rows)
    count, width = values.shape
    if getattr(predictor.module, "predicts", "probabilities") == "embeddings":
        columns = ["group", "cosine", *(f"e{number}" for number in range(width))]
        embeddings = torch.from_numpy(values)
        centroids = kmeans(embeddings, max(1, min(groups, count // 4)), seed=0)
        group, _ = assign(embeddings, centroids)
        confidence = torch.cosine_similarity(embeddings, centroids[group], dim=1).numpy()
        order = np.lexsort((-confidence, group)).tolist()  # the most central first within each
        named = [f"group {number}" for number in group.tolist()]
    else:
        classes = predictor.class_names or [f"class {number}" for number in range(width)]
        if len(classes) != width:
            raise PredictError(f"the checkpoint has {len(classes)} class names for {width} classes")
        columns = ["class", "probability", *classes]
        order, confidence = list(range(count)), values.max(axis=1)
        named = [classes[best] for best in values.argmax(axis=1)]
    table = ([images.name(places[i]), named[i], confidence[i], *values[i]] for i in order)
    yield "predictions.csv", Table(["path", *columns], table)
    first = [i for i in order if i < len(thumbnails)]
    cells = [Cell(thumbnails[i], named[i], percent(float(confidence[i]))) for i in first]
    title = f"{len(cells)} of {count} {images.kind}s"
    yield "contact_sheet.png", sheet([(title, cells)], headline=predictor.accuracy)
