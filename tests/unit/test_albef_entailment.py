"""SNLI-VE, and what it shares with NLVR2: the distilled loss, accuracy, the training step."""

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from methods.albef.classification import ClassAccuracy
from methods.albef.entailment import Entailment
from methods.albef.losses import distilled_cross_entropy

SIZE, LENGTH = 4, 5
VISION = {"image_size": 16, "patch_size": 8, "width": 12, "depth": 1, "heads": 2}
TEXT = {
    "vocab_size": 20,
    "hidden_size": 8,
    "num_layers": 2,
    "num_heads": 2,
    "intermediate_size": 16,
    "max_positions": 8,
    "dropout": 0.0,
    "cross_attention_from": 1,
}
FRAME: dict[str, Any] = {
    "lr": 1e-2,
    "min_lr": 1e-3,
    "warmup_lr": 1e-2,
    "warmup_blocks": 0,
    "warmup_block": 100,
    "epochs": 2,
    "weight_decay": 0.02,
    "encoder_momentum": 0.9,
    "alpha": 0.4,
    "ramp": False,
}


def entailment(**changed: Any) -> Entailment:
    torch.manual_seed(0)
    return Entailment(VISION, TEXT, **FRAME | changed)


def batch(number: int = 0, size: int = SIZE) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(number)
    lengths = torch.randint(2, LENGTH + 1, (size, 1), generator=generator)
    mask = (torch.arange(LENGTH) < lengths).long()
    ids = torch.randint(1, 20, (size, LENGTH), generator=generator) * mask
    return {
        "images": torch.randn(size, 3, 16, 16, generator=generator),
        "indices": torch.arange(size),
        "input_ids": ids,
        "attention_mask": mask,
        "labels": torch.randint(3, (size,), generator=generator),
    }


def trainer(*callbacks: pl.Callback, **changed: Any) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, log_every_n_steps=1,
        callbacks=list(callbacks), **{"max_epochs": 1} | changed,
    )  # fmt: skip


# --- the loss ---


def test_loss_by_hand() -> None:
    """Even student, teacher with odds of 3 to 1."""
    logits, teacher = torch.zeros(1, 2), torch.tensor([[3.0, 1.0]]).log()
    right = torch.tensor([0])
    assert distilled_cross_entropy(logits, right) == pytest.approx(0.6931472)
    tilted = torch.tensor([[3.0, 1.0]]).log()
    # -log 3/4 = 0.2877, -log 1/4 = 1.3863; the teacher gives 3/4 and 1/4.
    soft = 0.75 * 0.2876821 + 0.25 * 1.3862944
    loss = distilled_cross_entropy(tilted, right, teacher, 0.4)
    assert loss == pytest.approx(0.6 * 0.2876821 + 0.4 * soft)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 1), st.integers(1, 6), st.integers(2, 5))
def test_loss_is_the_weighted_sum_of_both(seed: int, alpha: float, rows: int, classes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits, teacher = 3 * torch.randn(2, rows, classes, generator=generator)
    labels = torch.randint(classes, (rows,), generator=generator)
    soft = -(teacher.softmax(1) * logits.log_softmax(1)).sum(1).mean()
    expected = (1 - alpha) * F.cross_entropy(logits, labels) + alpha * soft
    found = distilled_cross_entropy(logits, labels, teacher, alpha)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_no_gradient_reaches_the_teacher() -> None:
    logits, teacher = (torch.randn(2, 3, requires_grad=True) for _ in range(2))
    distilled_cross_entropy(logits, torch.tensor([0, 1]), teacher, 0.5).backward()
    assert logits.grad is not None
    assert teacher.grad is None


# --- accuracy ---


def scores(*predicted: int, classes: int = 3) -> Tensor:
    return F.one_hot(torch.tensor(predicted), classes).float()


def test_every_entry_counts_once_whatever_its_batch() -> None:
    accuracy = ClassAccuracy(["no", "maybe", "yes"])
    accuracy.update(scores(0, 0, 1, 1, 1), torch.tensor([0, 0, 1, 1, 0]))  # 4 of 5
    accuracy.update(scores(0), torch.tensor([1]))  # 0 of 1
    found = {name: float(value) for name, value in accuracy.metrics().items()}
    assert found == pytest.approx(
        # No entry is of the third class, so that there is no share of it.
        {"accuracy": 400 / 6, "evaluated": 6, "accuracy_no": 200 / 3, "accuracy_maybe": 200 / 3}
    )
    accuracy.update(scores(2), torch.tensor([2]))
    assert {name: float(value) for name, value in accuracy.metrics().items()} == {
        "accuracy": 100,
        "evaluated": 1,
        "accuracy_yes": 100,
    }


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30))
def test_accuracy_does_not_depend_on_the_batches(pairs: list[tuple[int, int]]) -> None:
    predicted, labels = zip(*pairs, strict=True)
    accuracy = ClassAccuracy(["a", "b", "c"])
    for rows in torch.arange(len(pairs)).split(4):
        accuracy.update(scores(*predicted)[rows], torch.tensor(labels)[rows])
    right = sum(p == y for p, y in pairs)
    assert float(accuracy.metrics()["accuracy"]) == pytest.approx(100 * right / len(pairs))


