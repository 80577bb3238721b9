"""Adapters of sampling, counting and evaluation."""

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.coco_lt import COUNTS
from shared.data.detection.sampling import (
    Copies,
    GroupedBatches,
    Share,
    class_probabilities,
    episode_draws,
    extra_copies,
)
from shared.data.readers.instances import Instances, read_instances
from shared.evaluation.detection import Detections, bin_means, detection_scores
from shared.evaluation.detection_recall import best_overlaps, class_recall, recall

Config = dict[str, Any]
Inputs = dict[str, Any]
Outputs = dict[str, Any]


def bilevel_sampler(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    counts = inputs["instance_count"].numpy()
    probabilities = class_probabilities(counts, config["tau"], config["count_cap"])
    uniforms = [inputs[f"{what}_uniforms"].double().numpy() for what in ("class", "image")]
    images, rows = episode_draws(_lists(inputs, "image_list"), probabilities, *uniforms)
    classes = inputs["class_ids"].numpy()[rows]
    return {"image_indices": _flat(images), "class_indices": _flat(classes)}


bilevel_sampler_one_image = bilevel_sampler


def repeat_factor_sampling(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    groups, of_class = inputs["aspect_group"].numpy(), _lists(inputs, "image_list")
    copies = extra_copies(of_class, config["num_images"], config["repeat_t"])
    stream = Copies(0, 1 + copies)
    batches = GroupedBatches(stream, groups, Share(config["samples_per_gpu"], seed=0))
    return {
        "extra_copies": torch.from_numpy(copies),
        "group_sizes": torch.from_numpy(np.bincount(groups)),
        "group_sizes_new": torch.from_numpy(np.bincount(groups[stream.draws(0).positions])),
        "epoch_length": len(batches) * config["samples_per_gpu"],
    }


def dataset_statistics(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    """The counts recorded in benchmarks/class_counts.json, counted anew by the reader of a set
    that has as many; those of COCO-LT's images from the lists of the images themselves."""
    outputs = {}
    for name, recorded in COUNTS.items():
        images = [list(range(count)) for count in recorded["images"]]
        if name == "coco_lt":
            numbers = inputs["image_ids_i32"].numpy().astype(np.int64)
            images = [own.tolist() for own in _split(numbers, inputs["image_id_offsets"].numpy())]
        found = _with_counts(images, recorded["instances"])
        outputs[f"{name}_instance_count"] = torch.from_numpy(found.instance_counts)
        outputs[f"{name}_image_count"] = torch.from_numpy(found.image_counts)
    return outputs


def bin_ap(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    counts = inputs["train_count"].numpy()
    evaluated = inputs["ap_per_class"].masked_fill(inputs["val_count"] == 0, torch.nan).numpy()
    outputs = {}
    for name, given in config.items():
        bins = torch.from_numpy(bin_means(evaluated, counts, given["edges"]))
        outputs |= {f"bin_ap_{name}": bins, f"bap_{name}": bins.mean()}
    return outputs


def lvis_eval(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    instances = _read(inputs["gt.json"])
    detections = _detections(inputs["detections.json"], instances)
    columns = np.searchsorted(instances.category_ids, inputs["class_ids"].numpy())
    outputs: Outputs = {}
    for kind in ("bbox", "segm"):
        scores = detection_scores(instances, detections, kind, config["max_dets"])
        outputs |= {f"{kind}.{name}": value for name, value in scores.metrics.items()}
        outputs[f"{kind}.ap_per_class"] = torch.from_numpy(scores.class_ap[columns])
    return outputs


def proposal_recall(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    objects, labels, proposals = (
        [inputs[f"{what}.{number}"].numpy() for number in range(config["num_images"])]
        for what in ("gt", "gt_labels", "proposals")
    )
    budgets = config["proposal_nums"]
    overlaps = best_overlaps(objects, proposals, budgets, inclusive_corners=True)
    recalls = recall(np.concatenate(overlaps, axis=1))
    of_class = class_recall(objects, labels, proposals, budgets, config["num_classes"], True)
    return {
        "recalls": torch.from_numpy(recalls),
        "ar": torch.from_numpy(recalls.mean(axis=1)),
        "ar_per_class": torch.from_numpy(of_class),
    }


def _lists(inputs: Inputs, name: str) -> list[NDArray[np.int64]]:
    return _split(inputs[f"{name}_flat"].numpy(), inputs[f"{name}_offsets"].numpy())


def _split(values: NDArray[np.int64], offsets: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return np.split(values, offsets[1:-1])


def _flat(values: NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(values.reshape(-1))


def _with_counts(images: Sequence[Sequence[int]], instances: Sequence[int]) -> Instances:
    """A set in which each class is in these images and has so many annotations: one in each of
    its images, the others in the first."""
    ids = np.unique([number for own in images for number in own])
    labels = np.repeat(np.arange(1, len(images) + 1), instances)
    numbers = [
        np.r_[own, np.full(count - len(own), own[0] if own else 0)]
        for own, count in zip(images, instances, strict=True)
    ]
    places = np.searchsorted(ids, np.concatenate(numbers).astype(np.int64))
    order = np.argsort(places, kind="stable")
    return Instances(
        origin="recorded counts",
        image_ids=ids,
        paths=np.zeros(0, np.bytes_),
        sizes=np.full((len(ids), 2), 64),
        category_ids=np.arange(1, len(images) + 1),
        class_names=tuple(map(str, range(len(images)))),
        starts=np.searchsorted(places[order], np.arange(len(ids) + 1)),
        ids=np.arange(len(labels)),
        labels=labels[order],
        boxes=np.ones((len(labels), 4)),
        areas=np.ones(len(labels)),
        crowd=np.zeros(len(labels), bool),
    )


def _read(content: Any) -> Instances:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "instances.json"
        path.write_text(json.dumps(content))
        return read_instances(path, masks=True)


def _detections(rows: list[dict[str, Any]], instances: Instances) -> Detections:
    corners = np.array([row["bbox"] for row in rows], np.float64)
    corners[:, 2:] += corners[:, :2]
    categories = np.array([row["category_id"] for row in rows])
    return Detections(
        np.array([row["image_id"] for row in rows]),
        corners,
        np.array([row["score"] for row in rows]),
        np.searchsorted(instances.category_ids, categories) + 1,
        [row["segmentation"] for row in rows],
    )
