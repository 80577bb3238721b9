"""Official PB-OVD detectors <-> our module (docs/papers/pb_ovd.md, section 9), and other starts.

Their layout is maskrcnn-benchmark's. Source: salesforce/PB-OVD@f62bdfc
`maskrcnn_benchmark/modeling`, `utils/c2_model_loading.py`.
"""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from methods.pb_ovd.module import OpenVocabularyDetector
from shared.checkpoints.official import (
    KeyReport,
    KeyTable,
    Rule,
    export_official,
    import_official,
    translation,
)
from shared.checkpoints.reading import Checkpoint, CheckpointError, content_of
from shared.checkpoints.warm_start import (
    OTHER_TRAINER,
    model_prefix,
    read_start,
    state_of_run,
)
from shared.data.errors import DataCorruptError, DataNotFoundError
from shared.data.readers.plain_pickle import read_plain_pickle
from shared.training.method import Method

NAMES = {
    "backbone.body.": "backbone.",
    "rpn.head.conv.": "rpn.head.conv.0.0.",
    "rpn.head.": "rpn.head.",
    "roi_heads.box.feature_extractor.head.layer4.": "box_heads.0.trunk.",
    "roi_heads.box.predictor.": "box_heads.0.",
}
ANCHORS = "rpn.anchor_generator.cell_anchors.0"
TEXTS = "roi_heads.box.predictor.cls_score.{rest}"
OURS = "tenfold/texts"  # of what an export adds
FRESH = {"texts": "come from the data"}
TRAINER = {
    name: OTHER_TRAINER
    for key in ("optimizer", "scheduler", "iteration")
    for name in (key, f"{key}/{{rest}}")
}
# MSRA's ResNet-50 in the names of Caffe2, whose last stage runs on each region.
BRANCHES = {
    "branch2a": ("conv1", "bn1"), "branch2b": ("conv2", "bn2"), "branch2c": ("conv3", "bn3"),
    "branch1": ("downsample.0", "downsample.1"),
}  # fmt: skip
STAGES = {
    "res2": "backbone.layer1", "res3": "backbone.layer2", "res4": "backbone.layer3",
    "res5": "box_heads.0.trunk",
}  # fmt: skip
STEM = KeyTable(
    [Rule("patch_embed.backbone.{rest}", "detector.backbone.stem.{rest}")],
    dict.fromkeys(("blocks.{rest}", "norm.{rest}", "cls_token", "pos_embed"), "not of the stem"),
    {**FRESH, "detector.{rest}": "learns from boxes"},
)
PARTS = {"w": (0, "weight"), "bn_s": (1, "weight"), "bn_b": (1, "bias")}


def load(module: Method, source: Checkpoint) -> KeyReport:
    """Load an official detector or its bare state dict, or nothing: CheckpointError."""
    source = content_of(source)
    compare_anchors(module, source)
    return import_official(source, table(model_prefix(source, "model")), module)


def export(module: Method) -> dict[str, Any]:
    """The module's state in the official layout, which `load` turns back bit for bit; what
    that layout lacks is under the key `tenfold`."""
    return export_official(module, KeyTable(rules("model/")))


def rules(prefix: str) -> list[Rule]:
    """Of the names of both sides."""
    # From right to left the first rule that fits decides, and the stem is no stage.
    stem = [
        Rule(f"{prefix}backbone.body.stem.{part}.{{rest}}", f"detector.backbone.{part}.{{rest}}")
        for part in ("conv1", "bn1")
    ]
    return [*stem, *translation(NAMES, prefix, "detector."), Rule(OURS, "texts")]


def table(prefix: str) -> KeyTable:
    dropped = {
        **TRAINER,
        f"{prefix}{ANCHORS}": "follow from the config, and are the same",
        f"{prefix}{TEXTS}": "texts come from the data",
    }
    return KeyTable(rules(prefix), dropped, FRESH)


