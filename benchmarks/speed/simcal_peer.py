"""The peer's side, in the peer's environment: SimCal's official loops, written plainly.

Images, levels, objects and classes are handled one by one, as twangnh/SimCal@e5f3076 does in
`mmdet/apis/train_new.py:calibration_step`, `MaxIoUAssigner`, `RandomSampler` and `multiclass_nms`;
boxes name their last pixel. Weights have official names. Nothing of ours is imported but the
serving loop. Shapes: P proposals, G objects of an image, M regions, K classes.
"""

import json
from collections.abc import Callable, Iterable
from math import log
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from benchmarks.speed.serving import Workload

SIZES = ("full_size", "miniature")
DETECTION = "_detection"  # ends the name of a size where it is not calibrated, but detects
LARGEST = log(1000 / 16)
Order = Callable[[int, int], Tensor]
"""(image, candidates) to the order in which candidates of that image are drawn."""

PLACE = torch.tensor([1.0, 3.0, 7.0, 13.0])  # makes one number of a box, hardly that of another


class Comparable(Workload):
    """What both sides do with the weights and batches that they are given."""

    def __init__(self, settings: dict[str, Any], *rest: Any):
        super().__init__(settings, *rest)
        self.folder = Path(settings["data"])
        self.rows = settings["full_size"]["batch_size"]

    def values(self) -> dict[str, list[float]]:
        losses, scores, labels, boxes = [], [], [], []
        for size in SIZES:
            losses += self.losses(size)
            for detected in self.detection(size, "float32")():
                # By class and place: two of nearly equal scores may change places between sides.
                order = (detected[:, :4] @ PLACE).argsort()
                order = order[detected[order, 5].argsort(stable=True)]
                boxes += detected[order, :4].flatten().tolist()
                scores += detected[order, 4].tolist()
                labels += detected[order, 5].tolist()
        return {"losses": losses, "scores": scores, "labels": labels, "boxes": boxes}

    def step(self, precision: str, what: str) -> Callable[[], float]:
        size = what.removesuffix(DETECTION)
        if what == size:
            return self.calibration(size, precision, drawn=None)
        detect = self.detection(size, precision)
        return lambda: float(sum(len(detected) for detected in detect()))

    def losses(self, size: str) -> list[float]:
        """The losses of two steps whose draws are those of `by_place`."""
        step = self.calibration(size, "float32", drawn=by_place)
        return [step(), step()]

    def calibration(self, size: str, precision: str, drawn: Order | None) -> Callable[[], float]:
        """A step that trains the head of a size; it returns the loss."""
        raise NotImplementedError

    def detection(self, size: str, precision: str) -> Callable[[], list[Tensor]]:
        """Dual-head inference of the first images: of each (D, 6), box, score and label."""
        raise NotImplementedError


def by_place(image: int, candidates: int) -> Tensor:
    """Draws that depend on the place of a candidate, the same on both sides."""
    return (torch.arange(candidates) + image / 1000) / candidates


