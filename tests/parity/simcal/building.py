"""Our modules around the parts that a case gives, with weights through the official importer."""

from typing import Any

from torch import Tensor, nn

from methods.simcal import official
from methods.simcal.heads import ThreeLayerHead, TwoLayerHead
from methods.simcal.module import SimCal
from shared.checkpoints.official import KeyTable, import_official, translation
from shared.nn.detection.heads import BoxHead

STDS = (0.1, 0.1, 0.2, 0.2)


def box_head(config: dict[str, Any], agnostic: bool = True, stds: Any = STDS) -> BoxHead:
    classes = config["num_classes"]
    return BoxHead(
        config["in_channels"], config["roi_feat_size"], config["hidden"], classes - 1, classes,
        agnostic, stds, 0.5,
    )  # fmt: skip


def calibration_head(config: dict[str, Any], layers: int) -> nn.Module:
    inputs = config["in_channels"] * config["roi_feat_size"] ** 2
    kind = {2: TwoLayerHead, 3: ThreeLayerHead}[layers]
    return kind(inputs, config["hidden"], config["num_classes"])


def fill(module: nn.Module, names: dict[str, str], weights: dict[str, Tensor]) -> None:
    """Load weights under the official names of a part."""
    import_official(weights, KeyTable(translation(names, "", "")), module)


def below(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Entries whose names begin so, without that."""
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


def simcal(config: dict[str, Any], head: str = "3fc_ft", **more: Any) -> SimCal:
    """A module whose regions have features of the case's size."""
    detector = {
        "backbone": {
            "_target_": "shared.nn.detection.backbones.SmallBackbone",
            "channels": [2, 2, 2, config["in_channels"]],
        },
        "num_classes": config["num_classes"] - 1,
        "legacy": True,
        "anchors": {"sizes": [8], "ratios": [1.0]},
        "proposals": {
            "train": {"before_nms": 8, "kept": 8}, "test": {"before_nms": 8, "kept": 8}, "nms": 0.7,
        },
        "box_head": {
            "resolution": config["roi_feat_size"], "hidden": config["hidden"],
            "delta_stds": [STDS], "positive_iou": [0.5],
        },
        "mask_head": None,
        "class_agnostic": True,
    }  # fmt: skip
    settings = {
        "detector": detector,
        "selection": {"threshold": 0.0, "nms": 0.5, "limit": 10},
        "evaluation": {"edges": [10], "most": None, "masks": False, "proposals": 0},
        "channels_last": False,
        "seed": 0,
        "tau": 1.0,
        "threshold": 100,
        "combination": "dual",
        "regions": {"count": 16, "positive_fraction": 0.25, "negative_iou_low": 0.1},
        "lr": 0.01,
        "momentum": 0.0,
        "drops": [7, 10],
        "gamma": 0.1,
    }
    return SimCal(head=head, **(settings | more))


def start_from(module: SimCal, weights: dict[str, Tensor]) -> None:
    """Start a module, as from stage A, from a detector of which a case gives the box head."""
    content = official.export(module)["state_dict"]
    rules = official.detector_rules(module, "")
    fresh = {**official.UNCOUNTED, "heads.{rest}": "start from the box head"}
    import_official({**content, **weights}, KeyTable(rules, {}, fresh), module)
    module.start_heads()
