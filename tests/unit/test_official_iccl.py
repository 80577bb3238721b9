"""Checkpoints that ICCL reads: every key explained, exact round trips, wrong files refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from methods.iccl import official
from methods.iccl.baselines import CrossEntropy
from methods.iccl.classifier import LongTailClassifier
from methods.iccl.module import ICCL
from methods.iccl.stage2 import BalancedClassifier
from shared.checkpoints.reading import CheckpointError
from tests.parity.toys import PROJECTION, changed, state_of, toy

CLASSES = 5
BACKBONE: dict[str, Any] = {
    "_target_": "shared.nn.resnet.ResNet", "block": "bottleneck", "layers": [1, 1, 1, 1],
    "base_width": 4, "groups": 2, "width_per_group": 32,
}  # fmt: skip


def cross_entropy(**changes: Any) -> CrossEntropy:
    return toy(CrossEntropy, **({"backbone": BACKBONE} | changes))


def iccl() -> ICCL:
    return toy(ICCL, backbone=BACKBONE, projection=PROJECTION)


def stage2(learnt: str, distilled: bool = False) -> BalancedClassifier:
    settings = {"temperature": 2.0, "weight": 0.4} if distilled else None
    return toy(BalancedClassifier, backbone=BACKBONE, learnt=learnt, distillation=settings)


def public(module: LongTailClassifier, scales: bool = False) -> dict[str, Any]:
    """A checkpoint as the classifier-balancing code writes it."""
    backbone = module.encoder.backbone.state_dict()
    classifier: Any = module.encoder.classifier
    head = {f"module.fc.{name}": value for name, value in classifier.state_dict().items()}
    if scales:
        head["module.scales"] = torch.linspace(0.5, 2.0, CLASSES)
    return {
        "epoch": 90,
        "best_epoch": 88,
        "best_acc": 0.44,
        "centroids": None,
        "state_dict_best": {
            "feat_model": {f"module.{name}": value for name, value in backbone.items()},
            "classifier": head,
        },
    }


@pytest.mark.parametrize("build", [iccl, cross_entropy, lambda: stage2("lws", distilled=True)])
def test_export_and_load_are_inverse(build: Any, tmp_path: Path) -> None:
    module, other = build(), build()
    for value in module.state_dict().values():
        if value.is_floating_point():
            value.normal_()
    torch.save(official.export(module), tmp_path / "file.pth")
    report = official.load(other, tmp_path / "file.pth")
    assert report.complete
    assert not report.dropped
    assert not report.fresh
    assert not changed(state_of(module), other)


def test_names_are_those_of_the_specification() -> None:
    names = set(official.export(iccl()))
    heads = {name for name in names if not name.startswith("encoder.")}
    assert heads == {
        *(f"classifier.{part}" for part in ("weight", "bias")),
        *(f"projection.{layer}.{part}" for layer in (0, 2) for part in ("weight", "bias")),
        "centroids",
    }
    assert "encoder.conv1.weight" in names


def test_a_public_baseline_loads_key_by_key(tmp_path: Path) -> None:
    trained, module = cross_entropy(), cross_entropy()
    torch.save(public(trained), tmp_path / "final_model_checkpoint.pth")
    report = official.load(module, tmp_path / "final_model_checkpoint.pth")
    assert set(report.dropped) == {"epoch", "best_epoch", "best_acc", "centroids"}
    assert len(report.mapped) == len(trained.state_dict())
    assert not changed(state_of(trained), module)


def test_public_scales_load_into_lws_and_nowhere_else() -> None:
    trained = cross_entropy()
    module = stage2("lws")
    official.load(module, public(trained, scales=True))
    assert module.scales is not None
    torch.testing.assert_close(module.scales.detach(), torch.linspace(0.5, 2.0, CLASSES))
    with pytest.raises(CheckpointError, match="scales"):
        official.load(cross_entropy(), public(trained, scales=True))
    with pytest.raises(CheckpointError, match="scales"):
        official.load(stage2("lws"), public(trained))


def refused(module: LongTailClassifier, source: dict[str, Any], named: str) -> None:
    before = state_of(module)
    with pytest.raises(CheckpointError, match=named):
        official.load(module, source)
    assert not changed(before, module)


def test_wrong_files_are_refused_and_nothing_is_loaded() -> None:
    trained = cross_entropy()
    refused(iccl(), public(trained), "baseline without projection and centroids")
    refused(cross_entropy(num_classes=CLASSES + 1), public(trained), "classifier")
    wider = {**BACKBONE, "base_width": 8}
    refused(cross_entropy(backbone=wider), public(trained), r"layer1\.0")
    deeper = {**BACKBONE, "layers": [1, 1, 2, 1]}
    refused(cross_entropy(backbone=deeper), public(trained), r"layer3\.1")
    incomplete = public(trained)
    del incomplete["state_dict_best"]["feat_model"]["module.bn1.running_var"]
    refused(cross_entropy(), incomplete, r"bn1\.running_var")
    surplus = public(trained)
    surplus["state_dict_best"]["feat_model"]["module.fc.weight"] = torch.zeros(2)
    refused(cross_entropy(), surplus, r"fc\.weight")
    refused(iccl(), official.export(cross_entropy()), "projection")
    refused(cross_entropy(), official.export(iccl()), "projection")


def checkpoint(module: LongTailClassifier, path: Path) -> Path:
    torch.save({"state_dict": module.state_dict(), "epoch": 3}, path)
    return path


@pytest.mark.parametrize("build", [iccl, cross_entropy])
def test_stage_2_starts_from_stage_1(build: Any, tmp_path: Path) -> None:
    trained = build()
    path = checkpoint(trained, tmp_path / "last.ckpt")
    crt = stage2("crt", distilled=True)
    before: Any = crt.encoder.classifier
    fresh = before.weight.clone()
    report = official.warm_start(crt, path, "stage1")
    assert torch.equal(crt.encoder.classifier.weight, fresh), "cRT stays random"  # type: ignore[union-attr]
    assert torch.equal(crt.teacher.weight, trained.encoder.classifier.weight)  # type: ignore[union-attr]
    assert set(report.fresh.values()) == {"re-trained from random weights"}

    lws = stage2("lws")
    official.warm_start(lws, path, "stage1")
    assert not changed(state_of(trained.encoder.backbone), lws.encoder.backbone)
    assert torch.equal(lws.encoder.classifier.bias, trained.encoder.classifier.bias)  # type: ignore[union-attr]
    assert (lws.scales == 1).all()  # type: ignore[union-attr]


def test_stage_2_starts_from_a_public_baseline(tmp_path: Path) -> None:
    trained = cross_entropy()
    torch.save(public(trained), tmp_path / "public.pth")
    for module in (stage2("crt"), stage2("lws"), cross_entropy(), iccl()):
        official.warm_start(module, tmp_path / "public.pth", "classifier_balancing")
        assert not changed(state_of(trained.encoder.backbone), module.encoder.backbone)
        kept = torch.equal(module.encoder.classifier.weight, trained.encoder.classifier.weight)  # type: ignore[union-attr]
        assert kept != (getattr(module, "scales", None) is None and hasattr(module, "scales"))


def test_warm_starts_name_what_is_wrong(tmp_path: Path) -> None:
    path = checkpoint(cross_entropy(), tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match="unknown: stage1, classifier_balancing"):
        official.warm_start(stage2("crt"), path, "moco")
    with pytest.raises(CheckpointError, match="unexpected"):
        official.warm_start(stage2("crt"), path, "classifier_balancing")
    torch.save(public(cross_entropy()), tmp_path / "public.pth")
    with pytest.raises(CheckpointError, match="kind=classifier_balancing"):
        official.warm_start(stage2("crt"), tmp_path / "public.pth", "stage1")
    with pytest.raises(CheckpointError, match=r"nothing\.ckpt.*warm_start\.path=FILE"):
        official.warm_start(stage2("crt"), tmp_path / "nothing.ckpt", "stage1")
