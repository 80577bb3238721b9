"""PB-OVD's way from captions to annotations: mentions, maps, scores, labels, against slow code."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from methods.pb_ovd.mentions import ObjectWords
from methods.pb_ovd.pseudo_boxes import (
    NO_BOX,
    best_boxes,
    box_scores,
    normalised,
    object_maps,
)
from methods.pb_ovd.pseudo_labels import CocoLabels, PseudoObject, names_of
from shared.data.text.wordpiece import WordPiece
from shared.evaluation.attention_maps import match_saliency
from tests.unit import albef_toy

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TOKENIZER = WordPiece([*SPECIAL, "a", "hot", "dog", "dogs", "snow", "##board", "##er", "tv"])


def mentions(vocabulary, caption, unknown=False):
    words = ObjectWords(vocabulary, TOKENIZER, unknown)
    return [tuple(found) for found in words.mentions(TOKENIZER.batch([caption])[0][0].tolist())]


@pytest.mark.parametrize(
    ("caption", "found"),
    [
        ("a dog a dog", [("dog", "dog", 2, 3)]),  # the first of two
        ("dogs", []),  # no plural
        ("hot dog", [("dog", "dog", 2, 3), ("hot dog", "hot dog", 1, 3), ("hot", "hot", 1, 2)]),
        ("a snowboarder", [("board", "snow ##board", 2, 4)]),  # the beginning of a longer word
        ("dog hot", [("dog", "dog", 1, 2), ("hot", "hot", 2, 3)]),  # as the vocabulary is ordered
        ("", []),
    ],
)
def test_objects_are_mentioned_by_their_pieces(caption, found):
    vocabulary = {"dog": ["dog"], "hot dog": ["hot dog"], "hot": ["hot"], "board": ["snowboard"]}
    assert mentions(vocabulary, caption) == found


def test_two_texts_of_one_object_are_two_mentions():
    assert mentions({"pet": ["dog", "hot dog"]}, "hot dog") == [
        ("pet", "dog", 2, 3),
        ("pet", "hot dog", 1, 3),
    ]


def test_unknown_words_match_one_another_only_as_in_the_official_code():
    assert mentions({"zebra": ["zebra"]}, "a quagga") == []
    assert mentions({"zebra": ["zebra"]}, "a quagga", unknown=True) == [("zebra", "[UNK]", 2, 3)]
    words = ObjectWords({"zebra": ["zebra", "dog"]}, TOKENIZER, unknown=False)
    assert (words.unmatched, words.tokenized) == (["zebra"], {"zebra": ["dog"]})


def test_maps_of_an_object_are_summed_and_leak_only_if_asked():
    tokens = torch.arange(1.0, 5).view(4, 1, 1).expand(4, 2, 2)
    spans = [(1, 3), (1, 2)]
    assert object_maps(tokens, spans)[:, 0, 0].tolist() == [5, 2]
    assert object_maps(tokens, spans, accumulate=True)[:, 0, 0].tolist() == [5, 5]
    assert tokens[1, 0, 0] == 2  # what was given stays


@pytest.mark.parametrize("size", [(37, 53), (16, 16), (3, 40), (1, 1)])
def test_maps_at_the_images_size_are_those_of_nearest_neighbour(size):
    maps = torch.rand(2, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    slow = F.interpolate(maps[None], size, mode="nearest")[0]
    least, most = slow.amin((1, 2), keepdim=True), slow.amax((1, 2), keepdim=True)
    slow = (slow - least) / (most - least)
    slow = torch.where(slow < 0.5, 0, slow)
    torch.testing.assert_close(normalised(maps, size).pixels(), slow, equal_nan=True)


def slow_score(pixels, box, exponent):
    """The score of one box by the rule's own words."""
    height, width = pixels.shape
    x1, y1, x2, y2 = box
    area = (x2 - x1) * (y2 - y1)
    if x1 < 0 or y1 < 0 or x2 > width or y2 > height or area <= 0 or int(y2) <= int(y1):
        return NO_BOX
    score = float(pixels[int(y1) : int(y2), int(x1) : int(x2)].sum()) / area**exponent
    return NO_BOX if math.isnan(score) else score


