"""Two gloo processes compute what one process computes on the concatenated batch.

Real Lightning loops with real DDP: E-step, InfoNCE, prototypes. BatchNorm runs in evaluation mode,
since its statistics are per process by design; everything else must agree: clusters, losses (mean
over ranks), gradients (as DDP averages them), queue and networks after the updates. The sampled
form differs by design, because each rank avoids its own positives only.
"""

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from methods.pcl.controls import PermutedClusters
from methods.pcl.module import PCL, MoCo
from shared.data.loading.loader import EvaluationLoader

from .toys import COLOUR, KMEANS, share, still, toy
from .two_processes import WORLD, Record, Values, assert_ranks_equal_one, fit, ranks

STEPS, BATCH, IMAGES = 3, 6, 31  # BATCH: over both ranks; 31: not shared evenly
KIND = {"moco": MoCo, "full": PCL, "sampled": PCL, "permuted": PermutedClusters}


def build(form: str) -> MoCo:
    if form == "moco":
        return still(toy(MoCo, 3, backbone=COLOUR))
    changes = {"warm_up_epochs": 0, "num_neg_proto": 2, "mask_shared": True}
    changes |= {"kmeans": KMEANS | {"restarts": 2}, "backbone": COLOUR}
    changes["prototypes"] = "sampled" if form == "sampled" else "full"
    return still(toy(KIND[form], 3, **changes))


class Pictures(pl.LightningDataModule):
    """Training batches of one rank, or with None of both; all images for the E-step."""

    def __init__(self, rank: int | None):
        super().__init__()
        self.rank = rank
        generator = torch.Generator().manual_seed(11)
        self.images = torch.randn(IMAGES, 3, 8, 8, generator=generator)
        self.batches = []
        for _ in range(STEPS):
            rows = torch.randperm(IMAGES, generator=generator)[:BATCH]
            noise = torch.randn(2, BATCH, 3, 8, 8, generator=generator) / 3
            query, key = self.images[rows] + noise
            batch = {"query": query, "key": key, "indices": 2 * rows}  # of a set with gaps
            self.batches.append(share(batch, rank))

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.batches, batch_size=None)

    def features_dataloader(self) -> EvaluationLoader:
        rank, world = (0, 1) if self.rank is None else (self.rank, WORLD)
        return EvaluationLoader(self, IMAGES, batch_size=4, rank=rank, world=world)

    def __getitems__(self, rows: Any) -> dict[str, Tensor]:
        rows = torch.as_tensor(rows)
        return {"images": self.images[rows], "labels": rows, "indices": 2 * rows}


class RecordClusters(Record):
    def on_train_end(self, trainer, pl_module) -> None:
        super().on_train_end(trainer, pl_module)
        if isinstance(pl_module, PCL):
            for m, granularity in enumerate(pl_module.clusters.state_dict()["granularities"]):
                self.values |= {f"clusters.{m}.{k}": v.clone() for k, v in granularity.items()}


def run(form: str, rank: int | None, **options: Any) -> Values:
    return fit(build(form), RecordClusters(), Pictures(rank), {**options, "max_epochs": 1})


@pytest.mark.parametrize("form", KIND)
def test_two_processes_equal_one(form: str) -> None:
    first, second = ranks(run, form)
    whole = run(form, None, devices=1)
    compared = [whole, first, second]
    if form == "sampled":  # what each rank contrasts with differs from one process
        for name in whole:
            assert ".loss_" in name or torch.equal(first[name], second[name]), name
        kept = [n for n in whole if n.startswith(("clusters.", "step0.loss_inst"))]
        compared = [{name: values[name] for name in kept} for values in compared]
    assert_ranks_equal_one(compared[1], compared[2], compared[0], exact=True)
    # The comparison means something: the ranks see other images, and cluster sizes differ.
    assert not torch.equal(first["step0.loss_inst"], second["step0.loss_inst"])
    if form != "moco":
        assert len(torch.bincount(whole["clusters.0.im2cluster"][::2]).unique()) > 1
