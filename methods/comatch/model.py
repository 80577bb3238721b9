"""A backbone with CoMatch's two heads: class logits and a unit-norm embedding."""

from torch import Tensor, nn

from shared.nn.heads import ProjectionHead
from shared.training.method import build_network


class CoMatchNetwork(nn.Module):
    """(N, C, H, W) -> logits (N, num_classes) and embeddings (N, d), or None without projection.

    Args:
        backbone: `{_target_: shared.nn...., ...}`; the class has `num_features`.
        num_classes: C.
        projection: `{hidden, dim, negative_slope}`; `hidden: null` takes the backbone's width.
            None leaves the head out, as FixMatch and the supervised baseline do.
    """

    def __init__(self, backbone: dict, num_classes: int, projection: dict | None):
        super().__init__()
        self.backbone = build_network(backbone)
        features = int(self.backbone.num_features)  # type: ignore[arg-type]
        # The classifier is created before the projection, so that with one seed all arms of a
        # comparison start from the same backbone and classifier.
        self.classifier = nn.Linear(features, num_classes)
        self.projection = (
            ProjectionHead(
                features,
                projection["hidden"] or features,
                projection["dim"],
                projection["negative_slope"],
            )
            if projection
            else None
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        features = self.backbone(images)
        embeddings = self.projection(features) if self.projection is not None else None
        return self.classifier(features).float(), embeddings
