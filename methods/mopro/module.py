"""MoPro, and plain cross-entropy on the web labels from the same pieces.

Shapes: B images of this rank, N of all ranks, K classes, d embedding size, R queue rows.
Source: docs/papers/mopro.md, sections 3.1 to 3.7; salesforce/MoPro@155cae3 `model.py`, `train.py`.
"""

import logging
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from methods.mopro.classifier import WebClassifier
from methods.mopro.losses import Correction, correct_labels, kept_cross_entropy, soft_labels
from shared.distributed import all_gather, shuffled_forward, step_permutation, world_size
from shared.evaluation.accuracy import percent_correct
from shared.losses.contrastive import instance_logits
from shared.nn.momentum import MomentumEncoder
from shared.nn.prototypes import ClassPrototypes
from shared.nn.queue import FeatureQueue
from shared.tasks.classification import Batch

log = logging.getLogger(__name__)


class CrossEntropy(WebClassifier):
    """Cross-entropy with the web labels, right or wrong.

    Args:
        views: names of the views that are classified. One is one forward with gradient, as MoPro
            has; two are as many forwards as MoPro's, both with gradient.
    """

    def __init__(self, views: list[str], **common: Any):
        super().__init__(**common)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        views = [batch[view] for view in self.hparams["views"]]
        logits, _ = self.encoder(self.concatenate(views))
        labels = batch["labels"].repeat(len(views))
        self.log_train({"accuracy_cls": percent_correct(logits, labels)})
        return self.total_loss({"loss_cls": F.cross_entropy(logits, labels)}, {}, batch["indices"])

    def scores(self, images: Tensor) -> Tensor:
        return self.encoder(images)[0].softmax(dim=1)


class MoPro(WebClassifier):
    """Momentum prototypes: instance and prototype contrast, with labels corrected on the way.

    Args:
        temperature: tau, of both contrasts and of the prototypes' part of the soft label.
        alpha: weight of the classifier in the soft label, against the prototypes'.
        start_clean_epoch: first epoch (from 0) with the correction rule, at least 1; null: never.
        encoder_momentum, prototype_momentum: m_e of the key encoder, m_c of the prototypes.
        queue_size: R.
        w_inst, w_proto: weights of the instance and the prototype loss.
        seed: of the shuffled-BatchNorm permutations, which are a function of (seed, step).
    """

    def __init__(
        self,
        temperature: float,
        alpha: float,
        start_clean_epoch: int | None,
        encoder_momentum: float,
        prototype_momentum: float,
        queue_size: int,
        w_inst: float,
        w_proto: float,
        seed: int,
        **common: Any,
    ):
        super().__init__(**common)
        if start_clean_epoch is not None and start_clean_epoch < 1:
            reason = "the correction rule needs the prototypes of a whole epoch"
            raise ValueError(f"start_clean_epoch={start_clean_epoch}: {reason}; 1 or later")
        num_classes, dim = common["num_classes"], common["projection"]["dim"]
        self.key_encoder = MomentumEncoder(self.encoder, buffers="keep")
        self.prototypes = ClassPrototypes(num_classes, dim)
        self.queue = FeatureQueue(queue_size, dim)
        self.queue.features.copy_(F.normalize(torch.randn(queue_size, dim), dim=1))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        p, epoch = self.hparams, self.current_epoch

        # Query: the weak view, with gradient. Then the key encoder follows the weights as they
        # are before this step's update, and encodes the strong view.
        logits, query = self.encoder(self.concatenate([batch["weak"]]))
        self.key_encoder.update(self.encoder, p["encoder_momentum"])
        keys = self.concatenate([batch["strong"]])
        permutation = step_permutation(p["seed"], self.global_step, len(keys) * world_size())
        _, key = shuffled_forward(self.key_encoder, keys, permutation)

        # Each query against its own key and the queue as it was; only then do the keys enter it.
        instances = instance_logits(query, key, self.queue.features, p["temperature"])
        self.queue.enqueue(all_gather(key))

        # Against the prototypes as they were, once a whole epoch has shaped them.
        similarities = self.prototype_logits(query) if epoch > 0 else None
        correction = self.correct(logits, similarities, batch["labels"])
        self.prototypes.update(
            all_gather(query),
            all_gather(correction.labels),
            p["prototype_momentum"],
            keep=all_gather(correction.kept),
        )

        # Out-of-distribution rows take part in the instance loss only.
        terms = {
            "loss_cls": kept_cross_entropy(logits, correction),
            "loss_inst": F.cross_entropy(instances, torch.zeros_like(batch["labels"])),
        }
        if similarities is not None:
            terms["loss_proto"] = kept_cross_entropy(similarities, correction)
        self.log_step(logits, instances, similarities, correction)
        weights = {"loss_inst": p["w_inst"], "loss_proto": p["w_proto"]}
        return self.total_loss(terms, weights, batch["indices"])

    def prototype_logits(self, query: Tensor) -> Tensor:
        """(B, K) similarities over temperature; gradient into the query."""
        return self.prototypes.logits(query, self.hparams["temperature"])

    @property
    def cleaning(self) -> bool:
        """Whether this epoch corrects labels."""
        start = self.hparams["start_clean_epoch"]
        return start is not None and self.current_epoch >= start

    @torch.no_grad()
    def correct(
        self, logits: Tensor, similarities: Tensor | None, web_labels: Tensor
    ) -> Correction:
        """The correction rule once cleaning has started; the web labels are trusted before."""
        if similarities is None or not self.cleaning:
            everything = torch.ones_like(web_labels, dtype=torch.bool)
            return Correction(web_labels, everything, ~everything)
        scores = soft_labels(logits, similarities, self.hparams["alpha"])
        return correct_labels(scores, web_labels, self.hparams["threshold"])

    def scores(self, images: Tensor, alpha: float | None = None) -> Tensor:
        logits, query = self.encoder(images)
        alpha = self.hparams["alpha"] if alpha is None else alpha
        return soft_labels(logits, self.prototype_logits(query), alpha)

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == self.hparams["start_clean_epoch"] and self.global_rank == 0:
            log.info("cleaning starts: epoch %d", self.current_epoch)

    def log_step(
        self, logits: Tensor, instances: Tensor, similarities: Tensor | None, correction: Correction
    ) -> None:
        """Percent of rows kept, relabelled and dropped, and the accuracy of each task; that of
        classes and prototypes is on the kept rows, so that it rises by selection."""
        kept, labels = correction.kept, correction.labels
        values = {"accuracy_inst": percent_correct(instances, torch.zeros_like(labels))}
        if kept.any():
            values["accuracy_cls"] = percent_correct(logits[kept], labels[kept])
            if similarities is not None:
                values["accuracy_proto"] = percent_correct(similarities[kept], labels[kept])
        if self.cleaning:
            values["kept"] = 100 * kept.float().mean()
            values["out_of_distribution"] = 100 - values["kept"]
            values["relabelled"] = 100 * correction.relabelled.float().mean()
        self.log_train(values)
