"""CoMatch as in the CIFAR script, with FixMatch and the supervised baseline from the same pieces.

Shapes: B labelled and M = mu B unlabelled images, C classes, d embedding size, K memory rows.
Source: docs/papers/comatch.md, sections 3.1 to 3.5; salesforce/CoMatch@08b4cce `Train_CoMatch.py`,
`Train_fixmatch.py`.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.comatch.losses import (
    DistributionAlignment,
    confident_cross_entropy,
    graph_contrastive_loss,
    graph_quality,
    pseudo_label_graph,
    pseudo_label_quality,
    smooth_with_memory,
)
from shared.distributed import all_gather, rank
from shared.nn.encoder import Encoder
from shared.nn.momentum import MomentumEncoder
from shared.nn.queue import FeatureQueue
from shared.tasks.classification import Accuracies, Batch
from shared.training.method import Method
from shared.training.optim import weight_decay_groups
from shared.training.schedules import cosine_7_16, warm_up_decay


class EMAClassifier(Method):
    """The CIFAR scripts' frame: SGD with the 7/16 cosine, and an EMA copy that predicts.

    Evaluates both networks: `val/top1`, `val/top5` and, of the copy, `val/top1_ema`,
    `val/top5_ema`; `test/...` likewise.

    Args:
        projection: see `Encoder`; only CoMatch has one.
        lr, momentum, weight_decay, no_decay: Nesterov SGD; see `weight_decay_groups`.
        total_steps: N of the schedule lr cos(7 pi t / 16 N).
        ema_decay: of the evaluation copy, applied after every optimiser step.
        ema_warm_up: use min(ema_decay, (1 + t) / (10 + t)), for short runs only.
    """

    def __init__(
        self,
        backbone: dict[str, Any],
        num_classes: int,
        projection: dict[str, Any] | None,
        channels_last: bool,
        lr: float,
        momentum: float,
        weight_decay: float,
        no_decay: list[str],
        total_steps: int,
        ema_decay: float,
        ema_warm_up: bool,
    ):
        super().__init__()
        self.save_hyperparameters()  # those of a subclass as well
        self.encoder = Encoder(backbone, num_classes, projection)
        self.lay_out(self.encoder, channels_last)
        self.ema_encoder = MomentumEncoder(self.encoder, buffers="copy")
        self.accuracies = Accuracies("", "_ema")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        images = self.concatenate([batch["images"]])
        for suffix, network in {"": self.encoder, "_ema": self.ema_encoder}.items():
            self.accuracies.update(network(images)[0], batch["labels"], suffix)

    test_step = validation_step

    def log_evaluation(self, split: str) -> None:
        self.log_dict(self.accuracies.compute(split))

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """(N, C) class probabilities."""
        return self.ema_encoder(self.concatenate([batch["images"]]))[0].softmax(dim=1)

    def configure_optimizers(self):
        p = self.hparams
        groups = weight_decay_groups(self.encoder, p["weight_decay"], p["no_decay"])
        return self.sgd(
            groups, lambda step: cosine_7_16(step, p["total_steps"]), every="step", nesterov=True
        )

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        decay = self.hparams["ema_decay"]
        if self.hparams["ema_warm_up"]:
            decay = warm_up_decay(self.global_step, decay)
        self.ema_encoder.update(self.encoder, decay)


class Supervised(EMAClassifier):
    """Cross-entropy on the labelled images alone."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        logits, _ = self.encoder(self.concatenate([batch["labelled"]]))
        terms = {"loss_x": F.cross_entropy(logits, batch["labels"])}
        return self.total_loss(terms, {}, batch["labelled_indices"])


class FixMatch(EMAClassifier):
    """FixMatch (arXiv:2001.07685), whose pseudo-labels are hard; the arguments are CoMatch's, but
    that alignment_window null switches distribution alignment off."""

    def __init__(
        self, threshold: float, lambda_u: float, alignment_window: int | None, **common: Any
    ):
        super().__init__(**common)
        self.alignment: nn.Module = nn.Identity()
        if alignment_window:
            self.alignment = DistributionAlignment(common["num_classes"], alignment_window)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        views = [batch["labelled"], batch["weak"], batch["strong0"]]
        logits, _ = self.encoder(self.concatenate(views))
        logits_x, logits_w, logits_s = logits.split([len(view) for view in views])

        with torch.no_grad():
            probs = self.alignment(logits_w.softmax(dim=1))
            confidence, pseudo_labels = probs.max(dim=1)
            mask = (confidence >= self.hparams["threshold"]).float()

        self.log_train(pseudo_label_quality(pseudo_labels, mask, batch["hidden_labels"]))
        terms = {
            "loss_x": F.cross_entropy(logits_x, batch["labels"]),
            "loss_u": confident_cross_entropy(logits_s, pseudo_labels, mask),
        }
        weights = {"loss_u": self.hparams["lambda_u"]}
        return self.total_loss(terms, weights, batch["unlabelled_indices"])