class Peer(Comparable):
    def parameters(self) -> Iterable[Tensor]:
        return [p for size in SIZES for part in self.networks(size)[:2] for p in part.parameters()]

    def networks(self, size: str) -> tuple["Detector", "CalibrationHead", dict[str, Any]]:
        """The detector, the head beside it, and their settings."""
        settings = json.loads((self.folder / f"{size}.json").read_text())
        weights = torch.load(self.folder / f"{size}_weights.pt")
        detector, head = Detector(settings["detector"]), CalibrationHead(settings["detector"])
        detector.load_state_dict(weights["state_dict"])
        head.load_state_dict(weights["heads"]["0"])
        return detector.eval().requires_grad_(False), head, settings

    def calibration(self, size: str, precision: str, drawn: Order | None) -> Callable[[], float]:
        detector, head, settings = self.networks(size)
        batch = torch.load(self.folder / f"{size}_batch.pt")
        optimizer = torch.optim.SGD(head.parameters(), settings["lr"], settings["momentum"])

        def step() -> float:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                with torch.no_grad():
                    features, labels = episode(detector, batch, settings, drawn)
                loss = F.cross_entropy(head(features).float(), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return float(loss.detach())

        return step

    def detection(self, size: str, precision: str) -> Callable[[], list[Tensor]]:
        detector, head, settings = self.networks(size)
        images = torch.load(self.folder / f"{size}_batch.pt")["images"]
        images = images[: self.settings[size]["detected"]]
        counts = torch.load(self.folder / f"{size}_counts.pt")

        @torch.no_grad()
        def detect() -> list[Tensor]:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                return dual_head_inference(detector, head, images, counts, settings)

        return detect


def episode(
    detector: "Detector", batch: dict[str, Any], settings: dict[str, Any], drawn: Order | None
) -> tuple[Tensor, Tensor]:
    """Features and labels of an episode: positives of the class that each image was drawn for, and
    as many negatives of all images."""
    maps = detector.maps(batch["images"])
    proposals = detector.proposals(maps, batch["images"].shape[-2:], "train")
    padded = detector.settings["proposals"]["train"]["kept"]
    positives, negatives, labels, draws = [], [], [], []
    for image, (boxes, target) in enumerate(zip(proposals, batch["targets"], strict=True)):
        assigned, overlaps = assign(boxes, target["boxes"])
        positive, negative, label, order = sample(
            image, boxes, target, assigned, overlaps, settings["regions"], padded, drawn
        )
        # Features of all that are sampled, of which the class then leaves few.
        row = torch.full((len(positive) + len(negative), 1), float(image))
        rois = torch.cat([row, torch.cat([positive, negative])], dim=1)
        features = detector.pool(maps, rois)
        wanted = label == batch["sampled_classes"][image]
        positives.append(features[: len(positive)][wanted])
        labels.append(label[wanted])
        negatives.append(features[len(positive) :])
        draws.append(order)
    count = sum(map(len, positives))
    pooled = torch.cat(negatives)
    order = torch.randperm(len(pooled)) if drawn is None else torch.cat(draws).argsort()
    chosen = pooled[order[:count]]
    background = torch.zeros(len(chosen), dtype=torch.long)
    return torch.cat([chosen, *positives]), torch.cat([background, *labels])


def assign(boxes: Tensor, objects: Tensor) -> tuple[Tensor, Tensor]:
    """For each box (P,) the object of the greatest IoU, if that is 0.5 or more, else -1; and the
    IoU. An object also claims the boxes of its own greatest IoU."""
    iou = overlaps_of(boxes, objects)
    overlaps, nearest = iou.max(dim=1)
    assigned = torch.full((len(boxes),), -1)
    assigned[overlaps >= 0.5] = nearest[overlaps >= 0.5]
    greatest = iou.max(dim=0).values
    for place in range(len(objects)):
        if greatest[place] >= 0.5:
            assigned[iou[:, place] == greatest[place]] = place
    return assigned, overlaps


def overlaps_of(boxes: Tensor, others: Tensor) -> Tensor:
    """(P, G) intersection over union of boxes that name their last pixel."""
    corner = torch.max(boxes[:, None, :2], others[None, :, :2])
    last = torch.min(boxes[:, None, 2:], others[None, :, 2:])
    inner = (last - corner + 1).clamp(min=0).prod(dim=2)
    areas, more = ((b[:, 2:] - b[:, :2] + 1).prod(dim=1) for b in (boxes, others))
    return inner / (areas[:, None] + more - inner)


def sample(
    image: int,
    boxes: Tensor,
    target: dict[str, Tensor],
    assigned: Tensor,
    overlaps: Tensor,
    regions: dict[str, Any],
    padded: int,
    drawn: Order | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Positive and negative boxes, objects in front, the labels of the former, and the order in
    which the latter are drawn from all images' negatives."""
    count, objects = regions["count"], target["boxes"]
    draws = torch.rand(0) if drawn is None else drawn(image, padded + len(objects))
    own, most = torch.arange(len(objects)), int(count * regions["positive_fraction"])
    places = torch.cat([own, len(objects) + (assigned >= 0).nonzero()[:, 0]])
    objects_of = torch.cat([own, assigned[assigned >= 0]])
    if len(places) > most:
        if drawn is None:
            kept = torch.randperm(len(places))[:most]
        else:
            last = torch.cat([draws[padded:], draws[: len(boxes)]])
            kept = last[places].argsort()[:most]
        kept = kept.sort().values
        places, objects_of = places[kept], objects_of[kept]
    every = torch.cat([objects, boxes])
    low = (assigned < 0) & (overlaps >= regions["negative_iou_low"]) & (overlaps < 0.5)
    negative = low.nonzero()[:, 0]
    if len(negative) > count - len(places):
        order = torch.randperm(len(negative)) if drawn is None else draws[negative].argsort()
        negative = negative[order[: count - len(places)]].sort().values
    pooled = drawn(image, padded)[negative] if drawn else negative
    return every[places], boxes[negative], target["labels"][objects_of], pooled


def dual_head_inference(
    detector: "Detector",
    head: "CalibrationHead",
    images: Tensor,
    counts: Tensor,
    settings: dict[str, Any],
) -> list[Tensor]:
    """Of each image (D, 6) detections by falling score: box, score, label from 1."""
    maps, size = detector.maps(images), images.shape[-2:]
    found = []
    for image, boxes in enumerate(detector.proposals(maps, size, "test")):
        rois = torch.cat([torch.full((len(boxes), 1), float(image)), boxes], dim=1)
        features = detector.pool(maps, rois)
        logits, deltas = detector.bbox_head(features)
        scores, calibrated = logits.softmax(dim=1), head(features).float().softmax(dim=1)
        rare = 1 + (counts < settings["threshold"]).nonzero()[:, 0]
        scores[:, rare] = calibrated[:, rare]
        placed = decoded(boxes, deltas, size, detector.settings["box_head"]["delta_stds"][0])
        found.append(nms_of_each_class(placed, scores, **settings["selection"]))
    return found


def nms_of_each_class(
    boxes: Tensor, scores: Tensor, threshold: float, nms: float, limit: int
) -> Tensor:
    """(D, 6) what is left of each class, by falling score."""
    found = []
    for label in range(1, scores.shape[1]):
        chosen = scores[:, label] > threshold
        if not chosen.any():
            continue
        of_class = torch.cat([boxes[chosen], scores[chosen, label, None]], dim=1)
        kept = of_class[suppressed(of_class[:, :4], of_class[:, 4], nms)]
        found.append(F.pad(kept, (0, 1), value=float(label)))
    every = torch.cat(found) if found else boxes.new_zeros(0, 6)
    return every[every[:, 4].argsort(descending=True)[:limit]]


def suppressed(boxes: Tensor, scores: Tensor, iou: float) -> Tensor:
    """Indices of the boxes that stay."""
    return torchvision.ops.nms(boxes + boxes.new_tensor([0, 0, 1, 1]), scores, iou)


def decoded(boxes: Tensor, deltas: Tensor, size: Any, stds: Any = (1, 1, 1, 1)) -> Tensor:
    """Boxes (P, 4) moved and stretched by deltas, within the image."""
    dx, dy, dw, dh = (deltas.float() * deltas.new_tensor(stds, dtype=torch.float32)).unbind(1)
    dw, dh = dw.clamp(-LARGEST, LARGEST), dh.clamp(-LARGEST, LARGEST)
    width, height = boxes[:, 2] - boxes[:, 0] + 1, boxes[:, 3] - boxes[:, 1] + 1
    x = (boxes[:, 0] + boxes[:, 2]) / 2 + dx * width
    y = (boxes[:, 1] + boxes[:, 3]) / 2 + dy * height
    width, height = width * dw.exp(), height * dh.exp()
    last_x, last_y = size[1] - 1, size[0] - 1
    return torch.stack(
        [
            (x - width / 2 + 0.5).clamp(0, last_x),
            (y - height / 2 + 0.5).clamp(0, last_y),
            (x + width / 2 - 0.5).clamp(0, last_x),
            (y + height / 2 - 0.5).clamp(0, last_y),
        ],
        dim=1,
    )


class Detector(nn.Module):
    """The detector under its official names; one box a region, no masks."""

    def __init__(self, settings: dict[str, Any]):
        super().__init__()
        self.settings = settings
        if "depth" in settings["backbone"]:
            self.backbone: Any = resnet(settings["backbone"]["depth"])
            self.neck: Pyramid | None = Pyramid(self.backbone.layer2[0].conv1.in_channels)
            channels, self.strides = 256, [4, 8, 16, 32, 64]
        else:
            widths = settings["backbone"]["channels"]
            self.backbone, self.neck, self.strides = small(widths), None, [4]
            channels = widths[-1]
        self.rpn_head = AnchorHead(channels, len(settings["anchors"]["ratios"]))
        head = settings["box_head"]
        inputs = channels * head["resolution"] ** 2
        self.bbox_head = BoxHead(inputs, head["hidden"], settings["num_classes"] + 1)

    def maps(self, images: Tensor) -> list[Tensor]:
        if self.neck is None:
            return [self.backbone(images)]
        b, found = self.backbone, []
        x = b.maxpool(b.relu(b.bn1(b.conv1(images))))
        for stage in (b.layer1, b.layer2, b.layer3, b.layer4):
            x = stage(x)
            found.append(x)
        return self.neck(found)

    def proposals(self, maps: list[Tensor], size: Any, phase: str) -> list[Tensor]:
        """Of each image (P, 4), the best first."""
        counts, iou = self.settings["proposals"][phase], self.settings["proposals"]["nms"]
        outputs = [self.rpn_head(features) for features in maps]
        anchors = [
            anchors_of(features.shape[-2:], side, stride, self.settings["anchors"]["ratios"])
            for features, side, stride in zip(
                maps, self.settings["anchors"]["sizes"], self.strides, strict=True
            )
        ]
        found = []
        for image in range(len(maps[0])):
            boxes, scores = [], []
            for (objectness, deltas), of_level in zip(outputs, anchors, strict=True):
                score = objectness[image].permute(1, 2, 0).flatten().float()
                delta = deltas[image].permute(1, 2, 0).reshape(-1, 4)
                best = score.topk(min(counts["before_nms"], len(score))).indices
                box = decoded(of_level[best], delta[best], size)
                kept = suppressed(box, score[best], iou)
                boxes.append(box[kept])
                scores.append(score[best][kept])
            every, score = torch.cat(boxes), torch.cat(scores)
            best = score.topk(min(counts["kept"], len(score))).indices
            found.append(every[best])
        return found

    def pool(self, maps: list[Tensor], rois: Tensor) -> Tensor:
        """(M, C, R, R) features of rois (M, 5), level by level."""
        side = self.settings["box_head"]["resolution"]
        levels = maps[:4]
        size = (rois[:, 3:] - rois[:, 1:3] + 1).prod(dim=1).sqrt()
        level = (size / 56 + 1e-6).log2().floor().clamp(0, len(levels) - 1)
        pooled = rois.new_zeros(len(rois), maps[0].shape[1], side, side)
        for number, (features, stride) in enumerate(zip(levels, self.strides, strict=False)):
            chosen = level == number
            if chosen.any():
                shift = rois.new_tensor([0, stride / 2, stride / 2, stride / 2 + 1, stride / 2 + 1])
                shifted = rois[chosen] + shift
                pooled[chosen] = roi_align(
                    features.float(), shifted, side, 1 / stride, sampling_ratio=2, aligned=True
                )
        return pooled


def anchors_of(shape: Any, side: float, stride: int, ratios: Any) -> Tensor:
    """(H W ratios, 4) anchors of one level."""
    centre, cells = (stride - 1) / 2, []
    for ratio in ratios:
        width, height = side / ratio**0.5, side * ratio**0.5
        x, y = (width - 1) / 2, (height - 1) / 2
        cells.append([centre - x, centre - y, centre + x, centre + y])
    cell = torch.tensor(cells).round()
    y, x = torch.meshgrid(*(torch.arange(n) * stride for n in shape), indexing="ij")
    shifts = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)
    return (shifts + cell).reshape(-1, 4).float()


def resnet(depth: int) -> Any:
    """torchvision's, without the layer that knows ImageNet's classes."""
    network = getattr(torchvision.models, f"resnet{depth}")()
    del network.fc
    return network


def small(widths: list[int]) -> nn.Sequential:
    """Four blocks of convolution, BatchNorm and ReLU."""
    layers: list[nn.Module] = []
    for place, (before, after) in enumerate(zip([3, *widths], widths, strict=False)):
        stride = 2 if place < 2 else 1
        convolution = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers)


