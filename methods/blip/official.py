"""Official BLIP files <-> our modules (docs/papers/blip.md, section 9).

Files of five tasks exist, all under the names of `models/blip_*.py`, which one table per module
maps. Fine-tuning starts from the pre-training's file, of which each task takes what it has; NLVR2's
twins both begin as the one cross-attention there.
Source: salesforce/BLIP@056a169 `models/blip*.py:load_checkpoint`.
"""

import re
from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch

from methods.blip.captioning import Captioning
from methods.blip.hugging_face import official_names, read_folder
from methods.blip.module import Pretraining
from methods.blip.nlvr import NLVR
from methods.blip.vqa import VQA
from shared.checkpoints import image_text
from shared.checkpoints.image_text import (
    COPIED,
    TIED,
    check_kind,
    fill,
    has_momentum,
    left_over,
    start_content,
    vision_rules,
    with_queue,
    with_ties,
)
from shared.checkpoints.official import (
    KeyReport,
    KeyTable,
    Rule,
    convert_official,
    export_official,
)
from shared.checkpoints.pretrained_text import (
    POSITION_IDS,
    bert_rules,
    word_head_rules,
)
from shared.checkpoints.reading import Checkpoint, CheckpointError
from shared.data.readers.model_files import is_folder
from shared.training.method import Method

KINDS = {
    "pretrained": "pre-training",
    "retrieval": "retrieval",
    "captioning": "captioning",
    "vqa": "question answering",
}
PARTS = (  # of the official models, which not every task has
    r"visual_encoder(_m)?|text_encoder(_m)?|text_decoder|(vision|text)_proj(_m)?|itm_head|temp|"
    r"\w+_queue|queue_ptr|ptr_queue|tenfold"
)
QUEUES = ("image_queue", "text_queue", "queue_ptr", "idx_queue", "ptr_queue", "tenfold/{rest}")
NEW_PARTS = {
    "encoders.classifier.{rest}": "a new head",
    "encoders.text_encoder.layers.{n}.cross_attention.merge.{rest}": "a new merge layer",
}


def load(module: Method, source: Checkpoint) -> KeyReport:
    """Load an official checkpoint, `{model: ...}` or a bare state dict, or one of transformers'
    port, into a module of the same task. The port's is a file, or a folder, which may be named
    `hub:NAME`: see `read_folder`.

    Momentum copies and queues that a file lacks are made anew: the copies from the loaded encoders,
    the queues random. Position embeddings are interpolated. A file that cannot be read without
    executing code or does not fit key by key raises CheckpointError; the module is then unchanged.
    """
    if not isinstance(source, Mapping) and is_folder(source):
        source = read_folder(module, source)
    state = official_state(source)
    return _fill(module, state, key_table(module, state))


def export(module: Method) -> dict[str, Any]:
    """The module's state under official names, which `load` turns back bit for bit."""
    return with_ties(export_official(module, key_table(module, {})))


def warm_start(module: Method, path: str | PathLike[str], kind: str) -> KeyReport:
    """Start a task from another one's weights, as the official scripts do.

    What the file has and the task has not is dropped; new heads and NLVR2's merge layers keep their
    initial values, and so does a queue of another length. Images in a loaded queue are of no
    identity, since the other task numbered them otherwise. A decoder that looked at image tokens of
    another width than the questions' keeps its own key and value projections (VQA with ViT-L).

    `kind` is that of the file, ours or official. `pretrained`: for any task; `retrieval`,
    `captioning` and `vqa`: for the same on another data set. CheckpointError is raised as by
    `load`, and where there is no such file, or one of another kind or method.
    """
    if kind in KINDS and is_folder(path):
        source: Mapping[str, Any] = read_folder(module, path, starts=True)
    else:
        source = start_content(path, kind, KINDS, "BLIP", export)
    state = official_state(source)
    check_kind(path, kind_of(state), kind, KINDS)
    return start_from(module, state)


def start_from(module: Method, state: Mapping[str, Any]) -> KeyReport:
    """As `warm_start`, from official names."""
    if isinstance(module, NLVR):
        state = twin_names(state)
    table = key_table(module, state)
    dropped, report = left_over(module, state, table, PARTS)
    fresh = dict(NEW_PARTS)
    if hasattr(module, "contrast"):
        fresh["contrast.queue.idx"] = "identities of this task's images"
    if isinstance(module, VQA):
        there = (
            r"text_decoder\.bert\.encoder\.layer\.(\d+)\.crossattention\.self\.(key|value)\.weight"
        )
        for told in report.resized:
            if match := re.match(there, told):
                ours = f"encoders.text_decoder.layers.{match[1]}.cross_attention.{match[2]}.weight"
                dropped[match[0]] = "for image tokens of another width than the questions'"
                fresh[ours] = "reads questions, not images of another width"
    table = KeyTable(table.rules, {**table.dropped, **dropped}, {**table.fresh, **fresh})
    return _fill(module, state, table)


def official_state(source: Checkpoint) -> dict[str, Any]:
    """The state dict in a file, see `image_text.official_state`, under official names:
    transformers' port calls the vision model otherwise."""
    state = image_text.official_state(source)
    if not all(isinstance(key, str) for key in state):
        raise CheckpointError("the weights of the file have no names")
    return official_names(state)


