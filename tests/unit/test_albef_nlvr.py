"""NLVR2's network of twin layers, its training, and text assignment."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from methods.albef import official
from methods.albef.losses import distilled_cross_entropy
from methods.albef.model import classifier
from methods.albef.nlvr import NLVR, AssignmentDraws, PairNetwork, TextAssignment
from shared.nn.text_transformer import Attention, KeyValue
from shared.randomness import torch_generator

SIZE, LENGTH = 4, 5
VISION = {"image_size": 16, "patch_size": 8, "width": 12, "depth": 1, "heads": 2}
TEXT = {
    "vocab_size": 20,
    "hidden_size": 8,
    "num_layers": 5,
    "num_heads": 2,
    "intermediate_size": 16,
    "max_positions": 8,
    "dropout": 0.0,
    "cross_attention_from": 1,
}
SCHEDULE: dict[str, Any] = {
    "lr": 1e-2,
    "min_lr": 1e-3,
    "warmup_lr": 1e-2,
    "warmup_blocks": 0,
    "warmup_block": 100,
    "epochs": 2,
    "weight_decay": 0.02,
}


def nlvr(**changed: Any) -> NLVR:
    torch.manual_seed(0)
    frame = {"encoder_momentum": 0.9, "alpha": 0.4, "ramp": False, **SCHEDULE, **changed}
    return NLVR(VISION, TEXT, **frame)


def assignment(**changed: Any) -> TextAssignment:
    torch.manual_seed(0)
    return TextAssignment(VISION, TEXT, **{"embed_dim": 6, "seed": 3, **SCHEDULE} | changed)


def network() -> PairNetwork:
    torch.manual_seed(0)
    return PairNetwork(VISION, TEXT, classifier(8, 2))


def batch(number: int = 0, images: int = 2 * SIZE, texts: int = SIZE) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(number)
    lengths = torch.randint(2, LENGTH + 1, (texts, 1), generator=generator)
    mask = (torch.arange(LENGTH) < lengths).long()
    return {
        "images": torch.randn(images, 3, 16, 16, generator=generator),
        "indices": torch.arange(texts),
        "input_ids": torch.randint(1, 20, (texts, LENGTH), generator=generator) * mask,
        "attention_mask": mask,
        "labels": torch.randint(2, (texts,), generator=generator),
    }


def pairs(number: int = 0, images: int = SIZE, captions: int = 1) -> dict[str, Tensor]:
    """Images with `captions` texts each; entry numbers start at 10."""
    made = batch(number, images, images * captions)
    made["indices"] = torch.arange(10, 10 + images)
    made["text_image"] = made["indices"].repeat_interleave(captions)
    del made["labels"]
    return made


def arguments(data: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    return data["images"], data["input_ids"], data["attention_mask"]


# --- the network ---


def test_layers_look_at_the_first_and_the_second_image_in_turn() -> None:
    """Against a loop in which every layer projects the image that the paper gives it."""
    net, data = network().eval(), batch()
    first, second = net.visual_encoder(data["images"]).chunk(2)
    hidden = net.text_encoder.encode(data["input_ids"], data["attention_mask"])
    visible = data["attention_mask"].bool()[:, None, None]
    for number, layer in enumerate(net.text_encoder.fusion_layers):
        assert layer.cross_attention is not None
        image = first if number % 2 == 0 else second
        hidden = layer(hidden, visible, layer.cross_attention.project(image))
    torch.testing.assert_close(net(*arguments(data)), net.classifier(hidden[:, 0]))


def test_twins_share_keys_and_values_and_nothing_else() -> None:
    crosses = [layer.cross_attention for layer in network().text_encoder.fusion_layers]
    for a, b in (crosses[:2], crosses[2:]):
        assert a is not None
        assert b is not None
        assert a.key is b.key
        assert a.value is b.value
        for name in ("query", "output", "norm"):
            assert getattr(a, name) is not getattr(b, name)
    assert crosses[0].key is not crosses[2].key  # type: ignore[union-attr]


def count_projections(monkeypatch: pytest.MonkeyPatch, call: Callable[[], Any]) -> list[int]:
    """Rows of each projection of image tokens (17 - 12 = 5 tokens of width 12)."""
    rows: list[int] = []
    project = Attention.project

    def counting(self: Attention, context: Tensor) -> KeyValue:
        if context.shape[1:] == (5, 12):
            rows.append(len(context))
        return project(self, context)

    monkeypatch.setattr(Attention, "project", counting)
    call()
    return rows


def test_each_image_is_projected_once_for_both_twins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four fusion layers are two pairs of twins."""
    net, data = network(), batch()
    assert count_projections(monkeypatch, lambda: net(*arguments(data))) == [2 * SIZE] * 2