class Convolution(nn.Module):
    """A layer `conv`, as the official modules call theirs."""

    def __init__(self, inputs: int, outputs: int, kernel: int):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)


class Pyramid(nn.Module):
    """Five levels of 256 channels."""

    def __init__(self, narrowest: int):
        super().__init__()
        self.lateral_convs: Any = nn.ModuleList(
            Convolution(narrowest * 2**i, 256, 1) for i in range(4)
        )
        self.fpn_convs: Any = nn.ModuleList(Convolution(256, 256, 3) for _ in range(4))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        levels = [part.conv(x) for part, x in zip(self.lateral_convs, maps, strict=True)]
        for place in (3, 2, 1):
            size = levels[place - 1].shape[-2:]
            levels[place - 1] = levels[place - 1] + F.interpolate(levels[place], size=size)
        levels = [part.conv(x) for part, x in zip(self.fpn_convs, levels, strict=True)]
        return [*levels, F.max_pool2d(levels[-1], 1, stride=2)]


class AnchorHead(nn.Module):
    """Objectness and deltas of the anchors of a level."""

    def __init__(self, channels: int, ratios: int):
        super().__init__()
        self.rpn_conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.rpn_cls = nn.Conv2d(channels, ratios, 1)
        self.rpn_reg = nn.Conv2d(channels, 4 * ratios, 1)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.rpn_conv(features).relu()
        return self.rpn_cls(hidden), self.rpn_reg(hidden)


