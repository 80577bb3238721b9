"""CoMatch as in the ImageNet script: momentum encoder, shuffled BatchNorm, two queues.

Shapes: B labelled and M = mu B unlabelled images on this rank, C classes, d embedding size, K rows
of each queue. Source: docs/papers/comatch.md, section 3.4; salesforce/CoMatch@08b4cce
`imagenet/Model.py`, `imagenet/Train_CoMatch.py`.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from methods.comatch.losses import (
    DistributionAlignment,
    confident_cross_entropy,
    graph_contrastive_loss,
    pseudo_label_graph,
    pseudo_label_quality,
    smooth_with_memory,
)
from shared.distributed import all_gather, rank, shuffled_forward, step_permutation, world_size
from shared.nn.encoder import Encoder
from shared.nn.momentum import MomentumEncoder
from shared.nn.queue import FeatureQueue
from shared.tasks.classification import Accuracies, Batch
from shared.training.method import Method
from shared.training.optim import weight_decay_groups
from shared.training.schedules import half_cosine


class CoMatchImageNet(Method):
    """CoMatch, ImageNet form; the arguments without a word here are those of the CIFAR form.

    Args:
        lambda_c: final weight of the contrastive loss; in epoch e it is min(e + 1, lambda_c).
        momentums: of the momentum encoder, in the first epoch and afterwards.
        weight_decay: for ALL parameters. total_epochs: E of the per-epoch half cosine.
        gather_graph: extend the in-batch part of the graph to all ranks. The official code keeps
            it local (false), and reaches other ranks through the queue.
        seed: of the shuffled-BatchNorm permutations, which are a function of (seed, step).
    """

    def __init__(
        self,
        backbone: dict[str, Any],
        num_classes: int,
        projection: dict[str, Any],
        threshold: float,
        graph_threshold: float,
        temperature: float,
        alpha: float,
        lambda_u: float,
        lambda_c: float,
        alignment_window: int,
        queue_size: int,
        momentums: tuple[float, float],
        lr: float,
        momentum: float,
        weight_decay: float,
        total_epochs: int,
        gather_graph: bool,
        channels_last: bool,
        seed: int,
    ):
        super().__init__()
        self.save_hyperparameters()
        self.encoder = Encoder(backbone, num_classes, projection)
        self.lay_out(self.encoder, channels_last)
        self.accuracies = Accuracies("", "_ema")
        self.momentum_encoder = MomentumEncoder(self.encoder, buffers="keep")
        self.alignment = DistributionAlignment(num_classes, alignment_window)
        dim = projection["dim"]
        self.strong_queue = FeatureQueue(queue_size, dim, {"probs": num_classes}, overflow="drop")
        self.weak_queue = FeatureQueue(queue_size, dim, {"probs": num_classes}, overflow="drop")
        self.strong_queue.features.copy_(F.normalize(torch.randn(queue_size, dim), dim=1))
        self.weak_queue.features.copy_(torch.randn(queue_size, dim))  # not normalised there either

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        p, epoch, labels = self.hparams, self.current_epoch, batch["labels"]
        b, m = len(batch["labelled"]), len(batch["weak"])

        logits, embeddings = self.encoder(self.concatenate([batch["labelled"], batch["strong0"]]))
        logits_x, logits_s0 = logits.split([b, m])
        z_s0 = embeddings[b:]

        with torch.no_grad():
            # Between the two forwards, so with the weights before this step's update.
            self.momentum_encoder.update(self.encoder, p["momentums"][0 if epoch == 0 else 1])
            views = self.concatenate([batch["labelled"], batch["weak"], batch["strong1"]])
            permutation = step_permutation(p["seed"], self.global_step, len(views) * world_size())
            logits_m, z_m = shuffled_forward(self.momentum_encoder, views, permutation)
            z_x, z_w, z_s1 = z_m.split([b, m, m])
            aligned = probs = self.alignment(logits_m[b : b + m].softmax(dim=1))
            if epoch > 0:  # with the weak queue as it was before this batch
                memory = self.weak_queue
                probs = smooth_with_memory(aligned, z_w, memory, p["temperature"], p["alpha"])
            confidence, pseudo_labels = probs.max(dim=1)
            mask = (confidence >= p["threshold"]).float()

            batch_z, batch_probs, start = z_s1, probs, 0
            if p["gather_graph"]:
                batch_z, batch_probs = all_gather(z_s1), all_gather(probs)
                start = rank() * m
            references = torch.cat([batch_z, self.strong_queue.features])
            reference_probs = torch.cat([batch_probs, self.strong_queue["probs"]])
            graph = pseudo_label_graph(probs, reference_probs, p["graph_threshold"], start)

            # Strong views enter their queue with smoothed, weak views with aligned probabilities.
            one_hot = F.one_hot(labels, probs.shape[1]).to(probs.dtype)
            self.strong_queue.enqueue(all_gather(z_s1), probs=all_gather(probs))
            self.weak_queue.enqueue(
                torch.cat([all_gather(z_x), all_gather(z_w)]),
                probs=torch.cat([all_gather(one_hot), all_gather(aligned)]),
            )

        self.log_train(pseudo_label_quality(pseudo_labels, mask, batch["hidden_labels"]))
        terms = {
            "loss_x": F.cross_entropy(logits_x, labels),
            "loss_u": confident_cross_entropy(logits_s0, probs, mask),
            "loss_c": graph_contrastive_loss(z_s0, references, graph, p["temperature"]),
        }
        weights = {"loss_u": p["lambda_u"], "loss_c": min(epoch + 1, p["lambda_c"])}
        return self.total_loss(terms, weights, batch["unlabelled_indices"])

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        images = self.concatenate([batch["images"]])
        for suffix, network in {"": self.encoder, "_ema": self.momentum_encoder}.items():
            self.accuracies.update(network(images)[0], batch["labels"], suffix)

    test_step = validation_step

    def log_evaluation(self, split: str) -> None:
        self.log_dict(self.accuracies.compute(split))

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """(N, C) class probabilities."""
        return self.momentum_encoder(self.concatenate([batch["images"]]))[0].softmax(dim=1)

    def configure_optimizers(self):
        p = self.hparams
        groups = weight_decay_groups(self.encoder, p["weight_decay"])
        return self.sgd(groups, lambda e: half_cosine(e, p["total_epochs"]), nesterov=True)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Refuse data too small to fill the weak queue before smoothing starts in epoch 1."""
        if self.global_step > 0 or self.current_epoch > 0:
            return
        rows = (len(batch["labelled"]) + len(batch["weak"])) * world_size()
        offered, size = rows * int(self.trainer.num_training_batches), len(self.weak_queue)
        if offered < size:
            said = f"queue_size {size} exceeds the {offered} rows written in the first epoch"
            advice = "smoothing would mix in noise: lower method.queue_size or use more data"
            raise ValueError(f"{said}; {advice}")
