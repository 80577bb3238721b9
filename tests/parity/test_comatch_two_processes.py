"""Two gloo processes compute what one process computes on the concatenated batch.

Real Lightning loops with real DDP. BatchNorm runs in evaluation mode, since its statistics are per
process by design; everything else must agree: losses (mean over ranks), gradients (as DDP averages
them), alignment window, memory bank, both queues, networks after the updates.
"""

import os
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader

from methods.comatch.imagenet import CoMatchImageNet
from methods.comatch.module import CoMatch, FixMatch

WORLD, STEPS, CLASSES, LABELLED, MU = 2, 3, 5, 4, 3  # LABELLED and MU: over both ranks
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
    module.averaged.module.load_state_dict(module.encoder.state_dict())
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


class Record(pl.Callback):
    """Loss terms and gradients of every step, state after the last."""

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}

    def on_train_start(self, trainer, pl_module) -> None:
        assert not any(m.training for m in pl_module.modules() if isinstance(m, nn.BatchNorm2d))
        original = pl_module.total_loss

        def total_loss(terms, *rest):
            for name, term in terms.items():
                self.values[f"step{trainer.global_step}.{name}"] = term.detach().clone()
            return original(terms, *rest)

        pl_module.total_loss = total_loss

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        for name, p in pl_module.encoder.named_parameters():
            self.values[f"step{trainer.global_step}.grad.{name}"] = p.grad.clone()

    def on_train_end(self, trainer, pl_module) -> None:
        self.values |= {k: v.detach().clone() for k, v in pl_module.state_dict().items()}


def run(form: str, rank: int | None, **options: Any) -> dict[str, Tensor]:
    module, record = build(form), Record()
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=STEPS, max_epochs=-1, logger=False, callbacks=[record],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, limit_val_batches=0, use_distributed_sampler=False, **options,
    )  # fmt: skip
    progress = trainer.fit_loop.epoch_progress.current
    progress.ready = progress.started = progress.processed = progress.completed = 1
    trainer.fit(module, DataLoader(batches(rank), batch_size=None))
    return record.values


def worker(rank: int, folder: str) -> None:
    os.environ |= {"LOCAL_RANK": str(rank), "GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    # A rendezvous by file needs no port. Lightning keeps a group that exists.
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD
    )
    for form in FORMS:
        strategy = DDPStrategy(
            cluster_environment=LightningEnvironment(), process_group_backend="gloo"
        )
        values = run(form, rank, strategy=strategy, devices=WORLD)
        torch.save(values, f"{folder}/{form}{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(worker, args=(str(folder),), nprocs=WORLD)
    return folder


@pytest.mark.parametrize("form", FORMS)
def test_two_processes_equal_one(form: str, two_processes: Path) -> None:
    first, second = (torch.load(two_processes / f"{form}{rank}.pt") for rank in range(WORLD))
    whole = run(form, None, devices=1)
    assert whole.keys() == first.keys() == second.keys()
    for name, value in whole.items():
        mean = (first[name] + second[name]) / 2
        if ".loss_" not in name:  # state and gradients are equal on every rank
            torch.testing.assert_close(first[name], second[name], atol=1e-6, rtol=1e-5, msg=name)
            mean = first[name]
        torch.testing.assert_close(
            mean.to(value.dtype),
            value,
            atol=2e-6,
            rtol=2e-5,
            msg=lambda m, name=name: f"{name}: {m}",
        )
    # The comparison means something: the batches differ, samples are confident, edges are kept.
    assert not torch.equal(first["step0.loss_x"], second["step0.loss_x"])
    assert all(whole[f"step{step}.loss_u"] > 0 for step in range(STEPS))
