"""Pictures and classes on their way in, and how detections are judged."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from methods.pb_ovd.data import EMBEDDING, OpenVocabularyData
from methods.pb_ovd.module import measured
from methods.pb_ovd.prompts import class_embeddings, prompts
from shared.evaluation.detection import COCO_METRICS, Detections, detection_scores
from shared.evaluation.detection_recall import best_overlaps, recall
from shared.tasks.detection import zoom

Config = dict[str, Any]
Inputs, Outputs = dict[str, Any], dict[str, Any]
PIXEL_MEAN = (102.9801, 115.9465, 122.7717)


@contextmanager
def data(
    content: Any, embeddings: Any = None, pixels: Tensor | None = None, **more: Any
) -> Iterator[OpenVocabularyData]:
    """A data module on an annotation file of this content, of every split."""
    with TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "set.json").write_text(json.dumps(content))
        table = None
        if embeddings is not None:
            table = str(root / "embeddings.json")
            Path(table).write_text(json.dumps(embeddings))
        if pixels is not None:
            Image.fromarray(pixels.byte().numpy()).save(root / "picture.png")
        splits = ("train", "val", "test")
        settings: Config = {
            "files": dict.fromkeys(splits, str(root / "set.json")),
            "image_roots": dict.fromkeys(splits, str(root)),
            "resizing": {"short": [800], "long": 1333, "detectron": True},
            "preparation": {
                "mean": [value / 255 for value in PIXEL_MEAN], "std": [1 / 255] * 3,
                "size_divisor": 1, "inclusive_corners": True, "detectron": True,
            },
            "sampling": {"_target_": "shared.data.detection.sampling.shuffled"},
            "flip": 0.5, "batch_size": 1, "eval_batch_size": 1, "smallest_side": 1,
        }  # fmt: skip
        settings |= more
        settings["eval_resizing"] = settings["resizing"]
        yield OpenVocabularyData(table, **settings)


def text_embedding_ensemble(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    embeddings = class_embeddings(inputs["prompt_embeddings"])
    coco = inputs["coco"]
    for category, embedding in zip(coco["categories"], embeddings, strict=True):
        category["embedding"] = {EMBEDDING: embedding.tolist()}
    with data(coco) as of_file:
        instances, texts = of_file.instances("val"), of_file.texts("val")
        splits = of_file.class_splits("val")
    # The official rows come as in the file, ours by rising id.
    ids = [category["id"] for category in coco["categories"]]
    rows = [1 + instances.category_ids.tolist().index(number) for number in ids]
    names = [instances.class_names[row - 1] for row in rows]
    of_split: dict[str, list[int]] = {}
    for number, row in zip(ids, rows, strict=True):
        of_split.setdefault(str(splits[row - 1]), []).append(number)
    return {
        "class_embeddings": embeddings,
        "class_emb_mtx": texts[[0, *rows]],
        "prompts": [prompts(name) for name in names],
        "category_names": names,
        "image_ids": instances.image_ids.tolist(),
        "annotation_ids": instances.ids.tolist(),
        "annotation_iscrowd": instances.crowd.astype(int).tolist(),
        "contiguous_ids": {str(number): place for place, number in enumerate(ids, 1)},
        "class_splits": of_split,
    }


def image_transform(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    pixels = inputs["image"]
    height, width = pixels.shape[:2]
    rows = [
        {"id": number, "image_id": 1, "category_id": 1, "bbox": box, "area": box[2] * box[3]}
        for number, box in enumerate(inputs["boxes_xywh"].tolist(), 1)
    ]
    content = {
        "images": [{"id": 1, "file_name": "picture.png", "height": height, "width": width}],
        "annotations": rows,
        "categories": [{"id": 1, "name": "thing"}],
    }
    resizing = {"short": [config["min_size"]], "long": config["max_size"], "detectron": True}
    given = {"embeddings": {"thing": [1.0]}, "pixels": pixels, "flip": float(config["flip"])}
    outputs: Outputs = {}
    with data(content, resizing=resizing, **given) as of_file:
        instances = of_file.instances("train")
        corners = instances.corners - [0, 0, 1, 1]
        outputs["boxes_clipped"] = torch.from_numpy(corners[instances.usable]).float()
        batch = next(iter(of_file.train_dataloader()))
    (new_height, new_width), target = batch["sizes"][0].tolist(), batch["targets"][0]["boxes"]
    resized = target.clone()
    if config["flip"]:
        resized[:, [0, 2]] = new_width - 1 - target[:, [2, 0]]
    back = target * zoom(batch)[0]
    back[:, 2:] += 1 - back[:, :2]
    whole = inputs["boxes_xywh"].clone()
    whole[:, 2:] = whole[:, :2] + (whole[:, 2:] - 1).clamp(min=0)
    return outputs | {
        "boxes_inclusive": whole,
        "boxes_resized": resized,
        "size_wh": torch.tensor([new_width, new_height]),
        "boxes_final": target,
        "image_tensor": batch["images"][0],
        "back_to_original_xywh": back,
    }


def eval_split_ap(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    with data(inputs["ground_truth"]) as of_file:
        instances, splits = of_file.instances("test"), of_file.class_splits("test")
    ids = [category["id"] for category in inputs["ground_truth"]["categories"]]
    rows = np.array([instances.category_ids.tolist().index(number) for number in ids])
    image_ids = sorted(instances.image_ids.tolist())
    parts, results = [], []
    for place, image in enumerate(image_ids):
        number = instances.image_ids.tolist().index(image)
        new_size = inputs["input_size_wh"][place].flip(0)[None]
        old_size = torch.from_numpy(instances.sizes[number])[None]
        factors = zoom({"sizes": new_size, "original_sizes": old_size})
        boxes = inputs[f"boxes.{place}"] * factors
        labels = rows[inputs[f"labels.{place}"].numpy() - 1] + 1
        scores = inputs[f"scores.{place}"]
        own = Detections(np.full(len(boxes), image), boxes.numpy(), scores.numpy(), labels)
        parts.append(own)
        sides = boxes[:, 2:] - boxes[:, :2] + 1
        for box, score, label in zip(
            torch.cat([boxes[:, :2], sides], dim=1).double(), scores.double(), labels, strict=True
        ):
            results.append(
                {
                    "image_id": image,
                    "category_id": int(instances.category_ids[label - 1]),
                    "bbox": [round(value, 4) for value in box.tolist()],
                    "score": round(score.item(), 6),
                }
            )
    columns = ("image_ids", "boxes", "scores", "labels")
    detections = Detections(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in columns)
    )
    found = detection_scores(instances, detections, inclusive_corners=True)
    values = measured(found, splits)
    per_class = np.nan_to_num(found.class_ap50, nan=-1.0)[rows]
    objects, proposals = [], []
    for image, part in zip(image_ids, parts, strict=True):
        own = instances.of_image(instances.image_ids.tolist().index(image))
        kept = ~instances.crowd[own]
        objects.append((instances.corners[own] - [0, 0, 1, 1])[kept])
        proposals.append(np.concatenate([part.boxes, part.scores[:, None]], axis=1))
    overlaps = best_overlaps(objects, proposals, [100], inclusive_corners=True)
    average_recall = recall(np.concatenate(overlaps, axis=1)).mean()
    as_ratio = lambda name: torch.tensor([values[name] / 100])  # noqa: E731
    return {
        "coco_stats": torch.tensor([found.metrics[name] for name in COCO_METRICS]),
        "ap50_per_class": torch.from_numpy(per_class),
        "ap50_seen": as_ratio("AP50_base"),
        "ap50_unseen": as_ratio("AP50_novel"),
        "ar_all_100": torch.tensor([average_recall]),
        "image_ids": image_ids,
        "class_names": [instances.class_names[row] for row in rows],
        "coco_results": results,
    }
