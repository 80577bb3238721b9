"""Frozen features judged by their neighbourhoods and by what can be learned from them.

Shapes: n images, B in a batch, F backbone features, d embedding size, C classes.
Sources: docs/papers/pcl.md, section 7, docs/papers/mopro.md, section 7.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from shared.evaluation.clustering import ami, assign, kmeans
from shared.evaluation.features import Features, extract_features
from shared.evaluation.knn import knn_accuracy
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
    """Features of the run's un-augmented training images, which `forward` takes in the module's
    memory format, (B, channels, H, W) -> (B, F)."""
    loader = module.trainer.datamodule.features_dataloader()  # type: ignore[attr-defined]
    return extract_features(
        lambda images: forward(module.concatenate([images])), loader, module.device
    )


class RepresentationProbes:
    """kNN, low-shot SVMs and clustering on the features of a module's encoder, as it trains.

    The bank is the un-augmented training set. Of the pooled backbone features: `knn`, percent right
    of a k-nearest-neighbour vote; `low_shot_<k>`, percent right of linear SVMs on k images per
    class, and `low_shot`, their mean; `ami_backbone`, and for the unit-norm embeddings `ami_head`:
    adjusted mutual information of classes and k-means clusters of the evaluated images, K = C.
    `shots: []` and `clustering: false` leave these out.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings
        self.evaluated = EvaluatedFeatures()

    def add(self, module: Method, encoder: Encoder, batch: Batch) -> None:
        """Keep the features of a batch of evaluated images."""
        self.evaluated.add(self.features(encoder, module.concatenate([batch["images"]])), batch)

    def scores(self, module: Method, encoder: Encoder) -> dict[str, float]:
        """Metrics by name of the images added since the last call."""
        queries = self.evaluated.take(module)
        bank = training_features(module, lambda images: self.features(encoder, images))
        return self.score(bank, queries, encoder.num_features)

    def features(self, encoder: Encoder, images: Tensor) -> Tensor:
        """(B, F) backbone features, or (B, F + d) with the embeddings if these are clustered."""
        features = encoder.backbone(images).float()
        if not self.settings["clustering"]:
            return features
        assert encoder.projection is not None
        return torch.cat([features, encoder.projection(features)], dim=1)

    def score(self, bank: Features, queries: Features, width: int) -> dict[str, float]:
        """Metrics by name; the first `width` columns are the backbone's."""
        p = self.settings
        known, seen = bank.features[:, :width], queries.features[:, :width]  # views: banks are big
        sets = (known, bank.labels, seen, queries.labels)
        k = min(p["neighbours"], len(known))
        metrics = {"knn": knn_accuracy(*sets, k, p["neighbour_temperature"])}
        if p["shots"]:
            found = low_shot_accuracy(*sets, p["shots"], p["runs"], p["seed"])
            metrics |= {f"low_shot_{shots}": accuracy for shots, accuracy in found.items()}
            metrics["low_shot"] = sum(found.values()) / len(found)
        if p["clustering"]:
            classes = len(queries.labels.unique())
            for name, rows in (("backbone", seen), ("head", queries.features[:, width:])):
                rows = F.normalize(rows, dim=1)
                ids, _ = assign(rows, kmeans(rows, classes, seed=0))
                metrics[f"ami_{name}"] = ami(queries.labels, ids)
        return metrics


class LowShotSVM(Method):
    """Linear SVMs on k images per class, on pooled features of a frozen backbone; never trained.

    Multi-label sets (VOC07): `test/map_<k>`, `test/map_full`, and `test/map_std_<k>` over the
    draws. Single-label sets (Places205): `test/top1_<k>`. A package's `official.warm_start` fills
    the backbone.

    Args:
        costs: C of the SVM; with several the best mean on the TEST images is reported, as in PCL's
            official code. A single-label set takes one.
        full: fit on all images too (multi-label sets).
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
        return self.encoder.backbone(images).float()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.evaluated.add(self.features(self.concatenate([batch["images"]])), batch)

    test_step = validation_step

    def log_evaluation(self, split: str) -> None:
        queries = self.evaluated.take(self)
        scores = self.score(training_features(self, self.features), queries)
        self.log_dict({f"{split}/{name}": value for name, value in scores.items()})

    def score(self, bank: Features, queries: Features) -> dict[str, float]:
        p = self.hparams
        sets = (bank.features, bank.labels, queries.features, queries.labels)
        if bank.labels.ndim == 1:
            if len(p["costs"]) != 1 or p["full"]:
                raise ValueError("a single-label set takes one entry in costs, and full: false")
            found = low_shot_accuracy(*sets, p["shots"], p["runs"], p["seed"], *p["costs"])
            return {f"top1_{k}": value for k, value in found.items()}
        maps = low_shot_map(*sets, p["shots"], p["runs"], p["costs"], p["full"], p["seed"])
        metrics = {f"map_{k}": value for k, value in maps.reported.items()}
        return metrics | {f"map_std_{k}": value for k, value in maps.deviation.items()}
