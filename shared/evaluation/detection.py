"""Average precision of detections: COCO's by pycocotools, LVIS's by lvis, and by training counts.

Both packages are an extra, `pip install 'tenfold[detection]'`, and decide every number: here their
inputs are put together, from annotations that a reader has checked, and their tables taken apart.
Source: docs/papers/simcal.md, section 7.
"""

import logging
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from io import StringIO
from types import ModuleType
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from shared.data.readers.instances import Instances
from shared.data.readers.outlines import RunLengths, mask_tools

Kind = Literal["bbox", "segm"]
COCO_METRICS = (
    *("AP", "AP50", "AP75", "APs", "APm", "APl"),
    *("AR@1", "AR@10", "AR@100", "ARs@100", "ARm@100", "ARl@100"),
)
MOST = {"coco": 100, "lvis": 300}  # detections of an image that count
RARE, COMMON = 10, 100  # most training images of LVIS's groups r and c
FREQUENCIES = "rcf"


@dataclass(frozen=True)
class Detections:
    """D detections of any images.

    Attributes:
        image_ids: (D,) int64, as the annotations number them.
        boxes: (D, 4) x1, y1, x2, y2 in pixels of the file, not of the resized image.
        scores: (D,) float.
        labels: (D,) int64 in 1..K.
        masks: D run lengths as pycocotools encodes them; None of boxes alone.
    """

    image_ids: NDArray[np.int64]
    boxes: NDArray[np.floating]
    scores: NDArray[np.floating]
    labels: NDArray[np.int64]
    masks: Sequence[RunLengths] | None = None

    def __post_init__(self) -> None:
        lengths = {len(self.image_ids), len(self.boxes), len(self.scores), len(self.labels)}
        lengths |= set() if self.masks is None else {len(self.masks)}
        if len(lengths) > 1 or self.boxes.shape[1:] != (4,):
            raise ValueError(f"detections of lengths {sorted(lengths)}, boxes {self.boxes.shape}")
        if not (np.isfinite(self.boxes).all() and np.isfinite(self.scores).all()):
            raise ValueError("a box or score is not finite")

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True)
class DetectionScores:
    """What an evaluator finds: `metrics` by name, -1 where nothing is to be found, and the AP of
    each class, `class_ap` (K,), the mean over IoU .50 to .95, NaN without an object; `class_ap50`
    (K,) at IoU .50."""

    metrics: dict[str, float]
    class_ap: NDArray[np.float64]
    class_ap50: NDArray[np.float64]


def detection_scores(
    instances: Instances,
    detections: Detections,
    kind: Kind = "bbox",
    most: int | None = None,
    inclusive_corners: bool = False,
) -> DetectionScores:
    """Score detections by LVIS's rules where the annotations are LVIS's, else by COCO's.

    Args:
        kind: what is compared, boxes or masks; the latter need `read_instances(..., masks=True)`.
        most: detections of an image that count, those of the highest scores: of all classes
            together in LVIS, by default 300, and of each class in COCO, by default 100.
        inclusive_corners: see `Preparation`; how the detections' boxes end.
    """
    _check(instances, detections, kind)
    most = most or MOST["lvis" if instances.federated else "coco"]
    results = _results(instances, detections, kind, inclusive_corners)
    score = _lvis_scores if instances.federated else _coco_scores
    # No evaluator takes an empty list; nothing is found then.
    if not results:
        results = [_nothing(instances, kind)]
    return score(dataset_of(instances, kind), results, kind, most)


def bin_means(
    values: NDArray[np.floating], train_counts: NDArray[np.int64], edges: Sequence[int]
) -> NDArray[np.float64]:
    """The means of values of classes, (K,), over the classes of each bin of their training counts:
    [0, edges[0]), [edges[0], edges[1]), and so on, the last without an end. What is NaN is left
    out, and an empty bin is NaN. Of `class_ap` the mean of the bins is bAP."""
    counted = ~np.isnan(values)
    bins = np.searchsorted(edges, train_counts[counted], side="right")
    sums = np.bincount(bins, values[counted], minlength=len(edges) + 1)
    sizes = np.bincount(bins, minlength=len(edges) + 1)
    with np.errstate(invalid="ignore"):
        return sums / sizes


def frequency_groups(image_counts: NDArray[np.int64]) -> str:
    """LVIS's letter of each class: r in at most 10 training images, c in at most 100, else f."""
    groups = np.searchsorted([RARE, COMMON], image_counts, side="left")
    return "".join(FREQUENCIES[group] for group in groups)


def dataset_of(instances: Instances, kind: Kind) -> dict[str, list[dict[str, Any]]]:
    """The annotations as COCO's and LVIS's tools take them."""
    images: list[dict[str, Any]] = [
        {"id": number, "height": height, "width": width}
        for number, (height, width) in zip(
            instances.image_ids.tolist(), instances.sizes.tolist(), strict=True
        )
    ]
    ids = instances.category_ids
    categories: list[dict[str, Any]] = [
        {"id": number, "name": name}
        for number, name in zip(ids.tolist(), instances.class_names, strict=True)
    ]
    if instances.negative is not None and instances.not_exhaustive is not None:
        for place, image in enumerate(images):
            image["neg_category_ids"] = ids[instances.negative[place] - 1].tolist()
            exhausted = ids[instances.not_exhaustive[place] - 1].tolist()
            image["not_exhaustive_category_ids"] = exhausted
        for category, letter in zip(categories, instances.frequencies, strict=True):
            category["frequency"] = letter
    columns = zip(
        instances.ids.tolist(),
        instances.image_ids[instances.images].tolist(),
        ids[instances.labels - 1].tolist(),
        instances.boxes.tolist(),
        instances.areas.tolist(),
        instances.crowd.astype(int).tolist(),
        strict=True,
    )
    keys = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")
    annotations = [dict(zip(keys, row, strict=True)) for row in columns]
    for number, annotation in enumerate(annotations):
        annotation["ignore"] = annotation["iscrowd"]
        if kind == "segm" and instances.masks is not None:
            size = instances.size(int(instances.images[number]))
            annotation["segmentation"] = instances.masks.compressed(number, size)
    return {"images": images, "annotations": annotations, "categories": categories}


