"""Official ALBEF files <-> our modules (docs/papers/albef.md, section 9).

Three kinds of files exist: pre-training (`text_encoder.bert.*`), the fine-tuned models of each
task, and NLVR2's text assignment. What an official script renames when it starts from another kind
of file, the functions `*_names` rename; then one table per module maps every key.
Source: salesforce/ALBEF@b9727e4 `Pretrain.py`, `Retrieval.py`, `VQA.py`, `Pretrain_nlvr.py`,
`NLVR.py`, `VE.py`, `Grounding.py`.
"""

import re
from collections.abc import Mapping
from os import PathLike
from typing import Any

from torch import Tensor

from methods.albef.classification import PairNetwork
from methods.albef.module import Pretraining
from methods.albef.text_assignment import TextAssignment
from methods.albef.vqa import VQA
from shared.checkpoints.image_text import (
    COPIED,
    TIED,
    check_kind,
    fill,
    has_momentum,
    left_over,
    official_state,
    start_content,
    vision_rules,
    with_queue,
    with_ties,
)
from shared.checkpoints.official import (
    Conversion,
    KeyReport,
    KeyTable,
    Rule,
    export_official,
)
from shared.checkpoints.pretrained_text import POSITION_IDS, bert_rules, word_head_rules
from shared.checkpoints.reading import Checkpoint
from shared.training.method import Method

KINDS = {
    "pretrained": "pre-training",
    "assignment": "text assignment",
    "retrieval": "retrieval or grounding",
}
OPTIONAL = (  # parts that not every task has
    r"itm_head|ta_head|vision_proj(_m)?|text_proj(_m)?|text_encoder(_m)?\.cls|temp|"
    r"\w+_queue|queue_ptr|tenfold"
)
QUEUES = ("image_queue", "text_queue", "queue_ptr", "idx_queue", "tenfold/{rest}")
NEW_HEAD = {
    "encoders.classifier.{rest}": "a new head",
    "momentum_encoders.module.classifier.{rest}": "a copy of the new head",
}
CONSTANTS = {
    "embeddings.position_ids": POSITION_IDS,
    "bert.embeddings.position_ids": POSITION_IDS,
    "cls.predictions.decoder.{key}": TIED,
}
LAYER = re.compile(r"(?<=\.layer\.)\d+(?=\.)")
INTEGERS = Conversion(  # identities, which are floats there
    lambda value, _: value.t().long().contiguous(), lambda value, _: value.t().contiguous()
)


def load(module: Method, source: Checkpoint) -> KeyReport:
    """Load an official checkpoint, `{model: ...}` or a bare state dict, into a module of its task.

    Momentum copies and queues that a file lacks (the released fine-tuned ones do) are made anew:
    the copies from the loaded encoders, the queues random. Position embeddings are interpolated.
    A file that cannot be read without executing code or does not fit key by key raises
    CheckpointError; the module is then unchanged.
    """
    state = official_state(source)
    return fill(module, state, key_table(module, state))


def export(module: Method) -> dict[str, Any]:
    """The module's state under official names, which `load` turns back bit for bit."""
    return with_ties(export_official(module, key_table(module, {})))


def warm_start(module: Method, path: str | PathLike[str], kind: str) -> KeyReport:
    """Start a task from another one's weights, as the official scripts do.

    A new classifier and a queue of another length keep their initial values; images in a loaded
    queue are of no identity, since the other task numbered them otherwise.

    `kind` is that of the file, ours or official. `pretrained`: for any task; `assignment`: for
    NLVR2; `retrieval`, fine-tuned: for the same on another data set. CheckpointError is raised as
    by `load`, and where there is no such file, or one of another kind or method.
    """
    state = official_state(start_content(path, kind, KINDS, "ALBEF", export))
    check_kind(path, kind_of(state), kind, KINDS)
    state = renamed(state, module)
    table = key_table(module, state)
    parts = OPTIONAL if hasattr(module, "momentum_encoders") else rf"{OPTIONAL}|\w+_m"
    dropped, _ = left_over(module, state, table, parts)
    table = KeyTable(table.rules, {**table.dropped, **dropped}, {**table.fresh, **NEW_HEAD})
    return fill(module, state, table)


