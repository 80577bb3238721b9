"""Official MoPro files <-> our modules (docs/papers/mopro.md, section 9).

`MoPro_V1_epoch90.tar` (1,000 classes), `MoPro_V2_epoch90.tar` (5,000) and what the official
training saves. Source: salesforce/MoPro@155cae3 `train.py`, `finetune_imagenet.py`,
`lowshot_svm.py`, `classifier_retrain.py`.
"""

from collections.abc import Mapping
from os import PathLike
from typing import Any

from methods.mopro.classifier import WebClassifier
from methods.mopro.evaluation import FineTuning, LowShotSVM, Robustness
from methods.mopro.module import MoPro
from methods.mopro.retraining import ClassifierRetraining
from shared.checkpoints.official import (
    SCALAR,
    TRANSPOSED,
    KeyReport,
    KeyTable,
    Rule,
    export_official,
    import_official,
)
from shared.checkpoints.reading import CheckpointError, load_checkpoint, load_module
from shared.checkpoints.warm_start import TRAINER_KEYS, fc_rules, model_prefix, read_start
from shared.training.method import Method

TRANSFER = (ClassifierRetraining, FineTuning, LowShotSVM, Robustness)
"""Modules that start from a pre-training and hold one encoder without projection head."""
NO_HEAD = "the module has no projection head"


def load(module: Method, path: str | PathLike[str]) -> KeyReport:
    """Load a checkpoint of the official pre-training; a module without key encoder, queue and
    prototypes takes the query encoder from it.

    Raises:
        CheckpointError: not readable without executing code, or any key missing, unexpected or
            resized; the module is then unchanged.
    """
    return load_weights(module, load_checkpoint(path))


def load_weights(module: Method, source: Mapping[str, Any]) -> KeyReport:
    """Load as `load` does, from a checkpoint's content or a bare state dict."""
    return import_official(source, table_for(module, model_prefix(source)), module)


def export(module: Method) -> dict[str, Any]:
    """The module's state in the official form, which `load_weights` turns back bit for bit.

    What the official form has no place for is under the key `tenfold`, which the official code
    ignores. Tensors share memory with the module, as those of `state_dict()` do.
    """
    return export_official(module, table_for(module, "state_dict/module."))


def table_for(module: Method, prefix: str, with_classifier: bool = True) -> KeyTable:
    """The official pre-training checkpoint beside the parts that `module` has."""
    has = {key.rpartition(".")[0] for key in module.state_dict()}
    query, key = f"{prefix}encoder_q.", f"{prefix}encoder_k."
    dropped = dict(TRAINER_KEYS)
    fresh: dict[str, str] = {}
    rules = [Rule(f"{query}{{rest}}", "encoder.backbone.{rest}")]
    if with_classifier and "encoder.classifier" in has:
        rules = [Rule(f"{query}classifier.{{rest}}", "encoder.classifier.{rest}"), *rules]
        if "classifier" in has:  # the same layer under a second name
            rules.insert(1, Rule(f"{query}classifier.{{rest}}", "classifier.{rest}"))
    else:
        dropped[f"{query}classifier.{{rest}}"] = "the classifier is not taken over"
        fresh = dict.fromkeys(("encoder.classifier.{rest}", "classifier.{rest}"), "starts anew")
    if "encoder.projection.fc1" in has:
        rules = [*fc_rules(query, "encoder."), *rules]
    else:
        dropped |= {f"{query}fc{n}.{{rest}}": NO_HEAD for n in (1, 2)}
    if isinstance(module, MoPro):
        rules += [
            Rule(f"{key}classifier.{{rest}}", "key_encoder.module.classifier.{rest}"),
            *fc_rules(key, "key_encoder.module."),
            Rule(f"{key}{{rest}}", "key_encoder.module.backbone.{rest}"),
            Rule(f"{prefix}queue", "queue.features", TRANSPOSED),
            Rule(f"{prefix}queue_ptr", "queue.pointer", SCALAR),
            Rule(f"{prefix}prototypes", "prototypes.prototypes"),
            Rule("tenfold/queue.written", "queue.written"),
        ]
        fresh["queue.written"] = "not kept by the official code"
    else:
        dropped |= {f"{key}{{rest}}": "the module has no key encoder"}
        dropped |= {
            f"{prefix}{name}": "state of the pre-training"
            for name in ("queue", "queue_ptr", "prototypes")
        }
        dropped["tenfold/{rest}"] = "state of an exported run"
    return KeyTable(rules, dropped, fresh)


def warm_start(module: Method, path: str | PathLike[str], kind: str) -> KeyReport:
    """Start a transfer module from a pre-training, official or ours, or from a retraining of ours.

    Args:
        kind: `pretrained` takes backbone and classifier, `backbone` the backbone alone: for other
            classes, as the 5,000 of WebVision V2 are for ImageNet.

    Raises:
        CheckpointError: as in `load`; another kind; a module that starts by itself; or a run of
            another method.
    """
    remedy = "pre-train first (experiment=mopro/...), or name another file by warm_start.path=FILE"
    source = read_start(path, kind, ("pretrained", "backbone"), remedy)
    if not isinstance(module, TRANSFER):
        raise CheckpointError(
            f"warm_start is for {', '.join(form.__name__ for form in TRANSFER)}; a "
            f"{type(module).__name__} takes official_checkpoint=PATH, or continues its own run"
        )
    if "_target_" in source:
        source = export(_our_run(path))
    table = table_for(module, model_prefix(source), with_classifier=kind == "pretrained")
    return import_official(source, table, module)


def _our_run(path: str | PathLike[str]) -> Method:
    run = load_module(path)
    if not isinstance(run, (WebClassifier, *TRANSFER)):
        raise CheckpointError(
            f"{path} is a run of {type(run).__module__}.{type(run).__name__}, which is not a MoPro "
            "pre-training, baseline or retraining"
        )
    return run