def test_an_image_in_several_pairs_is_projected_once(monkeypatch: pytest.MonkeyPatch) -> None:
    module = assignment()
    found = count_projections(monkeypatch, lambda: module.training_step(pairs(), 0))
    assert found == [SIZE] * 2


def test_the_order_of_the_images_matters() -> None:
    net, data = network().eval(), batch()
    swapped = data | {"images": data["images"].roll(SIZE, dims=0)}
    difference = net(*arguments(data)) - net(*arguments(swapped))
    assert difference.abs().max() > 1e-6


def test_fusion_layers_without_a_twin_are_refused() -> None:
    with pytest.raises(ValueError, match="num_layers=4 leaves 3 layers that see images"):
        PairNetwork(VISION, TEXT | {"num_layers": 4}, nn.Identity())


# --- fine-tuning ---


def test_the_average_moves_shared_projections_once() -> None:
    module = nlvr()
    online, copy = (
        n.text_encoder.fusion_layers[0].cross_attention.key.weight
        for n in (module.encoders, module.momentum_encoders.module)
    )
    before = copy.detach().clone()
    with torch.no_grad():
        online.add_(1.0)
    module.training_step(batch(), 0)
    torch.testing.assert_close(copy, 0.9 * before + 0.1 * online.detach())
    twin = module.momentum_encoders.module.text_encoder.fusion_layers[1]
    assert twin.cross_attention.key.weight is copy


def test_loss_is_that_of_both_networks() -> None:
    module, data = nlvr(), batch()
    with torch.no_grad():
        module.encoders.classifier[2].weight.mul_(50)
    loss = module.training_step(data, 0)
    student = module.encoders(*arguments(data))
    teacher = module.momentum_encoders.module(*arguments(data))
    expected = distilled_cross_entropy(student, data["labels"], teacher, 0.4)
    torch.testing.assert_close(loss, expected)
    assert (loss - F.cross_entropy(student, data["labels"])).abs() > 1e-3
    loss.backward()
    assert all(p.grad is not None for p in module.encoders.parameters())


def test_student_and_teacher_start_from_text_assignment(tmp_path: Path) -> None:
    """The official script's teacher starts from other weights: docs/papers/albef.md, section 10.1,
    item 5."""
    before, module = assignment(), nlvr()
    with torch.no_grad():
        for p in before.parameters():
            p.add_(torch.rand_like(p))
    torch.save({"model": official.export(before)}, tmp_path / "assignment.pth")
    head = {n: p.clone() for n, p in module.encoders.classifier.state_dict().items()}
    official.warm_start(module, tmp_path / "assignment.pth", "assignment")
    student = module.encoders.state_dict()
    for name, value in module.momentum_encoders.module.state_dict().items():
        assert torch.equal(value, student[name]), name
    started = {**before.encoders.state_dict(), **{f"classifier.{n}": p for n, p in head.items()}}
    for name, value in student.items():
        assert torch.equal(value, started[name]), name


def test_nlvr_fits_evaluates_and_predicts() -> None:
    module = nlvr(ramp=True)
    fitting = trainer()
    loader = DataLoader([batch(1), batch(2, 2, 1)], batch_size=None)
    fitting.fit(module, loader, loader)
    assert fitting.callback_metrics["train/alpha"] == pytest.approx(0.2)
    (tested,) = fitting.test(module, loader, verbose=False)
    assert tested["test/evaluated"] == SIZE + 1
    found = module.eval().predict_step(batch(1), 0)
    assert found.shape == (SIZE, 2)
    torch.testing.assert_close(found.sum(1), torch.ones(SIZE))


def trainer(**changed: Any) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, log_every_n_steps=1,
        **{"max_epochs": 1} | changed,
    )  # fmt: skip


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


def drawn(weights: Tensor, seed: int = 0) -> AssignmentDraws:
    own = torch.eye(*weights.shape).bool()
    generator = torch.Generator().manual_seed(seed)
    return AssignmentDraws.draw(weights.masked_fill(own, 0.0), own, generator)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 7), st.sampled_from([0.0, 0.3, 1.0]))
