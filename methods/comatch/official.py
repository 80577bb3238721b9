"""Official CoMatch and FixMatch files <-> our modules (docs/papers/comatch.md, section 9).

The script is told by the module, the packing by the file's keys.
Source: salesforce/CoMatch@08b4cce `Train_CoMatch.py`, `Train_fixmatch.py`, `imagenet/`.
"""

import re
from collections.abc import Callable, Mapping
from functools import partial
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from methods.comatch.controls import permuted_weights
from methods.comatch.imagenet import CoMatchImageNet
from methods.comatch.losses import oldest_first
from methods.comatch.module import CoMatch, EMAClassifier
from methods.comatch.transfer import LowShotSVM
from shared.checkpoints import warm_start as common
from shared.checkpoints.official import (
    SCALAR,
    TRANSPOSED,
    Conversion,
    KeyReport,
    KeyTable,
    Rule,
    export_official,
    import_official,
)
from shared.checkpoints.reading import Checkpoint, CheckpointError, content_of

Classifier = EMAClassifier | CoMatchImageNet

INTEGER = Conversion(lambda value, ours: torch.as_tensor(value), lambda value, _: int(value))
LENGTH = Conversion(lambda history, _: torch.tensor(len(history)), None)
NOT_KEPT_THERE = "not kept by the official code"


def _window(history: list[Tensor], ours: Tensor) -> Tensor:
    """(window, C) ring buffer of a list of batch means, oldest first."""
    if len(history) > len(ours):
        raise ValueError(f"{len(history)} batch means, the window holds {len(ours)}")
    rows = torch.zeros_like(ours)
    for row, mean in zip(rows, history, strict=False):
        row.copy_(mean)
    return rows


def _history(window: Tensor, state: Mapping[str, Tensor]) -> list[Tensor]:
    return [mean.clone() for mean in oldest_first(window, int(state["alignment.count"]))]


def load(module: Classifier, source: Checkpoint) -> KeyReport:
    """Load an official checkpoint into the module of the same form, or nothing: CheckpointError. A
    bare state dict is for the CIFAR form one network (`backbone.*`, `classifier.*`, `fc1.*`,
    `fc2.*`) for both copies."""
    source = content_of(source)
    report = import_official(source, table_for(module, source), module)
    if "tenfold/alignment.count" in dict(report.mapped) and "model" in source:
        # The oldest batch mean was loaded into row 0; put it where the ring buffer had it.
        window = module.get_buffer("alignment.window")
        count = int(module.get_buffer("alignment.count"))
        window.copy_(window.roll(max(0, count - len(window)), 0))
    if isinstance(module, CoMatch) and "bank.written" in report.fresh:
        # Official files lack the count. A bank without empty rows means that smoothing has begun.
        full = bool((module.bank.get_buffer("probs").sum(dim=1) > 0).all())
        module.bank.written.fill_(len(module.bank) + 1 if full else int(module.bank.pointer))
    return report


def export(module: Classifier) -> dict[str, Any]:
    """The module's state, in shared memory, in the official form, which `load` turns back
    bit for bit; what that form lacks is under the key `tenfold`."""
    return export_official(module, table_for(module))


def table_for(module: Classifier, source: Mapping[str, Any] | None = None) -> KeyTable:
    """The key table for `module` and the packing of `source`; None for export."""
    if isinstance(module, CoMatchImageNet):
        prefix = "state_dict/module." if source is None else common.model_prefix(source)
        return _imagenet_table(prefix)
    if source is None or "model" in source:
        return _cifar_table(module, exported_here=source is None or "tenfold" in source)
    return KeyTable(  # a bare state dict of the CIFAR network
        rules=[
            *common.network_rules("", "encoder.", "backbone."),
            *common.network_rules("", "ema_encoder.module.", "backbone."),
        ],
        fresh={"alignment.{rest}": NOT_KEPT_THERE, "bank.{rest}": NOT_KEPT_THERE},
    )


