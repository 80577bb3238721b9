"""Official PCL files <-> our modules (docs/papers/pcl.md, section 9), and what others start from.

The layout is that of MoCo: two encoders whose `fc` is the head, a queue of columns. v1 has a linear
head, v2 a two-layer one. Source: salesforce/PCL@964da1f `main_pcl.py`, `pcl/builder.py`.
"""

from typing import Any

from methods.pcl.evaluation import LinearProbe, LowShotSVM
from methods.pcl.module import MoCo
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
from shared.checkpoints.reading import Checkpoint, content_of
from shared.training.method import Method

UNUSED = "the momentum encoder is not used"
OTHER_KEYS = "a queue of other keys"


def load(module: Method, source: Checkpoint) -> KeyReport:
    """Load an official checkpoint of PCL or MoCo or its bare state dict, or nothing:
    CheckpointError. A transfer module takes its backbone from it."""
    if isinstance(module, LinearProbe | LowShotSVM):
        return warm_start(module, source, "pcl")
    source = content_of(source)
    return import_official(source, key_table(common.model_prefix(source)), module)


def export(module: Method) -> dict[str, Any]:
    """The module's state, but for the clusters of the epoch, in the official form, which
    `load` turns back bit for bit; what that form lacks is under the key `tenfold`."""
    return export_official(module, key_table("state_dict/module."))


def key_table(prefix: str) -> KeyTable:
    """Both heads are in the table; a module accepts the one it has."""
    rules = [
        *common.moco_rules(f"{prefix}encoder_q."),
        *common.moco_rules(f"{prefix}encoder_k.", "momentum_encoder.module."),
        Rule(f"{prefix}queue", "queue.features", TRANSPOSED),
        Rule(f"{prefix}queue_ptr", "queue.pointer", SCALAR),
        Rule("tenfold/queue.written", "queue.written"),
    ]
    return KeyTable(rules, common.TRAINER_KEYS, {"queue.written": "not kept by the official code"})


def warm_start(module: Method, path: Checkpoint, kind: str) -> KeyReport:
    """Start from pre-trained weights: the query encoder's, never the momentum encoder's.

    A transfer module takes the backbone; `MoCo` and `PCL` take backbone and head, into both
    encoders, and keep an empty queue.

    Args:
        kind: `pcl`, an official PCL or MoCo checkpoint or one of our `MoCo` and `PCL` runs.
    """
    remedy = "pre-train first (experiment=pcl/...), or name another file by warm_start.path=FILE"
    source = common.read_start(path, kind, ("pcl",), remedy)
    if "_target_" in source:  # one of our runs
        source = common.state_of_run(source, "methods.pcl", path)
        dropped = {"momentum_encoder.{rest}": UNUSED, "queue.{rest}": OTHER_KEYS}
        parts = ("encoder.projection.{rest}", "encoder.backbone.{rest}")
        rules = [Rule(part, part) for part in parts]
    else:
        prefix = common.model_prefix(source)
        dropped = {**common.TRAINER_KEYS, f"{prefix}encoder_k.{{rest}}": UNUSED}
        dropped |= dict.fromkeys((f"{prefix}queue", f"{prefix}queue_ptr"), OTHER_KEYS)
        dropped["tenfold/{rest}"] = "state of an exported run"
        rules = common.moco_rules(f"{prefix}encoder_q.")
    if isinstance(module, MoCo):
        fresh = {
            "momentum_encoder.{rest}": "parameters copied from the encoder after loading",
            "queue.{rest}": "starts with random keys",
        }
        report = import_official(source, KeyTable(rules, dropped, fresh), module)
        module.momentum_encoder.update(module.encoder, 0.0)
        return report
    heads = [rule for rule in rules if rule.ours.startswith("encoder.projection.")]
    dropped |= {rule.official: "the projection head is not transferred" for rule in heads}
    rules = [rule for rule in rules if rule not in heads]
    fresh = {"encoder.classifier.{rest}": "the classifier starts anew"}
    return import_official(source, KeyTable(rules, dropped, fresh), module)
