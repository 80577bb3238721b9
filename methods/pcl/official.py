"""Official PCL files <-> our modules (docs/papers/pcl.md, section 9), and what others start from.

The layout is that of MoCo: two encoders whose `fc` is the head, a queue of columns. v1 has a linear
head, v2 a two-layer one. Source: salesforce/PCL@964da1f `main_pcl.py`, `pcl/builder.py`.
"""

from collections.abc import Mapping
from os import PathLike
from typing import Any

from methods.pcl.evaluation import LinearProbe, LowShotSVM
from methods.pcl.module import MoCo
from shared.checkpoints.official import (
    SCALAR,
    TRANSPOSED,
    KeyReport,
    KeyTable,
    Rule,
    export_official,
    import_official,
)
from shared.checkpoints.reading import CheckpointError, load_checkpoint
from shared.training.method import Method

TRAINER = "training state of another trainer"
TRAINER_KEYS = dict.fromkeys(("epoch", "arch", "optimizer", "optimizer/{rest}"), TRAINER)


def load(module: Method, path: str | PathLike[str]) -> KeyReport:
    """Load a checkpoint of the official repository, or of MoCo, into `MoCo` or `PCL`.

    A module of the transfer protocols takes its backbone from it, as `warm_start` does.

    Raises:
        CheckpointError: not readable without executing code, or any key missing, unexpected or
            resized; the module is then unchanged.
    """
    if isinstance(module, LinearProbe | LowShotSVM):
        return warm_start(module, path, "pcl")
    return load_weights(module, load_checkpoint(path))


def load_weights(module: Method, source: Mapping[str, Any]) -> KeyReport:
    """Like `load`, from a checkpoint's content or a bare state dict, with or without `module.`."""
    return import_official(source, key_table(official_prefix(source)), module)


def export(module: Method) -> dict[str, Any]:
    """The module's state in the official form, which `load_weights` turns back bit for bit.

    What the official form has no place for is under the key `tenfold`, which the official code
    ignores. Clusters are no part of it: they are made at the start of each epoch.
    """
    return export_official(module, key_table("state_dict/module."))


def official_prefix(source: Mapping[str, Any]) -> str:
    """What precedes the names of the model in this file."""
    prefix = "state_dict/" if "state_dict" in source else ""
    keys = source.get("state_dict", source)
    return prefix + ("module." if any(key.startswith("module.") for key in keys) else "")


def key_table(prefix: str) -> KeyTable:
    """Both heads are in the table; a module accepts the one it has."""
    return KeyTable(
        rules=[
            *_encoder(f"{prefix}encoder_q.", "encoder."),
            *_encoder(f"{prefix}encoder_k.", "momentum_encoder.module."),
            Rule(f"{prefix}queue", "queue.features", TRANSPOSED),
            Rule(f"{prefix}queue_ptr", "queue.pointer", SCALAR),
            Rule("tenfold/queue.written", "queue.written"),
        ],
        dropped=TRAINER_KEYS,
        fresh={"queue.written": "not kept by the official code"},
    )


def _encoder(official: str, ours: str) -> list[Rule]:
    return [
        Rule(f"{official}fc.0.{{rest}}", f"{ours}projection.fc1.{{rest}}"),
        Rule(f"{official}fc.2.{{rest}}", f"{ours}projection.fc2.{{rest}}"),
        Rule(f"{official}fc.{{rest}}", f"{ours}projection.fc.{{rest}}"),
        Rule(f"{official}{{rest}}", f"{ours}backbone.{{rest}}"),
    ]


def warm_start(module: Method, path: str | PathLike[str], kind: str) -> KeyReport:
    """Start from pre-trained weights: the query encoder's, never the momentum encoder's.

    Args:
        kind: `pcl`, an official PCL or MoCo checkpoint or one of our `MoCo` and `PCL` runs. A
            transfer module takes the backbone; `MoCo` and `PCL` take backbone and head, into both
            encoders, and keep an empty queue.

    Raises:
        CheckpointError: as in `load`; another kind; or a run of another method.
    """
    if kind != "pcl":
        raise CheckpointError(f"warm_start.kind {kind!r} is unknown: pcl is the only one here")
    try:
        source = load_checkpoint(path)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{error}: pre-train first (experiment=pcl/...), or name an official or another file "
            "by warm_start.path=FILE"
        ) from None
    ours = "_target_" in source
    if ours and not str(source["_target_"]).startswith("methods.pcl.module."):
        raise CheckpointError(f"{path} is a run of {source['_target_']}, not of MoCo or PCL")
    table = our_encoder(source) if ours else official_encoder(source)
    if isinstance(module, MoCo):
        report = import_official(source, table, module)
        module.momentum_encoder.update(module.encoder, 0.0)
        return report
    dropped = {**table.dropped}
    rules = [rule for rule in table.rules if not rule.ours.startswith("encoder.projection.")]
    heads = [rule for rule in table.rules if rule.ours.startswith("encoder.projection.")]
    dropped |= {rule.official: "the projection head is not transferred" for rule in heads}
    fresh = {"encoder.classifier.{rest}": "the classifier starts anew"}
    return import_official(source, KeyTable(rules, dropped, fresh), module)


FRESH = {
    "momentum_encoder.{rest}": "parameters copied from the encoder after loading",
    "queue.{rest}": "starts with random keys",
}


def official_encoder(source: Mapping[str, Any]) -> KeyTable:
    """The query encoder of an official checkpoint."""
    prefix = official_prefix(source)
    unused = {f"{prefix}encoder_k.{{rest}}": "the momentum encoder is not used"}
    unused |= {f"{prefix}queue{end}": "a queue of other keys" for end in ("", "_ptr")}
    unused |= {"tenfold/{rest}": "state of an exported run"}
    return KeyTable(_encoder(f"{prefix}encoder_q.", "encoder."), TRAINER_KEYS | unused, FRESH)


def our_encoder(source: Mapping[str, Any]) -> KeyTable:
    """The trained encoder of one of our runs."""
    others = {key: TRAINER for key in source if key != "state_dict"}
    others |= {f"{key}/{{rest}}": TRAINER for key in source if key != "state_dict"}
    others |= {
        "state_dict/momentum_encoder.{rest}": "the momentum encoder is not used",
        "state_dict/queue.{rest}": "a queue of other keys",
    }
    rules = [
        Rule("state_dict/encoder.projection.{rest}", "encoder.projection.{rest}"),
        Rule("state_dict/encoder.backbone.{rest}", "encoder.backbone.{rest}"),
    ]
    return KeyTable(rules, others, FRESH)
