"""SNLI-VE, NLVR2's network of twin layers, and text assignment."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given as drawn_from
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from methods.albef.classification import PairNetwork
from methods.albef.text_assignment import AssignmentDraws
from shared.nn.text_transformer import Attention, KeyValue
from shared.tasks.image_text_method import ClassAccuracy
from tests.unit.albef_toy import (
    PAIRED,
    SIZE,
    VISION,
    assignment,
    batch,
    entailment,
    given,
    inputs,
    nlvr,
    trainer,
)


def pairs(number: int = 0, images: int = SIZE, captions: int = 1) -> dict[str, Tensor]:
    """Images with `captions` texts each; entry numbers start at 10."""
    data = batch(number, [0] * images)
    for name in ("input_ids", "attention_mask"):
        data[name] = data[name].repeat_interleave(captions, dim=0)
    data["indices"] = torch.arange(10, 10 + images)
    data["text_image"] = data["indices"].repeat_interleave(captions)
    return data


# --- the accuracy ---


def scores(*predicted: int, classes: int = 3) -> Tensor:
    return F.one_hot(torch.tensor(predicted), classes).float()


def found(accuracy: ClassAccuracy) -> dict[str, float]:
    return {name: float(value) for name, value in accuracy.metrics().items()}


def test_every_text_counts_once_whatever_its_batch() -> None:
    accuracy = ClassAccuracy(["no", "maybe", "yes"])
    accuracy.update(scores(0, 0, 1, 1, 1), torch.tensor([0, 0, 1, 1, 0]))  # 4 of 5
    accuracy.update(scores(0), torch.tensor([1]))  # 0 of 1
    assert found(accuracy) == pytest.approx(
        # No text is of the third class, so that there is no share of it.
        {"accuracy": 400 / 6, "evaluated": 6, "accuracy_no": 200 / 3, "accuracy_maybe": 200 / 3}
    )
    accuracy.update(scores(2), torch.tensor([2]))
    assert found(accuracy) == {"accuracy": 100, "evaluated": 1, "accuracy_yes": 100}


def test_counts_of_all_ranks_are_added() -> None:
    """Another rank with two of two right, simulated where torchmetrics gathers."""
    accuracy = ClassAccuracy(["a", "b"])
    accuracy.update(scores(0, 0, 0, classes=2), torch.tensor([0, 1, 1]))
    accuracy.distributed_available_fn = lambda: True
    accuracy.dist_sync_fn = lambda counts, group: [counts, torch.tensor([[0, 0], [0, 2]])]
    expected = {"accuracy": 60, "evaluated": 5, "accuracy_a": 100, "accuracy_b": 50}
    assert found(accuracy) == expected


# --- fine-tuning ---


@pytest.mark.parametrize(("build", "images"), [(entailment, 1), (nlvr, 2)])
def test_a_task_fits_evaluates_and_predicts(build: Any, images: int) -> None:
    module, fitting = build(ramp=True), trainer()
    loader = given([batch(1, None, images), batch(2, [0], images)])
    fitting.fit(module, loader, loader)
    assert fitting.callback_metrics["train/alpha"] == pytest.approx(0.2)
    assert {"train/loss_cls", "train/accuracy", "train/lr"} < set(fitting.callback_metrics)
    assert fitting.callback_metrics["val/evaluated"] == SIZE + 1
    (tested,) = fitting.test(module, loader, verbose=False)
    assert tested["test/evaluated"] == SIZE + 1
    data = batch(1, None, images)
    with torch.no_grad():
        found = module.eval().predict_step(data, 0)
        first = {"images": data["images"][::SIZE]}
        first |= {name: data[name][:1] for name in ("input_ids", "attention_mask")}
        alone = module.predict_step(first, 0)
    torch.testing.assert_close(found.sum(1), torch.ones(SIZE))
    torch.testing.assert_close(alone, found[:1], atol=1e-6, rtol=1e-5)
    rebuilt = type(module)(**module.hparams)
    rebuilt.load_state_dict(module.state_dict())


def test_without_distillation_no_teacher_is_asked() -> None:
    module, data = entailment(alpha=0.0), batch()
    module.momentum_encoders.module.forward = pytest.fail
    expected = F.cross_entropy(module.encoders(*inputs(data)), data["labels"])
    torch.testing.assert_close(module.training_step(data, 0), expected)


def test_the_average_moves_shared_projections_once() -> None:
    module = nlvr()
    online, copy = (
        n.text_encoder.fusion_layers[0].cross_attention.key.weight
        for n in (module.encoders, module.momentum_encoders.module)
    )
    before = copy.detach().clone()
    with torch.no_grad():
        online.add_(1.0)
    module.training_step(batch(0, None, 2), 0)
    torch.testing.assert_close(copy, 0.9 * before + 0.1 * online.detach())
    twin = module.momentum_encoders.module.text_encoder.fusion_layers[1]
    assert twin.cross_attention.key.weight is copy


# --- the network of twins ---


def test_each_image_is_projected_once_for_both_twins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four fusion layers are two pairs of twins; an image may be in several pairs."""
    rows: list[int] = []
    project = Attention.project

    def counting(self: Attention, context: Tensor) -> KeyValue:
        if context.shape[1:] == (5, 12):  # image tokens
            rows.append(len(context))
        return project(self, context)

    monkeypatch.setattr(Attention, "project", counting)
    nlvr().encoders(*inputs(batch(0, None, 2)))
    assignment().training_step(pairs(), 0)
    assert rows == [2 * SIZE] * 2 + [SIZE] * 2


