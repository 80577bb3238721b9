"""Official ALBEF files <-> our modules (docs/papers/albef.md, section 9).

Three kinds of files exist: pre-training (`text_encoder.bert.*`), the fine-tuned models of each
task, and NLVR2's text assignment. What an official script renames when it starts from another kind
of file, `rename` renames; then one table per module maps every key.
Source: salesforce/ALBEF@b9727e4 `Pretrain.py`, `Retrieval.py`, `VQA.py`, `Pretrain_nlvr.py`,
`NLVR.py`, `VE.py`, `Grounding.py`.
"""

import re
from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from methods.albef.module import Pretraining
from methods.albef.nlvr import NLVR, TextAssignment
from methods.albef.vqa import VQA
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
from shared.checkpoints.pretrained_text import POSITION_IDS, bert_rules, word_head_rules
from shared.checkpoints.pretrained_vision import POSITIONS
from shared.checkpoints.reading import CheckpointError, load_checkpoint, load_module
from shared.nn.momentum import MomentumEncoder
from shared.training.method import Method

KINDS = {
    "pretrained": "pre-training",
    "assignment": "text assignment",
    "retrieval": "retrieval or grounding",
}
QUEUES = ("image_queue", "text_queue", "queue_ptr", "idx_queue", "tenfold/{rest}")
UNUSED = "no part of this task's model"
IDENTITIES = Conversion(
    lambda value, _: value.t().float(), lambda value, _: value.t().long().contiguous()
)


def load(module: Method, path: str | PathLike[str]) -> KeyReport:
    """Load an official checkpoint into a module of the same task.

    Momentum copies and queues that a file lacks (the released fine-tuned ones do) are made anew:
    the copies from the loaded encoders, the queues random. Position embeddings are interpolated.

    Raises:
        CheckpointError: not readable without executing code, or any key missing, unexpected or of
            another shape; the module is then unchanged.
    """
    return load_weights(module, load_checkpoint(path))


def load_weights(module: Method, source: Mapping[str, Any]) -> KeyReport:
    """Like `load`, from a checkpoint's content (`{model: ...}`) or a bare state dict."""
    state = official_state(source)
    return _fill(module, state, key_table(module, state))


def export(module: Method) -> dict[str, Any]:
    """The module's state under official names, which `load_weights` turns back bit for bit.

    Tied tensors and constants that the official files hold are added.
    """
    exported = export_official(module, key_table(module, {}))
    for key in list(exported):
        if key.endswith("cls.predictions.bias"):
            body, head = key.removesuffix("cls.predictions.bias"), key.removesuffix("bias")
            exported[f"{head}decoder.bias"] = exported[key]
            exported[f"{head}decoder.weight"] = exported[
                f"{body}bert.embeddings.word_embeddings.weight"
            ]
        if key.endswith("embeddings.position_embeddings.weight"):
            constant = key.replace("position_embeddings.weight", "position_ids")
            exported[constant] = torch.arange(len(exported[key]))[None]
    return exported


def warm_start(module: Method, path: str | PathLike[str], kind: str) -> KeyReport:
    """Start a task from another one's weights, as the official scripts do.

    A new classifier and a queue of another length keep their initial values; images in a loaded
    queue are of no identity, since the other task numbered them otherwise.

    Args:
        kind: of the file, ours or official. `pretrained`: for any task; `assignment`: for NLVR2;
            `retrieval`, fine-tuned: for the same on another data set.

    Raises:
        CheckpointError: as in `load`; no such file; another kind; or a run of another method.
    """
    if kind not in KINDS:
        raise CheckpointError(f"warm_start.kind {kind!r} is unknown: {', '.join(KINDS)}")
    try:
        source = load_checkpoint(path)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{error}: make it first ({KINDS[kind]}, experiment=albef/...), or name another file "
            "by warm_start.path=FILE"
        ) from None
    if "_target_" in source:
        if not str(source["_target_"]).startswith("methods.albef."):
            raise CheckpointError(f"{path} is a run of {source['_target_']}, not of ALBEF")
        source = export(load_module(path))  # type: ignore[arg-type]
    state = official_state(source)
    if (found := kind_of(state)) != kind:
        what = f"it is of {KINDS[found]}: warm_start.kind={found}" if found else "of no known kind"
        raise CheckpointError(f"{path} is no file of {KINDS[kind]}; {what}")
    state = renamed(state, module)
    table = key_table(module, state)
    dropped = {**left_over(module), **table.dropped}
    fresh = {
        **table.fresh,
        "encoders.classifier.{rest}": "a new head",
        "momentum_encoders.module.classifier.{rest}": "a copy of the new head",
    }
    return _fill(module, state, KeyTable(table.rules, dropped, fresh))


