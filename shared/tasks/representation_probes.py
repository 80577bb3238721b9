"""Whether the neighbourhoods of a self-supervised representation follow the classes.

Shapes: n images, F backbone features, d embedding size, C classes.
Source: docs/papers/pcl.md, section 7.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from shared.evaluation.clustering import ami, assign, kmeans
from shared.evaluation.features import Features
from shared.evaluation.knn import knn_accuracy
from shared.evaluation.low_shot import low_shot_accuracy
from shared.nn.encoder import Encoder
from shared.tasks.classification import Batch
from shared.tasks.frozen_features import EvaluatedFeatures, training_features
from shared.training.method import Method


class RepresentationProbes:
    """kNN, low-shot SVMs and clustering on the features of a module's encoder, as it trains.

    Labels are used here only. The bank is the un-augmented training set. Of the pooled backbone
    features: `knn`, percent right of a k-nearest-neighbour vote; `low_shot_<k>`, percent right of
    linear SVMs on k images per class, mean over `runs` draws, and `low_shot`, their mean;
    `ami_backbone`, and for the unit-norm embeddings `ami_head`: adjusted mutual information of
    classes and k-means clusters of the evaluated images, K = C.

    Args:
        settings: `{neighbours, neighbour_temperature, shots, runs, seed, clustering}`; a
            temperature null counts neighbours equally, `shots: []` and `clustering: false` leave
            these out.
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