def compare_anchors(module: Method, source: Mapping[str, Any]) -> None:
    """CheckpointError if a file has other anchors than the module."""
    assert isinstance(module, OpenVocabularyDetector)
    prefix = model_prefix(source, "model")
    state = source.get("model", source)
    theirs = state.get(f"{prefix.removeprefix('model/')}{ANCHORS}")
    ours = module.detector.rpn.anchors.get_buffer("cell0")
    if theirs is not None and not (
        isinstance(theirs, torch.Tensor)
        and theirs.shape == ours.shape
        and torch.allclose(theirs.to(ours), ours)
    ):
        told = f"{ANCHORS} are not those of method.detector.anchors"
        raise CheckpointError(f"{told}: set their sizes and ratios")


def warm_start(module: Method, path: str | PathLike[str], kind: str) -> KeyReport:
    """Start from other weights.

    Args:
        kind: `detector`, a run of ours or an official detector; `msra`, Detectron's R-50.pkl, or a
            folder's file of the same layout in safetensors; `stem`, a vision transformer of ours,
            whose stem becomes the network of a `StemBackbone`.
    """
    remedy = "train it first (experiment=pb_ovd/...), or name a file by warm_start.path=FILE"
    if kind == "msra" and Path(path).suffix == ".pkl":
        source: Mapping[str, Any] = msra_blobs(path)
    else:
        source = read_start(path, kind, ("detector", "msra", "stem"), remedy)
    if kind == "stem":
        return import_official(source, STEM, module)
    if kind == "msra":
        return import_official(source, msra_table(), module)
    if "_target_" in source:
        source = state_of_run(source, "methods.pb_ovd", path)
        ours = KeyTable([Rule("detector.{rest}", "detector.{rest}")], FRESH, FRESH)
        return import_official(source, ours, module)
    return load(module, source)


def msra_blobs(path: str | PathLike[str]) -> dict[str, torch.Tensor]:
    """Tensors of Detectron's R-50.pkl by name; a pickle is read without running it."""
    try:
        blobs = read_plain_pickle(Path(path), arrays=True)
    except (DataCorruptError, DataNotFoundError) as error:
        raise CheckpointError(f"{error}: warm_start.path=FILE names Detectron's R-50.pkl") from None
    if not isinstance(blobs, dict):
        raise CheckpointError(f"{path} holds no blobs by name")
    return {str(name): torch.as_tensor(value) for name, value in blobs.items()}


def msra_table() -> KeyTable:
    """BatchNorm's statistics are part of its affine map there: mean 0 and variance 1 are ours."""
    found = [Rule("conv1_w", "detector.backbone.conv1.weight")]
    for part in ("s", "b"):
        name = {"s": "weight", "b": "bias"}[part]
        found.append(Rule(f"res_conv1_bn_{part}", f"detector.backbone.bn1.{name}"))
    for theirs, mine in STAGES.items():
        for branch, layers in BRANCHES.items():
            for part, (which, name) in PARTS.items():
                found.append(
                    Rule(f"{theirs}_{{block}}_{branch}_{part}",
                         f"detector.{mine}.{{block}}.{layers[which]}.{name}")
                )  # fmt: skip
    dropped = {
        "fc1000_{rest}": "ImageNet's classes", "pred_{rest}": "ImageNet's classes",
        "conv1_b": "zero in front of a BatchNorm", "{rest}_momentum": OTHER_TRAINER,
    }  # fmt: skip
    fresh = {
        **FRESH,
        "{rest}.running_mean": "0, part of the affine map",
        "{rest}.running_var": "1, part of the affine map",
        "detector.rpn.{rest}": "not in the checkpoint",
        "detector.box_heads.0.emb_pred.{rest}": "not in the checkpoint",
        "detector.box_heads.0.bbox_pred.{rest}": "not in the checkpoint",
    }
    return KeyTable(found, dropped, fresh)
