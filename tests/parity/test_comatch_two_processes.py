"""Two gloo processes compute what one process computes on the concatenated batch.

Real Lightning loops with real DDP. BatchNorm runs in evaluation mode, since its statistics are per
process by design; everything else must agree: losses (mean over ranks), gradients (as DDP averages
them), alignment window, memory bank, both queues, networks after the updates.
"""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from methods.comatch.imagenet import CoMatchImageNet
from methods.comatch.module import CoMatch, FixMatch

from .two_processes import (
    WORLD,
    Record,
    Values,
    assert_ranks_equal_one,
    fit,
    in_two_processes,
    ranks,
)

STEPS, CLASSES, LABELLED, MU = 3, 5, 4, 3  # LABELLED and MU: over both ranks
CONTRAST = 8.0
FORMS = ["comatch", "fixmatch", "imagenet"]


def build(form: str) -> pl.LightningModule:
    torch.manual_seed(3)
    backbone = {
        "_target_": "shared.nn.small_convnet.SmallConvNet",
        "channels": [6, 8],
        "in_channels": 3,
    }
    network = {
        "backbone": backbone,
        "num_classes": CLASSES,
        "projection": {"hidden": None, "dim": 6, "negative_slope": 0.1},
        "channels_last": True,
    }
    weights = {"lambda_u": 1.3, "alignment_window": 2}
    optimiser = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
    graph = {"graph_threshold": 0.22, "temperature": 0.3, "alpha": 0.7, "lambda_c": 0.9}
    frame = {"no_decay": ["bn"], "total_steps": 10, "ema_decay": 0.8, "ema_warm_up": False}
    module: Any
    if form == "imagenet":
        graph["graph_threshold"] = 0.1
        module = CoMatchImageNet(
            **network, **optimiser, **graph, **weights, threshold=0.22, queue_size=30,
            momentums=(0.9, 0.7), total_epochs=4, gather_graph=True, seed=5,
        )  # fmt: skip
    elif form == "comatch":
        # A bank of one batch: step 2 is the first one that is smoothed.
        module = CoMatch(
            **network, **optimiser, **graph, **weights, **frame, threshold=0.3, bank_batches=1,
            batch_size=LABELLED, mu=MU,
        )  # fmt: skip
    else:
        network["projection"] = None
        module = FixMatch(**network, **optimiser, **weights, **frame, threshold=0.3)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()
    with torch.no_grad():  # so that some samples are confident, and some are not
        module.encoder.classifier.weight.mul_(CONTRAST)
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
        if rank is not None:
            batch = {name: value.chunk(WORLD)[rank] for name, value in batch.items()}
        out.append(batch)
    return out


def run(form: str, rank: int | None, **options: Any) -> Values:
    options |= {"max_steps": STEPS, "max_epochs": -1}
    loader = DataLoader(batches(rank), batch_size=None)
    return fit(build(form), Record(), loader, options, epoch=1)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    in_two_processes(run, FORMS, folder)
    return folder


@pytest.mark.parametrize("form", FORMS)
def test_two_processes_equal_one(form: str, two_processes: Path) -> None:
    first, second = ranks(two_processes, form)
    whole = run(form, None, devices=1)
    assert_ranks_equal_one(first, second, whole)
    # The comparison means something: the batches differ, samples are confident, edges are kept.
    assert not torch.equal(first["step0.loss_x"], second["step0.loss_x"])
    assert all(whole[f"step{step}.loss_u"] > 0 for step in range(STEPS))
