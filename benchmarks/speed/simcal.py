"""Our SimCal: calibration and dual-head inference by the method's own configs, and reading."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from time import perf_counter
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor, nn

from benchmarks.miniatures.building import write_json
from benchmarks.miniatures.detection import run_lengths
from benchmarks.speed.simcal_peer import SIZES, Comparable, Order
from benchmarks.speed.stepping import OurSide, by_hand
from methods.simcal import official
from methods.simcal.module import SimCal
from shared.data.detection.samples import DetectionSamples, Preparation, Resizing
from shared.data.readers.instances import read_instances
from shared.data.readers.outlines import mask_tools
from shared.tasks.detection import find_regions, with_sizes

CLEAR = 2.0  # standard deviation of the class logits
RATE = 1e-3  # the official one is too large for features of a network that has learnt nothing


class Ours(Comparable, OurSide):
    def __init__(self, settings: dict[str, Any]):
        super().__init__(settings, calibration(settings["full_size"]))

    def parameters(self) -> Iterable[Tensor]:
        return [p for size in SIZES for p in self.trained_module(size).parameters()]

    def trained_module(self, size: str) -> SimCal:
        """The module of a size with its weights."""
        module = OurSide(self.settings, calibration(self.settings[size])).module()
        official.load(module, torch.load(self.folder / f"{size}_weights.pt"))
        module.instances.copy_(torch.load(self.folder / f"{size}_counts.pt"))
        return module

    def calibration(self, size: str, precision: str, drawn: Order | None) -> Callable[[], float]:
        module = self.trained_module(size)
        batch = torch.load(self.folder / f"{size}_batch.pt")
        step = by_hand(module, iter(lambda: batch, None), mixed=precision == "bf16")
        if drawn is None:
            return step

        def draws(images: int, candidates: int, purpose: str) -> Tensor:
            return torch.stack([drawn(image, candidates) for image in range(images)])

        def given() -> float:
            with patch.object(module, "draws", draws):
                return step()

        return given

    def detection(self, size: str, precision: str) -> Callable[[], list[Tensor]]:
        module = self.trained_module(size).eval()
        images = torch.load(self.folder / f"{size}_batch.pt")["images"]
        images = images[: self.settings[size]["detected"]]

        @torch.no_grad()
        def detect() -> list[Tensor]:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                boxes, scores, labels = module.detect({"images": images})
            every = torch.cat([boxes, scores[..., None], labels[..., None]], dim=2)
            return [row[own] for row, own in zip(every, labels > 0, strict=True)]

        return detect

    def figures(self) -> dict[str, float]:
        """Images and masks a second: read, resized and padded with their masks; masks alone."""
        of = self.settings["reading"]
        started = perf_counter()
        instances = read_instances(self.folder / "instances.json", self.folder, masks=True)
        parsed = perf_counter() - started
        preparation = Preparation((0.5,) * 3, (0.25,) * 3, masks=True)
        resizing = Resizing([of["short"]], 1333)
        members = np.arange(len(instances))
        samples = DetectionSamples(instances, members, resizing, preparation)
        started = perf_counter()
        for row in np.array_split(members, len(members) // of["batch_size"]):
            samples.__getitems__(row)
        read = perf_counter() - started
        sizes = [instances.size(image) for image in instances.images.tolist()]
        assert instances.masks is not None
        started = perf_counter()
        found = [instances.masks.compressed(n, size) for n, size in enumerate(sizes)]
        mask_tools().decode(found)
        decoded = perf_counter() - started
        return {
            "annotations_parsed": len(found) / parsed,
            "images_read": len(members) / read,
            "masks_decoded": len(found) / decoded,
        }


def calibration(sizes: dict[str, Any]) -> list[str]:
    """Overrides: the detector of a size; boxes alone, which name their last pixel."""
    changes: dict[str, Any] = {"detector.mask_head": "null", "detector.legacy": "true"}
    changes |= {"detector.num_classes": sizes["classes"], "threshold": sizes["threshold"]}
    changes |= {"lr": RATE}
    return [*sizes["config"], *(f"method.{key}={value}" for key, value in changes.items())]


def make_data(folder: Path, settings: dict[str, Any]) -> None:
    """Write weights under official names, settings and batches for both sides; a set to read."""
    for size in SIZES:
        of = settings[size]
        side = OurSide(settings, calibration(of))
        module, batch = side.module(), batch_of(of)
        settle(module, batch["images"])
        weights = official.export(module)
        kept = {name: weights[name] for name in ("state_dict", "heads")}
        torch.save(kept, folder / f"{size}_weights.pt")
        torch.save(batch, folder / f"{size}_batch.pt")
        torch.save(
            torch.randint(2, 2 * of["threshold"], (of["classes"],)), folder / f"{size}_counts.pt"
        )
        plain = OmegaConf.to_container(side.config.method, resolve=True)
        (folder / f"{size}.json").write_text(json.dumps(plain))
    write_set(folder, settings["reading"])


def batch_of(sizes: dict[str, Any]) -> dict[str, Any]:
    """Random images, and in each as many random boxes; the class of the first is drawn for."""
    images, side = sizes["batch_size"], sizes["side"]
    corners = torch.rand(images, sizes["objects"], 2) * 0.6 * side
    boxes = torch.cat([corners, corners + (0.1 + 0.3 * torch.rand_like(corners)) * side], dim=2)
    labels = torch.randint(1, sizes["classes"] + 1, boxes.shape[:2])
    return {
        "images": torch.randn(images, 3, side, side),
        "sizes": torch.full((images, 2), side),
        "targets": [{"boxes": b, "labels": k} for b, k in zip(boxes, labels, strict=True)],
        "sampled_classes": labels[:, 0],
        "indices": torch.arange(images),
    }


@torch.no_grad()
def settle(module: SimCal, images: Tensor) -> None:
    """Statistics of BatchNorm from the images, without which the features explode, and class layers
    whose scores differ clearly."""
    norms = [part for part in module.detector.modules() if isinstance(part, nn.BatchNorm2d)]
    for norm in norms:
        norm.train().momentum = 1.0
    module.detector.maps(images)
    for norm in norms:
        norm.eval()
    stages = find_regions(module.detector, with_sizes(module, {"images": images[:1]})).stages
    head = module.detector.box_heads[0].cls_score
    head.weight *= CLEAR / stages.logits[0].std()
    module.start_heads()
    calibrated = module.heads[0].classifier.weight
    calibrated += 0.3 * calibrated.std() * torch.randn_like(calibrated)


def write_set(folder: Path, of: dict[str, Any]) -> None:
    """Write pictures with ellipses, half of them as polygons, in COCO's format."""
    random = np.random.default_rng(0)
    height, width = of["size"]
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(of["images"]):
        coarse = random.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        picture.save(folder / f"{number}.jpg", quality=90)
        images.append(
            {"id": number, "file_name": f"{number}.jpg", "height": height, "width": width}
        )
        for place in range(of["objects"]):
            radii = random.uniform(0.05, 0.2, 2) * [width, height]
            centre = random.uniform(radii, [width, height] - radii)
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": number,
                    "category_id": 1,
                    "bbox": [*(centre - radii), *(2 * radii)],
                    "area": float(np.pi * radii.prod()),
                    "iscrowd": 0,
                    "segmentation": ellipse(centre, radii, (height, width), runs=place % 2 == 0),
                }
            )
    categories = [{"id": 1, "name": "thing"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    write_json(folder / "instances.json", content)


def ellipse(centre: Any, radii: Any, size: tuple[int, int], runs: bool) -> Any:
    """Run lengths, or a polygon of 40 corners."""
    if runs:
        y, x = np.indices(size)
        inside = ((x - centre[0]) / radii[0]) ** 2 + ((y - centre[1]) / radii[1]) ** 2 <= 1
        return run_lengths(inside)
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    corners = centre + radii * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return [corners.flatten().tolist()]
