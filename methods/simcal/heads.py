"""Classifiers of regions that are trained again (docs/papers/simcal.md, section 3.5).

Shapes: M regions with features (C, R, R), K classes and background, the first output.
"""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from shared.nn.detection.heads import BoxHead
from shared.tasks.classifier_balancing import LearnableScales, fresh_classifier, tau_norm_logits


class ThreeLayerHead(nn.Module):
    """`3fc`: the class layers of a box head: (M, C, R, R) -> (M, K + 1)."""

    def __init__(self, inputs: int, hidden: int, outputs: int):
        super().__init__()
        self.fc1 = nn.Linear(inputs, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.classifier = nn.Linear(hidden, outputs)

    def forward(self, features: Tensor) -> Tensor:
        hidden = self.fc1(features.flatten(1)).relu()
        return self.classifier(self.fc2(hidden).relu()).float()

    def start_from(self, head: BoxHead) -> None:
        """Copy the trained layers, so that the logits are those of the box head (`3fc_ft`)."""
        self.fc1.load_state_dict(head.fc6.state_dict())
        self.fc2.load_state_dict(head.fc7.state_dict())
        self.classifier.load_state_dict(head.cls_score.state_dict())


class TwoLayerHead(nn.Module):
    """`2fc_rand`: one layer less, never copied: (M, C, R, R) -> (M, K + 1)."""

    def __init__(self, inputs: int, hidden: int, outputs: int):
        super().__init__()
        self.fc1 = nn.Linear(inputs, hidden)
        self.classifier = nn.Linear(hidden, outputs)

    def forward(self, features: Tensor) -> Tensor:
        return self.classifier(self.fc1(features.flatten(1)).relu()).float()


class FrozenTrunkHead(nn.Module):
    """A classifier, rebalanced as ICCL's stage 2 does it, on the frozen layers of the box head.

    Args:
        rebalancing: `crt`, a new classifier; `lws`, one scale a class; `tau_norm`, which divides
            the rows of the trained classifier by their length to the power `tau`.
    """

    def __init__(
        self, inputs: int, hidden: int, outputs: int, rebalancing: str, tau: float, seed: int
    ):
        super().__init__()
        self.trunk = nn.ModuleList([nn.Linear(inputs, hidden), nn.Linear(hidden, hidden)])
        self.trunk.requires_grad_(False)
        self.rebalancing, self.tau = rebalancing, tau
        self.classifier: Any = fresh_classifier(hidden, outputs, seed)
        if rebalancing == "lws":
            self.classifier = LearnableScales(self.classifier.weight, self.classifier.bias)
        elif rebalancing == "tau_norm":
            self.classifier.requires_grad_(False)

    def forward(self, features: Tensor) -> Tensor:
        hidden = features.flatten(1)
        for layer in self.trunk:
            hidden = layer(hidden).relu()
        if self.rebalancing == "tau_norm":
            return tau_norm_logits(hidden.float(), self.classifier.weight, self.tau)
        return self.classifier(hidden).float()

    def start_from(self, head: BoxHead) -> None:
        """Copy the trained layers, but of `crt` not the classifier."""
        for layer, trained in zip(self.trunk, (head.fc6, head.fc7), strict=True):
            layer.load_state_dict(trained.state_dict())
        if self.rebalancing != "crt":
            with torch.no_grad():
                self.classifier.weight.copy_(head.cls_score.weight)
                self.classifier.bias.copy_(head.cls_score.bias)


class CopiedHead(nn.Module):
    """The class layers of a box head of another method's: (M, C, R, R) -> (M, K + 1)."""

    def __init__(self, head: nn.Module):
        super().__init__()
        self.head: Any = deepcopy(head).requires_grad_()
        self.head.bbox_pred.requires_grad_(False)  # boxes stay the detector's

    def forward(self, features: Tensor) -> Tensor:
        logits, _ = self.head(features)
        return logits

    def start_from(self, head: nn.Module) -> None:
        """Copy the trained layers, so that the logits are those of the box head."""
        self.head.load_state_dict(head.state_dict())


CALIBRATION = ("3fc_ft", "3fc_rand", "2fc_rand")
REBALANCING = ("crt", "lws", "tau_norm")


def calibration_head(kind: str, head: nn.Module, tau: float, seed: int) -> nn.Module:
    """A head of the `kind` with the sizes of the box head, which `start_from` it if trained; of a
    box head of another method's `3fc_ft` is a copy, and there are no others."""
    if not isinstance(head, BoxHead):
        if kind == "3fc_ft":
            return CopiedHead(head)
        told = f"method.head={kind!r} is of a BoxHead, not of {type(head).__name__}"
        raise ValueError(f"{told}: that has 3fc_ft alone")
    sizes = {
        "inputs": head.fc6.in_features,
        "hidden": head.fc6.out_features,
        "outputs": head.cls_score.out_features,
    }
    if kind == "2fc_rand":
        return TwoLayerHead(**sizes)
    if kind in REBALANCING:
        return FrozenTrunkHead(**sizes, rebalancing=kind, tau=tau, seed=seed)
    if kind in CALIBRATION:
        return ThreeLayerHead(**sizes)
    known = ", ".join((*CALIBRATION, *REBALANCING))
    raise ValueError(f"method.head={kind!r} is unknown; known: {known}")
