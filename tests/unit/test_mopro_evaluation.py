"""Transfer protocols: retraining, fine-tuning, low-shot SVMs, robustness."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from methods.mopro.evaluation import (
    FineTuning,
    LowShotSVM,
    Robustness,
    read_class_names,
    rms_calibration_error,
)
from methods.mopro.retraining import ClassifierRetraining
from shared.data.multi_view import ViewsData
from shared.evaluation.features import Features
from tests.parity.toys import rates, toy

BACKBONE = {
    "_target_": "shared.nn.small_convnet.SmallConvNet",
    "channels": [4, 6],
    "in_channels": 3,
}


def tuned(kind: type, freeze: bool) -> Any:
    schedule = {"kind": "steps", "milestones": [1, 2], "gamma": 0.1}
    return toy(kind, freeze=freeze, head_std=None, lr=0.01, schedule=schedule)


def test_retraining_decays_the_classifier_only() -> None:
    decaying, close = torch.tensor([[0.01], [0.001], [0.0001]]), torch.testing.assert_close
    close(rates(tuned(ClassifierRetraining, freeze=True), 3), decaying)
    both = torch.cat([decaying, torch.full((3, 1), 0.01)], dim=1)
    close(rates(tuned(ClassifierRetraining, freeze=False), 3), both)


def test_fine_tuning_trains_every_layer_at_one_rate() -> None:
    module = tuned(FineTuning, freeze=False)
    [optimizer], _ = module.configure_optimizers()
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(
        list(module.encoder.parameters())
    )
    assert {group["lr"] for group in optimizer.param_groups} == {0.01}


def test_calibration_error_by_hand() -> None:
    # Bins by confidence: (0.2, 0.4) with accuracy 0.5, (0.6, 0.8, 0.9) with accuracy 2/3.
    confidence = torch.tensor([0.9, 0.2, 0.6, 0.4, 0.8])
    right = torch.tensor([True, False, False, True, True])
    expected = (2 / 5 * (0.3 - 0.5) ** 2 + 3 / 5 * (2.3 / 3 - 2 / 3) ** 2) ** 0.5
    assert rms_calibration_error(confidence, right, 2) == pytest.approx(expected)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 12))
def test_calibration_error_properties(seed: int, images: int, bin_size: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    confidence = torch.rand(images, generator=generator)
    right = torch.rand(images, generator=generator) < 0.5
    error = rms_calibration_error(confidence, right, bin_size)
    assert 0 <= error <= 1
    order = torch.randperm(images, generator=generator)
    assert rms_calibration_error(confidence[order], right[order], bin_size) == pytest.approx(error)
    certain = torch.ones(images)
    assert rms_calibration_error(certain, certain.bool(), bin_size) == 0
    assert rms_calibration_error(certain, ~certain.bool(), bin_size) == pytest.approx(1)


def test_class_names_from_a_folder_or_a_file(tmp_path: Path) -> None:
    for name in ("n02", "n01"):
        (tmp_path / "val" / name).mkdir(parents=True)
    (tmp_path / "list.txt").write_text("n05 tench, Tinca tinca\n\nn01 goldfish\n")
    assert read_class_names(tmp_path / "val") == ["n01", "n02"]
    assert read_class_names(tmp_path / "list.txt") == ["n05", "n01"]


@pytest.fixture
def shifted(tmp_path: Path) -> ViewsData:
    """Twelve pictures of the classes n3 and n1, of which a network knows n1, n2 and n3."""
    generator = np.random.default_rng(0)
    for name in ("n1", "n3"):
        folder = tmp_path / "shifted" / name
        folder.mkdir(parents=True)
        for n in range(6):
            pixels = generator.integers(0, 255, (12, 12, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{n}.png")
    (tmp_path / "classes.txt").write_text("n1\nn2\nn3\n")
    return ViewsData(
        dataset={
            "_target_": "shared.data.readers.folders.image_folder",
            "root": str(tmp_path),
            "folders": {"train": "shifted", "test": "shifted"},
        },
        augmentation={
            "_target_": "shared.data.views.recipes.RecipeViews",
            "mean": [0.5] * 3,
            "std": [0.5] * 3,
            "size": 12,
            "test_resize": None,
            "recipes": {},
        },
        views=[],
        batch_size=1,
        eval_batch_size=5,
    )


def trainer() -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip


def robustness(tmp_path: Path, classes: int = 3) -> Robustness:
    torch.manual_seed(0)
    return Robustness(BACKBONE, classes, str(tmp_path / "classes.txt"), 4, channels_last=True)


def test_robustness_leaves_out_the_other_classes(shifted: ViewsData, tmp_path: Path) -> None:
    module = robustness(tmp_path)
    with torch.no_grad():  # the network would always say n2, which is not in the set
        module.encoder.classifier.bias.copy_(torch.tensor([0.0, 50.0, 0.1]))
    [metrics] = trainer().test(module, datamodule=shifted, verbose=False)
    batches = list(shifted.test_dataloader())
    images, labels = (torch.cat([b[name] for b in batches]) for name in ("images", "labels"))
    with torch.no_grad():
        probabilities = module.encoder.eval()(images)[0][:, [0, 2]].softmax(dim=1)
    right = probabilities.argmax(dim=1) == labels
    assert metrics["test/top1"] == pytest.approx(100 * right.float().mean().item())
    assert metrics["test/calibration_error"] == pytest.approx(
        100 * rms_calibration_error(probabilities.amax(dim=1), right, 4), abs=1e-3
    )


def test_robustness_refuses_lists_that_do_not_fit(shifted: ViewsData, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="names 3 classes, the network has 5"):
        trainer().test(robustness(tmp_path, 5), datamodule=shifted, verbose=False)
    (tmp_path / "classes.txt").write_text("n1\nn2\nn4\n")
    with pytest.raises(ValueError, match="no class 'n3'"):
        trainer().test(robustness(tmp_path), datamodule=shifted, verbose=False)


def low_shot(**changed: Any) -> LowShotSVM:
    return toy(LowShotSVM, backbone=BACKBONE, **changed)


def clusters(classes: int, each: int) -> tuple[Tensor, Tensor]:
    labels = torch.arange(classes).repeat(each)
    generator = torch.Generator().manual_seed(0)
    noise = 0.05 * torch.randn(len(labels), 8, generator=generator)
    return torch.eye(8)[labels] + noise, labels


def test_low_shot_on_single_labels() -> None:
    features, labels = clusters(4, 5)
    bank = Features(features, labels, torch.arange(20))
    scores = low_shot().score(bank, bank)
    assert scores == {"top1_1": 100, "top1_2": 100}
    with pytest.raises(ValueError, match="single-label"):
        low_shot(full=True).score(bank, bank)


def test_low_shot_on_several_labels() -> None:
    features, labels = clusters(4, 5)
    several = 2 * torch.nn.functional.one_hot(labels, 4) - 1
    bank = Features(features, several, torch.arange(20))
    scores = low_shot().score(bank, bank)
    assert scores["map_1"] == scores["map_2"] == pytest.approx(100)
    assert scores["map_std_1"] == 0


def test_low_shot_through_the_trainer(shifted: ViewsData) -> None:
    [metrics] = trainer().test(low_shot(shots=[3]), datamodule=shifted, verbose=False)
    assert set(metrics) == {"test/top1_3"}
    assert 0 <= metrics["test/top1_3"] <= 100