class BoxHead(nn.Module):
    """Class logits and deltas of regions."""

    def __init__(self, inputs: int, hidden: int, outputs: int):
        super().__init__()
        self.shared_fcs: Any = nn.ModuleList([nn.Linear(inputs, hidden), nn.Linear(hidden, hidden)])
        self.fc_cls, self.fc_reg = nn.Linear(hidden, outputs), nn.Linear(hidden, 4)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        hidden = features.flatten(1)
        for layer in self.shared_fcs:
            hidden = layer(hidden).relu()
        return self.fc_cls(hidden).float(), self.fc_reg(hidden)


class CalibrationHead(nn.Module):
    """`3fc_ft`."""

    def __init__(self, detector: dict[str, Any]):
        super().__init__()
        of, backbone = detector["box_head"], detector["backbone"]
        channels = 256 if "depth" in backbone else backbone["channels"][-1]
        self.feat_classifier: Any = nn.Module()
        self.feat_classifier.fc1 = nn.Linear(channels * of["resolution"] ** 2, of["hidden"])
        self.feat_classifier.fc2 = nn.Linear(of["hidden"], of["hidden"])
        self.feat_classifier.fc_classifier = nn.Linear(of["hidden"], detector["num_classes"] + 1)

    def forward(self, features: Tensor) -> Tensor:
        layers = self.feat_classifier
        hidden = layers.fc1(features.flatten(1)).relu()
        return layers.fc_classifier(layers.fc2(hidden).relu())
