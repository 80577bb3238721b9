"""SimCal's calibration and dual-head inference.

Shapes: B images of this process, P regions of each, M regions that are trained on, K classes.
Source: docs/papers/simcal.md, sections 3.3 to 3.7;
twangnh/SimCal@e5f3076 `mmdet/apis/train_new.py`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.simcal.dual_head import COMBINATIONS, combine, stage_mean
from methods.simcal.frame import Batch, LongTailDetector
from methods.simcal.heads import calibration_head
from shared.distributed import all_gather, rank, world_size
from shared.nn.building import applied
from shared.nn.detection.detector import Stages
from shared.nn.detection.matching import Quota, assign, padded, sample, with_truth
from shared.nn.detection.proposals import rois
from shared.randomness import uniforms
from shared.tasks.detection import labels_of, with_sizes
from shared.training.schedules import steps


class Candidates(NamedTuple):
    """Regions (B, P, 4) of an episode: which are positives, of which label, (B, P), 0 for none, and
    the order of the negatives, (B, P), infinite elsewhere."""

    regions: Tensor
    labels: Tensor
    negative_order: Tensor


class Episode(NamedTuple):
    """What one step is trained on: rois (M, 5), negatives first, labels (M,), 0 for those, and how
    many rois all processes have together."""

    rois: Tensor
    labels: Tensor
    total: int


class SimCal(LongTailDetector):
    """Trains another classifier on the frozen features of class-balanced proposals, and classifies
    rare classes by it.

    It starts from stage A: `warm_start={kind: joint, path: ...}`. A batch holds, for each image,
    the class that it was drawn for, `sampled_classes` (B,).

    Args:
        head: `3fc_ft`, the method; see `calibration_head` for the others.
        tau: of the head `tau_norm`.
        threshold: training instances below which a class is scored by the calibrated head.
        least: instances below which it is not: 1 where a detector knows some by their names alone.
        combination: `dual`, the method; `calibrated`, `original` or `mean`; see `combine`.
        regions: `Quota` of the sampled proposals.
        lr, momentum, drops, gamma: of SGD; the rate is multiplied by `gamma` at epochs `drops`,
            counted from 0.
    """

    def __init__(
        self,
        head: str,
        tau: float,
        threshold: int,
        combination: str,
        regions: dict[str, Any],
        lr: float,
        momentum: float,
        drops: list[int],
        gamma: float,
        least: int = 0,
        **common: Any,
    ):
        super().__init__(**common)
        if combination not in COMBINATIONS:
            known = ", ".join(COMBINATIONS)
            raise ValueError(f"method.combination={combination!r} is unknown; known: {known}")
        self.quota: Quota = applied(Quota, regions)
        self.detector.requires_grad_(False)
        self.heads: Any = nn.ModuleList(
            calibration_head(head, box_head, tau, common["seed"])
            for box_head in self.detector.box_heads
        )
        self.train()

    def train(self, mode: bool = True) -> "SimCal":
        super().train(mode)
        self.detector.eval()
        return self

    def start_heads(self) -> None:
        """Copy the trained box heads into the calibration heads, where their kind starts so."""
        if self.hparams["head"].endswith("rand"):
            return
        for head, trained in zip(self.heads, self.detector.box_heads, strict=True):
            head.start_from(trained)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        # 3.3, steps 1 to 4: the frozen detector's proposals, by the counts of training
        batch = with_sizes(self, batch)
        with torch.no_grad():
            maps = self.detector.maps(batch["images"])
            proposals = self.detector.propose(self.detector.rpn(maps), batch["sizes"], "train")
        regions, valid, terms = proposals.boxes, proposals.valid, {}
        for stage, head in enumerate(self.heads):
            # Composition: positives of the drawn class, as many negatives; all without gradient
            with torch.no_grad():
                candidates = self.candidates(regions, valid, batch, stage)
                episode = self.compose(candidates, batch.get("sampled_classes"))
                features = self.features(maps, episode.rois)
                if stage + 1 < len(self.heads):
                    regions = self.next_regions(maps, regions, valid, batch["sizes"], stage)
            # 3.4: mean cross-entropy over the regions of all processes
            name = "loss_calibration" + (f"_{stage}" if stage else "")
            losses = F.cross_entropy(head(features), episode.labels, reduction="sum")
            terms[name] = losses * world_size() / max(1, episode.total)
            if stage == 0:
                self.log_train({"regions": float(episode.total)})
        return self.total_loss(terms, {}, batch["indices"])

    def candidates(self, regions: Tensor, valid: Tensor, batch: Batch, stage: int) -> Candidates:
        """Regions of which an episode may be composed: sampled as for joint training, but for
        negatives that hardly overlap any object."""
        truth = padded(batch["targets"])
        iou = self.detector.box_heads[stage].positive_iou
        assignment = assign(self.detector.geometry, regions, valid, truth, iou, iou, iou)
        own, objects = regions.shape[1], truth.labels.shape[1]
        draws = self.draws(len(regions), own + objects, f"regions of stage {stage}")
        priority = torch.cat([draws[:, own:], draws[:, :own]], dim=1)  # objects come in front
        regions, valid, assignment = with_truth(regions, valid, assignment, truth)
        chosen = sample(assignment, priority, self.quota)
        labels = labels_of(assignment, truth).masked_fill(~chosen.positive, 0)
        order = self.draws(len(regions), own, f"negatives of stage {stage}")
        order = F.pad(order, (objects, 0)).masked_fill(~chosen.negative, torch.inf)
        return Candidates(regions, labels, order)

    def compose(self, candidates: Candidates, drawn_for: Tensor | None) -> Episode:
        """Keep positives of the class that their image was drawn for, other ones are left out, and
        as many negatives, the first ones of all images and processes."""
        positive = self.kept_positives(candidates.labels, drawn_for)
        order = candidates.negative_order
        count = self.negatives_beside(total(positive), total(order.isfinite()))
        image, place = self.first_negatives(order, count)
        negatives = torch.cat(
            [image[:, None].to(candidates.regions), candidates.regions[image, place]], dim=1
        )
        kept = torch.cat([negatives, rois(candidates.regions, positive)])
        labels = torch.cat([torch.zeros_like(image), candidates.labels[positive]])
        return Episode(kept, labels, count + total(positive))

    def kept_positives(self, labels: Tensor, drawn_for: Tensor | None) -> Tensor:
        """(B, P) mask of the positives, those with a label, that are trained on."""
        if drawn_for is None:
            told = "calibration needs the class that each image was drawn for"
            raise ValueError(f"{told}: sampling@data.sampling=bilevel")
        return labels == drawn_for[:, None]

    def negatives_beside(self, positives: int, negatives: int) -> int:
        """How many of the negatives are trained on beside so many positives."""
        return min(positives, negatives)

    def first_negatives(self, order: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Image and place of this process's negatives among the first `count` of all processes."""
        flat = order.flatten()
        if world_size() > 1 and count:
            longest = int(all_gather(flat.new_tensor([len(flat)])).max())
            everyone = all_gather(F.pad(flat, (0, longest - len(flat)), value=torch.inf))
            count = int((flat <= everyone.sort().values[count - 1]).sum())
        first = flat.argsort()[:count]
        return first // order.shape[1], first % order.shape[1]

    def features(self, maps: list[Tensor], regions: Tensor) -> Tensor:
        """(M, C, R, R) features of the box heads."""
        return self.detector.box_features(maps, regions)

    def next_regions(
        self, maps: list[Tensor], regions: Tensor, valid: Tensor, sizes: Tensor, stage: int
    ) -> Tensor:
        """The regions (B, P, 4) as the original head of a cascade's stage moves them."""
        head, seen = self.detector.box_heads[stage], rois(regions, valid)
        _, deltas = head(self.features(maps, seen))
        geometry = self.detector.geometry
        boxes = geometry.decode(seen[:, 1:], deltas[:, 0], head.delta_stds)
        moved = regions.clone()
        moved[valid] = geometry.clip(boxes, sizes[seen[:, 0].long()])
        return moved

    def draws(self, images: int, count: int, purpose: str) -> Tensor:
        """(B, count) random numbers of this step, which depend on an image's place in the batches
        of all processes but not on how these share them."""
        places = rank() * images + torch.arange(images).numpy()
        numbers = uniforms(self.hparams["seed"], self.global_step, places, purpose, count)
        return torch.from_numpy(numbers).to(self.device)

    def score(self, stages: Stages) -> Tensor:
        return self.combined(stages, [self.hparams["combination"]])[0]

    def named_scores(self, stages: Stages, batch: Batch) -> dict[str, Tensor]:
        """The test compares the four combinations; that of `combination` has no name."""
        own = self.hparams["combination"]
        names = [own, *(name for name in COMBINATIONS if name != own)]
        return dict(zip(["", *names[1:]], self.combined(stages, names), strict=True))

    def combined(self, stages: Stages, combinations: Sequence[str]) -> list[Tensor]:
        """(M, K + 1) scores by each of the combinations."""
        logits = [head(f) for head, f in zip(self.heads, stages.features, strict=True)]
        original, calibrated = stage_mean(stages.logits), stage_mean(logits)
        rule = self.hparams["threshold"], self.hparams["least"]
        return [
            combine(original, calibrated, self.instances, rule[0], combination, rule[1])
            for combination in combinations
        ]

    def configure_optimizers(self):
        drops, gamma = self.hparams["drops"], self.hparams["gamma"]
        learnt = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return self.sgd(learnt, lambda epoch: steps(epoch, drops, gamma))


def total(mask: Tensor) -> int:
    """How many entries of a mask are true, in all processes together."""
    return int(all_gather(mask.sum()[None]).sum())
