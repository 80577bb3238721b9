"""SimCal's calibration on a detector of PB-OVD's, whose classes are embedded names."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from methods.pb_ovd.module import OpenVocabularyDetector
from methods.pb_ovd.network import NamedRegions
from methods.simcal import official
from methods.simcal.module import SimCal
from shared.checkpoints.reading import CheckpointError
from tests.unit.pb_ovd_toy import DIM, settings, texts
from tests.unit.simcal_toy import CLASSES, calibration, scenes

COUNTS = torch.tensor([40, 9, 0, 0])


def by_name(**more: Any) -> SimCal:
    """A calibration whose box head knows classes by their names."""
    of_theirs = settings()["detector"]
    named = {
        **of_theirs["box_head"],
        "_target_": "methods.pb_ovd.network.NamedRegions",
        "num_classes": CLASSES,
    }
    module: SimCal = calibration(
        detector={**of_theirs, "num_classes": CLASSES, "box_head": named}, least=1, **more
    )
    return module


def data(dim: int = DIM) -> Any:
    """What a module takes from its data."""
    rows = torch.zeros(CLASSES + 1, dim)
    rows[:, :DIM] = texts(CLASSES)
    return SimpleNamespace(
        instance_counts=COUNTS.numpy(),
        texts=lambda split: rows,
        preparation=SimpleNamespace(inclusive_corners=True, detectron=True),
        resizing=SimpleNamespace(detectron=True),
    )


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimCal:
    """A calibration that starts from a detector of two classes, in training mode."""
    monkeypatch.setattr("methods.simcal.frame.check_corners", lambda *given: None)
    torch.manual_seed(4)
    theirs = settings()
    theirs["detector"]["num_classes"] = 2
    source = OpenVocabularyDetector(**theirs)
    torch.nn.init.normal_(source.detector.box_heads[0].emb_pred.weight, std=0.3)
    written = {
        "_target_": "methods.pb_ovd.module.OpenVocabularyDetector",
        "state_dict": source.state_dict(),
    }
    torch.save(written, tmp_path / "last.ckpt")
    module = by_name()
    official.warm_start(module, tmp_path / "last.ckpt", "pb_ovd")
    module.attach(data())
    for ours, trained in zip(
        module.detector.parameters(), source.detector.parameters(), strict=True
    ):
        assert torch.equal(ours, trained)
    return module


def test_before_it_trains_the_calibrated_head_is_the_detectors(started: SimCal) -> None:
    features = torch.randn(5, 32, 6, 6)
    logits, _ = started.detector.box_heads[0](features)
    assert logits.shape == (5, CLASSES + 1)
    assert torch.equal(logits[:, 0], torch.zeros(5))  # the background's
    assert torch.equal(started.heads[0](features), logits)
    embedder = started.detector.box_heads[0]
    embedded, _ = super(NamedRegions, embedder).forward(features)
    torch.testing.assert_close(logits, embedded @ texts(CLASSES).T)


def test_only_the_copy_learns_and_only_rare_classes_with_boxes_are_its(started: SimCal) -> None:
    before = {name: value.clone() for name, value in started.state_dict().items()}
    (optimizer,), _ = started.configure_optimizers()
    for step in range(2):
        loss = started.training_step(scenes(4, step), step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    changed = {n for n, value in started.state_dict().items() if not torch.equal(value, before[n])}
    assert changed
    assert all(name.startswith("heads.0.head.") for name in changed)
    assert not any("bbox_pred" in name or "texts" in name for name in changed)
    started.eval()
    stages = SimpleNamespace(
        features=[features := torch.randn(6, 32, 6, 6)],
        logits=[started.detector.box_heads[0](features)[0]],
    )
    dual, own, calibrated = started.combined(stages, ["dual", "original", "calibrated"])  # type: ignore[arg-type]
    assert not torch.equal(own, calibrated)
    rare = COUNTS.tolist().index(9) + 1
    assert torch.equal(dual[:, rare], calibrated[:, rare])
    others = [column for column in range(CLASSES + 1) if column != rare]
    assert torch.equal(dual[:, others], own[:, others])


def test_what_does_not_fit_is_refused(started: SimCal, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"shape \(5, 8\), background first, not \(5, 6\)"):
        started.attach(data(dim=8))
    with pytest.raises(ValueError, match=r"method\.head='crt' is of a BoxHead, not of Named"):
        by_name(head="crt")
    other = {"_target_": "methods.simcal.joint.JointDetector", "state_dict": {}}
    torch.save(other, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match=r"is no checkpoint of methods\.pb_ovd"):
        official.warm_start(by_name(), tmp_path / "other.ckpt", "pb_ovd")
