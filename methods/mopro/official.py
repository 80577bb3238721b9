"""Official MoPro files <-> our modules (docs/papers/mopro.md, section 9).

`MoPro_V1_epoch90.tar` (1,000 classes), `MoPro_V2_epoch90.tar` (5,000) and what the official
training saves. Source: salesforce/MoPro@155cae3 `train.py`, `finetune_imagenet.py`,
`lowshot_svm.py`, `classifier_retrain.py`.
"""

from collections.abc import Mapping
from os import PathLike
from typing import Any

from methods.mopro.evaluation import FineTuning, LowShotSVM, Robustness
from methods.mopro.retraining import ClassifierRetraining
from shared.checkpoints import warm_start as common
from shared.checkpoints.official import (
    SCALAR,
    TRANSPOSED,
    KeyReport,
    KeyTable,
    Rule,
    export_official,
    import_official,
)
from shared.checkpoints.reading import Checkpoint, CheckpointError, content_of
from shared.training.method import Method

TRANSFER = (ClassifierRetraining, FineTuning, LowShotSVM, Robustness)
"""Modules that start from a pre-training and hold one encoder without projection head."""


def load(module: Method, source: Checkpoint) -> KeyReport:
    """Load an official pre-training or its bare state dict, or nothing: CheckpointError. A module
    without key encoder takes the query encoder alone."""
    source = content_of(source)
    return import_official(source, table_for(module, common.model_prefix(source)), module)


def export(module: Method | Mapping[str, Any]) -> dict[str, Any]:
    """The official form of a module, or of its state, in shared memory, which `load` turns
    back bit for bit; what that form lacks is under the key `tenfold`."""
    return export_official(module, KeyTable(_rules("state_dict/module.")))


def _rules(prefix: str) -> list[Rule]:
    """The official pre-training checkpoint."""
    return [
        *common.network_rules(f"{prefix}encoder_q.", "encoder."),
        *common.network_rules(f"{prefix}encoder_k.", "key_encoder.module."),
        Rule(f"{prefix}queue", "queue.features", TRANSPOSED),
        Rule(f"{prefix}queue_ptr", "queue.pointer", SCALAR),
        Rule(f"{prefix}prototypes", "prototypes.prototypes"),
        Rule("tenfold/queue.written", "queue.written"),
    ]


def table_for(module: Method, prefix: str, with_classifier: bool = True) -> KeyTable:
    """The rules for the parts that `module` has; the others are dropped."""
    rules: list[Rule] = []
    dropped = dict(common.TRAINER_KEYS)
    fresh = {"queue.written": "not kept by the official code"}
    if not with_classifier:
        fresh["encoder.classifier.{rest}"] = "starts anew"
    for rule in _rules(prefix):
        part = rule.ours.removesuffix("{rest}")
        taken = with_classifier or part != "encoder.classifier."
        if taken and any(key.startswith(part) for key in module.state_dict()):
            rules.append(rule)
        else:
            dropped[rule.official] = "a part that is not taken over"
    return KeyTable(rules, dropped, fresh)


def warm_start(module: Method, path: str | PathLike[str], kind: str) -> KeyReport:
    """Start a transfer module from a pre-training, official or ours, or from a retraining of ours.

    Args:
        kind: `pretrained` takes backbone and classifier, `backbone` the backbone alone: for other
            classes, as the 5,000 of WebVision V2 are for ImageNet.
    """
    remedy = "pre-train first (experiment=mopro/...), or name another file by warm_start.path=FILE"
    source = common.read_start(path, kind, ("pretrained", "backbone"), remedy)
    if not isinstance(module, TRANSFER):
        raise CheckpointError(
            f"warm_start is for {', '.join(form.__name__ for form in TRANSFER)}; a "
            f"{type(module).__name__} takes official_checkpoint=PATH, or continues its own run"
        )
    if "_target_" in source:
        source = export(common.state_of_run(source, "methods.mopro", path))
    table = table_for(module, common.model_prefix(source), with_classifier=kind == "pretrained")
    return import_official(source, table, module)