def official_state(source: Mapping[str, Any]) -> dict[str, Any]:
    """The state dict in a file: bare, or under `model` beside the trainer's state."""
    state = source.get("model")
    return dict(state if isinstance(state, Mapping) else source)


def kind_of(state: Mapping[str, Any]) -> str | None:
    """Which of `KINDS` a file is of; None: of none."""
    if any(key.startswith("text_encoder.bert.") for key in state):
        return "pretrained"
    heads = {"ta_head": "assignment", "itm_head": "retrieval"}
    return next((heads[part] for key in state if (part := key.split(".")[0]) in heads), None)


def _fill(module: Method, state: Mapping[str, Any], table: KeyTable) -> KeyReport:
    report = import_official(state, table, module)
    if not any(_is_momentum(key) for key in state):
        copy_to_momentum(module)
    if isinstance(module, Pretraining):
        module.hparams["initial"] = None  # they would replace what is loaded now
    return report


# --- what the official scripts rename ---


def joint_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Pre-training -> retrieval, grounding, SNLI-VE: `text_encoder.bert.X` is `text_encoder.X`."""
    return {key.replace("bert.", ""): value for key, value in state.items()}


def question_answering_names(state: Mapping[str, Tensor], fusion_layer: int) -> dict[str, Tensor]:
    """Pre-training -> VQA: as `joint_names`, and the upper half of the text encoder with embeddings
    and word prediction becomes the answer decoder."""
    names: dict[str, Tensor] = {}
    for key, value in state.items():
        if not key.startswith(("text_encoder.", "text_encoder_m.")):
            names[key] = value
            continue
        if ".cls." not in key:
            names[key.replace("bert.", "")] = value
        if layer := re.search(r"\.layer\.(\d+)\.", key):
            number = int(layer[1]) - fusion_layer
            if number < 0:
                continue
            key = key.replace(layer[0], f".layer.{number}.")
        names[key.replace("text_encoder", "text_decoder")] = value
    return names


def paired_names(state: Mapping[str, Tensor], fusion_layer: int) -> dict[str, Tensor]:
    """Pre-training -> text assignment: as `joint_names`, and each fusion layer becomes two."""
    names: dict[str, Tensor] = {}
    for key, value in joint_names(state).items():
        layer = re.search(r"\.layer\.(\d+)\.", key)
        if layer and int(layer[1]) >= fusion_layer:
            first = 2 * int(layer[1]) - fusion_layer
            for number in (first, first + 1):
                names[key.replace(layer[0], f".layer.{number}.")] = value
        else:
            names[key] = value
    return names


def renamed(state: Mapping[str, Tensor], module: Method) -> dict[str, Tensor]:
    """A pre-training file's keys as those of `module`'s task; any other file's as they are."""
    if isinstance(module, Pretraining) or kind_of(state) != "pretrained":
        return dict(state)
    encoders: Any = module.encoders
    if isinstance(module, VQA):
        return question_answering_names(state, encoders.text_encoder.fusion_layer)
    if isinstance(module, NLVR | TextAssignment):
        return paired_names(state, encoders.text_encoder.fusion_layer)
    return joint_names(state)


def left_over(module: Method) -> dict[str, str]:
    """Key patterns of what `module` may start from that it has no use for."""
    encoders = module.encoders
    parts = {
        "itm_head": hasattr(module, "itm_head"),
        "vision_proj": hasattr(encoders, "vision_proj"),
        "text_proj": hasattr(encoders, "text_proj"),
        "text_encoder.cls": isinstance(module, Pretraining),
        "ta_head": isinstance(module, TextAssignment),
    }
    dropped = {f"{part}.{{rest}}": UNUSED for part, used in parts.items() if not used}
    momentum = hasattr(module, "momentum_encoders")
    for part in ("visual_encoder", "vision_proj", "text_encoder", "text_encoder.cls", "text_proj"):
        if not momentum or not parts.get(part, True):
            name, _, rest = part.partition(".")
            dropped[f"{name}_m.{rest + '.' if rest else ''}{{rest}}"] = UNUSED
    if hasattr(module, "queue"):
        identities = "identities of another task's images"
        dropped |= dict.fromkeys(("idx_queue", "tenfold/queue.idx"), identities)
    else:
        dropped |= dict.fromkeys(("temp", *QUEUES), UNUSED)
    return dropped