def test_fusion_layers_without_a_twin_are_refused() -> None:
    with pytest.raises(ValueError, match="num_layers=4 leaves 3 layers that see images"):
        PairNetwork(VISION, PAIRED | {"num_layers": 4}, nn.Identity())


# --- text assignment: draws ---


def test_which_images_a_text_gets() -> None:
    """One text for each of the three cases, and the thresholds, which belong to the lower side."""
    draws = AssignmentDraws(
        match=torch.tensor([0.9, 0.9, 0.1, 1 / 3, 0.9]),
        order=torch.tensor([0.6, 0.4, 0.6, 0.6, 0.5]),
        other=torch.tensor([7, 7, 7, 7, 7]),
        two=torch.tensor([[8, 9]] * 5),
    )
    (first, second), labels = draws.pairs(torch.arange(5))
    assert first.tolist() == [0, 7, 8, 8, 7]
    assert second.tolist() == [7, 1, 9, 9, 4]
    assert labels.tolist() == [0, 1, 2, 2, 1]


@settings(max_examples=25, deadline=None)
@drawn_from(st.integers(0, 10_000), st.integers(3, 7), st.sampled_from([0.0, 0.3, 1.0]))
def test_others_are_never_the_own_and_two_are_distinct(seed: int, size: int, zeros: float) -> None:
    """Also where all weights, or all but one, have vanished."""
    generator, own = torch.Generator().manual_seed(seed), torch.eye(size).bool()
    weights = torch.rand(size, size, generator=generator).masked_fill(own, 0.0)
    weights = weights * (torch.rand(size, size, generator=generator) >= zeros)
    draws, rows = AssignmentDraws.draw(weights, own, generator), torch.arange(size)
    assert (draws.other != rows).all()
    assert (draws.two != rows[:, None]).all()
    assert (draws.two[:, 0] != draws.two[:, 1]).all()
    assert 0 <= int(draws.two.min()) <= int(draws.two.max()) < size


def test_draws_follow_the_weights() -> None:
    """Weights 1, 2 and 1: the other image and both of two without replacement, by hand."""
    rows = 20_000
    weights = torch.tensor([0.0, 1.0, 2.0, 1.0]).expand(rows, 4)
    own = F.one_hot(torch.zeros(rows, dtype=torch.long), 4).bool()
    draws = AssignmentDraws.draw(weights, own, torch.Generator().manual_seed(0))
    shares = torch.bincount(draws.other, minlength=4) / rows
    torch.testing.assert_close(shares, torch.tensor([0, 0.25, 0.5, 0.25]), atol=0.015, rtol=0)
    # Second is 2 if it was not the first: 2 x 1/4 x 2/3 = 1/3.
    second = torch.bincount(draws.two[:, 1], minlength=4) / rows
    torch.testing.assert_close(second, torch.tensor([0, 1 / 3, 1 / 3, 1 / 3]), atol=0.015, rtol=0)
    _, labels = draws.pairs(torch.zeros(rows, dtype=torch.long))
    kinds = torch.bincount(labels, minlength=3) / rows
    torch.testing.assert_close(kinds, torch.full((3,), 1 / 3), atol=0.015, rtol=0)


# --- text assignment: the step ---


def watching(module: Any, name: str) -> list[tuple[Any, ...]]:
    """The arguments and the result of each call of a function of the module."""
    calls: list[tuple[Any, ...]] = []
    function: Callable[..., Any] = getattr(module, name)

    def kept(*arguments: Any) -> Any:
        calls.append((*arguments, function(*arguments)))
        return calls[-1][-1]

    setattr(module, name, kept)
    return calls


def test_assignment_trains_all_but_the_projection() -> None:
    module = assignment()
    module.training_step(pairs(), 0).backward()
    without = {name for name, p in module.named_parameters() if p.grad is None}
    assert without == {"encoders.vision_proj.weight", "encoders.vision_proj.bias"}
    optimised = sum(len(group["params"]) for group in module.configure_optimizers().param_groups)
    assert optimised == len(list(module.parameters())) - 2


def test_assignment_is_a_function_of_the_seed() -> None:
    labels = []
    for seed in (3, 3, 4):
        module = assignment(seed=seed)
        calls = watching(module, "assign")
        module.training_step(pairs(images=12), 0)
        labels.append(calls[0][-1][1].tolist())
    assert labels[0] == labels[1] != labels[2]


def test_too_few_images_are_refused() -> None:
    with pytest.raises(ValueError, match="needs 3 images on each rank, this batch has 2"):
        assignment().training_step(pairs(images=2), 0)


def test_assignment_fits_and_evaluates_every_text_about_its_image() -> None:
    """With two captions an image; a last batch of too few images is left out."""
    module, fitting = assignment(), trainer()
    data, order = pairs(5, captions=2), torch.tensor([2, 0, 3, 1])
    data |= {name: data[name][order] for name in ("images", "indices")}
    fitting.fit(module, given([pairs(1), pairs(2)]))
    assert {"train/loss_ta", "train/accuracy", "train/lr"} < set(fitting.callback_metrics)
    calls = watching(module, "assign")
    loader = given([data, pairs(6, images=2)])
    found = [fitting.test(module, loader, verbose=False)[0] for _ in range(2)]
    assert found[0]["test/evaluated"] == 2 * SIZE
    assert found[0] == found[1]
    assert torch.equal(data["indices"][calls[0][1]], data["text_image"])
    probabilities = module.eval().predict_step(batch(0, None, 2), 0)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(SIZE))
