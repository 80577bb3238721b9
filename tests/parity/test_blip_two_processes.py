"""Two gloo processes take BLIP's whole pre-training step as one process does.

Contrast and negatives keep to a rank's own pairs and the queue (docs/papers/blip.md, sections 3.3
and 3.4). So the step of two ranks is that of one process which takes their batches by turns,
averages the gradients and queues the pairs of both at once. What depends on no other pair of the
batch, the words (with as many targets on each rank), the momentum features and the queue, also
equals one process on the concatenated batch.
"""

from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import methods.blip.module as module_file
from methods.blip.module import Pretraining
from tests.unit.blip_toy import BOS, CLS, PRETRAINING, SEP

from .two_processes import WORLD, Record, Values, assert_ranks_equal_one, fit, ranks

STEPS, PAIRS = 3, 6  # PAIRS: over both ranks
LENGTHS = torch.tensor([8, 5, 4, 6, 6, 5])  # as many words on each rank, the longest on the first
QUEUE = 15  # the third step writes past its end


class ByTurns(Pretraining):
    """Takes the batches of the ranks one after the other, from the same state, in one process."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        losses, written = [], []
        draws = super().step_draws("negatives", PAIRS, 2).chunk(WORLD)
        for rank, own in enumerate(halves(batch)):
            with ExitStack() as stands_in:
                for owner, name, instead in (
                    (module_file, "rank", lambda rank=rank: rank),
                    (self, "step_draws", lambda *_, rank=rank: draws[rank]),
                    (self.contrast, "enqueue", lambda *rows: written.append(rows)),
                ):
                    stands_in.enter_context(patch.object(owner, name, instead))
                if rank > 0:  # once a step, on all ranks alike
                    stands_in.enter_context(patch.object(self.momentum_encoders, "follow"))
                    stands_in.enter_context(patch.object(self.contrast.temp, "clamp_"))
                losses.append(super().training_step(own, batch_idx))
        self.contrast.enqueue(*(torch.cat(rows) for rows in zip(*written, strict=True)))
        return torch.stack(losses).mean()


class Words(Pretraining):
    """Learns from the words alone; the other terms take part with weight 0."""

    def total_loss(self, terms: Any, weights: Any, indices: Tensor | None = None) -> Tensor:
        return super().total_loss(terms, {"loss_ita": 0.0, "loss_itm": 0.0}, indices)


class RecordStep(Record):
    """All gradients, and the mean of a loss term that a step computes twice; of `Words` only what
    both ways of computing share."""

    def keep(self, trainer, name, value) -> None:
        key = f"step{trainer.global_step}.{name}"
        if isinstance(trainer.lightning_module, Words) and name in ("loss_ita", "loss_itm"):
            return
        before = self.values.get(key)
        super().keep(trainer, name, value if before is None else (before + value) / 2)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        for name, p in pl_module.named_parameters():
            if p.grad is not None:
                self.keep(trainer, f"grad.{name}", p.grad)


def halves(batch: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """The batch of each rank, its texts cut to their longest."""
    parts = []
    for rank in range(WORLD):
        part = {name: value.chunk(WORLD)[rank] for name, value in batch.items()}
        longest = int(part["attention_mask"].sum(dim=1).max())
        parts.append(part | {n: part[n][:, :longest] for n in ("input_ids", "attention_mask")})
    return parts


def batches() -> list[dict[str, Tensor]]:
    """The batches of both ranks, concatenated."""
    generator, whole = torch.Generator().manual_seed(11), []
    mask = (torch.arange(8) < LENGTHS[:, None]).long()
    for _ in range(STEPS):
        ids = torch.randint(5, BOS, (PAIRS, 8), generator=generator) * mask
        ids[:, 0] = CLS
        ids.scatter_(1, LENGTHS[:, None] - 1, SEP)
        images = torch.randn(PAIRS, 3, 16, 16, generator=generator)
        texts = {"input_ids": ids, "attention_mask": mask}
        whole.append({"images": images, "indices": torch.arange(PAIRS), **texts})
    return whole


def run(form: str, rank: int | None, **options: Any) -> Values:
    """`form`: "step", or "words"; without a rank one process takes both batches, by turns where
    the form is "step"."""
    kind = {"step": Pretraining if rank is not None else ByTurns, "words": Words}[form]
    torch.manual_seed(0)
    module = kind(**PRETRAINING | {"queue_size": QUEUE, "temperature": 0.2})
    # AdamW would blow up the rounding noise of gradients that are analytically zero (key biases).
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), 0.1)
    data = [batch if rank is None else halves(batch)[rank] for batch in batches()]
    loader = DataLoader(data, batch_size=None)
    return fit(module, RecordStep(), loader, options | {"max_steps": STEPS, "max_epochs": -1})


@pytest.mark.parametrize("form", ["step", "words"])
def test_two_processes_equal_one(form: str) -> None:
    first, second = ranks(run, form)
    whole = run(form, None, devices=1)
    assert_ranks_equal_one(first, second, whole)
    terms = {"step": ("loss_ita", "loss_itm", "loss_lm"), "words": ("loss_lm",)}[form]
    for term in terms:
        assert not torch.equal(first[f"step0.{term}"], second[f"step0.{term}"]), term
    assert whole["contrast.queue.written"] == STEPS * PAIRS
    assert whole["contrast.queue.pointer"] == STEPS * PAIRS - QUEUE
    assert whole["contrast.queue.idx"][:3, 0].tolist() == [3, 4, 5], "the second rank's, wrapped"
