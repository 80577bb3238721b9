"""Retrieval: ranks and ties, candidates, packed texts, galleries, and which pairs are scored."""

import warnings
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shared.evaluation.retrieval import (
    NOT_SCORED,
    Collector,
    Gallery,
    Matcher,
    Texts,
    candidates,
    recalls,
    score_pairs,
)
from shared.tasks.image_text_retrieval import RetrievalEvaluation

# --- recalls ---


def test_the_best_caption_of_an_image_counts() -> None:
    text_image = torch.tensor([0, 0, 1])
    i2t = torch.tensor([[0.1, 0.9, 0.5], [0.7, 0.8, 0.6]])
    t2i = torch.tensor([[0.4, 0.3], [0.2, 0.6], [0.1, 0.9]])
    found = recalls(i2t, t2i, text_image)
    assert (found["txt_r1"], found["txt_r5"]) == (50.0, 100.0)
    assert found["img_r1"] == pytest.approx(200 / 3)
    assert found["txt_r_mean"] == pytest.approx(250 / 3)
    assert found["r_mean"] == pytest.approx((250 / 3 + (200 / 3 + 200) / 3) / 2)


def test_of_equal_scores_the_wrong_ones_come_first() -> None:
    # Twelve images: what scores all alike is never among the first ten.
    same, own = torch.zeros(12, 12), torch.arange(12)
    assert set(recalls(same, same, own).values()) == {0.0}
    # One wrong one as good as the right one: rank 2. Other captions of the image are no rivals.
    i2t = torch.tensor([[2.0, 2.0, 2.0], [0.0, 0.0, 1.0]])
    t2i = torch.tensor([[2.0, 2.0], [2.0, 1.0], [0.0, 1.0]])
    found = recalls(i2t, t2i, torch.tensor([0, 0, 1]))
    assert (found["txt_r1"], found["txt_r5"]) == (50.0, 100.0)
    assert found["img_r1"] == pytest.approx(200 / 3)


def test_a_match_without_score_ranks_behind_all_others() -> None:
    scores = torch.full((11, 11), NOT_SCORED)
    scores[:, 0] = 1.0
    scores[0, 0] = NOT_SCORED
    found = recalls(scores, scores, torch.arange(11))
    assert found["txt_r10"] == 0.0
    # A gallery of ten leaves no other place.
    found = recalls(scores[:10, :10], scores[:10, :10], torch.arange(10))
    assert (found["txt_r5"], found["txt_r10"]) == (0.0, 100.0)


def test_scores_that_cannot_be_ranked_are_refused() -> None:
    scores, own = torch.eye(3), torch.arange(3)
    with pytest.raises(ValueError, match=r"\(3, 3\), \(3, 3\) and 2 texts don't fit"):
        recalls(scores, scores, own[:2])
    with pytest.raises(ValueError, match="image of row 2 has no text"):
        recalls(scores, scores, torch.tensor([0, 1, 1]))
    for place in range(2):
        given_scores = [scores.clone(), scores.clone()]
        given_scores[place][1, 2] = torch.nan
        with pytest.raises(ValueError, match="NaN"):
            recalls(*given_scores, own)


# --- candidates ---


def test_candidates_are_the_most_similar_in_each_direction() -> None:
    similarity = torch.tensor([[0.9, 0.1, 0.5, 0.2], [0.3, 0.4, 0.6, 0.8], [0.0, 0.7, 0.2, 0.1]])
    of_image, of_text = candidates(similarity, 2)
    assert of_image.int().tolist() == [[1, 0, 1, 0], [0, 0, 1, 1], [0, 1, 1, 0]]
    assert of_text.int().tolist() == [[1, 0, 1, 1], [1, 1, 1, 1], [0, 1, 0, 0]]
    assert all(direction.all() for direction in candidates(similarity, "all"))


@pytest.mark.parametrize("k", [0, 4])
def test_k_beyond_the_gallery_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match=rf"k_test={k} .* 5 texts and 3 images.* from 1 to 3"):
        candidates(torch.zeros(3, 5), k)
    candidates(torch.zeros(3, 5), 3)


