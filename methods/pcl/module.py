"""PCL, and MoCo as its first half, in one training step.

Shapes: B images of this rank, d embedding size, K queue rows, M granularities of prototypes.
Source: docs/papers/pcl.md, section 3; salesforce/PCL@964da1f `pcl/builder.py:MoCo`, `main_pcl.py`.
"""

import logging
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from methods.pcl.clustering import Clusters, Granularity, cluster
from methods.pcl.losses import mask_shared_positives, prototype_logits, sample_negatives
from shared.distributed import all_gather, rank, shuffled_forward, step_permutation, world_size
from shared.evaluation.accuracy import percent_correct
from shared.evaluation.features import Features, eval_mode
from shared.losses.contrastive import instance_logits
from shared.nn.encoder import Encoder
from shared.nn.momentum import MomentumEncoder
from shared.nn.queue import FeatureQueue
from shared.randomness import torch_generator
from shared.tasks.classification import Batch
from shared.tasks.frozen_features import RepresentationProbes, training_features
from shared.training.method import Method
from shared.training.schedules import epoch_factor

log = logging.getLogger(__name__)


class MoCo(Method):
    """Momentum contrast: every image against its own key and a queue of others.

    Args:
        projection: see `Encoder`; `{hidden: 0, dim}` is the head of v1.
        queue_size: r, keys kept as negatives. key_momentum: m of the momentum encoder.
        temperature: T of InfoNCE, and in PCL the mean of the concentrations.
        lr, momentum, weight_decay: SGD; the decay holds for ALL parameters.
        schedule, total_epochs: see `epoch_factor`, once per epoch.
        seed: shuffled-BatchNorm permutations and negative prototypes are functions of (seed, step).
        evaluation: see `RepresentationProbes`.
    """

    predicts = "embeddings"

    def __init__(
        self,
        backbone: dict[str, Any],
        projection: dict[str, Any],
        queue_size: int,
        key_momentum: float,
        temperature: float,
        lr: float,
        momentum: float,
        weight_decay: float,
        schedule: dict[str, Any],
        total_epochs: int,
        channels_last: bool,
        seed: int,
        evaluation: dict[str, Any],
    ):
        super().__init__()
        self.save_hyperparameters()  # those of a subclass as well
        self.encoder = Encoder(backbone, None, projection)
        self.lay_out(self.encoder, channels_last)
        self.momentum_encoder = MomentumEncoder(self.encoder, buffers="keep")
        self.queue = FeatureQueue(queue_size, projection["dim"])
        self.queue.features.copy_(F.normalize(torch.randn(queue_size, projection["dim"]), dim=1))
        self.probes = RepresentationProbes(evaluation)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        p = self.hparams
        queries, keys = (self.concatenate([batch[view]]) for view in ("query", "key"))
        self.momentum_encoder.update(self.encoder, p["key_momentum"])
        permutation = step_permutation(p["seed"], self.global_step, len(keys) * world_size())
        _, key = shuffled_forward(self.momentum_encoder, keys, permutation)
        _, query = self.encoder(queries)

        logits = instance_logits(query, key, self.queue.features, p["temperature"])
        target = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
        self.queue.enqueue(all_gather(key))
        terms = {"loss_inst": F.cross_entropy(logits, target)}
        self.log_train({"acc_inst": percent_correct(logits, target)})

        terms |= self.contrast_prototypes(query, batch["indices"])
        return self.total_loss(terms, {}, batch["indices"])

    def contrast_prototypes(self, query: Tensor, indices: Tensor) -> dict[str, Tensor]:
        """Loss terms that PCL adds."""
        return {}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.probes.add(self, self.encoder, batch)

    test_step = validation_step

    def log_evaluation(self, split: str) -> None:
        scores = self.probes.scores(self, self.encoder)
        self.log_dict({f"{split}/{name}": value for name, value in scores.items()})

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """(B, d) unit-norm embeddings."""
        return self.encoder(self.concatenate([batch["images"]]))[1]

    def configure_optimizers(self):
        p = self.hparams
        factor = epoch_factor(p["schedule"], p["total_epochs"])
        return self.sgd(self.encoder.parameters(), factor, weight_decay=p["weight_decay"])


