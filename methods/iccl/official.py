"""Checkpoints of other forms <-> our modules (docs/papers/iccl.md, sections 4 and 9).

No ICCL checkpoint has been published. Three forms are read: the flat names of the golden cases'
section 4 (`encoder.*`, `classifier.*`, `projection.{0,2}.*`, `centroids`), which `export` writes;
the baseline checkpoints of facebookresearch/classifier-balancing@f162ade; and our own stage-1
checkpoints, which stage 2 starts from.
"""

from collections.abc import Mapping
from os import PathLike
from typing import Any

from methods.iccl.classifier import LongTailClassifier
from methods.iccl.module import ICCL
from methods.iccl.stage2 import BalancedClassifier
from shared.checkpoints.official import (
    KeyReport,
    KeyTable,
    Rule,
    export_official,
    import_official,
)
from shared.checkpoints.reading import CheckpointError, load_checkpoint
from shared.checkpoints.warm_start import OTHER_TRAINER, read_start

PUBLIC = "state_dict_best"
"""Where the public baseline code keeps the networks of its best validation epoch."""


def load(module: LongTailClassifier, path: str | PathLike[str]) -> KeyReport:
    """Load a checkpoint of the classifier-balancing code, or the golden cases' names.

    Raises:
        CheckpointError: not readable without executing code, or any key missing, unexpected or
            resized; the module is then unchanged.
    """
    return load_weights(module, load_checkpoint(path))


def load_weights(module: LongTailClassifier, source: Mapping[str, Any]) -> KeyReport:
    """Load as `load` does, from the content of a file."""
    table = public_table(module) if PUBLIC in source else specified_table()
    return import_official(source, table, module)


def export(module: LongTailClassifier) -> dict[str, Any]:
    """The module's state under the golden cases' names; `load_weights` turns it back.

    Tensors share memory with the module, as those of `state_dict()` do.
    """
    return export_official(module, specified_table())


def warm_start(module: LongTailClassifier, path: str | PathLike[str], kind: str) -> KeyReport:
    """Start from a trained representation.

    Args:
        kind: `stage1`, our own checkpoint of any arm (its run's checkpoints/last.ckpt); or
            `classifier_balancing`, a public baseline. Stage 2 with LWS keeps the classifier, with
            cRT it stays random; in both the teacher of the distillation, if any, is stage 1's
            classifier. A stage-1 module gets encoder and classifier.

    Raises:
        CheckpointError: as in `load`, or another `kind`.
    """
    remedy = "run stage 1 first, or name another file by warm_start.path=FILE"
    content = read_start(path, kind, ("stage1", "classifier_balancing"), remedy)
    if kind == "stage1":
        if "state_dict" not in content:
            raise CheckpointError(
                f"{path} is no stage-1 checkpoint of ours: it has no state_dict. For a file of the "
                "classifier-balancing code say warm_start.kind=classifier_balancing"
            )
        content = {"state_dict": content["state_dict"]}
        prefixes = ("state_dict/encoder.backbone.", "state_dict/encoder.classifier.")
        unused = {
            "state_dict/encoder.projection.{rest}": "stage 1's projection head is not needed",
            "state_dict/centroids.{rest}": "stage 1's centroids are not needed",
        }
    else:
        prefixes = (f"{PUBLIC}/feat_model/module.", f"{PUBLIC}/classifier/module.fc.")
        unused = {**_trainer_keys(), f"{PUBLIC}/classifier/module.scales": "scales start at one"}
    return import_official(content, _start_table(module, *prefixes, unused), module)


def specified_table() -> KeyTable:
    """The names of docs/papers/iccl.md, section 4; `scales` and `teacher` are stage 2's."""
    return KeyTable(
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


def public_table(module: LongTailClassifier) -> KeyTable:
    """A whole baseline, to evaluate it: joint and cRT have `fc`, LWS `scales` as well."""
    if isinstance(module, ICCL):
        raise CheckpointError(
            "a classifier-balancing checkpoint is a baseline without projection and centroids: "
            "evaluate it with a cross-entropy experiment (`iccl/imagenet_lt_ce`) or start ICCL "
            "from it with warm_start.kind=classifier_balancing"
        )
    return KeyTable(
        rules=[
            Rule(f"{PUBLIC}/feat_model/module.{{rest}}", "encoder.backbone.{rest}"),
            Rule(f"{PUBLIC}/classifier/module.fc.{{rest}}", "encoder.classifier.{rest}"),
            Rule(f"{PUBLIC}/classifier/module.scales", "scales"),
        ],
        dropped=_trainer_keys(),
        fresh={"teacher.{rest}": "not kept by the public code"},
    )


def _trainer_keys() -> dict[str, str]:
    keys = ("epoch", "best_epoch", "best_acc", "centroids")
    return dict.fromkeys(keys, OTHER_TRAINER)


def _start_table(
    module: LongTailClassifier, encoder: str, classifier: str, unused: Mapping[str, str]
) -> KeyTable:
    stage2 = isinstance(module, BalancedClassifier)
    dropped, fresh = dict(unused), {"scales": "scales start at one"}
    receivers = []
    if not (stage2 and module.hparams["learnt"] == "crt"):
        receivers.append("encoder.classifier.")
    if stage2 and module.hparams["distillation"] is not None:
        receivers.append("teacher.")
    if "encoder.classifier." not in receivers:
        fresh["encoder.classifier.{rest}"] = "re-trained from random weights"
    if not receivers:
        dropped[f"{classifier}{{rest}}"] = "re-trained from random weights"
    if isinstance(module, ICCL):
        fresh["encoder.projection.{rest}"] = "not in the checkpoint"
        fresh["centroids.{rest}"] = "start from zero"
    return KeyTable(
        rules=[
            Rule(f"{encoder}{{rest}}", "encoder.backbone.{rest}"),
            *(Rule(f"{classifier}{{rest}}", f"{receiver}{{rest}}") for receiver in receivers),
        ],
        dropped=dropped,
        fresh=fresh,
    )
