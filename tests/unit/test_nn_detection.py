"""Parts of detectors: geometry by hand, anchors, assignment and sampling, proposals, detections."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from shared.nn.detection.anchors import Anchors, inside
from shared.nn.detection.backbones import ResNetFPN, SmallBackbone, StemBackbone
from shared.nn.detection.detector import Detector
from shared.nn.detection.geometry import Geometry
from shared.nn.detection.matching import (
    BACKGROUND,
    IGNORED,
    Assignment,
    GroundTruth,
    Quota,
    assign,
    padded,
    sample,
    with_truth,
)
from shared.nn.detection.proposals import AnchorOutputs, Counts, RegionProposalNetwork, rois
from shared.nn.detection.selection import nms_within, select
from tests.unit.simcal_toy import detector

MODERN, LEGACY = Geometry(legacy=False), Geometry(legacy=True)
DETECTRON = Geometry(legacy=True, detectron=True)
STDS = (0.1, 0.1, 0.2, 0.2)


def box(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float32).reshape(-1, 4)


@pytest.mark.parametrize(
    ("geometry", "iou", "area"),
    [(MODERN, 25 / 175, 100.0), (LEGACY, 36 / (2 * 121 - 36), 121.0)],
)
def test_iou_and_area_by_hand(geometry: Geometry, iou: float, area: float) -> None:
    first, second = box(0, 0, 10, 10), box(5, 5, 15, 15)
    torch.testing.assert_close(geometry.iou(first, second), torch.tensor([[iou]]))
    assert geometry.areas(first) == area


def test_iou_takes_batches_and_empty_boxes() -> None:
    boxes = torch.rand(3, 4, 4).sort(dim=2).values[..., [0, 1, 2, 3]]
    others = torch.rand(3, 2, 4).sort(dim=2).values
    batched = MODERN.iou(boxes, others)
    assert batched.shape == (3, 4, 2)
    torch.testing.assert_close(batched[1], MODERN.iou(boxes[1], others[1]))
    assert MODERN.iou(torch.zeros(1, 4), torch.zeros(1, 4)) == 0


@pytest.mark.parametrize("geometry", [MODERN, LEGACY])
def test_decode_is_the_inverse_of_encode(geometry: Geometry) -> None:
    boxes, targets = box(3, 4, 20, 31), box(5, 1, 28, 19)
    deltas = geometry.encode(boxes, targets, STDS)
    torch.testing.assert_close(geometry.decode(boxes, deltas, STDS), targets)
    assert geometry.encode(boxes, boxes, STDS).abs().max() == 0


def test_sizes_change_at_most_62_fold() -> None:
    grown = MODERN.decode(box(0, 0, 1, 1), torch.tensor([[0.0, 0, 100, -100]]), (1.0,) * 4)
    width, height = (grown[0, 2:] - grown[0, :2]).tolist()
    assert width == pytest.approx(62.5)
    assert height == pytest.approx(1 / 62.5)


def test_clipping_ends_at_the_last_pixel() -> None:
    size = torch.tensor([30, 40])  # height, width
    assert MODERN.clip(box(-5, -5, 100, 100), size).tolist() == [[0, 0, 40, 30]]
    assert LEGACY.clip(box(-5, -5, 100, 100), size).tolist() == [[0, 0, 39, 29]]


def test_groups_are_told_apart_far_from_the_origin() -> None:
    """Many classes of large images: float32 could not shift their boxes apart."""
    boxes = box(0, 0, 10.0, 10.0, 0.0, 0.0, 10.0, 10.4, 1200, 1200, 1300, 1300)
    groups = torch.tensor([20_000, 20_000, 20_001])
    scores = torch.tensor([0.9, 0.8, 0.7])
    assert MODERN.nms(boxes, scores, groups, 0.97).tolist() == [0, 1, 2]
    assert MODERN.nms(boxes, scores, groups, 0.95).tolist() == [0, 2]


def test_levels_double() -> None:
    sizes = [10, 55, 56, 111, 112, 500, 3000]
    boxes = torch.tensor([[0.0, 0.0, s, s] for s in sizes])
    assert MODERN.levels(boxes, 4).tolist() == [0, 0, 0, 0, 1, 3, 3]


def test_legacy_anchors_are_mmdetections() -> None:
    anchors = Anchors(LEGACY, sizes=[32], strides=[4], ratios=[0.5, 1.0, 2.0])
    (level,) = anchors([torch.zeros(1, 1, 2, 3)])
    assert level.shape == (2 * 3 * 3, 4)
    # AnchorGenerator(4, [8], [0.5, 1, 2]) of mmdetection: corners by hand from its formula.
    assert level[:3].tolist() == [[-21, -9, 24, 12], [-14, -14, 17, 17], [-9, -21, 12, 24]]
    assert (level[3] - level[0]).tolist() == [4, 0, 4, 0]
    assert (level[9] - level[0]).tolist() == [0, 4, 0, 4]
    modern = Anchors(MODERN, sizes=[32], strides=[4], ratios=[1.0])([torch.zeros(1, 1, 1, 1)])
    assert modern[0].tolist() == [[-16, -16, 16, 16]]


def test_detectrons_anchors_grow_from_the_rounded_box_of_a_cell() -> None:
    """docs/papers/pb_ovd.md, section 3.7."""
    anchors = Anchors(DETECTRON, sizes=[[32, 512]], strides=[16], ratios=[0.5, 1.0, 2.0])
    cells = [
        [-15, -4, 30, 19], [-360, -184, 375, 199], [-8, -8, 23, 23], [-248, -248, 263, 263],
        [-3, -14, 18, 29], [-168, -344, 183, 359],
    ]  # fmt: skip
    (found,) = anchors([torch.zeros(1, 1, 2, 2)])
    assert found[:6].tolist() == cells
    assert found[18:].tolist() == (torch.tensor(cells) + 16).tolist()
    assert anchors.per_cell == 6
    within = inside(found, torch.tensor([[40, 46], [24, 24]]))
    assert within.nonzero().tolist() == [[0, 20]]  # the one before ends with column 46
    assert not inside(found, torch.tensor([[39, 46]])).any()
    with pytest.raises(ValueError, match="give as many of each level"):
        Anchors(DETECTRON, sizes=[[8, 16], [32]], strides=[4, 8], ratios=[1.0])


def test_detectron_pools_to_the_last_pixel_and_shrinks_boxes_without_bound() -> None:
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    rois = torch.tensor([[0, 0.0, 0, 4, 4]])
    (mean,) = DETECTRON.pool(ramp, rois, 1, 1.0).flatten()
    assert mean == 2  # of 0.5, 1.5, 2.5 and 3.5
    tiny = torch.tensor([[0.0, 0, -9, -9]])
    box = torch.tensor([[0.0, 0, 99, 99]])
    shrunk = DETECTRON.decode(box, tiny, (1.0, 1.0, 1.0, 1.0))
    kept = Geometry(legacy=True).decode(box, tiny, (1.0, 1.0, 1.0, 1.0))
    widths = [(x[0, 2] - x[0, 0] + 1).item() for x in (shrunk, kept)]
    assert widths == pytest.approx([100 * math.exp(-9), 1.6], rel=1e-3)
    with pytest.raises(ValueError, match=r"goes with detector\.legacy: true"):
        Geometry(legacy=False, detectron=True)


def test_a_claimed_box_may_stand_for_its_own_truth() -> None:
    """The second object's best box overlaps the first one more."""
    objects = torch.tensor([[0.0, 0, 10, 10], [0, 0, 40, 10]])
    truth = padded([{"boxes": objects, "labels": torch.tensor([1, 2])}])
    boxes, valid = torch.tensor([[[0.0, 0, 14, 10]]]), torch.ones(1, 1, dtype=torch.bool)
    given = (Geometry(legacy=False), boxes, valid, truth, 0.9, 0.3, 0.0)
    assert assign(*given).truths.item() == 1
    assert assign(*given, own_truth=True).truths.item() == 0


