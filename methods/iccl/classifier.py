"""Frame of all arms: the network, SGD and its schedule, evaluation by shots, rebalancing."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from shared.evaluation.features import Features, eval_mode, extract_features
from shared.evaluation.shots import macro_accuracy, shot_accuracy
from shared.nn.encoder import Encoder
from shared.tasks import classifier_balancing
from shared.tasks.classification import Accuracies, Batch
from shared.tasks.frozen_features import EvaluatedFeatures
from shared.training.method import Method
from shared.training.schedules import rate_factor


class LongTailClassifier(Method):
    """An `Encoder` under training on long-tailed data; subclasses add `training_step`.

    Logs, in percent, `val/...` and `test/joint_...`: `all` (over samples), `macro` (over classes),
    `many`, `medium` and `few` (over the classes of the group, docs/papers/iccl.md, section 7,
    item 2; an empty group is left out). After training it rebalances the classifier on cached
    features and logs `test/<variant>_...` for each variant.

    Args:
        lr, momentum, weight_decay, schedule: of SGD, for all parameters; see `rate_factor`.
        balancing: of stage 2, see `classifier_balancing.balanced_logits`; None leaves it out.
        many, few: training images above and below which a class counts as such.
        seed: of all draws of the method itself.
    """

    variant: ClassVar[str] = "joint"  # names the metrics of the classifier that is trained

    def __init__(
        self,
        backbone: dict[str, Any],
        num_classes: int,
        projection: dict[str, Any] | None,
        channels_last: bool,
        lr: float,
        momentum: float,
        weight_decay: float,
        schedule: dict[str, Any],
        balancing: dict[str, Any] | None,
        many: int,
        few: int,
        seed: int,
    ):
        super().__init__()
        self.save_hyperparameters()  # those of a subclass as well
        if balancing is not None:
            classifier_balancing.check_settings(balancing)
        rate_factor(0, schedule)
        self.encoder = Encoder(backbone, num_classes, projection)
        self.lay_out(self.encoder, channels_last)
        self.accuracies = Accuracies()
        self.predictions = EvaluatedFeatures()
        self.class_counts: Tensor | None = None

    def setup(self, stage: str) -> None:
        data: Any = getattr(self.trainer, "datamodule", None)  # None of loaders alone
        counts = getattr(data, "class_counts", None)
        if counts is not None:
            self.class_counts = torch.as_tensor(counts)
        if self.hparams["balancing"] is not None and data is not None:
            splits = data.hparams
            validation = splits.get("val_split") != splits.get("test_split")
            held_out = splits.get("probe_split") is not None
            classifier_balancing.require_sets(self.hparams["balancing"], validation, held_out)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.class_counts is not None:
            checkpoint["class_counts"] = self.class_counts.tolist()

    def configure_optimizers(self):
        learnt = [parameter for parameter in self.parameters() if parameter.requires_grad]
        schedule, decay = self.hparams["schedule"], self.hparams["weight_decay"]
        every = schedule["every"]
        return self.sgd(learnt, lambda t: rate_factor(t, schedule), every, weight_decay=decay)

    def classify(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> logits (N, K) of the classifier that is trained."""
        return self.encoder(images)[0]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        logits = self.classify(self.concatenate([batch["images"]]))
        self.accuracies.update(logits, batch["labels"])
        self.predictions.add(logits.argmax(dim=1, keepdim=True), batch)

    test_step = validation_step

    def log_evaluation(self, split: str) -> None:
        self.log_dict(self.accuracies.compute(split))
        found = self.predictions.take(self)
        prefix = f"test/{self.variant}_" if split == "test" else "val/"
        self.log_shots(prefix, found.features[:, 0].long(), found.labels)
        balancing, counted = self.hparams["balancing"], self.class_counts is not None
        if split == "test" and balancing is not None and counted:
            self.rebalance()

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """(N, K) class probabilities."""
        return self.classify(self.concatenate([batch["images"]])).softmax(dim=1)

    def log_shots(self, prefix: str, predictions: Tensor, labels: Tensor) -> None:
        if self.class_counts is None:
            return
        p = self.hparams
        values = shot_accuracy(predictions, labels, self.class_counts, p["many"], p["few"])
        values["macro"] = macro_accuracy(predictions, labels, len(self.class_counts))
        self.log_dict({prefix + k: 100 * v for k, v in values.items() if v == v})

    def rebalance(self) -> None:
        """Stage 2 on cached features of the frozen encoder in evaluation mode."""
        settings, classifier = self.hparams["balancing"], self.encoder.classifier
        assert classifier is not None
        # Lightning tests in inference mode, whose tensors cannot be trained on.
        with torch.inference_mode(False), torch.enable_grad(), eval_mode(self):
            data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            sets = classifier_balancing.feature_sets(self.features, data, settings)
            logits, tau = classifier_balancing.balanced_logits(
                classifier, sets, settings, self.hparams["seed"]
            )
        for variant, rows in logits.items():
            self.log_shots(f"test/{variant}_", rows.argmax(dim=1), sets.test.labels)
        if tau is not None:
            self.log("test/tau", tau)

    def features(self, loader: Any) -> Features:
        return extract_features(
            lambda images: self.encoder.backbone(self.concatenate([images])), loader, self.device
        )
