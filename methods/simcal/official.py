"""Official SimCal files <-> our modules (docs/papers/simcal.md, section 9), and other starts.

The official detector is mmdetection's of 2019, its calibration heads are files of their own beside
it: `3fc_ft.pth`, or `3fc_ft_stage0.pth` and so on for a cascade. A torchvision Mask R-CNN has the
same layers, of other names. Source: twangnh/SimCal@e5f3076 `mmdet/models`, `cls_head_models`.
"""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from methods.simcal.frame import LongTailDetector
from methods.simcal.heads import ThreeLayerHead, TwoLayerHead
from methods.simcal.module import SimCal
from shared.checkpoints.official import (
    KeyReport,
    KeyTable,
    Rule,
    export_official,
    import_official,
    translation,
)
from shared.checkpoints.reading import (
    Checkpoint,
    CheckpointError,
    content_of,
    load_checkpoint,
)
from shared.checkpoints.warm_start import OTHER_TRAINER, model_prefix, read_start, state_of_run
from shared.training.method import Method

DETECTOR = {
    "backbone.": "backbone.body.",
    "neck.lateral_convs.{level}.conv.": "backbone.fpn.inner_blocks.{level}.0.",
    "neck.fpn_convs.{level}.conv.": "backbone.fpn.layer_blocks.{level}.0.",
    "rpn_head.rpn_conv.": "rpn.head.conv.0.0.",
    "rpn_head.rpn_cls.": "rpn.head.cls_logits.",
    "rpn_head.rpn_reg.": "rpn.head.bbox_pred.",
}
BOX_HEAD = {
    "shared_fcs.0.": "fc6.",
    "shared_fcs.1.": "fc7.",
    "fc_cls.": "cls_score.",
    "fc_reg.": "bbox_pred.",
}
MASK_HEAD = {
    "convs.{layer}.conv.": "convs.{layer}.0.",
    "upsample.": "predictor.conv5_mask.",
    "conv_logits.": "predictor.mask_fcn_logits.",
}
THREE_LAYERS = {
    "feat_classifier.fc1.": "fc1.",
    "feat_classifier.fc2.": "fc2.",
    "feat_classifier.fc_classifier.": "classifier.",
}
TWO_LAYERS = {"feat_extractor.fc1.": "fc1.", "feat_extractor.fc2.": "classifier."}
TORCHVISION = {
    "backbone.body.": "backbone.body.",
    "backbone.fpn.": "backbone.fpn.",
    "rpn.head.": "rpn.head.",
    "roi_heads.box_head.": "box_heads.0.",
    "roi_heads.box_predictor.": "box_heads.0.",
    "roi_heads.mask_head.": "mask_heads.0.convs.",
    "roi_heads.mask_predictor.": "mask_heads.0.predictor.",
}
# As torchvision's own files of before 2022 have them, which its networks rename when they load.
TORCHVISION_BEFORE = {
    "rpn.head.conv.": "rpn.head.conv.0.0.",
    **{
        f"backbone.fpn.{blocks}.{level}.": f"backbone.fpn.{blocks}.{level}.0."
        for blocks in ("inner_blocks", "layer_blocks")
        for level in range(4)
    },
    **{
        f"roi_heads.mask_head.mask_fcn{layer + 1}.": f"mask_heads.0.convs.{layer}.0."
        for layer in range(4)
    },
}
TRAINER = {"meta": OTHER_TRAINER, "meta/{rest}": OTHER_TRAINER, "optimizer/{rest}": OTHER_TRAINER}
UNCOUNTED = {
    "instances": "come from the data",
    "detector.backbone.body.{rest}.num_batches_tracked": "not kept by frozen BatchNorms",
}
HEADS = "heads/"  # of the official heads' states, by stage, in a content that holds all
OURS = "tenfold/"  # of what an export adds


def load(module: Method, source: Checkpoint) -> KeyReport:
    """Load an official detector or its bare state dict, or nothing: CheckpointError. The heads of a
    `SimCal` lie beside the file; in a content they are under `heads`, by stage."""
    content = content_of(source)
    if isinstance(module, SimCal) and not isinstance(source, Mapping):
        content = {**content, "heads": head_files(module, Path(source).parent)}
    return import_official(content, key_table(module, content), module)


def head_files(module: SimCal, folder: Path) -> dict[str, Any]:
    """The content of the calibration heads' files, by stage."""
    kind = module.hparams["head"]
    stages = range(len(module.heads))
    names = [f"{kind}_stage{stage}.pth" for stage in stages] if len(stages) > 1 else [f"{kind}.pth"]
    contents = {}
    for stage, name in enumerate(names):
        try:
            state = load_checkpoint(folder / name)
        except FileNotFoundError:
            told = f"{folder} has no {name}, the calibration head of the detector"
            raise CheckpointError(f"{told}: put it there, or train it") from None
        # Without the prefix of a data-parallel network.
        own = {str(key).removeprefix("module."): value for key, value in state.items()}
        contents[str(stage)] = own
    return contents


