"""Official SimCal files and other starts: every key is accounted for."""

from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torchvision.models import resnet18, resnet50
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from methods.simcal import official
from shared.checkpoints.reading import CheckpointError
from shared.composing import compose_experiment
from shared.nn.building import build
from shared.training.method import Method
from tests.unit.simcal_toy import calibrated, calibration, detector, joint, scenes, trained


def test_official_names_account_for_every_key() -> None:
    module = calibrated()
    content = official.export(module)
    assert "backbone.0.weight" in content["state_dict"]
    assert content["state_dict"]["bbox_head.fc_reg.weight"].shape == (4, 24)
    assert content["state_dict"]["mask_head.convs.3.conv.weight"].shape == (8, 8, 3, 3)
    assert set(content["heads"]["0"]) == {
        f"feat_classifier.{layer}.{part}"
        for layer in ("fc1", "fc2", "fc_classifier")
        for part in ("weight", "bias")
    }
    # As mmcv writes them: beside training state, with the prefix of a parallel network.
    written = {
        "state_dict": {f"module.{k}": v for k, v in content["state_dict"].items()},
        "meta": {"epoch": 12, "time": "now"}, "optimizer": {"state": {}},
        "heads": content["heads"],
    }  # fmt: skip
    fresh = calibration()
    report = official.load(fresh, written)
    assert list(report.fresh) == ["instances"]
    state = fresh.state_dict()
    for name, value in module.state_dict().items():
        if name != "instances":
            assert torch.equal(state[name], value), name
    del written["state_dict"]["module.rpn_head.rpn_reg.bias"]
    with pytest.raises(CheckpointError, match=r"rpn\.head\.bbox_pred\.bias"):
        official.load(calibration(), written)


