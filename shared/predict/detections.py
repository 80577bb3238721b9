"""Objects in images: where they are, of which class, and their masks.

Shapes: B images, D detections of an image at most.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib import font_manager
from PIL import Image
from torch import Tensor
from torchvision.ops import clip_boxes_to_image
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from shared.data.detection.framing import Framing
from shared.data.readers.outlines import RunLengths, mask_tools
from shared.predict.inputs import Pictures, Pixels, PredictError, Predictor, refuse_not_finite
from shared.predict.outputs import Cell, Output, percent, sheet, thumbnail

SIDE, COLUMNS = 384, 4  # of the cells of a sheet
OPACITY = 0.45  # of a mask
# Okabe and Ito's colours, told apart with any colour vision.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")


class Objects(NamedTuple):
    """What is seen in one image, the surest first: boxes (D, 4), which end at x2 and y2, scores
    (D,), labels (D,) from 1, and the masks' run lengths, None of a model without."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: list[RunLengths] | None


def predict_detections(
    predictor: Predictor,
    images: Pictures,
    batch_size: int,
    sheet_images: int,
    min_score: float,
    max_detections: int,
) -> Iterator[Output]:
    """Yield detections.json, in COCO's form of results, picture_N.png of each of the first
    `sheet_images` images, and contact_sheet.png."""
    names = class_names(predictor)
    rows: list[dict[str, Any]] = []
    cells: list[Cell] = []
    for place, picture, found in detected(predictor, images, batch_size, min_score, max_detections):
        rows += results(found, place + 1, images.name(place), names, predictor.category_ids)
        if len(cells) < sheet_images:
            drawn = Image.fromarray(draw(picture, found, names))
            yield f"picture_{len(cells) + 1}.png", drawn
            surest = "nothing"
            if len(found.scores):
                surest = f"{names[int(found.labels[0]) - 1]} {percent(float(found.scores[0]))}"
            cells.append(Cell(thumbnail(np.asarray(drawn), SIDE), surest, images.name(place)))
    yield "detections.json", rows
    title = f"{len(cells)} of {len(images) - len(images.corrupt)} images"
    yield "contact_sheet.png", sheet([(title, cells)], COLUMNS, SIDE, predictor.accuracy)


def detected(
    predictor: Predictor, images: Pictures, batch_size: int, min_score: float, max_detections: int
) -> Iterator[tuple[int, Pixels, Objects]]:
    """Yield place, pixels and objects of each readable image, in order."""
    for places, pictures in images.batches(framing_of(predictor).at_once(batch_size)):
        objects = objects_in(predictor, pictures, min_score, max_detections)
        for place, picture, found in zip(places, pictures, objects, strict=True):
            values = torch.cat([found.boxes.flatten(), found.scores]).numpy()
            refuse_not_finite(values, images.path(place))
            yield place, picture, found


@torch.inference_mode()
def objects_in(
    predictor: Predictor, pictures: Sequence[Pixels], min_score: float, max_detections: int
) -> list[Objects]:
    """What is seen in each of some pictures (H, W, 3), which go through the model together.

    The model's `detect_objects` takes a batch of `images`, `sizes` and `original_sizes`, and a
    `Selection`; what it finds is in pixels of the original images.
    """
    module, framing = predictor.module, framing_of(predictor)
    selection = replace(module.selection, threshold=min_score, limit=max_detections)
    batch = {key: value.to(module.device) for key, value in framing.batch(pictures).items()}
    detections, masks = module.detect_objects(batch, selection)
    objects = []
    for row, picture in enumerate(pictures):
        own = detections.labels[row] > 0
        boxes, scores, labels = (part[row][own].cpu() for part in detections)
        boxes = clip_boxes_to_image(boxes, picture.shape[:2])
        objects.append(Objects(boxes, scores, labels, None if masks is None else masks[row]))
    return objects


def framing_of(predictor: Predictor) -> Framing:
    """How a detector sees pictures; PredictError of another model."""
    if predictor.framing is None:
        raise PredictError(f"{type(predictor.module).__name__} does not detect objects")
    return predictor.framing


def class_names(predictor: Predictor) -> list[str]:
    """Of all classes, label 1 first; PredictError if the checkpoint has another number of them, or
    none, as an official one of classes that are yet to be named."""
    framing_of(predictor)
    if predictor.class_names == []:
        raise PredictError("no class is named: tenfold-detect takes --classes")
    count = predictor.module.detector.num_classes
    names = predictor.class_names or [f"class {label}" for label in range(1, count + 1)]
    for known, what in ((names, "class names"), (predictor.category_ids or names, "category ids")):
        if len(known) != count:
            raise PredictError(f"the checkpoint has {len(known)} {what} for {count} classes")
    return names


def results(
    found: Objects, image_id: int, name: str, names: Sequence[str], ids: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """COCO's results of one image, with its name and those of the classes; without `ids` a class is
    numbered by its label."""
    ids = ids or range(1, len(names) + 1)
    sides = found.boxes[:, 2:] - found.boxes[:, :2]
    boxes = torch.cat([found.boxes[:, :2], sides], dim=1).tolist()
    rows = [
        {
            "image": name,
            "image_id": image_id,
            "category": names[label - 1],
            "category_id": ids[label - 1],
            "score": round(score, 6),
            "bbox": [round(value, 2) for value in box],
        }
        for box, score, label in zip(
            boxes, found.scores.tolist(), found.labels.tolist(), strict=True
        )
    ]
    for row, mask in zip(rows, found.masks or [], strict=False):
        row["segmentation"] = {"size": list(mask["size"]), "counts": mask["counts"].decode("ascii")}
    return rows


def draw(picture: Pixels, found: Objects, names: Sequence[str]) -> Pixels:
    """The picture (H, W, 3), small ones a whole number of times as large, with masks, boxes,
    classes and scores; a class has a colour."""
    times = max(1, SIDE // max(picture.shape[:2]))
    large = picture.repeat(times, axis=0).repeat(times, axis=1)
    if not len(found.scores):
        return large
    colours = [COLOURS[(label - 1) % len(COLOURS)] for label in found.labels.tolist()]
    canvas = torch.from_numpy(large).permute(2, 0, 1)
    if found.masks:
        inside = mask_tools().decode(found.masks).repeat(times, axis=0).repeat(times, axis=1)
        inside = torch.from_numpy(inside).permute(2, 0, 1).bool()
        canvas = draw_segmentation_masks(canvas, inside, OPACITY, colours)
    said = [
        f"{names[label - 1]} {score:.2f}"
        for label, score in zip(found.labels.tolist(), found.scores.tolist(), strict=True)
    ]
    side = max(large.shape[:2])
    drawn = draw_bounding_boxes(
        canvas,
        times * found.boxes.flip(0),
        said[::-1],  # the surest lies on top
        colours[::-1],
        width=max(1, side // 150),
        font=font_manager.findfont("DejaVu Sans"),  # comes with matplotlib, on every machine
        font_size=max(10, side // 28),
        label_colors="black",
        fill_labels=True,
    )
    return drawn.permute(1, 2, 0).numpy()