# --- which key is which ---


def key_table(module: Method, state: Mapping[str, Any]) -> KeyTable:
    """The table for `module`; `state` is that of the file, which may lack parts."""
    rules = [*_encoder_rules(module, "", "encoders.")]
    rules += _encoder_rules(module, "_m", "momentum_encoders.module.")
    rules += [
        Rule("temp", "temp"),
        Rule("itm_head.{rest}", "itm_head.{rest}"),
        Rule("ta_head.{rest}", "encoders.classifier.{rest}"),
    ]
    dropped: dict[str, str] = {
        f"{coder}{copy}.{rest}": why
        for coder in ("text_encoder", "text_decoder")
        for copy in ("", "_m")
        for rest, why in (
            ("embeddings.position_ids", POSITION_IDS),
            ("bert.embeddings.position_ids", POSITION_IDS),
            ("cls.predictions.decoder.{key}", "tied to another tensor of the file"),
        )
    }
    if isinstance(module, TextAssignment):
        dropped |= dict.fromkeys(("temp", "text_proj.{rest}"), "unused by the official model")
    fresh: dict[str, str] = {}
    if not any(_is_momentum(key) for key in state):
        fresh["momentum_encoders.{rest}"] = "copied from the encoders"
    if hasattr(module, "queue"):
        queue = _queue_table(module, state)
        rules += queue.rules
        dropped.update(queue.dropped)
        fresh.update(queue.fresh)
    return KeyTable(rules, dropped, fresh)


def _queue_table(module: Method, state: Mapping[str, Any]) -> KeyTable:
    """The part of the table about queues, all of which a file may lack."""
    size = len(module.queue)  # type: ignore[arg-type]
    if state and not any(name in state for name in QUEUES):
        return KeyTable([], {}, {"queue.{rest}": "starts with random directions"})
    theirs = state.get("image_queue")
    length = theirs.shape[-1] if isinstance(theirs, Tensor) and theirs.ndim == 2 else None
    if length is not None and length != size:
        reason = f"a queue of {length} pairs, but queue_size={size}"
        fresh = {"queue.{rest}": "starts with random directions"}
        return KeyTable([], dict.fromkeys(QUEUES, reason), fresh)
    # The official pre-training keeps no identities.
    identities = "tenfold/queue.idx" if isinstance(module, Pretraining) else "idx_queue"
    rules = [
        Rule("image_queue", "queue.features", TRANSPOSED),
        Rule("text_queue", "queue.text", TRANSPOSED),
        Rule("queue_ptr", "queue.pointer", SCALAR),
        Rule(identities, "queue.idx", IDENTITIES),
        Rule("tenfold/queue.written", "queue.written"),
    ]
    fresh = {
        "queue.idx": "no identities there: what is queued is a negative",
        "queue.written": "not kept by the official code",
    }
    return KeyTable(rules, {}, fresh)


def _encoder_rules(module: Method, copy: str, ours: str) -> list[Rule]:
    """`copy` is "" for the encoders, "_m" for their momentum copies."""
    body = "bert." if isinstance(module, Pretraining) else ""
    writer = "text_decoder" if isinstance(module, VQA) else "text_encoder"
    rules = [
        Rule(f"visual_encoder{copy}.pos_embed", f"{ours}visual_encoder.pos_embed", POSITIONS),
        Rule(f"visual_encoder{copy}.{{rest}}", f"{ours}visual_encoder.{{rest}}"),
        Rule(f"vision_proj{copy}.{{rest}}", f"{ours}vision_proj.{{rest}}"),
        Rule(f"text_proj{copy}.{{rest}}", f"{ours}text_proj.{{rest}}"),
        *word_head_rules(f"{writer}{copy}.cls.", f"{ours}word_head."),
        *bert_rules(f"text_decoder{copy}.bert.", f"{ours}text_decoder."),
        *bert_rules(f"text_encoder{copy}.{body}", f"{ours}text_encoder."),
    ]
    if not isinstance(module, TextAssignment):
        rules.append(Rule(f"cls_head{copy}.{{rest}}", f"{ours}classifier.{{rest}}"))
    return rules


def copy_to_momentum(module: Method) -> None:
    """Let the momentum copy, if there is one, start from the encoders as they are now."""
    encoders: Any = module.encoders
    copy = getattr(module, "momentum_encoders", None)
    if isinstance(copy, MomentumEncoder):
        copy.module.load_state_dict(encoders.state_dict())


def _is_momentum(key: str) -> bool:
    return key.split(".")[0].endswith("_m")
