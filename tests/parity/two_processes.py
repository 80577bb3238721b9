"""Run a method's real Lightning loop in one process and in two gloo processes under DDP.

A test module gives `run(form, rank, **options)`, which ends in `fit` below and returns what it
recorded; `ranks` calls it on every rank. BatchNorm must be in evaluation
mode, since its statistics are per process by design.
"""

import os
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from datetime import timedelta
from functools import cache
from multiprocessing import active_children, parent_process
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from threading import Thread
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn

from .recording import quiet_trainer

WORLD = 2
Values = dict[str, Tensor]


class Record(pl.Callback):
    """Loss terms and gradients of every step, state after the last."""

    def __init__(self) -> None:
        self.values: Values = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        module: Any = pl_module
        self.check_batch_norm(module)
        original = module.total_loss

        def total_loss(terms: dict[str, Tensor], *rest: Any) -> Tensor:
            for name, term in terms.items():
                name = name if name.startswith("loss_") else f"loss_{name}"
                self.keep(trainer, name, term)
            return original(terms, *rest)

        module.total_loss = total_loss

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        for name, p in pl_module.encoder.named_parameters():
            self.keep(trainer, f"grad.{name}", p.grad)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.check_batch_norm(pl_module)
        self.values |= {k: v.detach().clone() for k, v in pl_module.state_dict().items()}

    def keep(self, trainer: pl.Trainer, name: str, value: Tensor) -> None:
        """Under `step<n>.<name>`; a loss term's name begins with `loss_`."""
        self.values[f"step{trainer.global_step}.{name}"] = value.detach().clone()

    @staticmethod
    def check_batch_norm(module: nn.Module) -> None:
        assert not any(m.training for m in module.modules() if isinstance(m, nn.BatchNorm2d))


def fit(
    module: pl.LightningModule, record: Record, data: Any, options: dict[str, Any], epoch: int = 0
) -> Values:
    """What was recorded of a training on a data module or loader, from `epoch` on; `options` are
    those of `pl.Trainer`."""
    trainer = quiet_trainer(record, epoch, use_distributed_sampler=False, **options)
    trainer.fit(module, data)
    return record.values


@cache
def _processes() -> list[ProcessPoolExecutor]:
    """One process a rank, joined in a gloo group, for all tests: each costs seconds of imports."""
    rendezvous = Path(mkdtemp(), "rendezvous")
    return [
        ProcessPoolExecutor(1, mp.get_context("spawn"), _join_group, (rank, str(rendezvous)))
        for rank in range(WORLD)
    ]


@cache
def ranks(run: Callable[..., Values], form: str) -> list[Values]:
    """What each rank's `run(form, rank, **options)` has recorded."""
    with TemporaryDirectory() as folder:
        on_each_rank(_run_form, run, form, folder)
        return [torch.load(Path(folder, f"{rank}.pt")) for rank in range(WORLD)]


def assert_ranks_equal_one(
    first: Values, second: Values, whole: Values, exact: bool = False
) -> None:
    """Loss terms of one process on the concatenated batch are the mean over ranks; everything else
    is equal on both ranks (`exact`: bit by bit) and in one process."""
    assert whole.keys() == first.keys() == second.keys()
    for name, value in whole.items():
        mean = (first[name] + second[name]) / 2
        if ".loss_" not in name:
            tolerance = {"atol": 0.0, "rtol": 0.0} if exact else {"atol": 1e-6, "rtol": 1e-5}
            torch.testing.assert_close(first[name], second[name], **tolerance, msg=name)
            mean = first[name]
        mean = mean.to(value.dtype)
        torch.testing.assert_close(
            mean, value, atol=2e-6, rtol=2e-5, msg=lambda m, name=name: f"{name}: {m}"
        )


def on_each_rank(function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `function(rank, *arguments)` returns on each rank of the group."""
    jobs = [process.submit(function, rank, *arguments) for rank, process in enumerate(_processes())]
    done, waiting = wait(jobs, timeout=300, return_when=FIRST_EXCEPTION)
    if waiting or any(job.exception() for job in done):  # the other rank may wait for ever
        _processes.cache_clear()
        for child in active_children():
            child.kill()
    return [job.result() for job in sorted(jobs, key=waiting.__contains__)]


def _join_group(rank: int, rendezvous: str) -> None:
    Thread(target=_end_with_parent, daemon=True).start()
    os.environ |= {"LOCAL_RANK": str(rank), "GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    # A rendezvous by file needs no port. Lightning keeps a group that exists.
    place = {"rank": rank, "world_size": WORLD, "init_method": f"file://{rendezvous}"}
    dist.init_process_group("gloo", timeout=timedelta(minutes=5), **place)


def _end_with_parent() -> None:
    """A parent that is killed, or a fork that ends by `os._exit`, stops no process by itself."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run_form(rank: int, run: Callable[..., Values], form: str, folder: str) -> None:
    here = LightningEnvironment()
    strategy = DDPStrategy(cluster_environment=here, process_group_backend="gloo")
    torch.save(run(form, rank, strategy=strategy, devices=WORLD), Path(folder, f"{rank}.pt"))
    dist.barrier()