def kind_of(state: Mapping[str, Any]) -> str | None:
    """Which of `KINDS` a file is of; None: of none."""
    parts = {key.split(".")[0] for key in state}
    if "text_decoder" in parts and "itm_head" in parts:
        return "pretrained"
    if "itm_head" in parts:
        return "retrieval"
    if "text_decoder" in parts:
        return "vqa" if "text_encoder" in parts else "captioning"
    return None


def twin_names(state: Mapping[str, Any]) -> dict[str, Any]:
    """Pre-training -> NLVR2: each cross-attention becomes that of both images."""
    names: dict[str, Any] = {}
    for key, value in state.items():
        pieces = re.fullmatch(r"(.+\.crossattention\.(?:self|output\.dense))(\..+)", key)
        if pieces is None:
            names[key] = value
        else:
            names |= {f"{pieces[1]}{twin}{pieces[2]}": value for twin in (0, 1)}
    return names


def _fill(module: Method, state: Mapping[str, Any], table: KeyTable) -> KeyReport:
    _check_ties(module, state, table)
    return fill(module, state, table)


def _check_ties(module: Method, state: Mapping[str, Any], table: KeyTable) -> None:
    """CheckpointError where a file holds different values for what is one tensor here."""
    _, report = convert_official(state, table, module.state_dict())
    tensors = {name: id(p) for name, p in module.named_parameters(remove_duplicate=False)}
    first: dict[int, str] = {}
    pairs = [
        (first.setdefault(tensors[ours], key), key)
        for key, ours in report.mapped
        if ours in tensors
    ]
    head = "text_decoder.cls.predictions"
    pairs.append(("text_decoder.bert.embeddings.word_embeddings.weight", f"{head}.decoder.weight"))
    pairs.append((f"{head}.bias", f"{head}.decoder.bias"))
    for one, other in pairs:
        if one in state and other in state and not torch.equal(state[one], state[other]):
            raise CheckpointError(f"{one} and {other} are one tensor here, but differ in the file")


# --- which key is which ---


def key_table(module: Method, state: Mapping[str, Any]) -> KeyTable:
    """The table for `module`; `state` is that of the file, which may lack parts."""
    inside = "" if isinstance(module, Captioning) else "encoders."
    writer = ("encoders.text_decoder.", "encoders.word_head.")
    if not isinstance(module, VQA):
        writer = ("decoder.transformer.", "decoder.head.")
    rules = [
        *_encoder_rules("", inside),
        *_encoder_rules("_m", "momentum_encoders.module."),
        *word_head_rules("text_decoder.cls.", writer[1]),
        *bert_rules("text_decoder.bert.", writer[0]),
        Rule("temp", "contrast.temp"),
        Rule("itm_head.{rest}", "matching.head.{rest}"),
        Rule("cls_head.{rest}", "encoders.classifier.{rest}"),
    ]
    dropped: dict[str, str] = {
        f"{coder}.embeddings.position_ids": POSITION_IDS
        for coder in ("text_encoder", "text_encoder_m", "text_decoder.bert")
    }
    dropped["text_decoder.cls.predictions.decoder.{key}"] = TIED
    fresh = {} if has_momentum(state) else dict(COPIED)
    if not hasattr(module, "contrast"):
        return KeyTable(rules, dropped, fresh)
    if state and "temp" not in state:
        fresh["contrast.temp"] = "a file that only scores pairs has none"
    # Pre-training keeps no identities, and each calls its pointer otherwise.
    pointer, identities = "ptr_queue", "idx_queue"
    if isinstance(module, Pretraining):
        pointer, identities = "queue_ptr", "tenfold/contrast.queue.idx"
    elif state and "ptr_queue" not in state:
        fresh["contrast.queue.pointer"] = "the queue of pre-training is overwritten from its start"
        dropped["queue_ptr"] = "where pre-training would have written next"
    table = KeyTable(rules, dropped, fresh)
    return with_queue(module, state, table, QUEUES, pointer, identities)


def _encoder_rules(copy: str, ours: str) -> list[Rule]:
    """`copy` is "" for the encoders, "_m" for their momentum copies."""
    there, here = f"text_encoder{copy}.encoder.layer.{{n}}.crossattention", f"{ours}text_encoder"
    here = f"{here}.layers.{{n}}.cross_attention"
    return [
        *vision_rules(copy, ours),
        # Of NLVR2; before the rules of single cross-attention, which would take them for its own.
        Rule(f"{there}.output.dense0.{{rest}}", f"{here}.first.output.{{rest}}"),
        Rule(f"{there}.output.dense1.{{rest}}", f"{here}.second.output.{{rest}}"),
        Rule(f"{there}.output.merge_layer.{{rest}}", f"{here}.merge.{{rest}}"),
        Rule(f"{there}.self0.{{rest}}", f"{here}.first.{{rest}}"),
        Rule(f"{there}.self1.{{rest}}", f"{here}.second.{{rest}}"),
        *bert_rules(f"text_encoder{copy}.", f"{ours}text_encoder."),
    ]
