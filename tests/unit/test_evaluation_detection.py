"""Detection AP against the evaluators themselves, and what stands on it: bins, groups, recall."""

import json
import logging
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from detection_toy import content, federated, read
from numpy.typing import NDArray
from pycocotools import mask as tools
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from shared.data.readers.instances import Instances, read_instances
from shared.evaluation.detection import (
    Detections,
    bin_means,
    detection_scores,
    frequency_groups,
    package,
)
from shared.evaluation.detection_recall import best_overlaps, class_recall, recall

NAN = float("nan")


def random_set(seed: int, lvis: bool) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Annotations, and detections of which many lie near an object; with masks and crowds."""
    generator = np.random.default_rng(seed)
    ids = [4, 9, 2, 7]
    images: list[dict[str, Any]] = [
        {"id": 10 + number, "file_name": f"{number}.png", "height": 60, "width": 80}
        for number in generator.permutation(8).tolist()
    ]
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image in images:
        for _ in range(generator.integers(0, 6)):
            box = _box(generator)
            row = {"image_id": image["id"], "category_id": int(generator.choice(ids[:3]))}
            mask = _mask(box)
            annotations.append(
                row
                | {"id": len(annotations) + 1, "bbox": box, "area": int(tools.area(mask))}
                | {"segmentation": mask | {"counts": mask["counts"].decode()}}
                | {"iscrowd": int(generator.random() < 0.15)}
            )
            near = (_box(generator, box) for _ in range(generator.integers(0, 3)))
            results += [row | {"bbox": other} for other in near]
        for _ in range(generator.integers(0, 5)):
            row = {"image_id": image["id"], "category_id": int(generator.choice(ids))}
            results.append(row | {"bbox": _box(generator)})
    scores = generator.permutation(len(results)) // 2 / 64  # with ties, exact in binary
    for row, score in zip(results, scores.tolist(), strict=True):
        row |= {"score": score, "segmentation": _mask(row["bbox"])}
    categories: list[dict[str, Any]] = [{"id": number, "name": f"c{number}"} for number in ids]
    if lvis:
        for image in images:
            image["neg_category_ids"] = generator.permutation(ids)[:2].tolist()
            image["not_exhaustive_category_ids"] = generator.permutation(ids)[:1].tolist()
        for row, letter in zip(categories, "rcff", strict=True):
            row["frequency"] = letter
        for row in annotations:
            del row["iscrowd"]
    return {"images": images, "annotations": annotations, "categories": categories}, results


def _box(generator: np.random.Generator, near: list[float] | None = None) -> list[float]:
    if near is not None:
        moved = np.array(near) + generator.integers(-2, 3, 4)
        return [*moved[:2].clip(0, 50).tolist(), *moved[2:].clip(2, 60).tolist()]
    x, y = generator.integers(0, (40, 30)).tolist()
    return [float(x), float(y), *generator.integers(4, 30, 2).astype(float).tolist()]


def _mask(box: list[float]) -> dict[str, Any]:
    x, y, width, height = map(int, box)
    drawn = np.zeros((60, 80), np.uint8, order="F")
    drawn[y : y + height, x : x + width] = 1
    drawn[y, x] = 0
    return tools.encode(drawn)


def ours(folder: Path, truth: Any, results: list[dict[str, Any]]) -> tuple[Instances, Detections]:
    path = folder / "truth.json"
    path.write_text(json.dumps(truth))
    instances = read_instances(path, masks=True)
    boxes = np.array([row["bbox"] for row in results])
    categories = [row["category_id"] for row in results]
    return instances, Detections(
        np.array([row["image_id"] for row in results]),
        np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1),
        np.array([row["score"] for row in results]),
        np.searchsorted(instances.category_ids, categories) + 1,
        [row["segmentation"] for row in results],
    )


def only(results: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    dropped = {"bbox": "segmentation", "segm": "bbox"}[kind]
    return [{key: row[key] for key in row.keys() - {dropped}} for row in results]


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(4))
def test_coco_to_the_last_digit(tmp_path: Path, seed: int, kind: str) -> None:
    truth, results = random_set(seed, lvis=False)
    scores = detection_scores(*ours(tmp_path, truth, results), kind=kind)
    with redirect_stdout(StringIO()):
        coco = COCO(str(tmp_path / "truth.json"))
        evaluator = COCOeval(coco, coco.loadRes(only(results, kind)), kind)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    assert list(scores.metrics.values()) == evaluator.stats.tolist()
    assert scores.metrics["AP"] > 0
    precision = evaluator.eval["precision"][:, :, :, 0, 2]
    for number, value in enumerate(scores.class_ap):
        valid = precision[:, :, number][precision[:, :, number] > -1]
        assert value == valid.mean() if valid.size else np.isnan(value)


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(4))
def test_lvis_to_the_last_digit(tmp_path: Path, seed: int, kind: str) -> None:
    lvis = package("lvis")
    truth, results = random_set(seed, lvis=True)
    most = 4  # so that it matters
    scores = detection_scores(*ours(tmp_path, truth, results), kind=kind, most=most)
    official = lvis.LVIS(str(tmp_path / "truth.json"))
    with patch.object(np, "float", float, create=True):
        found = lvis.LVISResults(official, only(results, kind), max_dets=most)
        evaluator = lvis.LVISEval(official, found, kind)
        evaluator.params.max_dets = most
        evaluator.run()
    assert scores.metrics == {name: float(value) for name, value in evaluator.results.items()}
    assert f"AR@{most}" in scores.metrics
    assert scores.metrics["AP"] > 0


def test_lvis_runs_on_this_numpy_and_leaves_it_and_logging_alone(tmp_path: Path) -> None:
    handlers = list(logging.root.handlers)
    detection_scores(*ours(tmp_path, *random_set(0, lvis=True)))
    assert "float" not in vars(np)
    assert logging.root.handlers == handlers


def nothing() -> Detections:
    return Detections(
        np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64), []
    )


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("value", [content(), federated()])
def test_no_detection_scores_nothing(tmp_path: Path, value: Any, kind: str) -> None:
    scores = detection_scores(read(tmp_path, value), nothing(), kind=kind)
    assert scores.metrics["AP"] == 0
    assert scores.class_ap[:2].tolist() == [0, 0]


def test_perfect_detections(tmp_path: Path) -> None:
    found = read(tmp_path, content())
    rows = found.usable
    perfect = Detections(
        found.image_ids[found.images][rows],
        found.corners[rows],
        np.linspace(1, 0.1, rows.sum()),
        found.labels[rows],
    )
    assert detection_scores(found, perfect).metrics["AP"] == pytest.approx(1)
    assert detection_scores(found, perfect, most=50).metrics["AP"] == pytest.approx(1)
    inclusive = Detections(
        perfect.image_ids, perfect.boxes - [0, 0, 1, 1], perfect.scores, perfect.labels
    )
    score = detection_scores(found, inclusive, inclusive_corners=True)
    assert score.metrics["AP"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.array([3])}, "labels from 3 to 3"),
        ({"labels": np.array([0])}, "labels from 0 to 0"),
        ({"image_ids": np.array([77])}, "has no image 77"),
        ({"scores": np.array([NAN])}, "not finite"),
        ({"boxes": np.zeros((2, 4))}, "lengths"),
    ],
)
def test_refused(tmp_path: Path, change: dict[str, NDArray], message: str) -> None:
    right = {"image_ids": np.array([5]), "boxes": np.zeros((1, 4))}
    right |= {"scores": np.array([1.0]), "labels": np.array([1])}
    with pytest.raises(ValueError, match=message):
        detection_scores(read(tmp_path, content()), Detections(**right | change))


def test_masks_without_masks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="have none"):
        detection_scores(read(tmp_path, content(), masks=False), nothing(), kind="segm")


def test_bins_of_training_counts() -> None:
    ap = np.array([0.1, 0.3, 0.5, NAN, 0.7, 0.9])
    found = bin_means(ap, np.array([9, 0, 10, 11, 99, 99]), [10, 100])
    np.testing.assert_allclose(found, [0.2, 0.7, NAN])


def test_frequency_groups() -> None:
    assert frequency_groups(np.array([0, 10, 11, 100, 101])) == "rrccf"


def recall_of_all(
    objects: list[NDArray], proposals: list[NDArray], budgets: list[int], inclusive: bool = False
) -> NDArray[np.float64]:
    return recall(np.concatenate(best_overlaps(objects, proposals, budgets, inclusive), axis=1))


def test_recall_is_one_to_one_and_by_score() -> None:
    objects = [np.array([[0, 0, 10, 10], [0, 0, 10, 8]])]
    proposals = [np.array([[0, 0, 10, 10, 0.9], [0, 0, 10, 6, 0.8], [0, 0, 10, 8, 0.1]])]
    recalls = recall_of_all(objects, proposals, [1, 2, 3])
    # The second object overlaps the second proposal by 60 / 80, the third wholly.
    np.testing.assert_allclose(recalls[:, 0], [0.5, 1, 1])
    np.testing.assert_allclose(recalls.mean(axis=1), [0.5, 0.5 + 0.5 * 6 / 10, 1])


def test_recall_of_classes() -> None:
    objects = [np.array([[0, 0, 10, 10], [20, 20, 30, 30]]), np.zeros((0, 4))]
    labels = [np.array([3, 1]), np.zeros(0, np.int64)]
    proposals = [np.array([[0, 0, 10, 10, 0.9]]), np.zeros((0, 5))]
    found = class_recall(objects, labels, proposals, [1], classes=3)
    np.testing.assert_array_equal(found[:, 0], [0, NAN, 1])


def test_recall_of_a_class_ignores_other_objects() -> None:
    """One proposal between two objects of different classes covers both, asked one at a time."""
    objects, labels = [np.array([[0, 0, 10, 10], [0, 0, 10, 9]])], [np.array([1, 2])]
    proposals = [np.array([[0, 0, 10, 10, 0.5]])]
    found = class_recall(objects, labels, proposals, [1], classes=2)
    assert found[0, 0] == 1
    assert found[1, 0] == pytest.approx(0.9)
    assert recall_of_all(objects, proposals, [1])[0, 0] == 0.5


def test_inclusive_corners_make_boxes_larger() -> None:
    objects, proposals = [np.array([[0, 0, 1, 0]])], [np.array([[0, 0, 2, 0, 1.0]])]
    assert recall_of_all(objects, proposals, [1], inclusive=True)[0, 3] == 1  # 2 of 3
    assert recall_of_all(objects, proposals, [1])[0, 0] == 0
