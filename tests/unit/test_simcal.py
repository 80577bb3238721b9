"""SimCal's modules on scenes of coloured rectangles."""

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from methods.simcal.controls import ImageLevelOnly, ProposalLevelOnly, Unbalanced
from methods.simcal.dual_head import combine
from methods.simcal.losses import classification_loss, inverse_weights
from methods.simcal.module import Candidates, SimCal
from shared.tasks.detection import detected_masks, detections_of, find_regions
from tests.unit.simcal_toy import JOINT, calibrated, calibration, detector, joint, scenes, trained


def test_joint_training_learns_the_scenes() -> None:
    batch = scenes(6, 999)
    before = joint().joint.losses(joint().detector, batch, 0, F.cross_entropy)
    after = trained().joint.losses(trained().detector, batch, 0, F.cross_entropy)
    assert before.keys() == {
        "loss_rpn_class",
        "loss_rpn_box",
        "loss_class",
        "loss_box",
        "loss_mask",
    }
    for name in ("loss_rpn_class", "loss_class", "loss_mask"):
        assert after[name] < 0.7 * before[name]


def test_steps_draw_by_seed_and_step_alone() -> None:
    batch, module = scenes(4), joint()
    losses = [module.joint.losses(module.detector, batch, step, F.cross_entropy)
              for step in (0, 0, 1)]  # fmt: skip
    assert all(torch.equal(losses[0][k], losses[1][k]) for k in losses[0])
    assert not torch.equal(losses[0]["loss_class"], losses[2]["loss_class"])


def test_images_without_objects_train_the_background() -> None:
    batch = scenes(2)
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long),
               "masks": torch.zeros(0, 48, 48, dtype=torch.uint8)}  # fmt: skip
    batch["targets"] = [nothing, nothing]
    module = joint()
    terms = module.joint.losses(module.detector, batch, 0, F.cross_entropy)
    assert terms["loss_box"] == terms["loss_mask"] == terms["loss_rpn_box"] == 0
    torch.stack(list(terms.values())).sum().backward()
    assert terms["loss_class"] > 0


def test_a_cascade_weighs_its_stages() -> None:
    batch = scenes(4)
    whole = joint(detector=detector(stages=3))
    terms = whole.joint.losses(whole.detector, batch, 0, F.cross_entropy)
    whole.joint.stage_weights = [1.0, 0.0, 0.0]
    first = whole.joint.losses(whole.detector, batch, 0, F.cross_entropy)
    assert terms["loss_class"] > 1.3 * first["loss_class"]
    assert torch.equal(terms["loss_rpn_class"], first["loss_rpn_class"])


def test_the_head_starts_with_the_logits_of_the_detector() -> None:
    batch, module = scenes(4, 7), calibrated()
    torch.testing.assert_close(module.predict_step(batch, 0), trained().predict_step(batch, 0))
    fresh = calibrated(head="3fc_rand")
    assert not torch.allclose(fresh.predict_step(batch, 0), trained().predict_step(batch, 0))


@pytest.mark.parametrize("head", ["3fc_ft", "3fc_rand", "2fc_rand", "crt", "lws"])
def test_calibration_trains_the_head_alone(head: str) -> None:
    module = calibrated(head=head).train()
    assert not module.detector.training
    before = {n: p.clone() for n, p in module.named_parameters()}
    optimizer = module.configure_optimizers()[0][0]
    for step in range(2):
        module.training_step(scenes(6, step), step).backward()
        optimizer.step()
    moved = {n for n, p in module.named_parameters() if not torch.equal(p, before[n])}
    learnt = {n for n, p in module.named_parameters() if p.requires_grad}
    assert moved == learnt
    assert all(name.startswith("heads.0.") for name in moved)
    assert len(moved) == {"crt": 2, "lws": 1, "2fc_rand": 4}.get(head, 6)


def test_tau_norm_of_0_drops_the_bias() -> None:
    module = calibrated(head="tau_norm", tau=0.0)
    features = torch.randn(5, 12, 5, 5)
    head = module.detector.box_heads[0]
    expected = head(features)[0] - head.cls_score.bias
    torch.testing.assert_close(module.heads[0](features), expected)


