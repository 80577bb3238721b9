"""Two gloo processes compute what one process computes on the concatenated batch.

Real Lightning loops with real DDP. BatchNorm runs in evaluation mode, since its statistics are per
process by design; everything else must agree: losses (mean over ranks), gradients (as DDP averages
them), alignment window, memory bank, both queues, networks after the updates.
"""

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from methods.comatch.imagenet import CoMatchImageNet
from methods.comatch.module import CoMatch, FixMatch

from .toys import COLOUR, share, still, toy
from .two_processes import Record, Values, assert_ranks_equal_one, fit, ranks

STEPS, CLASSES, LABELLED, MU = 3, 5, 4, 3  # LABELLED and MU: over both ranks
# A bank of one batch: step 2 is CoMatch's first one that is smoothed.
FORMS = {"comatch": CoMatch, "fixmatch": FixMatch, "imagenet": CoMatchImageNet}


def build(form: str) -> pl.LightningModule:
    module = still(toy(FORMS[form], 3, backbone=COLOUR))
    with torch.no_grad():  # so that some samples are confident, and some are not
        module.encoder.classifier.weight.mul_(8.0)
    copy = module.momentum_encoder if form == "imagenet" else module.ema_encoder
    copy.module.load_state_dict(module.encoder.state_dict())
    return module


def batches(rank: int | None) -> list[dict[str, Tensor]]:
    """The batches of one rank, or with None the concatenation of both."""
    generator = torch.Generator().manual_seed(11)
    out = []
    for _ in range(STEPS):
        batch = {"labels": torch.randint(CLASSES, (LABELLED,), generator=generator)}
        batch["labelled"] = torch.randn(LABELLED, 3, 8, 8, generator=generator)
        for view in ("weak", "strong0", "strong1"):
            batch[view] = 2 * torch.randn(MU * LABELLED, 3, 8, 8, generator=generator)
        batch["hidden_labels"] = torch.randint(CLASSES, (MU * LABELLED,), generator=generator)
        batch["unlabelled_indices"] = torch.arange(MU * LABELLED)
        out.append(share(batch, rank))
    return out


def run(form: str, rank: int | None, **options: Any) -> Values:
    options |= {"max_steps": STEPS, "max_epochs": -1}
    loader = DataLoader(batches(rank), batch_size=None)
    return fit(build(form), Record(), loader, options, epoch=1)


@pytest.mark.parametrize("form", FORMS)
def test_two_processes_equal_one(form: str) -> None:
    first, second = ranks(run, form)
    whole = run(form, None, devices=1)
    assert_ranks_equal_one(first, second, whole)
    # The comparison means something: the batches differ, samples are confident, edges are kept.
    assert not torch.equal(first["step0.loss_x"], second["step0.loss_x"])
    assert all(whole[f"step{step}.loss_u"] > 0 for step in range(STEPS))
