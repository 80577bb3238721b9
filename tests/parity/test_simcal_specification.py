"""What docs/papers/simcal.md demands beyond its golden cases, section by section.

Expected values are written out by hand, with nothing of `methods/` or of the detection parts.
"""

from math import log

import pytest
import torch
from torch import Tensor

from methods.simcal import official
from methods.simcal.joint import oracle_scores
from methods.simcal.losses import classification_loss
from shared.nn.detection.geometry import Geometry
from shared.nn.detection.matching import BACKGROUND, Assignment, Quota, assign, padded, sample
from shared.nn.detection.selection import select
from tests.unit.simcal_toy import calibrated, calibration, scenes, trained

LEGACY = Geometry(legacy=True)


def boxes(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32)


@pytest.mark.parametrize("delta", [9.0, -9.0])
def test_section_9_deltas_of_sizes_are_clamped(delta: float) -> None:
    """At |ln(16 / 1000)|, in both directions; the box is 20 pixels wide."""
    moved = LEGACY.decode(boxes((10, 10, 29, 29)), boxes((0, 0, delta, 0)), (1.0,) * 4)
    width = float(moved[0, 2] - moved[0, 0] + 1)
    clamped = log(1000 / 16) if delta > 0 else -log(1000 / 16)
    assert width == pytest.approx(20 * torch.tensor(clamped).exp().item(), rel=1e-5)


def test_section_3_3_an_object_claims_its_best_box_from_another() -> None:
    """Both boxes are nearest to the first object, but the second object's best one is the second
    box, with IoU 0.5 or more: the later object has it."""
    truth = padded(
        [{"boxes": boxes((0, 0, 99, 99), (0, 0, 69, 99)), "labels": torch.tensor([3, 5])}]
    )
    given = boxes((0, 0, 99, 99), (0, 0, 88, 99))[None]
    valid = torch.ones(1, 2, dtype=torch.bool)
    # IoU of the second box: 0.89 with the first object, 70 / 89 = 0.79 with the second, whose
    # IoU with the first box is 0.7.
    found = assign(LEGACY, given, valid, truth, 0.5, 0.5, 0.5)
    assert found.truths.tolist() == [[0, 1]]


def test_section_3_3_negatives_fill_up_what_positives_leave() -> None:
    truths = torch.tensor([[0] + [BACKGROUND] * 9])
    overlaps = torch.full((1, 10), 0.3)
    chosen = sample(Assignment(truths, overlaps), torch.rand(1, 10), Quota(8, 0.5, 0.1))
    assert chosen.positive.sum() == 1
    assert chosen.negative.sum() == 7


def test_section_3_4_the_detector_is_frozen_and_in_evaluation_mode() -> None:
    module = calibrated().train()
    before = {name: value.clone() for name, value in module.detector.state_dict().items()}
    optimizer = module.configure_optimizers()[0][0]
    module.training_step(scenes(4), 0).backward()
    optimizer.step()
    after = module.detector.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(p.grad is None for p in module.detector.parameters())
    assert any(p.grad.abs().sum() > 0 for p in module.heads.parameters())


def test_section_3_4_the_rate_by_epoch() -> None:
    """1 to 7: 0.01; 8 to 10: 0.001; from 11: 0.0001, whatever configs say of momentum and decay."""
    module = calibration(lr=0.01, drops=[7, 10])
    (optimizer,), (scheduler,) = module.configure_optimizers()
    rates = []
    for _ in range(12):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler["scheduler"].step()
    assert rates == pytest.approx([0.01] * 7 + [0.001] * 3 + [0.0001] * 2)
    assert optimizer.param_groups[0]["momentum"] == optimizer.param_groups[0]["weight_decay"] == 0


def test_section_3_5_boxes_and_masks_stay_with_the_original_head() -> None:
    module = calibrated()
    with torch.no_grad():
        module.heads[0].classifier.weight.neg_()
    batch = scenes(2)
    module.hparams["combination"] = "original"
    found, expected = module.detect(batch), trained().detect(batch)
    torch.testing.assert_close(found.boxes, expected.boxes)
    module.hparams["combination"] = "calibrated"
    assert not torch.allclose(module.detect(batch).scores, expected.scores)


def test_section_3_8_focal_loss_has_no_background_output() -> None:
    loss = classification_loss({"kind": "focal", "gamma": 0.0, "alpha": 0.5}, torch.ones(3))
    logits, labels = torch.zeros(2, 3), torch.tensor([0, 2])
    # Of six sigmoids at 0.5 each costs log 2 / 2; one object.
    assert float(loss(logits, labels)) == pytest.approx(6 * log(2) / 2, rel=1e-5)


def test_section_7_the_oracle_knows_the_class_of_a_region() -> None:
    truth = padded(
        [
            {"boxes": boxes((0, 0, 9, 9)), "labels": torch.tensor([2])},
            {"boxes": boxes((0, 0, 9, 9), (50, 50, 59, 59)), "labels": torch.tensor([1, 3])},
        ]
    )
    rois = boxes((0, 0, 0, 9, 9), (1, 50, 50, 59, 59), (1, 0, 0, 9, 3), (0, 50, 50, 59, 59))
    scores = torch.tensor([[0.3, 0.2, 0.4, 0.1]]).expand(4, 4)
    found = oracle_scores(LEGACY, rois, truth, scores)
    expected = torch.zeros(4, 4)
    expected[0, 2], expected[1, 3], expected[2, 0], expected[3, 0] = 0.7, 0.7, 0.7, 0.7
    torch.testing.assert_close(found, expected)


def test_pitfall_16_nms_suppresses_above_the_threshold_only() -> None:
    pair = boxes((0, 0, 9, 9), (0, 0, 9, 4))[:, None]  # an IoU of exactly one half
    scores = torch.tensor([[0.0, 0.9], [0.0, 0.8]])
    found = select(LEGACY, torch.zeros(2, dtype=torch.long), pair, scores, 1, 0.0, 0.5, 5)
    assert found.valid.sum() == 2
    closer = select(LEGACY, torch.zeros(2, dtype=torch.long), pair, scores, 1, 0.0, 0.49, 5)
    assert closer.valid.sum() == 1


def test_section_9_mask_and_anchor_layers_have_their_places() -> None:
    """Keys and shapes of the official state dict, of which no golden case holds all."""
    state = official.export(trained())["state_dict"]
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    assert shapes["rpn_head.rpn_conv.weight"] == (12, 12, 3, 3)
    assert shapes["rpn_head.rpn_cls.bias"] == (1,)
    assert shapes["rpn_head.rpn_reg.bias"] == (4,)
    assert shapes["bbox_head.shared_fcs.0.weight"] == (24, 300)
    assert shapes["bbox_head.fc_cls.weight"] == (5, 24)
    assert shapes["mask_head.upsample.weight"] == (8, 8, 2, 2)
    assert shapes["mask_head.conv_logits.weight"] == (1, 8, 1, 1)