edge = st.floats(-2, 32, width=32)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(edge, edge, edge, edge), min_size=1, max_size=6),
    st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**31), st.sampled_from([0, 0.5, 1]),
)  # fmt: skip
def test_scores_are_those_of_sums_over_pixels(boxes, height, width, seed, exponent):
    maps = torch.rand(2, 5, 5, generator=torch.Generator().manual_seed(seed)).double()
    placed = normalised(maps, (height, width))
    # Sides that both turn round have an area above 0 and no row, and are skipped all the same.
    found = box_scores(placed, torch.tensor(boxes, dtype=torch.float64), exponent)
    slow = [[slow_score(p, box, exponent) for box in boxes] for p in placed.pixels()]
    torch.testing.assert_close(found, torch.tensor(slow, dtype=torch.float64))


def test_boxes_without_a_column_score_nothing_and_those_without_a_row_are_skipped():
    placed = normalised(torch.eye(4)[None], (8, 8))
    boxes = torch.tensor([[2.1, 0, 2.9, 8], [0, 2.1, 8, 2.9], [0, 0, 8, 0], [0, 0, 8.5, 8]])
    assert box_scores(placed, boxes).tolist() == [[0, NO_BOX, NO_BOX, NO_BOX]]


def test_a_constant_map_places_no_object():
    placed = normalised(torch.ones(1, 4, 4), (8, 8))
    boxes = torch.tensor([[0.0, 0, 8, 8]])
    chosen, scores = best_boxes(box_scores(placed, boxes), boxes)
    assert (chosen.tolist(), scores.tolist()) == ([[0, 0, 0, 0]], [NO_BOX])


def test_the_first_of_equal_boxes_wins_and_without_any_there_is_none():
    boxes = torch.tensor([[0.0, 0, 1, 1], [1, 1, 2, 2], [2, 2, 3, 3]])
    chosen, scores = best_boxes(torch.tensor([[0.5, 2, 2], [0, 0, 0]]).double(), boxes)
    assert (chosen[:, 0].tolist(), scores.tolist()) == ([1, 0], [2, 0])
    chosen, scores = best_boxes(torch.empty(1, 0), torch.empty(0, 4))
    assert (chosen.tolist(), scores.tolist()) == ([[0, 0, 0, 0]], [NO_BOX])


def test_labels_number_images_annotations_and_categories():
    labels = CocoLabels()
    two = [PseudoObject("Dog", (1.9, 2, 5.2, 4), 1.0), PseudoObject("dog", (0, 0, 9, 9), 2.0)]
    image, entries = labels.add("a.jpg", (20, 30), names_of(two), [0.999])
    assert image == {"height": 20, "width": 30, "file_name": "a.jpg", "id": 0}
    assert [(e["bbox"], e["area"], e["pseudo_score"]) for e in entries] == [([0, 0, 9, 9], 81, 2.0)]
    more = [PseudoObject("cat", (0, 0, 1, 1), 1.0), two[0]]
    image, entries = labels.add("b.jpg", (20, 30), names_of(more), [0.0, 0.0])
    assert [(e["id"], e["image_id"], e["category_id"]) for e in entries] == [(1, 1, 1), (2, 1, 0)]
    assert entries[1]["bbox"] == [1, 2, 4, 2]
    assert [(c["id"], c["name"]) for c in labels.categories] == [(0, "dog"), (1, "cat")]


def test_one_backward_pass_of_all_pairs_is_one_of_each():
    module = albef_toy.retrieval(text=albef_toy.PAIRED).eval()
    batch = albef_toy.batch()
    ids, mask = batch["input_ids"], batch["attention_mask"]
    seen = module.encoders.encode_image(batch["images"])[0]
    together = match_saliency(module, seen, ids, mask, 2).words(mask)
    for row in range(len(ids)):
        rows = slice(row, row + 1)
        alone = match_saliency(module, seen[rows], ids[rows], mask[rows], 2).words(mask[rows])
        torch.testing.assert_close(together[rows], alone)
    assert together.abs().sum() > 0
