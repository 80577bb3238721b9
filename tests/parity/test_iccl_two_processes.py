"""Two gloo processes compute what one process computes on the concatenated batches.

Real Lightning loops with real DDP. BatchNorm runs in evaluation mode, since its statistics are per
process by design; everything else must agree: the weights of interpolation, losses (mean over
ranks), gradients (as DDP averages them), centroids, the network after the updates.
"""

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from methods.iccl.baselines import CrossEntropy
from methods.iccl.module import ICCL

from .toys import COLOUR, PROJECTION, share, still, toy
from .two_processes import WORLD, Record, Values, assert_ranks_equal_one, fit, ranks

STEPS, CLASSES, BATCH = 3, 5, 6  # BATCH: over both ranks
FORMS = ["iccl", "batch_lambda", "epoch_mean", "cross_entropy"]


def build(form: str) -> pl.LightningModule:
    if form == "cross_entropy":
        return still(toy(CrossEntropy, 3, backbone=COLOUR))
    granularity = "batch" if form == "batch_lambda" else "sample"
    module = toy(
        ICCL, 3, backbone=COLOUR, projection=PROJECTION | {"negative_slope": 0.0},
        temperature=0.2, centroid_momentum=0.7, w_agnostic=0.8, w_interp=1.2, w_centroid=0.7,
        centroid_mode="epoch_mean" if form == "epoch_mean" else "ema",
        mix={"alpha": 0.8, "granularity": granularity, "joint_forward": True},
    )  # fmt: skip
    return still(module)


def batches(rank: int | None) -> list[dict[str, Tensor]]:
    """The batches of one rank, or with None the concatenation of both."""
    generator = torch.Generator().manual_seed(11)
    out = []
    for _ in range(STEPS):
        batch = {}
        for images, labels, indices in (
            ("images", "labels", "indices"),
            ("partners", "partner_labels", "partner_indices"),
        ):
            batch[images] = torch.randn(BATCH, 3, 8, 8, generator=generator)
            batch[labels] = torch.randint(CLASSES, (BATCH,), generator=generator)
            batch[indices] = torch.arange(BATCH)
        out.append(share(batch, rank))
    return out


class Data(pl.LightningDataModule):
    """The batches above; its training images for class means are those of the first batch."""

    def __init__(self, rank: int | None):
        super().__init__()
        self.rank = rank

    def train_dataloader(self) -> DataLoader:
        return DataLoader(batches(self.rank), batch_size=None)  # type: ignore[arg-type]

    def features_dataloader(self) -> list[dict[str, Tensor]]:
        whole = batches(None)[0]
        rows = torch.arange(BATCH) if self.rank is None else torch.arange(self.rank, BATCH, WORLD)
        return [{name: whole[name][rows] for name in ("images", "labels", "indices")}]


def run(form: str, rank: int | None, **options: Any) -> Values:
    options |= {"max_steps": STEPS, "max_epochs": -1}
    return fit(build(form), Record(), Data(rank), options)


@pytest.mark.parametrize("form", FORMS)
def test_two_processes_equal_one(form: str) -> None:
    first, second = ranks(run, form)
    whole = run(form, None, devices=1)
    assert_ranks_equal_one(first, second, whole)
    # The comparison means something: the ranks' batches differ, and the centroids have moved.
    losses = [name for name in whole if ".loss_ce" in name]
    assert all(not torch.equal(first[name], second[name]) for name in losses)
    if form != "cross_entropy":
        assert whole["centroids.prototypes"].norm(dim=1).max() > 0.99