def _check(instances: Instances, detections: Detections, kind: Kind) -> None:
    if kind == "segm" and (instances.masks is None or detections.masks is None):
        raise ValueError("masks are to be compared, but the annotations or detections have none")
    unknown = np.setdiff1d(detections.image_ids, instances.image_ids)
    if len(unknown):
        raise ValueError(f"{instances.origin} has no image {unknown[0]}, but a detection names it")
    labels = detections.labels
    if len(labels) and not 1 <= labels.min() <= labels.max() <= instances.num_classes:
        found = f"from {labels.min()} to {labels.max()}"
        raise ValueError(f"labels {found}, but {instances.origin} has {instances.num_classes}")


def _results(
    instances: Instances, detections: Detections, kind: Kind, inclusive_corners: bool
) -> list[dict[str, Any]]:
    """Detections as COCO's and LVIS's tools take them."""
    corners = detections.boxes.astype(np.float64)
    sides = corners[:, 2:] - corners[:, :2] + int(inclusive_corners)
    columns = zip(
        detections.image_ids.tolist(),
        instances.category_ids[detections.labels - 1].tolist(),
        detections.scores.tolist(),
        np.concatenate([corners[:, :2], sides], axis=1).tolist(),
        strict=True,
    )
    rows: list[dict[str, Any]] = [
        {"image_id": image, "category_id": category, "score": score, "bbox": box}
        for image, category, score, box in columns
    ]
    if kind == "segm" and detections.masks is not None:
        for row, mask in zip(rows, detections.masks, strict=True):
            row["segmentation"] = mask
            del row["bbox"]  # areas are those of the masks
    return rows


def _nothing(instances: Instances, kind: Kind) -> dict[str, Any]:
    """A detection that no object has an overlap with."""
    height, width = instances.size(0)
    found: dict[str, Any] = {"bbox": [0.0, 0.0, 0.0, 0.0]}
    if kind == "segm":
        found = {"segmentation": mask_tools().encode(np.zeros((height, width), np.uint8, "F"))}
    category = int(instances.category_ids[0])
    image = int(instances.image_ids[0])
    return found | {"image_id": image, "category_id": category, "score": 0.0}


def _coco_scores(
    dataset: dict[str, Any], results: list[dict[str, Any]], kind: Kind, most: int
) -> DetectionScores:
    coco, evaluators = package("pycocotools.coco"), package("pycocotools.cocoeval")
    with redirect_stdout(StringIO()):
        truth = coco.COCO()
        truth.dataset = dataset
        truth.createIndex()
        evaluator = evaluators.COCOeval(truth, truth.loadRes(results), kind)
        evaluator.params.maxDets = [1, 10, most]
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    names = (name.replace("@100", f"@{most}") for name in COCO_METRICS)
    metrics = dict(zip(names, evaluator.stats.tolist(), strict=True))
    # summarize() looks for 100 detections and gives -1 for AP of any other number.
    precision = evaluator.eval["precision"][:, :, :, 0, -1]
    if most != MOST["coco"]:
        metrics["AP"] = _mean(precision, -1.0)
    return DetectionScores(metrics, _class_ap(precision), _class_ap(precision[:1]))


def _lvis_scores(
    dataset: dict[str, Any], results: list[dict[str, Any]], kind: Kind, most: int
) -> DetectionScores:
    lvis = package("lvis")
    truth = lvis.LVIS.__new__(lvis.LVIS)  # whose constructor only reads a file
    truth.logger, truth.dataset = logging.getLogger("lvis"), dataset
    truth.logger.setLevel(logging.ERROR)
    # lvis 0.5.3 says np.float, which numpy has dropped (docs/papers/simcal.md, pitfall 14).
    with patch.object(np, "float", float, create=True):
        truth._create_index()
        found = lvis.LVISResults(truth, results, max_dets=most)
        evaluator = lvis.LVISEval(truth, found, kind)
        evaluator.params.max_dets = most
        evaluator.run()
    precision = evaluator.eval["precision"][:, :, :, 0]
    metrics = {name: float(value) for name, value in evaluator.results.items()}
    return DetectionScores(metrics, _class_ap(precision), _class_ap(precision[:1]))


def package(name: str) -> ModuleType:
    """A module of the extra; importing lvis sets up the root logger, which is undone."""
    handlers = list(logging.root.handlers)
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        needed = f"evaluation of detections needs {name}: pip install 'tenfold[detection]'"
        raise ModuleNotFoundError(needed) from error
    finally:
        logging.root.handlers = handlers


def _class_ap(precision: NDArray[np.float64]) -> NDArray[np.float64]:
    """(K,) means of the valid entries of (IoU, recall, K), the evaluators' mean of each class."""
    return np.array([_mean(of_class, np.nan) for of_class in np.moveaxis(precision, 2, 0)])


def _mean(precision: NDArray[np.float64], empty: float) -> float:
    valid = precision[precision > -1]
    return float(valid.mean()) if valid.size else empty
