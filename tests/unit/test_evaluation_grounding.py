"""Grad-CAM on attention, and which box an expression's map picks."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from shared.evaluation.attention_maps import (
    Saliency,
    contrast_saliency,
    heat,
    looked_at,
    match_saliency,
)
from shared.evaluation.grounding import accuracies, box_scores, choose_box, ground, iou
from shared.nn.image_text import ImageTextEncoders
from shared.tasks.image_text_contrast import ImageTextContrast
from shared.tasks.image_text_matching import ImageTextMatching


class Toy(nn.Module):
    """An image-text model of four text layers, two of which look at the image."""

    def __init__(self, layers: int = 4, first: int = 2) -> None:
        super().__init__()
        vision = {"image_size": 16, "patch_size": 4, "width": 12, "depth": 3, "heads": 3}
        text = {
            "vocab_size": 30, "hidden_size": 16, "num_layers": layers, "num_heads": 4,
            "intermediate_size": 32, "max_positions": 8, "cross_attention_from": first,
            "dropout": 0.0,
        }  # fmt: skip
        self.encoders: Any = ImageTextEncoders(vision, text, 6, masked_lm=False)
        self.matching = ImageTextMatching(16, True, "local")
        self.contrast = ImageTextContrast(4, 6, 0.1, "local")

    def match(self, *pair: Tensor) -> Tensor:
        return self.matching.logits(self.encoders.text_encoder, *pair)


@pytest.fixture(scope="module")
def toy() -> Toy:
    torch.manual_seed(5)
    model = Toy().eval()
    for parameter in model.parameters():  # BERT's small initial weights make flat attention
        if parameter.ndim == 2:
            parameter.data.mul_(6)
    return model


@pytest.fixture(scope="module")
def pairs() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(6)
    ids = torch.randint(1, 30, (4, 5))
    mask = torch.ones_like(ids)
    ids[1, 3:] = mask[1, 3:] = 0
    return torch.randn(4, 3, 16, 16), ids, mask


def by_matching(model: Any, images: Tensor, ids: Tensor, mask: Tensor, layer: int = 2) -> Saliency:
    with torch.no_grad():
        tokens = model.encoders.encode_image(images)[0]
    return match_saliency(model, tokens, ids, mask, layer)


def test_weighted_attention_by_hand() -> None:
    attention = torch.tensor([[[[9.0, 1, 2, 3, 4], [9, 5, 6, 7, 8]]]])
    gradient = torch.tensor([[[[9.0, 1, -1, 2, 0], [9, 1, 1, 1, 1]]]])
    saliency = Saliency(attention, gradient, torch.zeros(1, 2))
    assert saliency.weighted().tolist() == [[[[[1, 0], [6, 0]], [[5, 6], [7, 8]]]]]
    mask = torch.tensor([[1, 0]])
    assert saliency.words(mask).tolist() == [[[[1, 0], [6, 0]], [[0, 0], [0, 0]]]]
    # The mean is over padding, too.
    assert saliency.whole(mask).tolist() == [[[0.5, 0], [3, 0]]]
    twice = Saliency(attention.repeat(1, 3, 1, 1), gradient.repeat(1, 3, 1, 1), saliency.scores)
    assert twice.words().tolist() == saliency.words().tolist()


def test_attention_is_that_of_the_model_and_its_gradient_a_slope(toy, pairs) -> None:
    images, ids, mask = pairs
    found = by_matching(toy, images, ids, mask)
    with torch.no_grad():
        tokens = toy.encoders.encode_image(images)[0]
        logits = toy.match(tokens, toy.encoders.encode_text(ids, mask)[0], mask)
    torch.testing.assert_close(found.scores, logits)
    torch.testing.assert_close(found.attention.sum(dim=-1), torch.ones(4, 4, 5))
    assert found.attention.shape == found.gradient.shape == (4, 4, 5, 17)

    # Nudge one probability of one word and watch the logit of this pair.
    attention = toy.encoders.text_encoder.layers[2].cross_attention
    step = 1e-2

    class Nudged(list):
        def append(self, probabilities):
            probabilities[0, 1, 2, 7] += step

    attention.maps = Nudged()
    try:
        with torch.no_grad():
            text = toy.encoders.encode_text(ids, mask)[0]
            moved = toy.match(tokens, text, mask)
    finally:
        attention.maps = None
    slope = (moved - logits)[0, 1] / step
    torch.testing.assert_close(slope, found.gradient[0, 1, 2, 7], rtol=0.05, atol=1e-4)
    torch.testing.assert_close(moved[1:], logits[1:])


def test_pairs_do_not_see_one_another(toy, pairs) -> None:
    for kind in (by_matching, lambda *all_: contrast_saliency(*all_, block=1)):
        whole = kind(toy, *pairs)
        for n in range(4):
            alone = kind(toy, *(part[n : n + 1] for part in pairs))
            torch.testing.assert_close(alone.gradient, whole.gradient[n : n + 1])
            torch.testing.assert_close(alone.attention, whole.attention[n : n + 1])


def test_works_in_inference_mode_with_frozen_weights_and_leaves_no_trace(toy, pairs) -> None:
    expected = by_matching(toy, *pairs), contrast_saliency(toy, *pairs, block=1)
    toy.requires_grad_(False)
    try:
        with torch.inference_mode():
            inputs = [part.clone() for part in pairs]
            assert all(part.is_inference() for part in inputs)
            found = by_matching(toy, *inputs), contrast_saliency(toy, *inputs, block=1)
    finally:
        toy.requires_grad_(True)
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.gradient, other.gradient)
        assert not mine.gradient.requires_grad
        assert not mine.attention.requires_grad
    assert all(parameter.grad is None for parameter in toy.parameters())
    assert toy.encoders.text_encoder.layers[2].cross_attention.maps is None


def test_layers_that_do_not_exist_are_refused(toy, pairs) -> None:
    for layer in (1, 4):
        with pytest.raises(ValueError, match=f"layer {layer} has no cross-attention.* 2 to 3"):
            by_matching(toy, *pairs, layer=layer)
    for block in (-1, 3):
        with pytest.raises(ValueError, match=f"no block {block}: .* has 3"):
            contrast_saliency(toy, *pairs, block=block)


@pytest.mark.parametrize(
    ("layers", "first", "expected"), [(12, 6, 8), (4, 2, 2), (4, 0, 2), (3, 2, 2), (3, 1, 1)]
)
def test_default_layer(layers: int, first: int, expected: int) -> None:
    encoders = Toy(layers, first).encoders
    assert looked_at(encoders, "matching") == expected
    assert (looked_at(encoders, "similarity"), looked_at(encoders, "similarity", 0)) == (2, 0)


def test_heat_is_smooth_and_in_range() -> None:
    values = torch.zeros(4, 4)
    values[0, 3] = 0.01
    warmth = heat(values, (40, 60))
    assert warmth.shape == (40, 60)
    assert (warmth.min(), warmth.max()) == (0, 1)
    row, column = np.unravel_index(warmth.argmax(), warmth.shape)
    assert row < 10
    assert column >= 45
    assert np.abs(np.diff(warmth, axis=1)).max() < 0.2
    assert not heat(torch.full((4, 4), 0.3), (9, 7)).any()


def test_what_lies_outside_the_image_does_not_count() -> None:
    plane = torch.ones(4, 5)
    boxes = torch.tensor([[-2.0, -2, 4, 4], [3, 2, 10, 10], [7, 7, 2, 2], [1, 1, 0, 3]])
    assert box_scores(plane, boxes).tolist() == [1, 0.4, 0, 0]


def test_the_highest_score_wins_and_the_first_of_equal_boxes() -> None:
    """Also where no score is positive."""
    boxes = torch.tensor([[0.0, 0, 2, 2], [1, 1, 4, 4], [4, 4, 4, 4]])
    assert choose_box(torch.ones(8, 8), boxes) == (1, 4.0)
    assert choose_box(torch.ones(8, 8), boxes[[2, 0, 1]]) == (0, 4.0)
    assert choose_box(torch.full((8, 8), -1.0), boxes) == (0, -2.0)
    assert choose_box(torch.zeros(8, 8), boxes) == (0, 0.0)


def test_nothing_to_choose_from_and_broken_maps_are_refused() -> None:
    with pytest.raises(ValueError, match="no proposal"):
        choose_box(torch.ones(3, 3), torch.empty(0, 4))
    with pytest.raises(ValueError, match="not finite"):
        choose_box(torch.full((3, 3), torch.nan), torch.tensor([[0.0, 0, 1, 1]]))


def test_iou_by_hand() -> None:
    box = [10.0, 10, 4, 4]
    assert iou(box, box) == 1
    assert iou(box, [12, 10, 4, 4]) == pytest.approx(8 / 24)
    assert iou(box, [10, 10, 4, 2]) == 0.5
    assert iou(box, [13, 10, 4, 4]) == 0  # a strip of one pixel counts as none
    assert iou(box, [12.9, 10, 4, 4]) == pytest.approx(4.4 / 27.6)
    assert iou(box, [30, 10, 4, 4]) == 0


def test_grounding_finds_the_hot_quarter() -> None:
    cam = torch.zeros(4, 4)
    cam[2:, :2] = 1.0
    boxes = torch.tensor([[0.0, 0, 20, 20], [0, 20, 20, 20], [0, 0, 40, 40], [20, 20, 20, 20]])
    found = ground(cam, (40, 40), boxes, [0, 22, 20, 18])
    assert found.proposal == 1
    assert found.iou == pytest.approx(0.9)
    assert found.score == pytest.approx(20, rel=0.1)


def test_accuracy_counts_a_half_as_right() -> None:
    found = accuracies([0.5, 0.49, 1.0, 0.2, 0.0], ["val", "val", "testA", "testB", "testB"])
    assert found == {"val_d": 0.5, "testA_d": 1.0, "testB_d": 0.0}
    assert accuracies([], []) == {}
