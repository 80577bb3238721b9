"""A backbone with the two heads of the contrastive papers: class logits and an embedding."""

from torch import Tensor, nn

from shared.nn.building import build_network
from shared.nn.heads import LinearProjection, ProjectionHead


class Encoder(nn.Module):
    """(N, C, H, W) -> float32 logits (N, num_classes) and unit-norm embeddings (N, d).

    A head that is left out gives None in its place.

    Args:
        backbone: `{_target_: shared.nn...., ...}`; the class has `num_features`.
        num_classes: C; None for a network that is trained without classes.
        projection: `{hidden, dim, negative_slope}`, a two-layer head; `hidden: null` takes the
            backbone's width. `{hidden: 0, dim}` is a linear head. None leaves it out.
    """

    def __init__(self, backbone: dict, num_classes: int | None, projection: dict | None):
        super().__init__()
        self.backbone = build_network(backbone)
        self.num_features = int(self.backbone.num_features)  # type: ignore[arg-type]
        # The classifier is created before the projection, so that with one seed all arms of a
        # comparison start from the same backbone and classifier.
        self.classifier = (
            nn.Linear(self.num_features, num_classes) if num_classes is not None else None
        )
        self.projection = projection_head(self.num_features, projection) if projection else None

    def forward(self, images: Tensor) -> tuple[Tensor | None, Tensor | None]:
        features = self.backbone(images)
        logits = self.classifier(features).float() if self.classifier is not None else None
        embeddings = self.projection(features) if self.projection is not None else None
        return logits, embeddings


def projection_head(in_features: int, config: dict) -> nn.Module:
    """The head that `Encoder`'s `projection` describes, on features of width `in_features`.

    Raises:
        ValueError: an unknown key, or a missing one.
    """
    linear = config.get("hidden") == 0
    needed = {"hidden", "dim"} if linear else {"hidden", "dim", "negative_slope"}
    missing, unknown = needed - set(config), set(config) - {"hidden", "dim", "negative_slope"}
    if missing or unknown:
        raise ValueError(
            f"projection takes {sorted(needed)}; "
            f"missing {sorted(missing)}, unknown {sorted(unknown)}"
        )
    if linear:
        return LinearProjection(in_features, config["dim"])
    hidden = config["hidden"] if config["hidden"] is not None else in_features
    return ProjectionHead(in_features, hidden, config["dim"], config["negative_slope"])