class CoMatch(EMAClassifier):
    """CoMatch, CIFAR form: class probabilities and embeddings that teach each other.

    The alignment mean, the memory bank and the graph cover all ranks, so that N ranks compute what
    one process, as in the official script, computes on the concatenated batch (BatchNorm aside).

    Args:
        threshold: tau, confidence of the smoothed pseudo-label from which loss_u counts.
        graph_threshold: kappa, weight from which an edge of the pseudo-label graph is kept.
        temperature, alpha: see `smooth_with_memory`; T is also that of the contrastive loss.
        lambda_u, lambda_c: weights of the unlabelled and the graph contrastive loss.
        bank_batches, batch_size, mu: the bank holds K = bank_batches (mu + 1) batch_size rows, of
            batch_size labelled images over all ranks.
    """

    def __init__(
        self,
        threshold: float,
        graph_threshold: float,
        temperature: float,
        alpha: float,
        lambda_u: float,
        lambda_c: float,
        alignment_window: int,
        bank_batches: int,
        batch_size: int,
        mu: int,
        **common: Any,
    ):
        super().__init__(**common)
        num_classes, dim = common["num_classes"], common["projection"]["dim"]
        self.alignment = DistributionAlignment(num_classes, alignment_window)
        rows = bank_batches * (mu + 1) * batch_size
        self.bank = FeatureQueue(rows, dim, payloads={"probs": num_classes})

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        p = self.hparams
        views = [batch["labelled"], batch["weak"], batch["strong0"], batch["strong1"]]
        logits, embeddings = self.encoder(self.concatenate(views))
        sizes = [len(view) for view in views]
        logits_x, logits_w, logits_s0, _ = logits.split(sizes)
        z_x, z_w, z_s0, z_s1 = embeddings.split(sizes)

        with torch.no_grad():
            aligned = self.alignment(logits_w.softmax(dim=1))
            probs = self.smooth(aligned, z_w)
            confidence, pseudo_labels = probs.max(dim=1)
            mask = (confidence >= p["threshold"]).float()
            self.remember(z_w, aligned, z_x, batch["labels"])
            graph = self.graph(probs)

        self.log_train(pseudo_label_quality(pseudo_labels, mask, batch["hidden_labels"]))
        self.log_train(graph_quality(graph, batch["hidden_labels"]))
        # Gradient flows into both strong views, also into those of other ranks.
        references = all_gather(z_s1, grad=True)
        terms = {
            "loss_x": F.cross_entropy(logits_x, batch["labels"]),
            "loss_u": confident_cross_entropy(logits_s0, probs, mask),
            "loss_c": graph_contrastive_loss(z_s0, references, graph, p["temperature"]),
        }
        weights = {"loss_u": p["lambda_u"], "loss_c": p["lambda_c"]}
        return self.total_loss(terms, weights, batch["unlabelled_indices"])

    def smooth(self, aligned: Tensor, embeddings: Tensor) -> Tensor:
        """Smoothing with the bank as it was before this batch; not while it fills: officially too,
        iterations 0 to 5 with a bank of 5 batches are unsmoothed."""
        if self.bank.written <= len(self.bank):
            return aligned
        p = self.hparams
        return smooth_with_memory(aligned, embeddings, self.bank, p["temperature"], p["alpha"])

    def remember(self, z_w: Tensor, aligned: Tensor, z_x: Tensor, labels: Tensor) -> None:
        """Write the batch into the bank: aligned (never smoothed) probabilities, one-hot labels."""
        one_hot = F.one_hot(labels, aligned.shape[1]).to(aligned.dtype)
        self.bank.enqueue(
            torch.cat([all_gather(z_w), all_gather(z_x)]),
            probs=torch.cat([all_gather(aligned), all_gather(one_hot)]),
        )

    def graph(self, probs: Tensor) -> Tensor:
        """(M, world M) pseudo-label graph of this rank's samples against all ranks'."""
        everyone = self.gather(probs)
        start = rank() * len(probs)
        own = everyone[start : start + len(probs)]
        return pseudo_label_graph(own, everyone, self.hparams["graph_threshold"], start)

    def gather(self, probs: Tensor) -> Tensor:
        """(world M, C) pseudo-labels of the samples of all ranks, which the graph joins."""
        return all_gather(probs)
