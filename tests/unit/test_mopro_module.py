"""MoPro's modules outside of the golden cases: configuration, guards, arms, what is logged."""

import logging
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from methods.mopro.controls import ShuffledPrototypes
from methods.mopro.module import CrossEntropy, MoPro
from tests.parity.toys import changed, toy

CLASSES, SIZE = 4, 8


def mopro(kind: type[MoPro] = MoPro, **changed: Any) -> MoPro:
    values = {"num_classes": CLASSES, "threshold": 0.9, "queue_size": 16, "lr": 0.05}
    values["schedule"] = {"kind": "steps", "milestones": [1], "gamma": 0.1}
    return toy(kind, 0, **(values | changed))


def batches(count: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        {
            "weak": torch.randn(SIZE, 1, 8, 8, generator=generator),
            "strong": torch.randn(SIZE, 1, 8, 8, generator=generator),
            "labels": torch.randint(CLASSES, (SIZE,), generator=generator),
            "indices": torch.arange(SIZE),
        }
        for _ in range(count)
    ]


class Logged(pl.Callback):
    """Names logged in each epoch."""

    def __init__(self) -> None:
        self.names: list[set[str]] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.names.append({n.removeprefix("train/") for n in trainer.callback_metrics})


def fit(module: pl.LightningModule, epochs: int) -> Logged:
    logged = Logged()
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[logged],
        limit_val_batches=0, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(module, DataLoader(batches(2), batch_size=None))
    return logged


def announced(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "methods.mopro.module"]


def test_phases_of_training(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="methods.mopro.module"):
        logged = fit(mopro(), 4)
    always = {"lr", "loss", "loss_cls", "loss_inst", "accuracy_inst", "accuracy_cls"}
    proto = {"loss_proto", "accuracy_proto"}
    cleaning = {"kept", "relabelled", "out_of_distribution"}
    assert logged.names[0] == always
    assert logged.names[1] == always | proto
    # With cleaning a step may keep no row, and then has no accuracy on the kept rows.
    assert logged.names[2] | {"accuracy_cls", "accuracy_proto"} == always | proto | cleaning
    assert announced(caplog) == ["cleaning starts: epoch 2"]


def test_never_cleaning_keeps_every_web_label(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="methods.mopro.module"):
        logged = fit(mopro(start_clean_epoch=None), 4)
    assert not any("kept" in names for names in logged.names)
    assert not announced(caplog)


def test_training_goes_on_when_no_row_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    module = mopro(start_clean_epoch=1, threshold=1.01)
    # Flat class probabilities, and prototypes that nobody has seen: every score equals 1/K.
    torch.nn.init.zeros_(module.encoder.classifier.weight)
    torch.nn.init.zeros_(module.encoder.classifier.bias)
    monkeypatch.setattr(MoPro, "current_epoch", property(lambda self: 1))
    loss = module.training_step(batches(1)[0], 0)
    loss.backward()
    assert torch.isfinite(loss)
    assert not module.prototypes.prototypes.any()
    gradient = module.encoder.classifier.weight.grad
    assert gradient is not None
    assert not gradient.any()
    assert module.encoder.projection.fc2.weight.grad.abs().sum() > 0  # the instance loss goes on


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"start_clean_epoch": 0}, "start_clean_epoch=0.*1 or later"),
        ({"start_clean_epoch": -1}, "start_clean_epoch=-1.*1 or later"),
        ({"schedule": {"kind": "linear"}}, "schedule"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        mopro(**changes)


def test_batch_larger_than_the_queue_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit a queue of 4"):
        fit(mopro(queue_size=4), 1)


def test_queue_starts_with_unit_columns_and_prototypes_with_zeros() -> None:
    module = mopro()
    torch.testing.assert_close(module.queue.features.norm(dim=1), torch.ones(16))
    assert not module.prototypes.prototypes.any()
    assert not changed(dict(module.encoder.named_parameters()), module.key_encoder.module)
    assert not any(p.requires_grad for p in module.key_encoder.parameters())


def test_shuffled_prototypes_compare_with_another_class() -> None:
    query = torch.eye(6)[:CLASSES]
    honest, control = mopro(), mopro(ShuffledPrototypes)
    for module in (honest, control):
        module.prototypes.update(query, torch.arange(CLASSES), 0.0)
    assert honest.prototype_logits(query).argmax(dim=1).tolist() == [0, 1, 2, 3]
    assert control.prototype_logits(query).argmax(dim=1).tolist() == [2, 3, 0, 1]


def test_arms_start_from_the_same_weights() -> None:
    baseline = toy(CrossEntropy, 0, num_classes=CLASSES)
    assert not changed(baseline.encoder.state_dict(), mopro().encoder)


@pytest.mark.parametrize("views", [["weak"], ["weak", "strong"]])
def test_cross_entropy_of_its_views(views: list[str]) -> None:
    module = toy(CrossEntropy, 0, num_classes=CLASSES, views=views).train()
    batch = batches(1)[0]
    loss = module.training_step(batch, 0)
    images = torch.cat([batch[view] for view in views])
    logits = module.encoder(images)[0]
    labels = torch.cat([batch["labels"]] * len(views))
    expected = torch.nn.functional.cross_entropy(logits, labels)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(module.scores(batch["weak"]).sum(dim=1), torch.ones(SIZE))


def test_offline_weight_differs_from_the_one_in_training() -> None:
    module = mopro(alpha=1.0).eval()
    module.prototypes.update(torch.eye(6)[:CLASSES], torch.arange(CLASSES), 0.0)
    images = batches(1)[0]["weak"]
    with torch.no_grad():
        logits, query = module.encoder(images)
        torch.testing.assert_close(module.scores(images), logits.softmax(dim=1))
        mixed = (logits.softmax(dim=1) + module.prototype_logits(query).softmax(dim=1)) / 2
        torch.testing.assert_close(module.scores(images, 0.5), mixed)
