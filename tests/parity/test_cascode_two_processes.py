"""Two gloo processes compute what one process computes on the concatenated batch: negatives are
gathered with their gradient. With `gather: false` they must not, or the test proves nothing.

The evaluation is the same, too: vectors and re-ranking are shared among the ranks.
"""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader

from methods.cascode.evaluation import Vectors, shared_scores
from methods.cascode.module import Fast

from .two_processes import WORLD, Record, Values, assert_ranks_equal_one, fit, ranks

STEPS, PAIRS, WORDS = 3, 6, 40  # PAIRS: over both ranks
TEXT = {
    "vocab_size": WORDS, "hidden_size": 16, "num_layers": 2, "num_heads": 2,
    "intermediate_size": 32, "max_positions": 16, "type_vocab_size": 1, "dropout": 0.0,
    "pad_id": 1, "positions_after_pad": True, "initial_std": 0.3,
}  # fmt: skip
FORMS = ["symmetric", "pooler", "local"]


def build(form: str) -> Fast:
    torch.manual_seed(3)
    return Fast(
        text=TEXT,
        pooling="pooler" if form == "pooler" else "mean",
        normalize=form != "pooler",
        temperature=1.0 if form == "pooler" else 0.05,
        symmetric=form == "symmetric",
        gather=form != "local",
        lr=0.01,
        eps=1e-3,  # the bias of keys has no gradient but rounding, of which Adam makes whole steps
    )


def batches(rank: int | None) -> list[dict[str, Tensor]]:
    """Of one rank, or with None the concatenation of both; the ranks' lengths differ."""
    generator = torch.Generator().manual_seed(11)
    out = []
    for _ in range(STEPS):
        batch: dict[str, Tensor] = {"indices": torch.arange(PAIRS)}
        for side, longest in (("query", 6), ("code", 9)):
            lengths = torch.randint(3, longest, (PAIRS,), generator=generator)
            lengths[-1] = longest
            mask = (torch.arange(longest) < lengths[:, None]).long()
            words = torch.randint(4, WORDS, (PAIRS, longest), generator=generator)
            batch[f"{side}_ids"] = torch.where(mask.bool(), words, 1)
            batch[f"{side}_mask"] = mask
        if rank is not None:
            batch = {name: value.chunk(WORLD)[rank] for name, value in batch.items()}
            for side in ("query", "code"):
                longest = int(batch[f"{side}_mask"].sum(dim=1).max())
                for name in (f"{side}_ids", f"{side}_mask"):
                    batch[name] = batch[name][:, :longest]
        out.append(batch)
    return out


def run(form: str, rank: int | None = None, **options: Any) -> Values:
    module = build(form)
    module.attach = lambda _: None  # the batches need no tokeniser
    options = {"devices": 1, "max_epochs": 1, **options}
    values = fit(module, Record(), DataLoader(batches(rank), batch_size=None), options)
    return values | evaluated(rank)


def evaluated(rank: int | None) -> Values:
    """Vectors that came in pieces, and scores that each rank computed a part of."""
    vectors, whole = Vectors(), torch.arange(10.0).view(5, 2)
    for place in range(5) if rank is None else range(rank, 5, WORLD):
        batch = {"language": "go", "kind": "code", "indices": torch.tensor([place])}
        vectors.add(batch, whole[place : place + 1])
    asked: list[int] = []

    def score(pairs: Any) -> Tensor:
        asked.extend(pairs)
        return torch.tensor([float(pair) ** 2 for pair in pairs])

    scores = shared_scores(list(range(7)), score)
    shares = torch.tensor([len(asked)])
    if dist.is_initialized():
        dist.all_reduce(shares)
    return {"vectors": vectors.take("go", "code", 5), "scores": scores, "asked": shares}


@pytest.mark.parametrize("form", FORMS[:2])
def test_two_processes_equal_one(form):
    first, second = ranks(run, form)
    whole = run(form)
    assert any(name.endswith("loss_fast") for name in whole)
    assert any(".grad." in name for name in whole)
    assert_ranks_equal_one(first, second, whole)
    torch.testing.assert_close(whole["scores"], torch.arange(7.0) ** 2)
    assert int(whole["asked"]) == 7


def test_without_gathering_they_do_not():
    first, second = ranks(run, "local")
    with pytest.raises(AssertionError):
        assert_ranks_equal_one(first, second, run("local"))