def test_anchors_for_other_levels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"anchors\.sizes has 2 entries for 1 levels"):
        Anchors(MODERN, sizes=[8, 16], strides=[4], ratios=[1.0])


def truths(*boxes: list[list[float]]) -> GroundTruth:
    return padded(
        [
            {"boxes": torch.tensor(rows).reshape(-1, 4), "labels": torch.arange(len(rows)) + 1}
            for rows in boxes
        ]
    )


def test_each_object_claims_its_best_boxes() -> None:
    truth = truths([[0, 0, 10, 10], [0, 0, 10, 4]])
    boxes = box(0, 0, 10, 9, 0, 0, 10, 6, 50, 50, 60, 60)[None]
    valid = torch.ones(1, 3, dtype=torch.bool)
    # IoU with the objects: 0.9 and 0.44; 0.6 and 0.67; 0 and 0.
    above = assign(MODERN, boxes, valid, truth, 0.7, 0.3, 0.5)
    assert above.truths.tolist() == [[0, 1, BACKGROUND]]  # the second is below 0.7, but claimed
    torch.testing.assert_close(above.overlaps, torch.tensor([[0.9, 2 / 3, 0.0]]))
    below = assign(MODERN, boxes, valid, truth, 0.7, 0.3, 0.68)
    assert below.truths.tolist() == [[0, IGNORED, BACKGROUND]]