def test_counts_of_all_ranks_are_added() -> None:
    """Another rank with two of two right, simulated where torchmetrics gathers."""
    accuracy = ClassAccuracy(["a", "b"])
    accuracy.update(scores(0, 0, 0, classes=2), torch.tensor([0, 1, 1]))
    elsewhere = torch.tensor([[0, 0], [0, 2]])
    accuracy.distributed_available_fn = lambda: True
    accuracy.dist_sync_fn = lambda counts, group: [counts, elsewhere]
    found = {name: float(value) for name, value in accuracy.metrics().items()}
    assert found == {"accuracy": 60, "evaluated": 5, "accuracy_a": 100, "accuracy_b": 50}


# --- training ---


def test_the_teacher_follows_first_and_then_predicts() -> None:
    """Two steps' worth in one: the copy moves by a tenth, and the loss has its predictions."""
    module = entailment()
    with torch.no_grad():
        module.encoders.classifier[2].weight.add_(1.0)
    before = module.momentum_encoders.module.classifier[2].weight.clone()
    online = module.encoders.classifier[2].weight.detach().clone()
    data = batch()
    loss = module.training_step(data, 0)
    copy = module.momentum_encoders.module
    torch.testing.assert_close(copy.classifier[2].weight, 0.9 * before + 0.1 * online)
    arguments = data["images"], data["input_ids"], data["attention_mask"]
    student, teacher = module.encoders(*arguments), copy(*arguments)
    torch.testing.assert_close(
        loss, distilled_cross_entropy(student, data["labels"], teacher, 0.4), atol=1e-6, rtol=1e-6
    )


def test_without_distillation_no_teacher_is_asked() -> None:
    module = entailment(alpha=0.0)
    module.momentum_encoders.module.forward = pytest.fail  # type: ignore[method-assign]
    data = batch()
    logits = module.encoders(data["images"], data["input_ids"], data["attention_mask"])
    expected = F.cross_entropy(logits, data["labels"])
    torch.testing.assert_close(module.training_step(data, 0), expected)


def test_gradients_reach_all_but_the_copy() -> None:
    module = entailment()
    module.training_step(batch(), 0).backward()
    assert all(p.grad is not None for p in module.encoders.parameters())
    assert all(p.grad is None for p in module.momentum_encoders.parameters())


class Logged(pl.Callback):
    def __init__(self) -> None:
        self.alphas: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.alphas.append(float(trainer.callback_metrics["train/alpha"]))


@pytest.mark.parametrize(("ramp", "alphas"), [(False, [0.4, 0.4]), (True, [0.0, 0.2])])
def test_fits_and_evaluates(ramp: bool, alphas: list[float]) -> None:
    module, logged = entailment(ramp=ramp), Logged()
    fitting = trainer(logged)
    evaluated = DataLoader([batch(7), batch(8, size=1)], batch_size=None)
    fitting.fit(module, DataLoader([batch(1), batch(2)], batch_size=None), evaluated)
    assert logged.alphas == pytest.approx(alphas)
    names = set(fitting.callback_metrics)
    assert {"train/loss", "train/loss_cls", "train/accuracy", "train/lr"} < names
    assert fitting.callback_metrics["val/evaluated"] == 5
    (tested,) = fitting.test(module, evaluated, verbose=False)
    assert tested["test/accuracy"] == float(fitting.callback_metrics["test/accuracy"])
    right = sum(
        int((module.predict_step(b, 0).argmax(1) == b["labels"]).sum())
        for b in (batch(7), batch(8, size=1))
    )
    assert tested["test/accuracy"] == pytest.approx(100 * right / 5)
    classes = {f"test/accuracy_{name}" for name in ("contradiction", "neutral", "entailment")}
    assert set(tested) <= {"test/accuracy", "test/evaluated"} | classes


# --- prediction ---


def test_predicts_probabilities_of_each_entry_alone() -> None:
    module, data = entailment().eval(), batch()
    del data["labels"], data["indices"]
    with torch.no_grad():
        found = module.predict_step(data, 0)
        alone = module.predict_step({name: value[:1] for name, value in data.items()}, 0)
    assert found.shape == (SIZE, 3)
    torch.testing.assert_close(found.sum(1), torch.ones(SIZE))
    torch.testing.assert_close(alone, found[:1], atol=1e-6, rtol=1e-5)


def test_padding_does_not_matter() -> None:
    module, data = entailment().eval(), batch()
    longer = {
        name: F.pad(value, (0, 2)) if name in ("input_ids", "attention_mask") else value
        for name, value in data.items()
    }
    with torch.no_grad():
        torch.testing.assert_close(module.predict_step(longer, 0), module.predict_step(data, 0))


def test_rebuilt_from_its_hyperparameters() -> None:
    module = entailment()
    assert module.hparams["alpha"] == 0.4
    rebuilt = Entailment(**module.hparams)
    rebuilt.load_state_dict(module.state_dict())
    with pytest.raises(ValueError, match=r"alpha=1\.5 is no weight"):
        entailment(alpha=1.5)
