"""Two gloo processes compute what one process computes on the concatenated batch.

Real Lightning loops with real DDP: E-step, InfoNCE, prototypes. BatchNorm runs in evaluation mode,
since its statistics are per process by design; everything else must agree: clusters, losses (mean
over ranks), gradients (as DDP averages them), queue and networks after the updates. The sampled
form differs by design, because each rank avoids its own positives only.
"""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from methods.pcl.controls import PermutedClusters
from methods.pcl.module import PCL, MoCo
from shared.data.loading.loader import EvaluationLoader

from .two_processes import (
    WORLD,
    Record,
    Values,
    assert_ranks_equal_one,
    fit,
    in_two_processes,
    ranks,
)

STEPS, BATCH, IMAGES = 3, 6, 31  # BATCH: over both ranks; 31: not shared evenly
FORMS = ["moco", "full", "sampled", "permuted"]


def build(form: str) -> MoCo:
    torch.manual_seed(3)
    common: dict[str, Any] = {
        "backbone": {
            "_target_": "shared.nn.small_convnet.SmallConvNet",
            "channels": [6, 8],
            "in_channels": 3,
        },
        "projection": {"hidden": None, "dim": 6, "negative_slope": 0.1},
        "queue_size": 15,
        "key_momentum": 0.7,
        "temperature": 0.3,
        "lr": 0.1,
        "momentum": 0.9,
        "weight_decay": 0.01,
        "schedule": {"kind": "cosine"},
        "total_epochs": 4,
        "channels_last": True,
        "seed": 5,
        "evaluation": {},
    }
    module: MoCo
    if form == "moco":
        module = MoCo(**common)
    else:
        module = (PermutedClusters if form == "permuted" else PCL)(
            num_clusters=[3, 5],
            warm_up_epochs=0,
            prototypes="sampled" if form == "sampled" else "full",
            num_neg_proto=2,
            mask_shared=True,
            kmeans={"iterations": 5, "restarts": 2, "max_points_per_centroid": 99, "gpu": False},
            **common,
        )
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()
    return module


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
            if rank is not None:
                batch = {name: value.chunk(WORLD)[rank] for name, value in batch.items()}
            self.batches.append(batch)

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


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    in_two_processes(run, FORMS, folder)
    return folder


@pytest.mark.parametrize("form", FORMS)
def test_two_processes_equal_one(form: str, two_processes: Path) -> None:
    first, second = ranks(two_processes, form)
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