class PCL(MoCo):
    """Prototypical contrastive learning: MoCo, and from `warm_up_epochs` on ProtoNCE.

    Args:
        num_clusters: K of each granularity.
        warm_up_epochs: epochs of InfoNCE alone.
        prototypes: "sampled" contrasts with the batch's prototypes and `num_neg_proto` others, as
            the paper; "full" with all K, for the small K of small data.
        num_neg_proto: negatives per granularity, or all that remain.
        mask_shared: in the sampled form, a prototype shared in the batch is nobody's negative.
        kmeans: `{iterations, restarts, max_points_per_centroid, gpu}`.
    """

    def __init__(
        self,
        num_clusters: list[int],
        warm_up_epochs: int,
        prototypes: str,
        num_neg_proto: int,
        mask_shared: bool,
        kmeans: dict[str, Any],
        **moco: Any,
    ):
        super().__init__(**moco)
        if prototypes not in ("sampled", "full"):
            raise ValueError(f'prototypes must be "sampled" or "full", got {prototypes!r}')
        self.clusters: Clusters | None = None

    def on_train_epoch_start(self) -> None:
        """The E-step: before every epoch after the warm-up, and once only per epoch."""
        p, epoch = self.hparams, self.current_epoch
        if epoch < p["warm_up_epochs"] or (self.clusters and self.clusters.epoch == epoch):
            return
        log.info("E-step: epoch %d", epoch)
        with eval_mode(self.momentum_encoder):
            features = training_features(self, lambda images: self.momentum_encoder(images)[1])
        self.clusters = self.cluster(features).to(self.device)

    def cluster(self, features: Features) -> Clusters:
        p, epoch = self.hparams, self.current_epoch
        return cluster(features, p["num_clusters"], p["temperature"], epoch, **p["kmeans"])

    def on_train_start(self) -> None:
        if self.clusters is not None:  # those of a checkpoint
            self.clusters = self.clusters.to(self.device)

    def contrast_prototypes(self, query: Tensor, indices: Tensor) -> dict[str, Tensor]:
        """Mean over granularities of the cross-entropy of q . c / phi; none in warm-up."""
        if self.clusters is None:
            return {}
        losses, accuracies = [], []
        for number, granularity in enumerate(self.clusters.granularities):
            logits, target = self.proto_logits(query, granularity, indices, number)
            losses.append(F.cross_entropy(logits, target))
            accuracies.append(percent_correct(logits, target))
        accuracy, entropy = torch.stack(accuracies).mean(), self.clusters.entropy
        self.log_train({"acc_proto": accuracy, "cluster_entropy": entropy})
        return {"loss_proto": torch.stack(losses).mean()}

    def proto_logits(
        self, query: Tensor, granularity: Granularity, indices: Tensor, number: int
    ) -> tuple[Tensor, Tensor]:
        """Logits (B, columns) of granularity `number`, and each query's target column (B,)."""
        p, g = self.hparams, granularity
        positives = g.im2cluster[indices]
        if p["prototypes"] == "full":
            return prototype_logits(query, g.prototypes, g.density), positives
        # The batch's own prototypes come first: those of the other samples are further negatives,
        # and a prototype that two samples share appears twice.
        negatives = self.draw_negatives(positives, g.candidates, number)
        columns = torch.cat([positives, negatives])
        target = torch.arange(len(positives), device=positives.device)
        logits = prototype_logits(query, g.prototypes[columns], g.density[columns])
        return (mask_shared_positives(logits, positives) if p["mask_shared"] else logits), target

    def draw_negatives(self, positives: Tensor, candidates: int, number: int) -> Tensor:
        """The negatives of this step, rank and granularity, shared by the batch of this rank."""
        p, purpose = self.hparams, f"negative prototypes, granularity {number}, rank {rank()}"
        generator = torch_generator(p["seed"], self.global_step, purpose)
        return sample_negatives(positives, candidates, p["num_neg_proto"], generator)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["clusters"] = self.clusters.state_dict() if self.clusters else None

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint.get("clusters")
        self.clusters = Clusters.from_state_dict(state) if state else None