def layers(prefix: str, **shapes: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of weights and biases."""
    return {
        f"{prefix}.{name}.{part}": shape if part == "weight" else shape[:1]
        for name, shape in shapes.items()
        for part in ("weight", "bias")
    }


def official_shapes(classes: int) -> dict[str, tuple[int, ...]]:
    """As docs/papers/simcal.md, section 9, lists them; boxes and masks know no classes."""
    with torch.device("meta"):
        body = resnet50().state_dict()
    shapes = {f"backbone.{n}": tuple(v.shape) for n, v in body.items() if not n.startswith("fc.")}
    for level, width in enumerate((256, 512, 1024, 2048)):
        shapes |= layers(f"neck.lateral_convs.{level}", conv=(256, width, 1, 1))
        shapes |= layers(f"neck.fpn_convs.{level}", conv=(256, 256, 3, 3))
        shapes |= layers(f"mask_head.convs.{level}", conv=(256, 256, 3, 3))
    shapes |= layers("mask_head", upsample=(256, 256, 2, 2), conv_logits=(1, 256, 1, 1))
    shapes |= layers("rpn_head", rpn_conv=(256, 256, 3, 3), rpn_cls=(3, 256, 1, 1))
    shapes |= layers("rpn_head", rpn_reg=(12, 256, 1, 1))
    shapes |= layers("bbox_head.shared_fcs", **{"0": (1024, 49 * 256), "1": (1024, 1024)})
    return shapes | layers("bbox_head", fc_cls=(classes, 1024), fc_reg=(4, 1024))


@pytest.mark.parametrize(("row", "classes"), [("lvis_r50_ag_simcal", 1231), ("coco_lt_r50_ag", 81)])
def test_files_of_the_papers_size(row: str, classes: int) -> None:
    module: Any = build(
        OmegaConf.to_container(compose_experiment(f"simcal/{row}", []).method, resolve=True), Method
    )
    shapes = official_shapes(classes)
    assert len(shapes) == 360
    exported = official.export(module)
    assert {n: tuple(v.shape) for n, v in exported["state_dict"].items()} == shapes
    state = {f"module.{n}": torch.full(shape, 0.5) for n, shape in shapes.items()}
    heads = {name: exported[name] for name in ("heads",) if name in exported}
    assert set(official.load(module, {"state_dict": state, **heads}).fresh) <= {"instances"}
    for name, value in module.named_parameters():
        assert name.startswith("heads") or torch.all(value == 0.5), name


def test_official_heads_lie_beside_the_detector(tmp_path: Any) -> None:
    content = official.export(calibrated(head="3fc_rand"))
    torch.save({"state_dict": content["state_dict"]}, tmp_path / "epoch_12.pth")
    with pytest.raises(CheckpointError, match=r"has no 3fc_ft\.pth, the calibration head"):
        official.load(calibration(), tmp_path / "epoch_12.pth")
    head = {f"module.{k}": v for k, v in content["heads"]["0"].items()}
    torch.save(head, tmp_path / "3fc_ft.pth")
    module = calibration()
    official.load(module, tmp_path / "epoch_12.pth")
    weight = content["heads"]["0"]["feat_classifier.fc1.weight"]
    assert torch.equal(module.heads[0].fc1.weight, weight)


def test_warm_starts(tmp_path: Any) -> None:
    path = tmp_path / "last.ckpt"
    run = {"_target_": "methods.simcal.joint.JointDetector", "state_dict": trained().state_dict()}
    torch.save(run, path)
    module = calibration()
    official.warm_start(module, path, "joint")
    batch = scenes(2)
    torch.testing.assert_close(
        module.eval().predict_step(batch, 0), trained().predict_step(batch, 0)
    )
    assert module.instances.tolist() == [100, 50, 19, 5]
    with pytest.raises(
        CheckpointError, match="kind 'moco' is unknown: joint, pb_ovd, torchvision, imagenet"
    ):
        official.warm_start(module, path, "moco")
    with pytest.raises(CheckpointError, match="train stage A first"):
        official.warm_start(module, tmp_path / "nothing.ckpt", "joint")


def test_a_cascade_has_a_head_for_each_stage(tmp_path: Any) -> None:
    """Three files of calibration heads beside a detector whose box heads are numbered."""
    torch.manual_seed(5)
    stages = {"detector": detector(stages=3)}
    content = official.export(calibration(**stages))
    assert "bbox_head.2.fc_cls.weight" in content["state_dict"]
    assert "mask_head.1.conv_logits.bias" in content["state_dict"]
    torch.save({"state_dict": content["state_dict"]}, tmp_path / "epoch_20.pth")
    for stage, head in content["heads"].items():
        torch.save(head, tmp_path / f"3fc_ft_stage{stage}.pth")
    module = calibration(**stages)
    with torch.no_grad():
        module.heads[2].fc1.weight.zero_()
    official.load(module, tmp_path / "epoch_20.pth")
    assert torch.equal(
        module.heads[2].fc1.weight, content["heads"]["2"]["feat_classifier.fc1.weight"]
    )
    (tmp_path / "3fc_ft_stage1.pth").unlink()
    with pytest.raises(CheckpointError, match=r"has no 3fc_ft_stage1\.pth"):
        official.load(module, tmp_path / "epoch_20.pth")


def test_starts_from_imagenet_and_from_torchvision(tmp_path: Any) -> None:
    """Of a ResNet the backbone alone is taken; of a Mask R-CNN all that no class number shapes."""
    network = {"_target_": "shared.nn.detection.backbones.ResNetFPN", "depth": 18}
    large = {
        "detector": detector(
            backbone=network, anchors={"sizes": [8, 16, 32, 64, 128], "ratios": [0.5, 1.0, 2.0]},
            box_head={"resolution": 7, "hidden": 1024, "delta_stds": [[0.1, 0.1, 0.2, 0.2]],
                      "positive_iou": [0.5]},
            mask_head={"resolution": 14, "width": 256},
        )
    }  # fmt: skip
    resnet = resnet18()
    torch.save(resnet.state_dict(), tmp_path / "resnet18.pth")
    module = joint(**large)
    report = official.warm_start(module, tmp_path / "resnet18.pth", "imagenet")
    assert set(report.dropped) == {"fc.weight", "fc.bias"}
    body = module.detector.backbone.body
    assert torch.equal(body.layer4[1].conv2.weight, resnet.layer4[1].conv2.weight)

    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None)
    theirs = MaskRCNN(backbone, 91).state_dict()
    torch.save(theirs, tmp_path / "maskrcnn.pth")
    report = official.warm_start(module, tmp_path / "maskrcnn.pth", "torchvision")
    assert all("predictor" in name for name in report.dropped)
    assert len(report.dropped) == 6
    fc6 = module.detector.box_heads[0].fc6.weight
    assert torch.equal(fc6, theirs["roi_heads.box_head.fc6.weight"])
    # As its files of before 2022 name these layers.
    renamed = {
        "rpn.head.conv.0.0.": "rpn.head.conv.",
        "inner_blocks.1.0.": "inner_blocks.1.",
        "mask_head.2.0.": "mask_head.mask_fcn3.",
    }
    older = {}
    for name, value in theirs.items():
        for new, old in renamed.items():
            name = name.replace(new, old)
        older[name] = value
    torch.save(older, tmp_path / "older.pth")
    assert not official.warm_start(module, tmp_path / "older.pth", "torchvision").unexpected