def export(module: Method) -> dict[str, Any]:
    """The module's state in the official layout, which `load` turns back bit for bit; what
    that layout lacks is under the key `tenfold`."""
    return export_official(module, KeyTable(official_rules(module, "state_dict/")))


def key_table(module: Method, source: Mapping[str, Any]) -> KeyTable:
    """The table of mmdetection's or of torchvision's names, whichever the source has."""
    if any(str(key).startswith("roi_heads.") for key in source):
        return KeyTable(torchvision_rules(), {}, UNCOUNTED)
    return KeyTable(official_rules(module, model_prefix(source)), TRAINER, UNCOUNTED)


def detector_rules(module: Method, prefix: str) -> list[Rule]:
    """Of mmdetection's detector; the heads of a cascade are numbered there, a single one is not."""
    assert isinstance(module, LongTailDetector)
    rules = translation(DETECTOR, prefix, "detector.")
    for stage in range(stages := len(module.detector.box_heads)):
        number = f"{stage}." if stages > 1 else ""
        rules += translation(
            BOX_HEAD, f"{prefix}bbox_head.{number}", f"detector.box_heads.{stage}."
        )
        rules += translation(
            MASK_HEAD, f"{prefix}mask_head.{number}", f"detector.mask_heads.{stage}."
        )
    return rules


def official_rules(module: Method, prefix: str) -> list[Rule]:
    """Of detector and calibration heads."""
    rules = detector_rules(module, prefix)
    for stage, head in enumerate(module.heads if isinstance(module, SimCal) else []):
        names = {ThreeLayerHead: THREE_LAYERS, TwoLayerHead: TWO_LAYERS}.get(type(head))
        ours = f"heads.{stage}."
        if names is None:
            rules.append(Rule(f"{OURS}{ours}{{rest}}", f"{ours}{{rest}}"))
        else:
            rules += translation(names, f"{HEADS}{stage}/", ours)
    return [*rules, Rule(f"{OURS}instances", "instances")]


def torchvision_rules() -> list[Rule]:
    before = [
        Rule(f"{theirs}{part}", f"detector.{ours}{part}")
        for theirs, ours in TORCHVISION_BEFORE.items()
        for part in ("weight", "bias")
    ]
    return [*before, *translation(TORCHVISION, "", "detector.")]


def warm_start(module: Method, path: str | PathLike[str], kind: str) -> KeyReport:
    """Start from other weights; the heads of a `SimCal` from those of the detector, if their kind
    does.

    Args:
        kind: `joint`, a run of stage A or an official detector; `pb_ovd`, a run of that method, for
            a detector of its parts; `torchvision`, its Mask R-CNN of COCO without the layers that
            depend on classes; `imagenet`, its ResNet.
    """
    remedy = "train stage A first (experiment=simcal/...), or name a file by warm_start.path=FILE"
    kinds = ("joint", "pb_ovd", "torchvision", "imagenet")
    source: Mapping[str, Any] = read_start(path, kind, kinds, remedy)
    fresh = {**UNCOUNTED, "heads.{rest}": "start from the detector's, or from random weights"}
    dropped = dict(TRAINER)
    if kind == "joint" and "_target_" in source:
        source = state_of_run(source, "methods.simcal", path)
        rules = [Rule("detector.{rest}", "detector.{rest}"), Rule("instances", "instances")]
        dropped["heads.{rest}"] = "heads are calibrated anew"
    elif kind == "pb_ovd":
        source = state_of_run(source, "methods.pb_ovd", path)
        rules = [Rule("detector.{rest}", "detector.{rest}")]
        dropped["texts"] = "come from the data"
        fresh["detector.box_heads.0.texts"] = "come from the data"
    elif kind == "joint":
        rules = detector_rules(module, model_prefix(source))
    elif kind == "torchvision":
        rules = torchvision_rules()
        of_classes = ("box_predictor", "mask_predictor.mask_fcn_logits")
        dropped |= {f"roi_heads.{name}.{{rest}}": "depends on the classes" for name in of_classes}
        for name in ("box_heads.0.cls_score", "box_heads.0.bbox_pred",
                     "mask_heads.0.predictor.mask_fcn_logits"):  # fmt: skip
            fresh[f"detector.{name}.{{rest}}"] = "depends on the classes"
    else:
        rules = [Rule("{rest}", "detector.backbone.body.{rest}")]
        dropped["fc.{rest}"] = "ImageNet's classes"
        for part in ("backbone.fpn", "rpn", "box_heads", "mask_heads"):
            fresh[f"detector.{part}.{{rest}}"] = "not in the checkpoint"
    report = import_official(source, KeyTable(rules, dropped, fresh), module)
    if isinstance(module, SimCal):
        module.start_heads()
    return report