def test_a_pair_of_both_directions_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    similarity = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    asked: list[Tensor] = []
    scores = torch.arange(24.0).view(4, 6)

    def score(module: Any, gallery: Any, wanted: Tensor, of_probability: bool) -> Tensor:
        asked.append(wanted)
        return scores.masked_fill(~wanted, NOT_SCORED)

    of_image, of_text = candidates(similarity, 2)
    for plus in (False, True):
        evaluation = RetrievalEvaluation(2, score="itm+itc" if plus else "itm")
        monkeypatch.setattr(evaluation, "_score", score)
        gallery: Any = SimpleNamespace(similarity=lambda: similarity)
        i2t, t2i = evaluation.scores(None, gallery)
        expected = scores + plus * similarity
        assert torch.equal(i2t, torch.where(of_image, expected, NOT_SCORED))
        assert torch.equal(t2i.T, torch.where(of_text, expected, NOT_SCORED))
    assert len(asked) == 2
    assert torch.equal(asked[0], of_image | of_text)
    assert asked[0].sum() < of_image.sum() + of_text.sum()


# --- texts ---


def packed(lengths: list[int]) -> Texts:
    """Token p of text t is 10 t + p."""
    sizes = torch.tensor(lengths)
    tokens = torch.cat([10 * t + torch.arange(n) for t, n in enumerate(lengths)])
    return Texts(tokens, sizes.cumsum(0) - sizes, sizes)


def test_rows_are_padded_to_their_longest() -> None:
    tokens, mask = packed([3, 1, 5, 2])[torch.tensor([3, 1, 3])]
    assert tokens.shape == (3, 2)
    assert (tokens * mask).tolist() == [[30, 31], [10, 0], [30, 31]]
    assert mask.tolist() == [[1, 1], [1, 0], [1, 1]]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(1, 40))
def test_chunks_take_each_text_once_and_are_bounded(lengths: list[int], positions: int) -> None:
    texts, index = packed(lengths), torch.arange(0, len(lengths), 2)
    chunks = list(texts.chunks(index, positions))
    assert sorted(torch.cat(chunks).tolist()) == index.tolist()
    for chunk in chunks:
        longest = int(texts.lengths[chunk].max())
        assert len(chunk) * longest <= positions or len(chunk) == 1
    # Of similar length: none has a text that is longer than one of an earlier chunk.
    ordered = [texts.lengths[chunk] for chunk in chunks]
    assert all(a.min() >= b.max() for a, b in pairwise(ordered))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 9), max_size=30), st.integers(1, 40))
def test_a_function_of_the_tokens_gives_texts_in_the_same_order(
    lengths: list[int], positions: int
) -> None:
    """Also where it changes their shape, as ids become hidden states."""

    def function(tokens: Tensor, mask: Tensor) -> Tensor:
        assert mask.numel() <= positions or len(mask) == 1
        sums = (tokens * mask).sum(dim=1, keepdim=True)
        return torch.stack([tokens, sums.expand_as(tokens)], dim=2)

    texts = packed(lengths) if lengths else Texts(*torch.zeros(3, 0, dtype=torch.long))
    made = texts.map(function, positions)
    assert torch.equal(made.lengths, texts.lengths)
    for number in range(len(lengths)):
        (before,), mask = texts[torch.tensor([number])]
        (after,), same_mask = made[torch.tensor([number])]
        assert torch.equal(mask, same_mask)
        assert torch.equal(after[:, 0], before)
        assert (after[:, 1] == before.sum()).all()


# --- galleries ---

ENTRIES = {7: [3, 1], 2: [2], 5: [4, 4, 1]}  # lengths of each entry's texts


def collect(batches: list[list[int]], **left_out: Any) -> Collector:
    """Image e has the feature (e,) and tokens e; its texts' tokens are 100 e + 10 n + position."""
    collector = Collector()
    for batch in batches:
        texts = [(e, n, length) for e in batch for n, length in enumerate(ENTRIES[e])]
        owners = torch.tensor([e for e, _, _ in texts])
        numbers = torch.tensor([100 * e + 10 * n for e, n, _ in texts])
        mask = (torch.arange(5) < torch.tensor([length for *_, length in texts])[:, None]).long()
        tokens = (numbers[:, None] + torch.arange(5)).float()[..., None]
        kept = torch.tensor([e for e in batch if e not in left_out.get("images", ())])
        collector.add(
            (kept, kept[:, None], kept[:, None, None].expand(-1, 2, 3).float()),
            (owners, numbers[:, None].half(), tokens, mask),
            hard_text=numbers,
        )
    return collector


def texts_of(gallery: Gallery) -> list[list[float]]:
    tokens, mask = gallery.texts[torch.arange(len(gallery.text_image))]
    return [row[: int(m.sum()), 0].tolist() for row, m in zip(tokens, mask, strict=True)]


