"""Heads on pooled features."""

from torch import Tensor, nn
from torch.nn import functional as F


def unit_norm(embeddings: Tensor) -> Tensor:
    """(N, d) -> (N, d) on the unit sphere, in float32, since half-precision norms are coarse. In
    some official code (CoMatch, MoPro) an all-zero row becomes NaN; here it stays zero."""
    return F.normalize(embeddings.float(), dim=1, eps=1e-12)


class ProjectionHead(nn.Module):
    """Two-layer MLP onto the unit sphere: (N, in_features) -> (N, dim); slope 0 is a ReLU."""

    def __init__(self, in_features: int, hidden: int | None, dim: int, negative_slope: float):
        super().__init__()
        hidden = in_features if hidden is None else hidden
        self.fc1 = nn.Linear(in_features, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.negative_slope = negative_slope

    def forward(self, features: Tensor) -> Tensor:
        hidden = F.leaky_relu(self.fc1(features), self.negative_slope)
        return unit_norm(self.fc2(hidden))


class LinearProjection(nn.Module):
    """Linear map onto the unit sphere (MoCo v1, PCL v1): (N, in_features) -> (N, dim). Configs that
    make a two-layer head linear keep its `negative_slope` 0, which is without effect here."""

    def __init__(self, in_features: int, dim: int, hidden: int = 0, negative_slope: float = 0.0):
        super().__init__()
        if hidden or negative_slope:
            raise ValueError(
                f"hidden and negative_slope of a linear head are 0, not {hidden}, {negative_slope}"
            )
        self.fc = nn.Linear(in_features, dim)

    def forward(self, features: Tensor) -> Tensor:
        return unit_norm(self.fc(features))
