"""Look at what a module computes inside its own `training_step`, without changing it."""

import inspect
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from types import ModuleType
from typing import Any
from unittest.mock import patch

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from shared.tasks import image_text_matching

EPOCH = 10_000  # repetitions that make an epoch longer than any steps looked at


@contextmanager
def given_negatives(negatives: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Image-text matching draws these: in each step an image or video for each text, and a text for
    each image. Yields the weights by which they would have been drawn, in this order."""
    remaining = list(negatives)
    weights: list[Tensor] = []
    draw = image_text_matching.draw_negatives

    def given(of: Tensor, positives: Tensor, uniforms: Tensor) -> Tensor:
        expected = remaining.pop(0)
        assert draw(of, positives, uniforms).shape == expected.shape
        assert not positives[torch.arange(len(of)), expected].any()
        weights.append(of)
        return expected

    with patch.object(image_text_matching, "draw_negatives", given):
        yield weights
    assert not remaining


@dataclass
class Call:
    """One call: its arguments by parameter name, and what it returned."""

    arguments: dict[str, Any]
    result: Any


@contextmanager
def recording(*targets: tuple[Any, str]) -> Iterator[dict[str, list[Call]]]:
    """Record the calls of `owner.name` for each (owner, name), under its name.

    Tensors are cloned, except those that carry gradient, because a step changes many in place.
    """
    calls: dict[str, list[Call]] = defaultdict(list)
    with ExitStack() as patches:
        for owner, name in targets:
            original = getattr(owner, name)

            def wrapper(*args: Any, _original=original, _name=name, **kwargs: Any) -> Any:
                bound = inspect.signature(_original).bind(*args, **kwargs)
                arguments = {key: _keep(value) for key, value in bound.arguments.items()}
                result = _original(*args, **kwargs)
                calls[_name].append(Call(arguments, _keep(result)))
                return result

            patches.enter_context(patch.object(owner, name, wraps(original)(wrapper)))
        yield calls


def _keep(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value if value.requires_grad else value.clone()
    if isinstance(value, tuple | list):
        items = [_keep(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return dict(value) if isinstance(value, dict) else value


class Given(nn.Module):
    """Stands in for a network: returns prepared outputs, one per call."""

    def __init__(self, *outputs: Any):
        super().__init__()
        self.outputs = list(outputs)

    def forward(self, images: Tensor) -> Any:
        return self.outputs.pop(0)


def given_permutations(
    namespace: ModuleType, permutations: Iterable[Tensor]
) -> AbstractContextManager[Any]:
    """Inside, `step_permutation` as imported into `namespace` gives these, one per call."""
    remaining = iter(permutations)
    return patch.object(namespace, "step_permutation", lambda seed, step, size: next(remaining))


class StepWatcher(pl.Callback):
    """Calls back before each optimiser step and after each batch."""

    def __init__(self, before_update: Any, after_step: Any):
        self.before_update, self.after_step = before_update, after_step

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        self.before_update(optimizer)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.after_step(batch_idx)


def quiet_trainer(callback: pl.Callback, epoch: int = 0, **options: Any) -> pl.Trainer:
    """A trainer on the CPU that only trains, from `epoch` on."""
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        callbacks=[callback],
        **options,
    )
    progress = trainer.fit_loop.epoch_progress.current
    progress.ready = progress.started = progress.processed = progress.completed = epoch
    return trainer


def fit(
    module: pl.LightningModule, batches: list[dict[str, Tensor]], callback: pl.Callback, epoch=0
) -> pl.Trainer:
    """Run the module's real loop over the batches, as the first ones of `epoch`."""
    trainer = quiet_trainer(callback, epoch, devices=1, max_steps=len(batches), max_epochs=-1)
    trainer.fit(module, DataLoader(batches * EPOCH, batch_size=None))  # max_steps ends it
    return trainer


def snapshot(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in state.items()}


@contextmanager
def gradients_as_weights(network: nn.Module) -> Iterator[None]:
    """Inside, each parameter of `network` holds its gradient (zeros where it has none).

    So gradients take official names by the same export as weights.
    """
    weights = [(p, p.data) for p in network.parameters()]
    for p, _ in weights:
        p.data = torch.zeros_like(p) if p.grad is None else p.grad
    try:
        yield
    finally:
        for p, data in weights:
            p.data = data
