"""ICCL's representation stage.

Shapes: B images of each stream, K classes, D embedding size. Source: docs/papers/iccl.md, sections
3.3 to 3.5, which says which details are the paper's and which ours: no official code exists.
"""

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from methods.iccl.classifier import LongTailClassifier
from methods.iccl.losses import check_mix, draw_lambda, interpolate, interpolated_cross_entropy
from shared.distributed import all_gather
from shared.evaluation.features import eval_mode
from shared.nn.prototypes import ClassPrototypes
from shared.tasks.classification import Batch
from shared.tasks.frozen_features import training_features


class ICCL(LongTailClassifier):
    """Interpolative centroid contrastive learning.

    An image of the class-agnostic stream is interpolated with one of the class-aware stream, and
    its embedding must retrieve the centroids of both source classes. With a second class-agnostic
    stream instead (`data.second=agnostic`) it is the baseline `mix`: ordinary mixing, same losses.

    Args:
        temperature: tau of the similarities to the centroids.
        centroid_momentum: m_c of the centroids' moving average.
        centroid_mode: `ema`, or `epoch_mean`: exact class means of the un-augmented training
            images, computed with the encoder in evaluation mode when an epoch starts.
        centroid_warm_up: epochs without centroid losses, until every class has been seen.
        w_agnostic, w_interp: w_u and w_m, of the un-mixed and of the interpolated branch.
        w_centroid: w_c, of the centroid losses within each branch.
        mix: `{alpha, granularity}` of `draw_lambda`; `joint_forward`: shared BatchNorm statistics.
    """

    def __init__(
        self,
        temperature: float,
        centroid_momentum: float,
        centroid_mode: str,
        centroid_warm_up: int,
        w_agnostic: float,
        w_interp: float,
        w_centroid: float,
        mix: dict[str, Any],
        **common: Any,
    ):
        super().__init__(**common)
        check_mix(mix)
        if centroid_mode not in ("ema", "epoch_mean"):
            raise ValueError(f"method.centroid_mode={centroid_mode!r}: expected ema or epoch_mean")
        self.centroids = ClassPrototypes(common["num_classes"], common["projection"]["dim"])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        # 3.3, steps 1 to 4: two sampled batches, interpolation, one forward of both branches
        x_u, y_u = batch["images"], batch["labels"]
        x_a, y_a = batch["partners"], batch["partner_labels"]
        lam = self.draw_lambda(len(x_u))
        x_m = interpolate(x_u, x_a, lam)
        o_u, o_m, z_u, z_m = self.encode(x_u, x_m)

        # 3.4: the centroids are those before this step, all K of them; one that is still zero takes
        # part with logit 0
        s_u, s_m = self.centroid_logits(z_u), self.centroid_logits(z_m)
        terms = {
            "ce_agnostic": F.cross_entropy(o_u, y_u),
            "cc_agnostic": F.cross_entropy(s_u, y_u),
            "ce_interp": interpolated_cross_entropy(o_m, y_u, y_a, lam),
            "cc_interp": interpolated_cross_entropy(s_m, y_u, y_a, lam),
        }
        loss = self.total_loss(terms, self.loss_weights(), batch["indices"])
        retrieved = (s_u.argmax(dim=1) == y_u).float().mean()
        self.log_train({"centroid_accuracy": 100 * retrieved})

        # 3.5: only un-mixed class-agnostic embeddings move the centroids
        if self.hparams["centroid_mode"] == "ema":
            momentum = self.hparams["centroid_momentum"]
            self.centroids.update(all_gather(z_u.detach()), all_gather(y_u), momentum)
        return loss

    def draw_lambda(self, count: int) -> Tensor:
        """(B,) weights of the class-agnostic images in this step."""
        p = self.hparams
        return draw_lambda(p["mix"], count, p["seed"], self.global_step).to(self.device)

    def encode(self, x_u: Tensor, x_m: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits (B, K) of both branches, then their unit embeddings (B, D)."""
        if self.hparams["mix"]["joint_forward"]:
            logits, embeddings = self.encoder(self.concatenate([x_u, x_m]))
            return *logits.split(len(x_u)), *embeddings.split(len(x_u))
        o_u, z_u = self.encoder(self.concatenate([x_u]))
        o_m, z_m = self.encoder(self.concatenate([x_m]))
        return o_u, o_m, z_u, z_m

    def centroid_logits(self, embeddings: Tensor) -> Tensor:
        """(B, D) -> (B, K) similarities to the centroids over the temperature."""
        return self.centroids.logits(embeddings, self.hparams["temperature"])

    def loss_weights(self) -> dict[str, float]:
        """L = w_u (L_ce(u) + w_c L_cc(u)) + w_m (L_ce(m) + w_c L_icc(m))."""
        p = self.hparams
        w_c = p["w_centroid"] if self.current_epoch >= p["centroid_warm_up"] else 0.0
        return {
            "ce_agnostic": p["w_agnostic"],
            "cc_agnostic": p["w_agnostic"] * w_c,
            "ce_interp": p["w_interp"],
            "cc_interp": p["w_interp"] * w_c,
        }

    def on_train_epoch_start(self) -> None:
        """Take each class's mean embedding of un-augmented images, to unit norm, as its centroid; a
        run resumed within an epoch has those of its checkpoint."""
        if self.hparams["centroid_mode"] != "epoch_mean":
            return
        with eval_mode(self):
            z, labels, _ = training_features(self, lambda images: self.encoder(images)[1])
        member = F.one_hot(labels, len(self.centroids.prototypes)).to(z.dtype)
        means = member.T @ z / member.sum(dim=0).clamp(min=1)[:, None]
        self.centroids.prototypes.copy_(F.normalize(means, dim=1, eps=1e-12))
