"""Features of a whole data set: order, duplicates, modes, ranks of different size."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from shared.evaluation import features as module
from shared.evaluation.features import eval_mode, extract_features
from tests.parity.two_processes import on_each_rank


def batches(indices: list[int], size: int) -> list[dict[str, Tensor]]:
    """Image i is the number i, its label 100 + i."""
    pieces = [torch.tensor(indices[i : i + size]) for i in range(0, len(indices), size)]
    return [{"images": p[:, None].float(), "labels": 100 + p, "indices": p} for p in pieces]


def embed(images: Tensor) -> Tensor:
    return torch.cat([images, images**2], dim=1)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=40), st.integers(1, 9))
def test_each_index_once_in_ascending_order(indices: list[int], size: int) -> None:
    found = extract_features(embed, batches(indices, size), "cpu")
    expected = torch.tensor(sorted(set(indices)))
    assert torch.equal(found.indices, expected)
    assert torch.equal(found.labels, 100 + expected)
    assert torch.equal(found.features, embed(expected[:, None].float()))
    assert found.features.dtype == torch.float32


def test_batches_longer_than_the_first_and_a_loader_without_length() -> None:
    loader = [*batches([0], 1), *batches(list(range(1, 60)), 29)]
    for form in (loader, iter(loader)):
        assert extract_features(embed, form, "cpu").indices.tolist() == list(range(60))


def test_rows_in_order_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    allocated: list[int] = []
    original = torch.empty

    def empty(*size: int, **kwargs) -> Tensor:
        tensor = original(*size, **kwargs)
        allocated.append(tensor.numel())
        return tensor

    monkeypatch.setattr(torch, "empty", empty)
    found = extract_features(embed, batches(list(range(1000)), 100), "cpu")
    assert found.features.shape == (1000, 2)
    assert found.features.is_contiguous()
    assert sum(allocated) < 1.1 * found.features.numel()


def test_first_occurrence_of_a_repeated_index_counts() -> None:
    loader = batches([4, 2], 2) + batches([4, 7], 2)
    loader[1]["images"][0] = -1.0
    loader[1]["labels"][0] = -1
    found = extract_features(embed, loader, "cpu")
    assert found.indices.tolist() == [2, 4, 7]
    assert found.labels.tolist() == [102, 104, 107]
    assert found.features[1].tolist() == [4.0, 16.0]


def test_multi_label_rows_and_half_precision() -> None:
    loader = batches([1, 0], 2)
    loader[0]["labels"] = torch.tensor([[1, -1], [0, 1]])
    found = extract_features(lambda x: embed(x).bfloat16(), loader, "cpu")
    assert found.labels.tolist() == [[0, 1], [1, -1]]
    assert found.features.dtype == torch.float32


def test_no_gradient_is_recorded() -> None:
    layer = nn.Linear(1, 2)
    assert not extract_features(layer, batches([0, 1], 2), "cpu").features.requires_grad


def test_bad_loaders_and_networks_are_named() -> None:
    with pytest.raises(ValueError, match="empty on every rank"):
        extract_features(embed, [], "cpu")
    two_views = [{"query": torch.zeros(1), "key": torch.zeros(1), "indices": torch.zeros(1)}]
    with pytest.raises(ValueError, match=r"'key', 'query'.*without images"):
        extract_features(embed, two_views, "cpu")
    with pytest.raises(ValueError, match=r"one feature vector per image.*\(2, 1, 1\)"):
        extract_features(lambda x: x[:, None], batches([0, 1], 2), "cpu")
    with pytest.raises(ValueError, match="for 2 images"):
        extract_features(lambda x: x[:1], batches([0, 1], 2), "cpu")


def test_eval_mode_gives_every_part_its_own_mode_back() -> None:
    network = nn.Sequential(nn.BatchNorm1d(2), nn.Sequential(nn.Dropout(), nn.Dropout()))
    network[1].eval()
    network[1][1].train()
    before = [part.training for part in network.modules()]
    with eval_mode(network):
        assert not any(part.training for part in network.modules())
    assert [part.training for part in network.modules()] == before
    with pytest.raises(RuntimeError), eval_mode(network):
        raise RuntimeError
    assert [part.training for part in network.modules()] == before


SHARES = [[0, 2, 4, 6, 8, 10, 0], [1, 3, 5, 10]]


def worker(rank: int) -> tuple[Any, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "ROWS_PER_MESSAGE", 3)
        everyone = extract_features(embed, batches(SHARES[rank], 4), "cpu")
        one_empty = extract_features(embed, batches([5, 3], 1) if rank else [], "cpu")
    return tuple(everyone), tuple(one_empty)


def test_every_rank_ends_with_all_rows() -> None:
    for everyone, one_empty in on_each_rank(worker):
        indices = torch.tensor([0, 1, 2, 3, 4, 5, 6, 8, 10])
        assert torch.equal(everyone[2], indices)
        assert torch.equal(everyone[1], 100 + indices)
        assert torch.equal(everyone[0], embed(indices[:, None].float()))
        assert one_empty[2].tolist() == [3, 5]
        assert one_empty[0].tolist() == [[3.0, 9.0], [5.0, 25.0]]