@pytest.mark.parametrize("batches", [[[7, 2, 5]], [[5], [2], [7]], [[2, 7], [5]]])
def test_a_gallery_has_the_order_of_the_entries(batches: list[list[int]]) -> None:
    gallery = collect(batches).gallery()
    assert gallery.entries.tolist() == [2, 5, 7]
    assert gallery.image_features.tolist() == [[2], [5], [7]]
    assert gallery.text_image.tolist() == [0, 1, 1, 1, 2, 2]
    assert gallery.text_features.flatten().tolist() == [200, 500, 510, 520, 700, 710]
    assert gallery.hard_text.tolist() == [200, 500, 510, 520, 700, 710]
    assert gallery.image_features.dtype == gallery.text_features.dtype == torch.float32
    texts = [[200, 201], [500, 501, 502, 503], [510, 511, 512, 513], [520], [700, 701, 702], [710]]
    assert texts_of(gallery) == texts
    own = [float(tokens[0, 0]) for tokens in gallery.image_tokens]
    assert own == gallery.entries[gallery.own].tolist()
    assert torch.equal(gallery.similarity(), gallery.image_features @ gallery.text_features.T)


def test_texts_of_an_unreadable_image_are_left_out_and_counted() -> None:
    with pytest.warns(UserWarning, match="3 texts are left out"):
        gallery = collect([[7, 5], [2]], images=[5]).gallery()
    assert gallery.entries.tolist() == [2, 7]
    assert gallery.text_image.tolist() == [0, 1, 1]
    assert texts_of(gallery) == [[200, 201], [700, 701, 702], [710]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        collect([[7, 5], [2]]).gallery()


def test_an_image_twice_and_an_empty_evaluation_are_refused() -> None:
    with pytest.raises(ValueError, match=r"image 7 was evaluated twice.*EvaluationLoader"):
        collect([[7, 2], [7]]).gallery()
    with pytest.raises(ValueError, match="no image to retrieve"):
        Collector().gallery()


def test_tokens_are_kept_in_the_given_type_and_ids_as_they_are() -> None:
    collector = Collector(torch.bfloat16)
    image = (torch.tensor([0]), torch.ones(1, 2), torch.ones(1, 3, 4))
    mask = torch.tensor([[1, 1, 0]])
    ids = torch.tensor([[101, 40001, 0]])
    collector.add(image, (torch.tensor([0]), torch.ones(1, 2), ids, mask))
    gallery = collector.gallery()
    assert gallery.image_tokens[0].dtype == torch.bfloat16
    assert gallery.texts.tokens.tolist() == [101, 40001]
    assert gallery.image_features.dtype == torch.float32


# --- scores ---


def numbered(calls: dict[str, list]) -> Matcher:
    """The score of a pair is the image's number plus 3 times the sum of the text's tokens."""

    def project(tokens: Tensor) -> Tensor:
        assert tokens.shape == (1, 2, 3)
        calls["projected"].append(float(tokens[0, 0, 0]))
        return tokens[0, 0, 0]

    def read(texts: Tensor, mask: Tensor) -> Tensor:
        calls["read"].append(tuple(mask.shape))
        return 3 * texts

    def score(image: Tensor, texts: Tensor, mask: Tensor) -> Tensor:
        calls["shapes"].append(tuple(mask.shape))
        return image + (texts[..., 0] * mask).sum(dim=1)

    return Matcher(project, read, score)


@pytest.mark.parametrize("chunk", [1, 8, 1000])
def test_wanted_pairs_are_scored_each_image_projected_and_each_text_read_once(chunk: int) -> None:
    gallery = collect([[7, 2], [5]]).gallery()
    wanted = torch.zeros(3, 6, dtype=torch.bool)
    wanted[0, [1, 4]] = wanted[2, [0, 1, 2, 3, 5]] = True
    calls: dict[str, list] = {"projected": [], "read": [], "shapes": []}
    scores = score_pairs(gallery, wanted, numbered(calls), chunk)
    sums = torch.tensor([float(sum(tokens)) for tokens in texts_of(gallery)])
    expected = gallery.entries[:, None] + 3 * sums
    assert torch.equal(scores, torch.where(wanted, expected, NOT_SCORED))
    assert sorted(calls["projected"]) == [2, 7]  # not 5, of which no pair is wanted
    assert sum(rows for rows, _ in calls["shapes"]) == 7
    assert sum(rows for rows, _ in calls["read"]) == 6
    shapes = calls["read"] + calls["shapes"]
    assert all(rows * length <= chunk or rows == 1 for rows, length in shapes)
    if chunk == 1000:
        assert sorted(calls["shapes"]) == [(2, 4), (5, 4)]
