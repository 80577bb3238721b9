"""Finds the method packages, and runs their smallest experiment through the real entry point."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from benchmarks.chaos import first_difference
from shared import run as entry
from shared.training.method import Method
from tests.configs import composed as compose_experiment
from tests.processes import within

ROOT = Path(__file__).parents[2]
TWO_STEPS = ("trainer.max_steps=2", "trainer.limit_train_batches=2")
METHODS = sorted(path.parent.name for path in (ROOT / "methods").glob("*/module.py"))


@dataclass
class Finished:
    """A run of the smallest experiment: the live module and data, and the folder it wrote; of
    `two_steps` also the parameters `before` the first step and the names of the summed losses."""

    module: pl.LightningModule
    datamodule: pl.LightningDataModule
    output: Path
    before: dict[str, Tensor] = field(default_factory=dict)
    terms: set[str] = field(default_factory=set)

    def checkpoint(self) -> dict[str, Any]:
        return torch.load(self.output / "checkpoints" / "last.ckpt", weights_only=True)

    def batch(self) -> dict[str, Any]:
        return next(iter(self.datamodule.test_dataloader()))


Smoke = Callable[..., Finished]


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session", params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def smoke(method: str, data_root: Path, tmp_path: Path) -> Smoke:
    """`smoke(*overrides, output=name, before_fit=f)` runs experiment/<method>/smoke.yaml."""

    def run(*overrides: str, output: str = "run", before_fit: Any = None) -> Finished:
        return run_smallest(method, data_root, tmp_path / output, overrides, before_fit)

    return run


@pytest.fixture(scope="session")
def two_steps(method: str, data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Two steps of the smallest experiment, taken once for all tests that only look at them."""
    before: dict[str, Tensor] = {}
    terms: set[str] = set()
    original = Method.total_loss

    def keep(trainer: pl.Trainer, module: pl.LightningModule) -> None:
        before.update({name: p.detach().clone() for name, p in module.named_parameters()})

    def note(self: Method, summed: dict[str, Tensor], *rest: Any) -> Tensor:
        terms.update(summed)
        return original(self, summed, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Method, "total_loss", note)
        folder = tmp_path_factory.mktemp(method) / "run"
        run = run_smallest(method, data_root, folder, TWO_STEPS, keep)
    run.before, run.terms = before, terms
    return run


def run_smallest(
    method: str, data_root: Path, output: Path, overrides: Sequence[str], before_fit: Any = None
) -> Finished:
    places = (f"output_dir={output}", f"data_root={data_root}", "logger.wandb=null")
    quiet = ("trainer.enable_progress_bar=false", "trainer.log_every_n_steps=1")
    config = compose_experiment(f"{method}/smoke", *places, *quiet, *overrides)
    with seen_fit(before_fit) as seen, within(900):
        entry.run(config)
    return Finished(*seen[0], output)


@contextlib.contextmanager
def seen_fit(before_fit: Callable[[pl.Trainer, Any], None] | None) -> Iterator[list]:
    """Notes the module and data that the entry point fits; `before_fit(trainer, module)` first."""
    seen: list[tuple[Any, Any]] = []
    original = pl.Trainer.fit

    def fit(self: pl.Trainer, model: Any, *args: Any, **kwargs: Any) -> None:
        seen.append((model, kwargs["datamodule"]))
        if before_fit is not None:
            before_fit(self, model)
        original(self, model, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pl.Trainer, "fit", fit)
        yield seen


def assert_same(mine: Any, other: Any, where: str = "value") -> None:
    """Bit for bit, through containers."""
    assert first_difference(mine, other, where) is None