def episode_of(module: SimCal, drawn_for: Tensor | None = None) -> Any:
    """Of two images: labels 1, 2 and 1; 2; and five negatives."""
    labels = torch.tensor([[1, 2, 1, 0, 0, 0], [2, 0, 0, 0, 0, 0]])
    order = torch.full((2, 6), torch.inf)
    order[0, 3:], order[1, 4:] = torch.tensor([0.5, 0.1, 0.9]), torch.tensor([0.3, 0.7])
    regions = torch.arange(12.0).reshape(2, 6, 1).expand(-1, -1, 4)
    return module.compose(Candidates(regions, labels, order), drawn_for)


def test_an_episode_keeps_the_drawn_class_and_as_many_negatives() -> None:
    episode = episode_of(calibration(), torch.tensor([1, 2]))
    assert episode.labels.tolist() == [0, 0, 0, 1, 1, 2]
    assert episode.rois[:, 1].tolist() == [4, 10, 3, 0, 2, 6]
    assert episode.rois[:, 0].tolist() == [0, 1, 0, 0, 0, 1]
    assert episode.total == 6
    # No positive of the class: the image contributes nothing, negatives neither.
    assert episode_of(calibration(), torch.tensor([3, 2])).labels.tolist() == [0, 2]
    nothing = episode_of(calibration(), torch.tensor([3, 3]))
    assert nothing.labels.tolist() == []


def test_controls_leave_out_one_balance_each() -> None:
    image_level = episode_of(calibration(ImageLevelOnly), torch.tensor([3, 3]))
    assert image_level.labels.tolist() == [0, 0, 0, 0, 1, 2, 1, 2]
    assert episode_of(calibration(Unbalanced)).labels.tolist() == [0] * 5 + [1, 2, 1, 2]
    one_class = episode_of(calibration(ProposalLevelOnly)).labels.tolist()
    assert one_class in ([0, 0, 0, 1, 1, 2], [0, 0, 2, 2])
    with pytest.raises(ValueError, match="calibration needs the class that each image"):
        episode_of(calibration())


def test_negatives_overlap_an_object() -> None:
    """Regions that lie on empty ground are no negatives, wherever the proposals are."""
    module, batch = calibrated(), scenes(3)
    regions = torch.tensor([[40.0, 40, 47, 47], [0, 0, 47, 47], [2, 2, 15, 15]]).expand(3, 3, 4)
    for target in batch["targets"]:
        target["boxes"], target["labels"] = torch.tensor([[1.0, 1, 16, 16]]), torch.tensor([2])
    valid = torch.ones(3, 3, dtype=torch.bool)
    found = module.candidates(regions, valid, batch, 0)
    assert found.labels.tolist() == [[2, 0, 0, 2]] * 3
    assert found.negative_order.isfinite().tolist() == [[False, False, True, False]] * 3


def test_dual_head_takes_rare_classes_from_the_calibrated_head() -> None:
    original, calibrated_ = torch.randn(5, 4), torch.randn(5, 4)
    s, q = original.softmax(dim=1), calibrated_.softmax(dim=1)
    counts = torch.tensor([10, 9, 0])
    dual = combine(original, calibrated_, counts, 10, "dual")
    assert torch.equal(dual, torch.stack([s[:, 0], s[:, 1], q[:, 2], q[:, 3]], dim=1))
    known = combine(original, calibrated_, counts, 10, "dual", least=1)  # the third by its name
    assert torch.equal(known, torch.stack([s[:, 0], s[:, 1], q[:, 2], s[:, 3]], dim=1))
    assert torch.equal(combine(original, calibrated_, counts, 10, "calibrated"), q)
    assert torch.equal(combine(original, calibrated_, counts, 10, "mean"), (s + q) / 2)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"head": "4fc"}, "method.head='4fc' is unknown"),
        ({"combination": "max"}, "method.combination='max' is unknown"),
        ({"regions": {"counts": 3}}, "counts"),
        ({"detector": {**detector(), "boxes": 1}}, "boxes"),
        ({"selection": {"threshold": 0.1}}, "nms"),
        ({"selection": {"threshold": 0.1, "nms": 0.5, "limit": 10**9}}, "selection.limit=1000000"),
    ],
)
def test_wrong_settings_are_refused_before_training(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calibration(**wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"classification": {"kind": "hinge"}}, "method.classification.kind='hinge' is unknown"),
        ({"classification": {"kind": "focal", "gamma": 2.0}}, "alpha"),
        ({"optimizer": "adam"}, "method.optimizer='adam'"),
        ({"training": {**JOINT, "stage_weights": [1.0, 0.5]}}, "stage_weights: 2 for 1 stages"),
        ({"training": {**JOINT, "anchors": {"count": 3}}}, "positive_fraction"),
    ],
)
def test_wrong_settings_of_stage_a_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        joint(**wrong)


