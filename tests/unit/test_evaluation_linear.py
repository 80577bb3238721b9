"""Linear classification on a frozen backbone, and fine-tuning."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from shared.tasks.linear_classification import LinearClassification
from shared.training.method import NonFiniteLoss
from shared.training.schedules import epoch_factor

STEPS = {"kind": "steps", "milestones": [2, 3], "gamma": 0.1}


def classifier(**changes: Any) -> LinearClassification:
    torch.manual_seed(0)
    values: dict[str, Any] = {
        "backbone": {"_target_": "shared.nn.small_convnet.SmallConvNet", "channels": [4, 8]},
        "num_classes": 3, "freeze": True, "head_std": 0.01, "lr": 0.5, "momentum": 0.9,
        "weight_decay": 0.0, "schedule": STEPS, "total_epochs": 4, "channels_last": True,
    }  # fmt: skip
    return LinearClassification(**values | changes)


def batch(name: str = "train", n: int = 12) -> dict[str, Tensor]:
    labels = torch.arange(n) % 3
    images = torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    images += labels[:, None, None, None] - 1
    return {name: images, "labels": labels, "indices": torch.arange(n)}


def fit(module: LinearClassification, folder: Path, epochs: int = 4) -> pl.Trainer:
    silent = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", enable_model_summary=False, log_every_n_steps=1,
        default_root_dir=folder, **silent,
    )  # fmt: skip
    loaders = [DataLoader(part, None) for part in ([batch()] * 2, [batch("images")])]
    trainer.fit(module, *loaders)
    return trainer


def test_frozen_backbone_and_its_statistics_stay(tmp_path: Path) -> None:
    module = classifier()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    trainer = fit(module, tmp_path)
    after = module.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    changed = {name for name in changed if not name.startswith("accuracy")}
    assert changed == {"encoder.classifier.weight", "encoder.classifier.bias"}
    assert {"train/loss", "train/top1", "val/top1", "val/top5"} <= trainer.callback_metrics.keys()
    assert trainer.callback_metrics["val/top1"] > 60
    assert trainer.callback_metrics["val/top5"] == 100


def test_fine_tuning_changes_every_layer(tmp_path: Path) -> None:
    module = classifier(freeze=False, lr=0.05)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    fit(module, tmp_path, epochs=1)
    after = module.state_dict()
    assert all(not torch.equal(before[name], after[name]) for name in before if "encoder" in name)


def test_frozen_backbone_stays_in_evaluation_mode() -> None:
    module = classifier()
    for mode in (None, True, False):
        if mode is not None:
            module.train(mode)
        assert not any(part.training for part in module.encoder.backbone.modules())
    assert classifier(freeze=False).encoder.backbone.training


def test_head_initialisation() -> None:
    module = classifier(head_std=0.01, num_classes=400)
    assert module.encoder.classifier.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert not module.encoder.classifier.bias.any()
    assert classifier(head_std=None).encoder.classifier.bias.any()


def test_learning_rates_of_head_and_backbone() -> None:
    (optimizer,), (schedule,) = classifier(freeze=False, head_lr=5.0).configure_optimizers()
    assert [group["lr"] for group in optimizer.param_groups] == [5.0, 0.5]
    assert schedule["interval"] == "epoch"
    optimizer.step()
    for _ in range(2):
        schedule["scheduler"].step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.5, 0.05])
    (optimizer,), _ = classifier(freeze=False).configure_optimizers()
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]
    (optimizer,), _ = classifier().configure_optimizers()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    assert {tuple(p.shape) for p in parameters} == {(3, 8), (3,)}


def test_schedules() -> None:
    steps = epoch_factor(STEPS, 4)
    assert [steps(epoch) for epoch in range(4)] == pytest.approx([1, 1, 0.1, 0.01])
    cosine = epoch_factor({"kind": "cosine"}, 4)
    assert [cosine(epoch) for epoch in (0, 2, 4)] == pytest.approx([1, 0.5, 0])
    for wrong in ({"kind": "linear"}, {"kind": "cosine", "gamma": 1}, {"milestones": [1]}):
        with pytest.raises(ValueError, match="schedule must be"):
            epoch_factor(wrong, 4)


def test_loss_is_cross_entropy_whatever_the_view_is_called() -> None:
    module = classifier(head_std=None)
    expected = F.cross_entropy(module.encoder(batch()["train"])[0], batch()["labels"])
    for name in ("train", "images"):
        loss = module.training_step(batch(name), 0)
        torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(p.grad is None for p in module.encoder.backbone.parameters())  # frozen
    assert module.encoder.classifier.weight.grad is not None


def test_non_finite_loss_names_the_images() -> None:
    broken = batch()
    broken["train"][0] = torch.inf
    with pytest.raises(NonFiniteLoss, match=r"loss_ce.*batch indices \[0, 1, 2"):
        classifier().training_step(broken, 0)


def test_prediction_and_rebuilding() -> None:
    module = classifier(head_std=None).eval()
    probabilities = module.predict_step(batch("images"), 0)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(12))
    rebuilt = LinearClassification(**module.hparams).eval()
    rebuilt.load_state_dict(module.state_dict())
    torch.testing.assert_close(rebuilt.predict_step(batch("images"), 0), probabilities)