def kind_of(state: Mapping[str, Any]) -> str | None:
    """Which of `KINDS` a file is of; None: of none."""
    if any(key.startswith("text_encoder.bert.") for key in state):
        return "pretrained"
    heads = {"ta_head": "assignment", "itm_head": "retrieval"}
    return next((heads[part] for key in state if (part := key.split(".")[0]) in heads), None)


# --- what the official scripts rename ---


def joint_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Pre-training -> retrieval, grounding, SNLI-VE: `text_encoder.bert.X` is `text_encoder.X`."""
    return {key.replace("bert.", ""): value for key, value in state.items()}


def question_answering_names(state: Mapping[str, Tensor], fusion_layer: int) -> dict[str, Tensor]:
    """Pre-training -> VQA: as `joint_names`, and the upper half of the text encoder with embeddings
    and word prediction becomes the answer decoder."""
    names = {key: value for key, value in joint_names(state).items() if ".cls." not in key}
    for key, value in state.items():
        number = _layer(key)
        if key.startswith("text_encoder") and (number is None or number >= fusion_layer):
            key = key if number is None else LAYER.sub(str(number - fusion_layer), key)
            names[key.replace("text_encoder", "text_decoder")] = value
    return names


def paired_names(state: Mapping[str, Tensor], fusion_layer: int) -> dict[str, Tensor]:
    """Pre-training -> text assignment: as `joint_names`, and each fusion layer becomes two."""
    names: dict[str, Tensor] = {}
    for key, value in joint_names(state).items():
        number = _layer(key)
        if number is None or number < fusion_layer:
            names[key] = value
        else:
            first = 2 * number - fusion_layer
            names |= {LAYER.sub(str(n), key): value for n in (first, first + 1)}
    return names


def _layer(key: str) -> int | None:
    layer = LAYER.search(key)
    return int(layer[0]) if layer else None


def renamed(state: Mapping[str, Tensor], module: Method) -> dict[str, Tensor]:
    """A pre-training file's keys as those of `module`'s task; any other file's as they are."""
    if isinstance(module, Pretraining) or kind_of(state) != "pretrained":
        return dict(state)
    encoders: Any = module.encoders
    if isinstance(module, VQA):
        return question_answering_names(state, encoders.text_encoder.fusion_layer)
    if isinstance(encoders, PairNetwork):
        return paired_names(state, encoders.text_encoder.fusion_layer)
    return joint_names(state)


# --- which key is which ---


def key_table(module: Method, state: Mapping[str, Any]) -> KeyTable:
    """The table for `module`; `state` is that of the file, which may lack parts."""
    rules = [
        *_encoder_rules(module, "", "encoders."),
        *_encoder_rules(module, "_m", "momentum_encoders.module."),
        Rule("temp", "contrast.temp"),
        Rule("itm_head.{rest}", "matching.head.{rest}"),
        Rule("ta_head.{rest}", "encoders.classifier.{rest}"),
    ]
    dropped: dict[str, str] = {
        f"{coder}{copy}.{rest}": why
        for coder in ("text_encoder", "text_decoder")
        for copy in ("", "_m")
        for rest, why in CONSTANTS.items()
    }
    if isinstance(module, TextAssignment):
        dropped |= dict.fromkeys(("temp", "text_proj.{rest}"), "unused by the official model")
    table = KeyTable(rules, dropped, {} if has_momentum(state) else COPIED)
    if not hasattr(module, "contrast"):
        return table
    # The official pre-training keeps no identities.
    identities = "tenfold/contrast.queue.idx" if isinstance(module, Pretraining) else "idx_queue"
    return with_queue(module, state, table, QUEUES, "queue_ptr", identities, INTEGERS)


def _encoder_rules(module: Method, copy: str, ours: str) -> list[Rule]:
    """`copy` is "" for the encoders, "_m" for their momentum copies."""
    body = "bert." if isinstance(module, Pretraining) else ""
    writer = "text_decoder" if isinstance(module, VQA) else "text_encoder"
    rules = [
        *vision_rules(copy, ours),
        *word_head_rules(f"{writer}{copy}.cls.", f"{ours}word_head."),
        *bert_rules(f"text_decoder{copy}.bert.", f"{ours}text_decoder."),
        *bert_rules(f"text_encoder{copy}.{body}", f"{ours}text_encoder."),
    ]
    if not isinstance(module, TextAssignment):
        rules.append(Rule(f"cls_head{copy}.{{rest}}", f"{ours}classifier.{{rest}}"))
    return rules
