"""CoMatch as in the CIFAR script, with FixMatch and the supervised baseline from the same pieces.

Shapes: B labelled and M = mu B unlabelled images, C classes, d embedding size, K memory rows.
Source: docs/papers/comatch.md, sections 3.1 to 3.5; salesforce/CoMatch@08b4cce `Train_CoMatch.py`,
`Train_fixmatch.py`.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.comatch.classifier import Batch, Classifier
from methods.comatch.losses import (
    DistributionAlignment,
    confident_cross_entropy,
    graph_contrastive_loss,
    pseudo_label_graph,
    smooth_with_memory,
)
from shared.distributed import all_gather, rank
from shared.nn.momentum import MomentumEncoder
from shared.nn.queue import FeatureQueue
from shared.training.optim import weight_decay_groups
from shared.training.schedules import cosine_7_16, warm_up_decay


class EMAClassifier(Classifier):
    """The CIFAR scripts' frame: SGD with the 7/16 cosine, and an EMA copy for evaluation.

    Args:
        backbone, num_classes, projection, channels_last: see `Classifier`.
        lr, momentum, weight_decay, no_decay: Nesterov SGD; parameters whose name contains one of
            `no_decay` are not decayed.
        total_steps: N of the schedule lr cos(7 pi t / 16 N).
        ema_decay: of the evaluation copy, applied after every optimiser step.
        ema_warm_up: use min(ema_decay, (1 + t) / (10 + t)), for short runs only.
    """

    def __init__(
        self,
        lr: float,
        momentum: float,
        weight_decay: float,
        no_decay: list[str],
        total_steps: int,
        ema_decay: float,
        ema_warm_up: bool,
        **network: Any,
    ):
        super().__init__(**network)
        self.ema_encoder = MomentumEncoder(self.encoder, buffers="copy")

    @property
    def averaged(self) -> nn.Module:
        return self.ema_encoder

    def configure_optimizers(self):
        p = self.hparams
        optimizer = torch.optim.SGD(
            weight_decay_groups(self.encoder, p["weight_decay"], p["no_decay"]),
            lr=p["lr"],
            momentum=p["momentum"],
            nesterov=True,
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: cosine_7_16(step, p["total_steps"])
        )
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        decay = self.hparams["ema_decay"]
        if self.hparams["ema_warm_up"]:
            decay = warm_up_decay(self.global_step, decay)
        self.ema_encoder.update(self.encoder, decay)


class Supervised(EMAClassifier):
    """Cross-entropy on the labelled images alone."""

    def __init__(self, **common: Any):
        super().__init__(**common)
        self.save_hyperparameters()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        logits, _ = self.encoder(self.concatenate([batch["labelled"]]))
        terms = {"loss_x": F.cross_entropy(logits, batch["labels"])}
        return self.total_loss(terms, {}, batch["labelled_indices"])


class FixMatch(EMAClassifier):
    """FixMatch (arXiv:2001.07685), with or without distribution alignment.

    Args:
        threshold: tau, the confidence from which a hard pseudo-label is used.
        lambda_u: weight of the unlabelled loss.
        alignment_window: batches averaged by distribution alignment; null switches it off.
    """

    def __init__(
        self, threshold: float, lambda_u: float, alignment_window: int | None, **common: Any
    ):
        super().__init__(**common)
        self.save_hyperparameters()
        self.alignment = (
            DistributionAlignment(common["num_classes"], alignment_window)
            if alignment_window
            else nn.Identity()
        )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        views = [batch["labelled"], batch["weak"], batch["strong0"]]
        logits, _ = self.encoder(self.concatenate(views))
        logits_x, logits_w, logits_s = logits.split([len(view) for view in views])

        with torch.no_grad():
            probs = self.alignment(logits_w.softmax(dim=1))
            confidence, pseudo_labels = probs.max(dim=1)
            mask = (confidence >= self.hparams["threshold"]).float()

        self.log_pseudo_labels(pseudo_labels, mask, batch["hidden_labels"])
        terms = {
            "loss_x": F.cross_entropy(logits_x, batch["labels"]),
            "loss_u": confident_cross_entropy(logits_s, pseudo_labels, mask),
        }
        weights = {"loss_u": self.hparams["lambda_u"]}
        return self.total_loss(terms, weights, batch["unlabelled_indices"])


class CoMatch(EMAClassifier):
    """CoMatch, CIFAR form: class probabilities and embeddings that teach each other.

    In a distributed run the alignment mean, the memory bank and the graph cover all ranks, so that
    N ranks compute what one process computes on the concatenated batch (BatchNorm aside). The
    official script runs on one GPU only.

    Args:
        threshold: tau, confidence of the smoothed pseudo-label from which loss_u counts.
        graph_threshold: kappa, weight from which an edge of the pseudo-label graph is kept.
        temperature: T of the embedding similarities.
        alpha: weight of a sample's own probabilities against its memory neighbours'.
        lambda_u, lambda_c: weights of the unlabelled and the graph contrastive loss.
        alignment_window: batches averaged by distribution alignment.
        bank_batches, batch_size, mu: the bank holds K = bank_batches (mu + 1) batch_size rows;
            batch_size is the labelled total over ranks.
        sabotage: negative controls of the claim, never set otherwise. "graph" gives every sample
            the targets of another one; "edges" does so with the edges between samples and keeps
            the self-loops, so that what is left is instance discrimination.
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
        sabotage: str | None = None,
        **common: Any,
    ):
        super().__init__(**common)
        self.save_hyperparameters()
        if sabotage not in (None, "graph", "edges"):
            raise ValueError(f'sabotage must be null, "graph" or "edges", got {sabotage!r}')
        num_classes = common["num_classes"]
        self.alignment = DistributionAlignment(num_classes, alignment_window)
        self.bank = FeatureQueue(
            bank_batches * (mu + 1) * batch_size,
            common["projection"]["dim"],
            payloads={"probs": num_classes},
        )

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

        self.log_pseudo_labels(pseudo_labels, mask, batch["hidden_labels"])
        self.log_graph(graph, batch["hidden_labels"])
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
        """Memory smoothing with the bank as it was before this batch; not while it fills.

        Strict, as in the official code: with a bank of 5 batches, iterations 0 to 5 are unsmoothed.
        """
        if self.bank.written <= len(self.bank):
            return aligned
        return smooth_with_memory(
            aligned,
            embeddings,
            self.bank.features,
            self.bank["probs"],
            self.hparams["temperature"],
            self.hparams["alpha"],
        )

    def remember(self, z_w: Tensor, aligned: Tensor, z_x: Tensor, labels: Tensor) -> None:
        """Write the batch into the bank: aligned (never smoothed) probabilities, one-hot labels."""
        one_hot = F.one_hot(labels, aligned.shape[1]).to(aligned.dtype)
        self.bank.enqueue(
            torch.cat([all_gather(z_w), all_gather(z_x)]),
            probs=torch.cat([all_gather(aligned), all_gather(one_hot)]),
        )

    def graph(self, probs: Tensor) -> Tensor:
        """(M, world M) pseudo-label graph of this rank's samples against all ranks'."""
        everyone = all_gather(probs)
        start = rank() * len(probs)
        # Batches are in random order, so that any fixed relabelling joins random samples.
        if self.hparams["sabotage"] == "edges":
            everyone = everyone.roll(1, dims=0)
        own = everyone[start : start + len(probs)]
        graph = pseudo_label_graph(own, everyone, self.hparams["graph_threshold"], start)
        return graph.roll(1, dims=1) if self.hparams["sabotage"] == "graph" else graph

    def log_graph(self, graph: Tensor, hidden_labels: Tensor) -> None:
        """Edges per row besides the self-loop, and the percentage that join one class."""
        everyone = all_gather(hidden_labels)
        edges = graph > 0
        edges.diagonal(offset=rank() * len(graph)).fill_(False)
        values: dict[str, Tensor | float] = {"edges_per_row": edges.sum() / len(graph)}
        known = edges * (hidden_labels >= 0)[:, None] * (everyone >= 0)[None]
        if known.any():
            same = known * (hidden_labels[:, None] == everyone[None])
            values["edge_precision"] = 100 * same.sum() / known.sum()
        self.log_train(values)