def test_padding_is_assigned_nothing_and_claims_nothing() -> None:
    truth = truths([[0, 0, 10, 10]], [])
    boxes = torch.zeros(2, 2, 4)
    boxes[:, 0] = torch.tensor([0.0, 0, 10, 10])
    valid = torch.tensor([[True, False], [True, False]])
    found = assign(LEGACY, boxes, valid, truth, 0.5, 0.5, 0.5)
    assert found.truths.tolist() == [[0, IGNORED], [BACKGROUND, IGNORED]]
    assert found.overlaps.tolist() == [[1, 0], [0, 0]]
    none = assign(LEGACY, boxes, valid, truths([], []), 0.5, 0.5, 0.5)
    assert none.truths.tolist() == [[BACKGROUND, IGNORED]] * 2


def test_objects_come_in_front_and_stand_for_themselves() -> None:
    truth = truths([[0, 0, 10, 10], [0, 0, 10, 10]], [[5, 5, 9, 9]])
    boxes, valid = torch.rand(2, 3, 4), torch.ones(2, 3, dtype=torch.bool)
    before = Assignment(torch.full((2, 3), BACKGROUND), torch.zeros(2, 3))
    regions, valid, after = with_truth(boxes, valid, before, truth)
    assert regions.shape == (2, 5, 4)
    assert after.truths[:, :2].tolist() == [[0, 1], [0, IGNORED]]
    assert after.overlaps[:, :2].tolist() == [[1, 1], [1, 0]]
    assert valid[:, :2].tolist() == [[True, True], [True, False]]


def test_quotas_of_positives_and_negatives() -> None:
    assignment = Assignment(
        torch.tensor([[0, 0, 0, BACKGROUND, BACKGROUND, BACKGROUND, IGNORED, BACKGROUND]]),
        torch.tensor([[0.9, 0.8, 0.7, 0.3, 0.05, 0.2, 0.0, 0.1]]),
    )
    priority = torch.tensor([[0.5, 0.1, 0.3, 0.9, 0.0, 0.2, 0.0, 0.7]])
    chosen = sample(assignment, priority, Quota(4, 0.5, 0.1))
    assert chosen.positive[0].nonzero()[:, 0].tolist() == [1, 2]
    assert chosen.negative[0].nonzero()[:, 0].tolist() == [5, 7]
    every = sample(assignment, priority, Quota(100, 0.5, 0.0))
    assert every.chosen[0].tolist() == [True] * 6 + [False, True]


