"""Checkpoints of other forms <-> our modules (docs/papers/iccl.md, sections 4 and 9).

No ICCL checkpoint has been published. Three forms are read: the flat names of section 4, which
`export` writes; the baseline checkpoints of facebookresearch/classifier-balancing@f162ade; and
our own stage-1 checkpoints, which stage 2 starts from.
"""

from os import PathLike
from typing import Any

from methods.iccl.classifier import LongTailClassifier
from methods.iccl.module import ICCL
from methods.iccl.stage2 import BalancedClassifier
from shared.checkpoints.official import KeyReport, KeyTable, Rule, export_official, import_official
from shared.checkpoints.reading import Checkpoint, CheckpointError, content_of
from shared.checkpoints.warm_start import OTHER_TRAINER, read_start

PUBLIC = "state_dict_best"  # networks of the public code's best validation epoch
PUBLIC_PARTS = (f"{PUBLIC}/feat_model/module.{{rest}}", f"{PUBLIC}/classifier/module.fc.{{rest}}")
PUBLIC_SCALES = f"{PUBLIC}/classifier/module.scales"
OUR_PARTS = ("state_dict/encoder.backbone.{rest}", "state_dict/encoder.classifier.{rest}")
TRAINER = dict.fromkeys(("epoch", "best_epoch", "best_acc", "centroids"), OTHER_TRAINER)

SPECIFIED = KeyTable(
    rules=[
        Rule("encoder.{rest}", "encoder.backbone.{rest}"),
        Rule("classifier.{rest}", "encoder.classifier.{rest}"),
        Rule("projection.0.{rest}", "encoder.projection.fc1.{rest}"),
        Rule("projection.2.{rest}", "encoder.projection.fc2.{rest}"),
        Rule("centroids", "centroids.prototypes"),
        Rule("scales", "scales"),
        Rule("teacher.{rest}", "teacher.{rest}"),
    ]
)
"""The names of docs/papers/iccl.md, section 4; `scales` and `teacher` are stage 2's."""


def load(module: LongTailClassifier, source: Checkpoint) -> KeyReport:
    """Load a checkpoint of the classifier-balancing code, or under the names of section 4, or
    nothing: CheckpointError."""
    source = content_of(source)
    if PUBLIC not in source:
        return import_official(source, SPECIFIED, module)
    if isinstance(module, ICCL):
        raise CheckpointError(
            "a classifier-balancing checkpoint is a baseline without projection and centroids: use "
            "experiment=iccl/imagenet_lt_ce, or start with warm_start.kind=classifier_balancing"
        )
    # A whole baseline, to evaluate it: joint and cRT have `fc`, LWS `scales` as well.
    ours = ("encoder.backbone.{rest}", "encoder.classifier.{rest}", "scales")
    rules = list(map(Rule, (*PUBLIC_PARTS, PUBLIC_SCALES), ours))
    table = KeyTable(rules, TRAINER, {"teacher.{rest}": "not kept by the public code"})
    return import_official(source, table, module)


def export(module: LongTailClassifier) -> dict[str, Any]:
    """The module's state, in shared memory, under the golden cases' names."""
    return export_official(module, SPECIFIED)


def warm_start(module: LongTailClassifier, path: str | PathLike[str], kind: str) -> KeyReport:
    """Start from a trained representation; a stage-1 module gets encoder and classifier.

    Stage 2 with LWS keeps the classifier, with cRT it stays random; in both the teacher of the
    distillation, if any, is stage 1's classifier.

    Args:
        kind: `stage1`, our own checkpoint of any arm (its run's checkpoints/last.ckpt); or
            `classifier_balancing`, a public baseline.
    """
    remedy = "run stage 1 first, or name another file by warm_start.path=FILE"
    content = read_start(path, kind, ("stage1", "classifier_balancing"), remedy)
    encoder, classifier = PUBLIC_PARTS
    dropped = {**TRAINER, PUBLIC_SCALES: "scales start at one"}
    fresh = {"scales": "scales start at one"}
    if kind == "stage1":
        if "state_dict" not in content:
            other = "a file of the public code takes warm_start.kind=classifier_balancing"
            raise CheckpointError(f"{path} is no stage-1 checkpoint: no state_dict; {other}")
        content = {"state_dict": content["state_dict"]}
        encoder, classifier = OUR_PARTS
        dropped = {
            "state_dict/encoder.projection.{rest}": "stage 1's projection head is not needed",
            "state_dict/centroids.{rest}": "stage 1's centroids are not needed",
        }
    rules = [Rule(encoder, "encoder.backbone.{rest}")]
    anew = "re-trained from random weights"
    stage2 = isinstance(module, BalancedClassifier)
    taught = stage2 and module.hparams["distillation"] is not None
    if stage2 and module.hparams["learnt"] == "crt":
        fresh["encoder.classifier.{rest}"] = anew
        if not taught:
            dropped[classifier] = anew
    else:
        rules.append(Rule(classifier, "encoder.classifier.{rest}"))
    if taught:
        rules.append(Rule(classifier, "teacher.{rest}"))
    if isinstance(module, ICCL):
        fresh["encoder.projection.{rest}"] = "not in the checkpoint"
        fresh["centroids.{rest}"] = "start from zero"
    return import_official(content, KeyTable(rules, dropped, fresh), module)
