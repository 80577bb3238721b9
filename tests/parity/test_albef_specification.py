"""Points of docs/papers/albef.md on which the golden cases do not insist."""

import pytest
import torch

from shared.evaluation.attention_maps import Saliency
from shared.evaluation.grounding import box_scores
from shared.evaluation.vqa import soft_accuracy
from shared.nn.text_transformer import TextTransformer
from tests.unit.albef_toy import TEXT, build


def test_answers_do_not_depend_on_the_padding_of_questions() -> None:
    answers = {"a": [2, 7, 3], "b": [2, 8, 9, 3], "c": [2, 10, 3]}
    module = build("vqa", k_test=3, answers=answers).eval()
    images, ids = torch.randn(2, 3, 16, 16), torch.randint(5, 20, (2, 5))
    mask = torch.ones(2, 5, dtype=torch.long)
    longer = [torch.cat([x, x.new_zeros(2, 3)], dim=1) for x in (ids, mask)]
    with torch.no_grad():
        short, padded = (
            module.predict_step({"images": images, "input_ids": i, "attention_mask": m}, 0)
            for i, m in ((ids, mask), longer)
        )
    torch.testing.assert_close(short, padded)


def test_twins_of_nlvr2_train_one_projection_of_keys_and_values() -> None:
    first, second = build("nlvr").encoders.text_encoder.fusion_layers[:2]
    for name in ("key", "value"):
        shared = getattr(first.cross_attention, name)
        assert getattr(second.cross_attention, name) is shared
    assert first.cross_attention.query is not second.cross_attention.query


def test_the_padding_word_gets_no_gradient_from_the_embeddings() -> None:
    network = TextTransformer(**TEXT, context_width=12)
    ids = torch.tensor([[2, 7, 0, 0]])
    # Weighted, for the plain sum of what LayerNorm has made is a constant.
    (network.encode(ids, torch.ones_like(ids)) * torch.arange(8.0)).sum().backward()
    gradient = network.embeddings.word.weight.grad
    assert gradient is not None
    assert not gradient[0].any()
    assert gradient[7].any()


def test_a_tenth_of_the_numbers_is_dropped_and_the_others_are_scaled_up() -> None:
    torch.manual_seed(0)
    words = TextTransformer(**{**TEXT, "dropout": 0.1}, context_width=12).embeddings
    ids = torch.randint(5, 20, (500, 12))
    kept, dropped = words.eval()(ids), words.train()(ids)
    assert float((dropped == 0).double().mean()) == pytest.approx(0.1, abs=0.01)
    torch.testing.assert_close(dropped[dropped != 0], kept[dropped != 0] / 0.9)


def test_padding_has_no_map_and_counts_in_the_mean() -> None:
    attention, mask = torch.rand(1, 2, 4, 5), torch.tensor([[1, 1, 0, 0]])
    saliency = Saliency(attention, torch.ones_like(attention), torch.zeros(1, 2))
    words = saliency.words(mask)
    assert not words[:, 2:].any()
    assert words[:, :2].any()
    torch.testing.assert_close(saliency.whole(mask), words[:, :2].sum(dim=1) / 4)


def test_a_box_is_scored_by_its_sum_over_the_root_of_its_area() -> None:
    scores = box_scores(torch.ones(10, 10), torch.tensor([[0.0, 0, 4, 4], [0, 0, 8, 2]]))
    assert scores.tolist() == pytest.approx([16 / 4, 16 / 4])


def test_unanimous_answers_keep_their_punctuation() -> None:
    assert soft_accuracy("red, white", ["red, white"] * 10) == 0
    assert soft_accuracy("red, white", ["red, white"] * 9 + ["red"]) == 1
