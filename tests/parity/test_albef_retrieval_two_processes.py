"""Two gloo processes evaluate retrieval as one process does: every sample once, equal matrices.

Real Lightning validation under DDP. The ranks hold different numbers of images and of texts.
"""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import shared.tasks.image_text_retrieval as evaluation_module
from methods.albef.retrieval import Retrieval
from shared.data.loading.loader import EvaluationLoader
from shared.evaluation.features import gather_rows
from shared.evaluation.retrieval import Collector
from shared.tasks.image_text_retrieval import RetrievalEvaluation
from tests.unit.albef_toy import TEXT, retrieval, trainer

from .recording import recording
from .two_processes import WORLD, Values, ranks

IMAGES, WORDS, LONGEST, UNREADABLE = 13, 30, 7, 7
EVALUATIONS: dict[str, dict[str, Any]] = {
    "candidates": {"k_test": 3, "chunk": 12},
    "all": {"k_test": "all", "score": "itm+itc"},
    "bfloat16": {"k_test": 4, "precision": "bfloat16"},
}


class Pairs:
    """Entry e has 1 + e % 3 texts; its images can be read, but for one."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(11)
        self.images = torch.randn(IMAGES, 3, 16, 16, generator=generator)
        self.owners = torch.repeat_interleave(torch.arange(IMAGES), 1 + torch.arange(IMAGES) % 3)
        shape = (len(self.owners), LONGEST)
        lengths = torch.randint(2, LONGEST + 1, (len(self.owners), 1), generator=generator)
        self.mask = (torch.arange(LONGEST) < lengths).long()
        self.ids = torch.randint(1, WORDS, shape, generator=generator) * self.mask

    def __getitems__(self, entries: Any) -> dict[str, Tensor]:
        entries = torch.as_tensor(entries)
        rows = torch.isin(self.owners, entries)
        readable = entries[~torch.isin(entries, torch.tensor([UNREADABLE]))]
        return {
            "images": self.images[readable],
            "indices": readable,
            "input_ids": self.ids[rows],
            "attention_mask": self.mask[rows],
            "text_image": self.owners[rows],
            "hard_text": (self.owners[rows] + 2) % IMAGES,
        }


def build(form: str) -> Retrieval:
    text = TEXT | {"vocab_size": WORDS, "num_layers": 3}
    module = retrieval(text=text, evaluation=EVALUATIONS[form])
    with torch.no_grad():  # as after training: pairs differ clearly
        for p in module.encoders.text_encoder.layers.parameters():
            p.mul_(8 if p.ndim > 1 else 1)
    return module


def run(form: str, rank: int | None, **options: Any) -> Values:
    if form == "uneven":
        return uneven(rank)
    rank, world = (0, 1) if rank is None else (rank, WORLD)
    loader = EvaluationLoader(Pairs(), IMAGES, batch_size=4, rank=rank, world=world)
    with (
        pytest.warns(UserWarning, match="texts are left out"),
        recording((RetrievalEvaluation, "scores"), (evaluation_module, "score_pairs")) as calls,
    ):
        (metrics,) = trainer(**options).validate(build(form), loader, verbose=False)
    i2t, t2i = calls["scores"][0].result
    scored = calls["score_pairs"][0].arguments
    values = {name: torch.tensor(value) for name, value in metrics.items()}
    own = {"own.images": scored["gallery"].own, "wanted": scored["wanted"]}
    return {**values, "i2t": i2t, "t2i": t2i, **own}


def uneven(rank: int | None) -> Values:
    """Rank 1 has no batch; and values of many types are gathered."""
    collector = Collector(torch.bfloat16)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1]])
    if rank == 0:
        collector.add(
            (torch.tensor([4, 1]), torch.ones(2, 2), torch.ones(2, 3, 5)),
            (torch.tensor([4, 4, 1]), torch.ones(3, 2), torch.randn(3, 3, 5), mask),
        )
    gallery = collector.gallery()
    assert len(gallery.own) == len(gallery.image_tokens) == (2 if rank == 0 else 0)
    # The first rank has rows, the second has none of "a", and two of "b".
    mine = {"a": torch.tensor([True, False])} if rank == 0 else {"b": torch.tensor([[7], [8]])}
    gathered = gather_rows({**mine, "c": torch.full((1 + dist.get_rank(), 2), 0.5).half()}, "cpu")
    return {
        "entries": gallery.entries,
        "tokens": gallery.texts.tokens.float(),
        "text_image": gallery.text_image,
        **{f"gathered.{name}": value for name, value in gathered.items()},
    }


@pytest.mark.parametrize("form", EVALUATIONS)
def test_two_processes_equal_one(form: str) -> None:
    first, second = ranks(run, form)
    whole = run(form, None, devices=1)
    assert whole.keys() == first.keys() == second.keys()
    own = [values.pop("own.images") for values in (first, second, whole)]
    for name, value in whole.items():
        assert torch.equal(first[name], second[name]), name
        atol = 2e-2 if form == "bfloat16" and name in ("i2t", "t2i") else 1e-5
        torch.testing.assert_close(first[name], value, atol=atol, rtol=1e-5, msg=name)
    # Each image is scored by one rank, all of them by the ranks together.
    assert sorted(torch.cat(own[:2]).tolist()) == own[2].sort().values.tolist() == list(range(12))
    assert [len(rows) for rows in own[:2]] == [7, 5]
    assert "val/itm_auc" in whole
    assert 0 < whole["val/r_mean"] < 100


def test_a_rank_without_images_and_values_of_any_type() -> None:
    first, second = ranks(run, "uneven")
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    assert first["entries"].tolist() == [1, 4]
    assert first["text_image"].tolist() == [0, 1, 1]
    assert first["tokens"].shape == (6, 5)
    assert first["gathered.a"].tolist() == [True, False]
    assert first["gathered.b"].tolist() == [[7], [8]]
    assert first["gathered.c"].shape == (3, 2)