def test_others_are_never_the_own_and_two_are_distinct(seed: int, size: int, zeros: float) -> None:
    """Also where all weights, or all but one, have vanished."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(size, size, generator=generator)
    weights = weights * (torch.rand(size, size, generator=generator) >= zeros)
    draws, own = drawn(weights, seed), torch.arange(size)
    assert (draws.other != own).all()
    assert (draws.two != own[:, None]).all()
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


def test_similar_images_are_drawn_rather() -> None:
    """exp(cosine / 0.07) between image features, the own image left out."""
    module, data = assignment().eval(), pairs()
    tokens = module.encoders.visual_encoder(data["images"])
    features = F.normalize(module.encoders.vision_proj(tokens[:, 0]), dim=1)
    expected = features @ features.T / 0.07
    torch.testing.assert_close(module.encoders.similarities(tokens), expected)
    assert not module.encoders.similarities(tokens).requires_grad


# --- text assignment: the step ---


def test_assignment_trains_all_but_the_projection() -> None:
    module = assignment()
    module.training_step(pairs(), 0).backward()
    without = {name for name, p in module.named_parameters() if p.grad is None}
    assert without == {"encoders.vision_proj.weight", "encoders.vision_proj.bias"}
    assert {n for n, p in module.named_parameters() if not p.requires_grad} == without
    optimised = sum(len(group["params"]) for group in module.configure_optimizers().param_groups)
    assert optimised == len(list(module.parameters())) - 2


def test_assignment_is_a_function_of_seed_and_step() -> None:
    def labels(seed: int, step: int) -> list[int]:
        module, data = assignment(seed=seed), pairs(images=12)
        own = torch.arange(12)
        generator = torch_generator(seed, step, "text assignment, rank 0")
        expected = module.assign(data, own, generator)[1].tolist()
        seen: list[list[int]] = []
        assign = module.assign

        def watching(*given: Any) -> tuple[Tensor, Tensor]:
            result = assign(*given)
            seen.append(result[1].tolist())
            return result

        module.assign = watching  # type: ignore[method-assign]
        if step == 0:  # the step that a module outside of a Trainer is at
            module.training_step(data, 0)
            assert seen == [expected]
        return expected

    assert labels(3, 0) == labels(3, 0)
    assert len({tuple(labels(*at)) for at in ((3, 0), (4, 0), (3, 1))}) == 3


def test_a_label_is_right_about_the_images() -> None:
    """What the network sees, in the order in which it sees it."""
    module, data = assignment(), pairs(images=8)
    seen: list[tuple[Tensor, ...]] = []
    classify = module.encoders.classify

    def watching(tokens: Tensor, pair: tuple[Tensor, ...], ids: Tensor, mask: Tensor) -> Tensor:
        seen.append(pair)
        return classify(tokens, pair, ids, mask)

    module.encoders.classify = watching  # type: ignore[method-assign]
    own = torch.arange(8)
    for seed in range(5):
        _, labels = module.assign(data, own, torch.Generator().manual_seed(seed))
        first, second = seen[-1]
        assert ((labels == 0) == (first == own)).all()
        assert ((labels == 1) == (second == own)).all()
        assert (first != second).all()


def test_too_few_images_are_refused() -> None:
    with pytest.raises(ValueError, match="needs 3 images on each rank, this batch has 2"):
        assignment().training_step(pairs(images=2), 0)


def test_assignment_fits_and_evaluates_every_text() -> None:
    """With two captions an image; a last batch of too few images is left out."""
    module, fitting = assignment(), trainer()
    evaluated = DataLoader([pairs(5, captions=2), pairs(6, images=2)], batch_size=None)
    fitting.fit(module, DataLoader([pairs(1), pairs(2)], batch_size=None))
    assert {"train/loss_ta", "train/accuracy", "train/lr"} < set(fitting.callback_metrics)
    found = [fitting.test(module, evaluated, verbose=False)[0] for _ in range(2)]
    assert found[0]["test/evaluated"] == 2 * SIZE
    assert found[0] == found[1]


def test_evaluated_texts_belong_to_their_images() -> None:
    module, data = assignment(), pairs(captions=2)
    order = torch.tensor([2, 0, 3, 1])
    shuffled = data | {"images": data["images"][order], "indices": data["indices"][order]}
    seen: list[Tensor] = []

    def watching(batch: Any, own: Tensor, generator: Any) -> tuple[Tensor, Tensor]:
        seen.append(own)
        return torch.zeros(len(own), 3), own

    module.assign = watching  # type: ignore[method-assign]
    module.outcome(shuffled)
    assert torch.equal(shuffled["indices"][seen[0]], data["text_image"])


def test_assignment_predicts_of_given_pairs() -> None:
    module = assignment().eval()
    found = module.predict_step(batch(), 0)
    assert found.shape == (SIZE, 3)
    torch.testing.assert_close(found.sum(1), torch.ones(SIZE))


def test_rebuilt_from_their_hyperparameters() -> None:
    for module in (nlvr(), assignment()):
        rebuilt = type(module)(**module.hparams)
        rebuilt.load_state_dict(module.state_dict())