def network(kept: int = 3) -> tuple[RegionProposalNetwork, AnchorOutputs, dict[str, Any]]:
    rpn = RegionProposalNetwork(MODERN, 2, [8, 16], {"sizes": [8, 16], "ratios": [1.0]})
    anchors = box(0, 0, 8, 8, 1, 0, 9, 8, 20, 20, 30, 30, 0, 0, 8, 8.5)
    scores = torch.tensor([[3.0, 2.0, 1.0, 0.5], [0.0, 5.0, 4.0, 3.0]])
    outputs = AnchorOutputs(scores, torch.zeros(2, 4, 4), anchors, [3, 1])
    return rpn, outputs, {"counts": Counts(3, kept), "nms": 0.7}


def test_proposals_are_the_best_of_each_level_after_nms() -> None:
    rpn, outputs, settings = network()
    found = rpn.propose(outputs, torch.tensor([[40, 40], [40, 40]]), **settings)
    # The second box overlaps the first by 7/9; that of the other level is not compared with it.
    assert found.scores.tolist() == [[3, 1, 0.5], [5, 4, 3]]
    assert found.valid.all()
    assert found.rois()[:, 0].tolist() == [0, 0, 0, 1, 1, 1]


def test_proposals_outside_a_small_image_are_padding() -> None:
    rpn, outputs, settings = network(kept=5)
    found = rpn.propose(outputs, torch.tensor([[40, 40], [15, 15]]), **settings)
    assert found.valid.sum(dim=1).tolist() == [3, 2]
    assert found.boxes[1, :2].max() <= 15
    assert found.boxes[1, 2:].abs().max() == 0
    only = rois(found.boxes, found.valid & (found.scores > 2.5))
    assert only[:, 0].tolist() == [0, 1, 1]


def test_detections_by_class_and_image() -> None:
    boxes = box(0, 0, 10, 10, 1, 0, 11, 10, 30, 30, 40, 40, 0, 0, 10, 10)[:, None]
    scores = torch.tensor([[0.0, 0.9, 0.3], [0.0, 0.8, 0.6], [0.0, 0.1, 0.0], [0.5, 0.4, 0.05]])
    found = select(MODERN, torch.tensor([0, 0, 0, 2]), boxes, scores, 3, 0.05, 0.5, 4)
    assert found.labels.tolist() == [[1, 2, 1, 0], [0] * 4, [1, 0, 0, 0]]
    torch.testing.assert_close(found.scores[0, :3], torch.tensor([0.9, 0.6, 0.1]))
    assert found.boxes[0, 1].tolist() == [1, 0, 11, 10]
    assert found.valid.sum() == 4
    few = select(MODERN, torch.tensor([0, 0, 0, 2]), boxes, scores, 3, 0.05, 0.5, 2)
    assert few.labels.tolist() == [[1, 2], [0, 0], [1, 0]]


@pytest.mark.parametrize("geometry", [LEGACY, MODERN])
@pytest.mark.parametrize("size", [0, 1, 300])
def test_nms_of_many_groups_at_once_is_that_of_one_after_another(geometry, size) -> None:
    torch.manual_seed(size)
    corners = (60 * torch.rand(size, 2)).round()
    boxes = torch.cat([corners, corners + (20 * torch.rand(size, 2)).round()], dim=1)
    scores, groups = (20 * torch.rand(size)).round() / 20, 3 * torch.randint(6, (size,))
    expected = geometry.nms(boxes, scores, groups, 0.5)
    assert nms_within(geometry, boxes, scores, groups, 0.5).tolist() == expected.tolist()


@pytest.mark.parametrize("limit", [1, 7, 40, 500])
def test_the_best_candidates_give_the_detections_of_all(limit) -> None:
    torch.manual_seed(limit)
    images = torch.tensor([0] * 30 + [2] * 20)  # the second image has no region
    corners = 40 * torch.rand(50, 2)
    corners[:15] = corners[0]  # in front, and suppressed by one box: NMS has to go on
    boxes = torch.cat([corners, corners + 20], dim=1)[:, None]
    scores = torch.rand(50, 6)
    scores[:15] += 1
    found = select(MODERN, images, boxes, scores, 3, 0.2, 0.5, limit)
    for image in range(3):
        rows, labels = ((scores[:, 1:] > 0.2) & (images == image)[:, None]).nonzero().T
        of_pairs = scores[rows, labels + 1]
        stay = MODERN.nms(boxes[rows, 0], of_pairs, labels, 0.5)[:limit]
        own = found.valid[image]
        assert found.scores[image][own].tolist() == of_pairs[stay].tolist()
        assert found.labels[image][own].tolist() == (labels[stay] + 1).tolist()


