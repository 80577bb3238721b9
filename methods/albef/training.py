"""The frame of every ALBEF training: AdamW under a stepped cosine, and the weight of distillation.

Source: docs/papers/albef.md, sections 3.4 to 3.6; salesforce/ALBEF@b9727e4
`scheduler/cosine_lr.py`, `optim/optim_factory.py` and the scripts' training loops.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from shared.nn.momentum import MomentumEncoder
from shared.training.lightning_internals import trainer_of
from shared.training.method import Method
from shared.training.optim import decay_matrices
from shared.training.schedules import stepped_cosine

Batch = Mapping[str, Any]


class Finetuning(Method):
    """Rate and optimiser; subclasses add the network and `training_step`.

    Args:
        lr, min_lr, warmup_lr, warmup_blocks, warmup_block, epochs: see `stepped_cosine`.
        weight_decay: of matrices, embeddings and the temperature, see `decay_matrices`.
    """

    def __init__(
        self,
        lr: float,
        min_lr: float,
        warmup_lr: float,
        warmup_blocks: int,
        epochs: int,
        weight_decay: float,
        warmup_block: int = 100,
    ):
        super().__init__()
        self.weight_decay = weight_decay
        self.schedule: dict[str, Any] = {
            "lr": lr,
            "min_lr": min_lr,
            "warmup_lr": warmup_lr,
            "warmup_blocks": warmup_blocks,
            "warmup_block": warmup_block,
            "epochs": epochs,
        }

    def on_fit_start(self) -> None:
        """Refuse a vocabulary that does not fit the embeddings or the ids of special tokens.

        Raises:
            ValueError: names both.
        """
        tokenizer = getattr(getattr(self.trainer, "datamodule", None), "tokenizer", None)
        text = self.hparams.get("text", {})
        if tokenizer is None or "vocab_size" not in text:
            return
        if len(tokenizer) > text["vocab_size"]:
            raise ValueError(
                f"method.text.vocab_size={text['vocab_size']} is less than the {len(tokenizer)} "
                "words of data.vocab"
            )
        for name, expected in (("cls_id", tokenizer.cls_id), ("mask_id", tokenizer.mask_id)):
            if self.hparams.get(name, expected) != expected:
                raise ValueError(
                    f"method.{name}={self.hparams[name]}, but it is {expected} in data.vocab"
                )

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """The rate of this iteration; the official scripts set it after the one before."""
        rate = stepped_cosine(self.current_epoch, batch_idx, **self.schedule)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rate
        self.log_train({"lr": rate})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = decay_matrices(self, self.weight_decay)
        return torch.optim.AdamW(groups, self.schedule["lr"], fused=True)


class MomentumDistilled(Finetuning):
    """A network with a momentum copy whose predictions soften the targets.

    Args:
        encoders: the network that is copied.
        encoder_momentum: m of the copy.
        alpha: weight of the copy's predictions; 0 trains without them.
        ramp: let alpha rise linearly from 0 in the course of epoch 0.
        schedule: see `Finetuning`.
    """

    def __init__(
        self,
        encoders: nn.Module,
        encoder_momentum: float,
        alpha: float,
        ramp: bool,
        **schedule: Any,
    ):
        super().__init__(**schedule)
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha={alpha} is no weight between 0 and 1")
        self.alpha, self.ramp, self.encoder_momentum = alpha, ramp, encoder_momentum
        self.encoders = encoders
        self.momentum_encoders = MomentumEncoder(encoders, buffers="keep")

    def distillation_weight(self, batch_idx: int) -> float:
        """alpha in this step; outside a Trainer there is no ramp."""
        if trainer_of(self) is None or not self.ramp or self.current_epoch > 0:
            return self.alpha
        return self.alpha * min(1.0, batch_idx / self.trainer.num_training_batches)

    def update_momentum(self) -> None:
        """The moving average, taken within the forward pass, before the optimiser's step."""
        self.momentum_encoders.update(self.encoders, self.encoder_momentum)