def test_weights_of_classes_by_hand() -> None:
    weights = inverse_weights(torch.tensor([1, 10, 1000]), 10.0, 0.7, (0.1, 10.0))
    torch.testing.assert_close(weights, torch.tensor([0.7, 10.0, 1.0, 0.1]))
    nothing = {"kind": "margin", "largest": 0.5}
    loss = classification_loss(nothing, torch.tensor([1, 16]))
    logits, labels = torch.randn(3, 3), torch.tensor([0, 1, 2])
    shifted = logits - torch.diag(torch.tensor([0.0, 0.5, 0.25]))
    torch.testing.assert_close(loss(logits, labels), F.cross_entropy(shifted, labels))


def test_focal_detectors_have_no_background() -> None:
    module = joint(classification={"kind": "focal", "gamma": 2.0, "alpha": 0.25})
    module.training_step(scenes(3), 0).backward()
    assert module.detector.box_heads[0].cls_score.out_features == 4
    assert module.eval().predict_step(scenes(2), 0).shape == (2, 4)


def test_pictures_alone_are_predicted() -> None:
    """As `tenfold predict` hands them over: without sizes, which are those of the pictures."""
    batch, module = scenes(3, 8), calibrated()
    alone = module.predict_step({"images": batch["images"]}, 0)
    assert alone.shape == (3, 4)
    torch.testing.assert_close(alone, module.predict_step(batch, 0))
    found = module.detect(batch)
    best = found.scores[1][found.labels[1] == 2]
    assert alone[1, 1] == (best.max() if len(best) else 0)


def test_masks_are_of_the_picture_and_of_the_object() -> None:
    from pycocotools import mask as rle

    batch, module = scenes(3, 4), trained()
    batch["original_sizes"] = 2 * batch["sizes"]
    regions = find_regions(module.detector, batch)
    scores = module.score(regions.stages)
    found = detections_of(module.detector, regions, batch, scores, module.selection)
    encoded = detected_masks(module.detector, regions.maps, found, batch)
    assert [len(masks) for masks in encoded] == found.valid.sum(dim=1).tolist()
    best = torch.from_numpy(rle.decode(encoded[0][0]))
    assert best.shape == (96, 96)
    truth = batch["targets"][0]["masks"].sum(dim=0).repeat_interleave(2, 0).repeat_interleave(2, 1)
    inside = (best.bool() & truth.bool()).sum() / best.sum()
    assert inside > 0.6


def test_data_of_other_classes_are_refused() -> None:
    class Data:
        instance_counts = torch.tensor([5, 5, 5])
        hparams: ClassVar = {"preparation": {"inclusive_corners": True}}

    data = Data()
    with pytest.raises(ValueError, match="the data have 3 classes, the detector 4"):
        joint().attach(data)
    data.instance_counts = torch.tensor([5, 5, 5, 2])
    module = joint()
    module.attach(data)
    assert module.instances.tolist() == [5, 5, 5, 2]
    modern = joint(detector=detector(legacy=False))
    with pytest.raises(
        ValueError, match=r"inclusive_corners=True, but method\.detector\.legacy is"
    ):
        modern.attach(data)
