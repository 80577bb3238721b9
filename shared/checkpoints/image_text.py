"""What the official files of image-text models, ALBEF's and BLIP's, have in common.

Source: docs/papers/albef.md, section 9; docs/papers/blip.md, section 9.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from shared.checkpoints.official import (
    SCALAR,
    TRANSPOSED,
    Conversion,
    KeyReport,
    KeyTable,
    Rule,
    convert_official,
    import_official,
)
from shared.checkpoints.pretrained_vision import POSITIONS
from shared.checkpoints.reading import Checkpoint, CheckpointError, content_of, load_module
from shared.checkpoints.warm_start import read_start

UNUSED = "no part of this task's model"
TIED = "tied to another tensor of the file"
FOREIGN = "identities of another task's images"
COPIED = {"momentum_encoders.{rest}": "copied from the encoders"}
RANDOM = {"contrast.queue.{rest}": "starts with random directions"}
UNKEPT = {
    "contrast.queue.idx": "no identities there: what is queued is a negative",
    "contrast.queue.written": "not kept by the official code",
}
IDENTITIES = ("idx_queue", "tenfold/contrast.queue.idx")
"""Where files keep identities of images in the queue, which only their own task numbers so."""


def official_state(source: Checkpoint) -> dict[str, Any]:
    """The state dict in a file: bare, or under `model` beside the trainer's state."""
    content = content_of(source)
    state = content.get("model")
    return dict(state if isinstance(state, Mapping) else content)


def has_momentum(state: Mapping[str, Any]) -> bool:
    """Whether a file holds momentum copies, which the released fine-tuned ones do not."""
    return any(key.split(".")[0].endswith("_m") for key in state)


def fill(module: Any, state: Mapping[str, Any], table: KeyTable) -> KeyReport:
    """Load a file's state into `module`; momentum copies that it lacks are copied from the loaded
    encoders, and initial weights are forgotten, which would replace what is loaded."""
    report = import_official(state, table, module)
    if hasattr(module, "momentum_encoders") and not has_momentum(state):
        module.momentum_encoders.module.load_state_dict(module.encoders.state_dict())
    if "initial" in module.hparams:
        module.hparams["initial"] = None
    return report


def with_ties(exported: Mapping[str, Any]) -> dict[str, Any]:
    """An exported state with the tied tensors and constants that the official files hold."""
    added: dict[str, Any] = {}
    for key, value in exported.items():
        body, head, rest = key.partition("cls.predictions.bias")
        if head and not rest:
            words = exported[f"{body}bert.embeddings.word_embeddings.weight"]
            added[f"{body}cls.predictions.decoder.bias"] = value
            added[f"{body}cls.predictions.decoder.weight"] = words
        if key.endswith("embeddings.position_embeddings.weight"):
            constant = key.replace("position_embeddings.weight", "position_ids")
            added[constant] = torch.arange(len(value))[None]
    return {**exported, **added}


def vision_rules(copy: str, ours: str) -> list[Rule]:
    """Rules of the vision transformer and both projections; `copy` is "" or "_m"."""
    resized = f"visual_encoder{copy}.pos_embed", f"{ours}visual_encoder.pos_embed"
    parts = ("visual_encoder", "vision_proj", "text_proj")
    named = [Rule(f"{part}{copy}.{{rest}}", f"{ours}{part}.{{rest}}") for part in parts]
    return [Rule(*resized, POSITIONS), *named]


def with_queue(
    module: Any,
    state: Mapping[str, Any],
    table: KeyTable,
    names: Sequence[str],
    pointer: str,
    identities: str,
    form: Conversion = TRANSPOSED,
) -> KeyTable:
    """`table` with the rules of the module's queue, whose tensors are called `names` there, its
    pointer and identities so. A queue that is missing or of another length starts anew."""
    size = len(module.contrast.queue)
    theirs = state.get("image_queue")
    length = theirs.shape[-1] if isinstance(theirs, Tensor) and theirs.ndim == 2 else size
    if length != size or (state and not any(name in state for name in names)):
        anew = dict.fromkeys(names, f"a queue of {length} pairs, but queue_size={size}")
        return KeyTable(table.rules, {**table.dropped, **anew}, {**table.fresh, **RANDOM})
    rules = [
        Rule("image_queue", "contrast.queue.features", TRANSPOSED),
        Rule("text_queue", "contrast.queue.text", TRANSPOSED),
        Rule(pointer, "contrast.queue.pointer", SCALAR),
        Rule(identities, "contrast.queue.idx", form),
        Rule("tenfold/contrast.queue.written", "contrast.queue.written"),
    ]
    return KeyTable([*table.rules, *rules], table.dropped, {**table.fresh, **UNKEPT})


def start_content(
    path: str | PathLike[str],
    kind: str,
    kinds: Mapping[str, str],
    method: str,
    export: Callable[[Any], dict[str, Any]],
    key: str = "warm_start.path",
) -> Mapping[str, Any]:
    """Content of the file that `warm_start={path, kind}`, or another `key`, names, of a run of ours
    what `export` makes of it; CheckpointError of a run of another method, else see `read_start`."""
    package = method.lower()
    made = f"make it first ({kinds.get(kind)}, experiment={package}/...)"
    source = read_start(path, kind, kinds, f"{made}, or name another file by {key}=FILE")
    if "_target_" not in source:
        return source
    if not str(source["_target_"]).startswith(f"methods.{package}."):
        raise CheckpointError(f"{path} is a run of {source['_target_']}, not of {method}")
    return export(load_module(path))


def left_over(
    module: Any, state: Mapping[str, Any], table: KeyTable, parts: str
) -> tuple[dict[str, str], KeyReport]:
    """Keys of another task's file that `module` has no use for, with the reason, if they are of
    `parts`, an expression; images' identities there; and what became of all keys."""
    _, report = convert_official(state, table, module.state_dict())
    names = [key.split()[0] for key in report.unexpected]
    dropped = dict.fromkeys((name for name in names if re.match(rf"({parts})\b", name)), UNUSED)
    if hasattr(getattr(module, "contrast", None), "queue"):
        dropped |= dict.fromkeys(IDENTITIES, FOREIGN)
    return dropped, report


def check_kind(
    path: str | PathLike[str], found: str | None, kind: str, kinds: Mapping[str, str]
) -> None:
    """CheckpointError where a file is of another of the `kinds` than `kind`, or of none."""
    if found != kind:
        what = f"it is of {kinds[found]}: warm_start.kind={found}" if found else "of no known kind"
        raise CheckpointError(f"{path} is no file of {kinds[kind]}; {what}")
