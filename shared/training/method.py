"""The thin base of every method: loss bookkeeping, the stop on non-finite losses, scheduled SGD.

Nothing of any algorithm lives here; a method's `training_step` is read in one file.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from shared.training.lightning_internals import trainer_of


class NonFiniteLoss(RuntimeError):
    """A loss term is NaN or infinite; raised before the backward pass, so no weight has changed."""


class Method(pl.LightningModule):
    """Base class of all LightningModules here. Constructors take plain values only."""

    memory_format: torch.memory_format = torch.contiguous_format
    predicts: ClassVar[str] = "probabilities"  # by `predict_step`, or "embeddings"
    accumulates: ClassVar[bool] = False  # several batches may make an update: none moves a queue

    def attach(self, datamodule: Any) -> None:
        """Take from the data, before any step, what a training step needs beside its batch."""

    def lay_out(self, network: nn.Module, channels_last: bool) -> None:
        """Choose the memory format of a convolutional network and of its images: channels-last is
        faster on CPU and GPU, and exact but for the order of sums."""
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        network.to(memory_format=self.memory_format)  # type: ignore[call-overload]

    def concatenate(self, views: Sequence[Tensor]) -> Tensor:
        """One batch in the network's memory format; BatchNorm sees all views together."""
        return torch.cat(list(views)).contiguous(memory_format=self.memory_format)

    def total_loss(
        self,
        terms: Mapping[str, Tensor],
        weights: Mapping[str, float],
        indices: Tensor | None = None,
    ) -> Tensor:
        """The weighted sum of the scalar loss terms, logged as `train/<term>` beside `train/lr`, of
        all learning rates the highest; NonFiniteLoss names the step, the broken terms and the
        data-set `indices` of the batch."""
        total = torch.stack([weights.get(name, 1.0) * term for name, term in terms.items()]).sum()
        if not torch.isfinite(total):
            values = {name: float(term.detach()) for name, term in terms.items()}
            broken = [n for n, term in terms.items() if not torch.isfinite(term)] or ["their sum"]
            batch = "" if indices is None else f"; batch indices {indices.tolist()}"
            said = f"step {self.global_step}: {', '.join(broken)} not finite ({values}){batch}"
            raise NonFiniteLoss(f"{said}. No weight was updated; the last checkpoint is intact.")
        self.log_train({**terms, "loss": total})
        optimizers = getattr(trainer_of(self), "optimizers", ())
        if groups := [group for optimizer in optimizers for group in optimizer.param_groups]:
            self.log_train({"lr": max(float(group["lr"]) for group in groups)})
        return total

    def sgd(
        self,
        parameters: Iterable[Any],
        factor: Callable[[int], float],
        every: str = "epoch",
        **options: Any,
    ) -> Any:
        """SGD with the hyperparameters `lr`, times the factor of the epoch or step, and `momentum`,
        as `configure_optimizers` returns it. A lambda as factor leaves no trace in checkpoints."""
        p = self.hparams
        optimizer = torch.optim.SGD(parameters, lr=p["lr"], momentum=p["momentum"], **options)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return [optimizer], [{"scheduler": scheduler, "interval": every}]

    def log_train(self, values: Mapping[str, Tensor | float]) -> None:
        """Log `train/<name>` for each value; silently nothing outside a Trainer."""
        if trainer_of(self) is not None:
            self.log_dict({f"train/{name}": value for name, value in values.items()})

    def log_evaluation(self, split: str) -> None:
        """Log, below `val/` or `test/`, what the steps of that split have gathered."""

    def on_validation_epoch_end(self) -> None:
        self.log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        self.log_evaluation("test")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["_target_"] = f"{type(self).__module__}.{type(self).__qualname__}"
        datamodule = getattr(trainer_of(self), "datamodule", None)
        if names := getattr(datamodule, "class_names", None):
            checkpoint["class_names"] = [str(name) for name in names]  # for `tenfold predict`
        if (ids := getattr(datamodule, "category_ids", None)) is not None:
            checkpoint["category_ids"] = [int(number) for number in ids]  # for the same
        if tokens := getattr(getattr(datamodule, "tokenizer", None), "tokens", None):
            checkpoint["vocabulary"] = tokens  # for the same
