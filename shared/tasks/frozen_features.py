"""Frozen features judged by what can be learned from them.

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


class EvaluatedFeatures:
    """Features of the evaluated images, batch by batch; every image counts once, over all ranks."""

    def __init__(self) -> None:
        self._batches: list[Batch] = []

    def add(self, features: Tensor, batch: Batch) -> None:
        """Keep the features (B, F) of a batch with `labels` and `indices`."""
        names = ("labels", "indices")
        self._batches.append({"images": features, **{name: batch[name] for name in names}})

    def take(self, module: Method) -> Features:
        """All features since the last call, in data-set order and the same on every rank."""
        batches, self._batches = self._batches, []
        return extract_features(lambda rows: rows, batches, module.device)


def training_features(module: Method, forward: Callable[[Tensor], Tensor]) -> Features:
    """Features of the un-augmented training images of the run that `module` is in.

    Args: forward: (B, channels, H, W) in the module's memory format -> (B, F).
    """
    loader = module.trainer.datamodule.features_dataloader()  # type: ignore[attr-defined]
    return extract_features(
        lambda images: forward(module.concatenate([images])), loader, module.device
    )


class LowShotSVM(Method):
    """Linear SVMs on k images per class, on pooled features of a frozen backbone; never trained.

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
        self.evaluated = EvaluatedFeatures()

    def features(self, images: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, F)."""
        return self.encoder.backbone(images).float()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.evaluated.add(self.features(self.concatenate([batch["images"]])), batch)

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        self.log_score("val")

    def on_test_epoch_end(self) -> None:
        self.log_score("test")

    def log_score(self, split: str) -> None:
        queries = self.evaluated.take(self)
        scores = self.score(training_features(self, self.features), queries)
        self.log_dict({f"{split}/{name}": value for name, value in scores.items()})

    def score(self, bank: Features, queries: Features) -> dict[str, float]:
        """Metrics by name, from the training images' features and the evaluated ones."""
        p = self.hparams
        sets = (bank.features, bank.labels, queries.features, queries.labels)
        if bank.labels.ndim == 1:
            if len(p["costs"]) != 1 or p["full"]:
                raise ValueError("a single-label set takes one entry in costs, and full: false")
            found = low_shot_accuracy(*sets, p["shots"], p["runs"], p["seed"], *p["costs"])
            return {f"top1_{k}": value for k, value in found.items()}
        settings = {name: p[name] for name in ("shots", "runs", "costs", "full", "seed")}
        maps = low_shot_map(*sets, **settings)
        metrics = {f"map_{k}": value for k, value in maps.reported.items()}
        if maps.shots:
            metrics |= {f"map_std_{k}": value for k, value in maps.deviation.items()}
        return metrics
