"""Heads on pooled features."""

from torch import Tensor, nn
from torch.nn import functional as F


class ProjectionHead(nn.Module):
    """Two-layer MLP onto the unit sphere: (N, in_features) -> (N, out_features), L2-normalised.

    `negative_slope` 0 is a ReLU. The official CoMatch code normalises without an epsilon, so an
    all-zero projection becomes NaN there; here the norm is bounded below by 1e-12.
    """

    def __init__(self, in_features: int, hidden: int, out_features: int, negative_slope: float):
        super().__init__()
        self.fc1 = nn.Linear(in_features, hidden)
        self.fc2 = nn.Linear(hidden, out_features)
        self.negative_slope = negative_slope

    def forward(self, features: Tensor) -> Tensor:
        hidden = F.leaky_relu(self.fc1(features), self.negative_slope)
        # In float32: half-precision norms are coarse, and every similarity is built on them.
        return F.normalize(self.fc2(hidden).float(), dim=1, eps=1e-12)