def _cifar_table(module: Classifier, exported_here: bool) -> KeyTable:
    """Checkpoints of the CIFAR scripts, CoMatch and FixMatch."""
    has = {key.split(".")[0] for key in module.state_dict()}
    count = Rule("tenfold/alignment.count", "alignment.count")
    if not exported_here:
        count = Rule("prob_list", "alignment.count", LENGTH)
    dropped = {**common.TRAINER_KEYS, "lr_scheduler/{rest}": common.OTHER_TRAINER}
    fresh = {"bank.written": NOT_KEPT_THERE}
    if "alignment" not in has:
        dropped["prob_list"] = "the module has no distribution alignment"
    elif "bank" not in has:  # FixMatch may be saved without its window
        fresh["alignment.{rest}"] = NOT_KEPT_THERE
    rules = [
        *common.network_rules("model/", "encoder.", "backbone."),
        *common.network_rules("ema_model/", "ema_encoder.module.", "backbone."),
        Rule("prob_list", "alignment.window", Conversion(_window, _history)),
        count,
        Rule("queue/queue_feats", "bank.features"),
        Rule("queue/queue_probs", "bank.probs"),
        Rule("queue/queue_ptr", "bank.pointer", INTEGER),
        Rule("tenfold/bank.written", "bank.written"),
    ]
    return KeyTable(rules, dropped, fresh)


def _imagenet_table(prefix: str) -> KeyTable:
    """Script I; `prefix` precedes the keys of its model, `state_dict/module.` in checkpoints."""
    rules = [
        Rule("tenfold/alignment.{rest}", "alignment.{rest}"),
        *common.network_rules(f"{prefix}encoder.", "encoder."),
        *common.network_rules(f"{prefix}m_encoder.", "momentum_encoder.module."),
    ]
    for ours, letter, probs in (("strong_queue", "s", "probs_u"), ("weak_queue", "w", "probs_xu")):
        rules += [
            Rule(f"{prefix}queue_{letter}", f"{ours}.features", TRANSPOSED),
            Rule(f"{prefix}{probs}", f"{ours}.probs", TRANSPOSED),
            Rule(f"{prefix}queue_ptr_{letter}", f"{ours}.pointer", SCALAR),
            Rule(f"tenfold/{ours}.written", f"{ours}.written"),
        ]
    fresh = {"alignment.{rest}": NOT_KEPT_THERE, "{queue}.written": NOT_KEPT_THERE}
    return KeyTable(rules, common.TRAINER_KEYS, fresh)


def warm_start(module: Classifier | LowShotSVM, path: str | PathLike[str], kind: str) -> KeyReport:
    """Start both copies from self-supervised weights; a projection that does not fit stays random.

    Args:
        kind: `moco_v2` or `pcl` (v1 or v2), official checkpoints, for the ImageNet form; `simclr`
            (a bare state dict of the network without its classifier) for the CIFAR form;
            `tenfold_pcl` (a checkpoint that `methods.pcl` wrote) for both; `tenfold_pcl_permuted`,
            a negative control: the same with the entries of each tensor in random order.
            `backbone`, for `LowShotSVM`, is CoMatch on ImageNet, official or ours.
    """
    remedy = f"warm_start.path=FILE names another {kind} file"
    source: Mapping[str, Any] = common.read_start(path, kind, WARM_STARTS, remedy)
    form, start_of = WARM_STARTS[kind]
    if not isinstance(module, form):
        names = f"{form.__name__} modules, not {type(module).__name__}"
        raise CheckpointError(f"warm_start.kind {kind} is for {names}")
    if kind.startswith("tenfold_"):
        source = common.state_of_run(source, "methods.pcl", path)
    elif kind == "backbone" and "_target_" in source:
        source = common.state_of_run(source, "methods.comatch", path)
    if kind.endswith("_permuted"):
        source = {key: permuted_weights(key, value) for key, value in source.items()}
    if isinstance(module, LowShotSVM):
        return import_official(source, start_of(module, source), module)
    start = start_of(module, source)
    copied = "parameters copied from the encoder after loading"
    fresh = {"encoder.classifier.{rest}": "self-supervised weights have no classifier"}
    fresh |= {f"{name}.{{rest}}": copied for name in ("ema_encoder", "momentum_encoder")}
    states = ("alignment", "bank", "strong_queue", "weak_queue")
    fresh |= {f"{state}.{{rest}}": "starts empty" for state in states}
    table = KeyTable(start.rules, start.dropped, {**fresh, **start.fresh})
    report = import_official(source, table, module)
    copy = module.ema_encoder if isinstance(module, EMAClassifier) else module.momentum_encoder
    copy.update(module.encoder, 0.0)
    return report


