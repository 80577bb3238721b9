"""A backbone with the two heads of the contrastive papers: class logits and an embedding."""

from torch import Tensor, nn

from shared.nn.building import applied, build
from shared.nn.heads import LinearProjection, ProjectionHead


class Encoder(nn.Module):
    """(N, C, H, W) -> float32 logits (N, num_classes) and unit-norm embeddings (N, d), each None if
    its head is.

    The `backbone`, `{_target_: shared.nn...., ...}`, has `num_features`. The `projection` is
    `{hidden, dim, negative_slope}`, where `hidden: null` takes the backbone's width, or linear,
    `{hidden: 0, dim}`.
    """

    def __init__(self, backbone: dict, num_classes: int | None, projection: dict | None):
        super().__init__()
        self.backbone = build(backbone, nn.Module)
        self.num_features = width = int(self.backbone.num_features)  # type: ignore[arg-type]
        # The classifier is created before the projection, so that with one seed all arms of a
        # comparison start from the same backbone and classifier.
        self.classifier = nn.Linear(width, num_classes) if num_classes is not None else None
        self.projection: nn.Module | None = None
        if projection:
            linear = projection.get("hidden") == 0
            head = LinearProjection if linear else ProjectionHead
            self.projection = applied(head, {"in_features": width, **projection})

    def forward(self, images: Tensor) -> tuple[Tensor | None, Tensor | None]:
        features = self.backbone(images)
        logits = self.classifier(features).float() if self.classifier is not None else None
        embeddings = self.projection(features) if self.projection is not None else None
        return logits, embeddings