def test_a_class_has_a_box_of_its_own() -> None:
    boxes = torch.arange(12.0).reshape(1, 3, 4)
    found = select(
        MODERN, torch.tensor([0]), boxes, torch.tensor([[0.9, 0.1, 0.8]]), 1, 0.5, 0.5, 2
    )
    assert found.labels.tolist() == [[2, 0]]
    assert found.boxes[0, 0].tolist() == [8, 9, 10, 11]


def test_regions_are_pooled_from_the_level_of_their_size() -> None:
    module = Detector(
        **detector(masks=False, box_head={
            "resolution": 2, "hidden": 4, "delta_stds": [STDS], "positive_iou": [0.5]})
    )  # fmt: skip
    module.backbone.pooled_levels, module.backbone.strides = 2, (4, 8)
    maps = [torch.full((1, 3, 64, 64), 1.0), torch.full((1, 3, 32, 32), 2.0)]
    regions = torch.tensor([[0, 0.0, 0, 200, 200], [0, 0, 0, 20, 20]])
    assert module.pool(maps, regions, 2).mean(dim=(1, 2, 3)).tolist() == [2, 1]
    assert module.pool(maps, regions[:0], 2).shape == (0, 3, 2, 2)


def test_resnet_fpn_freezes_statistics_and_stages() -> None:
    network = ResNetFPN(depth=18, frozen_stages=2).train()
    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms
    assert not any(norm.training for norm in norms)
    learnt = {n.split(".")[1] for n, p in network.body.named_parameters(prefix="body")
              if p.requires_grad}  # fmt: skip
    assert learnt == {"layer2", "layer3", "layer4"}
    maps = list(network(torch.zeros(1, 3, 64, 64)).values())
    assert [m.shape[2] for m in maps] == [64 // s for s in network.strides]
    with pytest.raises(ValueError, match="depth 18, 34, 50, 101 or 152, not 20"):
        ResNetFPN(depth=20)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_stem_keeps_its_statistics_and_perhaps_its_weights(frozen: bool) -> None:
    network = StemBackbone(4, [6, 8], frozen=frozen).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    (found,) = network(torch.rand(2, 3, 32, 48)).values()
    assert found.shape == (2, 8, 4, 6)
    assert found.shape[2] == 32 // network.strides[0]
    assert found.requires_grad is not frozen
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_small_backbone_has_stride_4() -> None:
    maps = SmallBackbone([4, 6, 6, 7])(torch.zeros(2, 3, 32, 48))
    assert [m.shape for m in maps.values()] == [(2, 7, 8, 12)]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"proposals": {"train": {"before_nms": 9, "kept": 10**12}}}, "kept=1000000000000, both"),
        ({"proposals": {"train": {"before_nms": 0, "kept": 9}}}, "before_nms=0 and kept=9, both"),
        ({"proposals": {"train": {"before": 0, "kept": 9}}}, "before"),
        ({"mask_head": {"resolution": 10**6, "width": 8}}, "mask_head.resolution=1000000"),
    ],
)
def test_sizes_that_no_weight_tells_are_bounded(wrong: dict[str, Any], message: str) -> None:
    """A checkpoint of a stranger may say any number."""
    settings = detector()
    for name, value in wrong.items():
        settings[name] = {**settings[name], **value}
    with pytest.raises(ValueError, match=message):
        Detector(**settings)


def test_a_cascade_of_class_wise_boxes_is_refused() -> None:
    with pytest.raises(ValueError, match="a cascade's boxes are class-agnostic"):
        Detector(**detector(stages=2, class_agnostic=False))