def _moco(module: Classifier, source: Mapping[str, Any], linear_head: bool = False) -> KeyTable:
    """MoCo v2 and PCL v2, whose head has our two layers; PCL v1 (`linear_head`) comes without."""
    there = "state_dict/module."
    fresh: dict[str, str] = {}
    dropped = {
        **common.TRAINER_KEYS,
        f"{there}encoder_k.{{rest}}": "the key encoder is not used",
        **dict.fromkeys((f"{there}queue", f"{there}queue_ptr"), "another method's queue"),
    }
    if linear_head and "module.encoder_q.fc.weight" in source.get("state_dict", {}):
        reason = "the linear head of PCL v1 does not fit a projection of two layers"
        dropped[f"{there}encoder_q.fc.{{rest}}"] = fresh["encoder.projection.{rest}"] = reason
    return KeyTable(common.moco_rules(f"{there}encoder_q."), dropped, fresh)


def _tenfold_pcl(module: Classifier, source: Mapping[str, Any]) -> KeyTable:
    """The trained encoder of `methods.pcl`; its projection too if it has our layers and sizes."""
    rules = [Rule("encoder.{rest}", "encoder.{rest}")]
    others = dict.fromkeys(key.split(".")[0] for key in source if not key.startswith("encoder."))
    dropped = {f"{part}.{{rest}}": "PCL's own state" for part in others}
    there, here = _projection(source), _projection(module.state_dict())
    if there == here:
        return KeyTable(rules, dropped)
    reason = "the module has no projection head"
    if here:
        sizes = [list(shapes.values()) or "none" for shapes in (there, here)]
        reason = "PCL's projection ({}) does not fit ours ({})".format(*sizes)
    unfit = {"encoder.projection.{rest}": reason}
    return KeyTable(rules, dropped | unfit, unfit)


def _projection(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shape of each weight of the projection head."""
    weight = re.compile(r"encoder\.projection\..*weight")
    return {key: tuple(value.shape) for key, value in state.items() if weight.fullmatch(key)}


def _simclr(module: Classifier, source: Mapping[str, Any]) -> KeyTable:
    rules = common.network_rules("", "encoder.", "backbone.")
    rules = [rule for rule in rules if "classifier" not in rule.official]
    reason = "the module has no projection head"
    headless = module.encoder.projection is None
    return KeyTable(rules, {f"fc{n}.{{rest}}": reason for n in (1, 2)} if headless else {})


def _backbone(module: LowShotSVM, source: Mapping[str, Any]) -> KeyTable:
    """The backbone of the trained encoder, from the official ImageNet script or a state of ours."""
    prefix = common.model_prefix(source)
    names = [str(key).removeprefix("module.") for key in source.get("state_dict", source)]
    within = "backbone." if any(name.startswith("encoder.backbone.") for name in names) else ""
    others = {name.split(".")[0] for name in names} - {"encoder"}
    others |= {f"encoder.{head}" for head in ("classifier", "fc1", "fc2", "projection")}
    keys = [f"{prefix}{part}{rest}" for part in sorted(others) for rest in ("", ".{rest}")]
    dropped = {**common.TRAINER_KEYS, **dict.fromkeys(keys, "a part that is not transferred")}
    return KeyTable([Rule(f"{prefix}encoder.{within}{{rest}}", "encoder.backbone.{rest}")], dropped)


WARM_STARTS: dict[str, tuple[Any, Callable[..., KeyTable]]] = {
    "moco_v2": (CoMatchImageNet, _moco),
    "pcl": (CoMatchImageNet, partial(_moco, linear_head=True)),
    "simclr": (EMAClassifier, _simclr),
    "tenfold_pcl": (Classifier, _tenfold_pcl),
    "tenfold_pcl_permuted": (Classifier, _tenfold_pcl),
    "backbone": (LowShotSVM, _backbone),
}
