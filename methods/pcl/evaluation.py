"""How good PCL's features are: during pre-training, and in the paper's transfer protocols.

Shapes: n images, F backbone features, d embedding size, C classes.
Source: docs/papers/pcl.md, section 7.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

import shared.tasks.frozen_features
from shared.evaluation.clustering import ami, assign, kmeans
from shared.evaluation.features import Features
from shared.evaluation.knn import knn_accuracy
from shared.evaluation.low_shot import low_shot_accuracy
from shared.nn.encoder import Encoder
from shared.tasks.classification import Batch
from shared.tasks.frozen_features import FeatureMethod
from shared.tasks.linear_classification import LinearClassification


class RepresentationMethod(FeatureMethod):
    """Evaluation of self-supervised training: do neighbourhoods follow the classes?

    Labels are used here only. The bank is the un-augmented training set. Logged for the pooled
    backbone features of `encoder`:
    `knn`, percent right of a k-nearest-neighbour vote; `low_shot_<k>`, percent right of linear SVMs
    on k images per class, mean over `runs` draws, and `low_shot`, their mean; `ami_backbone`, and
    for its unit-norm embeddings `ami_head`: adjusted mutual information of classes and k-means
    clusters of the evaluated images, K = C.

    Args:
        evaluation: `{neighbours, neighbour_temperature, shots, runs, seed, clustering}`; a
            temperature null counts neighbours equally, `shots: []` and `clustering: false` leave
            these out.
    """

    predicts: ClassVar[str] = "embeddings"
    encoder: Encoder

    def __init__(self, evaluation: dict[str, Any]):
        super().__init__()
        self.evaluation = evaluation

    def features(self, images: Tensor) -> Tensor:
        """(B, F) backbone features, or (B, F + d) with the embeddings if these are clustered."""
        features = self.encoder.backbone(images).float()
        if not self.evaluation["clustering"]:
            return features
        assert self.encoder.projection is not None
        return torch.cat([features, self.encoder.projection(features)], dim=1)

    def score(self, bank: Features, queries: Features) -> dict[str, float]:
        e, width = self.evaluation, self.encoder.num_features
        known, seen = bank.features[:, :width], queries.features[:, :width]  # views: banks are big
        arguments = (known, bank.labels, seen, queries.labels)
        k = min(e["neighbours"], len(known))
        metrics = {"knn": knn_accuracy(*arguments, k, e["neighbour_temperature"])}
        if e["shots"]:
            found = low_shot_accuracy(*arguments, e["shots"], e["runs"], e["seed"])
            metrics |= {f"low_shot_{shots}": accuracy for shots, accuracy in found.items()}
            metrics["low_shot"] = sum(found.values()) / len(found)
        if e["clustering"]:
            classes = len(queries.labels.unique())
            for name, rows in (("backbone", seen), ("head", queries.features[:, width:])):
                rows = F.normalize(rows, dim=1)
                ids, _ = assign(rows, kmeans(rows, classes, seed=0))
                metrics[f"ami_{name}"] = ami(queries.labels, ids)
        return metrics

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """(B, d) unit-norm embeddings."""
        return self.encoder(self.concatenate([batch["images"]]))[1]


class LinearProbe(LinearClassification):
    """Linear classification on the frozen backbone (docs/papers/pcl.md, section 7.2); `freeze:
    false` fine-tunes (7.3)."""


class LowShotSVM(shared.tasks.frozen_features.LowShotSVM):
    """VOC07 classification with few images per class (docs/papers/pcl.md, section 7.1)."""
