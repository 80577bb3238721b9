"""Frozen features judged by what can be learned from them: modules that are only evaluated.

Shapes: n images, F features, C classes. Sources: docs/papers/pcl.md, section 7.1,
docs/papers/mopro.md, section 7.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from shared.evaluation.features import Features, extract_features
from shared.evaluation.low_shot import low_shot_accuracy, low_shot_map
from shared.nn.encoder import Encoder
from shared.tasks.classification import Batch
from shared.training.method import Method


class FeatureMethod(Method):
    """Collects the features of the validation or test images; `score` makes metrics of them.

    `features(images)` is the subclass's; every image counts once, over all ranks.
    """

    def __init__(self) -> None:
        super().__init__()
        self._seen: list[Batch] = []

    def features(self, images: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, F)."""
        raise NotImplementedError

    def score(self, bank: Features, queries: Features) -> dict[str, float]:
        """Metrics by name, from the training images' features and the evaluated ones."""
        raise NotImplementedError

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        rows = self.features(self.concatenate([batch["images"]]))
        self._seen.append({"images": rows, "labels": batch["labels"], "indices": batch["indices"]})

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        self.log_score("val")

    def on_test_epoch_end(self) -> None:
        self.log_score("test")

    def log_score(self, split: str) -> None:
        queries = extract_features(lambda rows: rows, self._seen, self.device)
        self._seen = []
        for name, value in self.score(self.training_features(self.features), queries).items():
            self.log(f"{split}/{name}", value)

    def training_features(self, forward: Callable[[Tensor], Tensor]) -> Features:
        """Of the un-augmented training images: `forward` maps (B, channels, H, W) to (B, any)."""
        loader = self.trainer.datamodule.features_dataloader()  # type: ignore[attr-defined]
        return extract_features(
            lambda images: forward(self.concatenate([images])), loader, self.device
        )


class LowShotSVM(FeatureMethod):
    """Linear SVMs on k images per class, on pooled features of a frozen backbone.

    Multi-label sets (VOC07): `test/map_<k>`, `test/map_full`, and `test/map_std_<k>` over the
    draws. Single-label sets (Places205): `test/top1_<k>`.

    Args:
        backbone: `{_target_: shared.nn...., ...}`; a package's `official.warm_start` fills it.
        shots, runs: images per class, and draws of them.
        costs: C of the SVM; with several the best mean on the TEST images is reported, as in PCL's
            official code. A single-label set takes one.
        full: fit on all images too (multi-label sets).
        seed: of the draws.
        channels_last: memory layout of the network.
    """

    def __init__(
        self,
        backbone: dict[str, Any],
        shots: list[int],
        runs: int,
        costs: list[float],
        full: bool,
        seed: int,
        channels_last: bool,
    ):
        super().__init__()
        self.save_hyperparameters()
        self.encoder = Encoder(backbone, None, None)
        self.lay_out(self.encoder, channels_last)

    def features(self, images: Tensor) -> Tensor:
        return self.encoder.backbone(images).float()

    def score(self, bank: Features, queries: Features) -> dict[str, float]:
        p = self.hparams
        sets = (bank.features, bank.labels, queries.features, queries.labels)
        if bank.labels.ndim == 1:
            if len(p["costs"]) != 1 or p["full"]:
                raise ValueError("a single-label set takes one entry in costs, and full: false")
            found = low_shot_accuracy(*sets, p["shots"], p["runs"], p["seed"], *p["costs"])
            return {f"top1_{k}": value for k, value in found.items()}
        maps = low_shot_map(
            *sets,
            shots=p["shots"],
            runs=p["runs"],
            costs=p["costs"],
            full=p["full"],
            seed=p["seed"],
        )
        metrics = {f"map_{k}": value for k, value in maps.reported.items()}
        if maps.shots:
            metrics |= {f"map_std_{k}": value for k, value in maps.deviation.items()}
        return metrics
