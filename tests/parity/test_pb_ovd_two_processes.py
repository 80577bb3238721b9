"""Two gloo processes train the detector as one process does on the concatenated batch.

Real Lightning loops with real DDP. The official code averages the ranks' losses, each over its own
anchors and regions (docs/papers/pb_ovd.md, sections 3.7 to 3.9): that is the loss of a whole batch
where every image gives as many of both. Losses (mean over ranks), gradients as DDP averages them,
and the weights after the updates must agree, although ranks have objects of their own.
"""

from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils.data import DataLoader

import shared.tasks.detection as tasks
from methods.pb_ovd.module import OpenVocabularyDetector
from shared.nn.detection.matching import Assignment, Sample
from tests.unit.pb_ovd_toy import detector, settings
from tests.unit.simcal_toy import scenes

from .two_processes import WORLD, Record, Values, assert_ranks_equal_one, fit, ranks

STEPS, BATCH = 3, 6  # BATCH: over both ranks
WIDEST = 4096  # candidates of an image
TERMS = ("loss_rpn_class", "loss_rpn_box", "loss_class", "loss_box")


class DrawnByImage(OpenVocabularyDetector):
    """Chooses anchors and regions by an image's number alone, whichever process has it."""

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        def sample(assignment: Assignment, priority: Tensor, of: Any) -> Sample:
            rows = []
            for number in batch["indices"].tolist():
                draws = torch.rand(WIDEST, generator=torch.Generator().manual_seed(number))
                rows.append(draws[-priority.shape[1] :])
            chosen = original(assignment, torch.stack(rows), of)
            assert (chosen.chosen.sum(dim=1) == of.count).all()
            return chosen

        original = tasks.sample
        with patch.object(tasks, "sample", sample):
            return super().training_step(batch, batch_idx)


class RecordStep(Record):
    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        for name, p in pl_module.named_parameters():
            if p.requires_grad:
                self.keep(trainer, f"grad.{name}", p.grad)


def halves(batch: dict[str, Any]) -> list[dict[str, Any]]:
    """The batch of each rank."""
    own = BATCH // WORLD
    return [
        {name: value[rank * own : (rank + 1) * own] for name, value in batch.items()}
        for rank in range(WORLD)
    ]


def batches() -> list[dict[str, Any]]:
    """Batches in whose halves an image has three objects at most: proposals stand behind them."""
    found = (scenes(BATCH, seed) for seed in range(50, 99))
    full = [
        batch
        for batch in found
        if all(max(len(t["labels"]) for t in half["targets"]) == 3 for half in halves(batch))
    ]
    return full[:STEPS]


def run(form: str, rank: int | None, **options: Any) -> Values:
    training = settings()["training"]
    training["anchors"]["count"] = training["regions"]["count"] = 6
    module = detector(DrawnByImage, training=training)
    data = [batch if rank is None else halves(batch)[rank] for batch in batches()]
    options |= {"max_steps": STEPS, "max_epochs": -1}
    return fit(module, RecordStep(), DataLoader(data, batch_size=None), options)  # type: ignore[arg-type]


def test_two_processes_equal_one() -> None:
    first, second = ranks(run, "step")
    whole = run("step", None, devices=1)
    assert_ranks_equal_one(first, second, whole)
    for term in TERMS:
        assert not torch.equal(first[f"step0.{term}"], second[f"step0.{term}"]), term
    start = detector().state_dict()["detector.box_heads.0.emb_pred.weight"]
    assert not torch.equal(whole["detector.box_heads.0.emb_pred.weight"], start)
