"""Official ALPRO files <-> our modules (docs/papers/alpro.md, section 9).

Files are flat state dicts of four kinds: pre-training, with the prompter inside; the prompter; a
retrieval model; and a question model, whose text encoder has no level `bert`.
Source: salesforce/ALPRO@4ff6163 `src/utils/load_save.py:load_state_dict_with_pos_embed_resizing`.
"""

import re
from collections.abc import Mapping
from os import PathLike
from typing import Any

from torch import nn

from methods.alpro.prompting import EntityPrompter
from shared.checkpoints.image_text import (
    TIED,
    UNUSED,
    check_kind,
    fill,
    left_over,
    official_state,
    start_content,
    with_ties,
)
from shared.checkpoints.official import (
    KeyReport,
    KeyTable,
    Rule,
    export_official,
    import_official,
)
from shared.checkpoints.pretrained_text import POSITION_IDS, bert_rules, word_head_rules
from shared.checkpoints.pretrained_vision import POSITIONS, TIMES
from shared.checkpoints.reading import Checkpoint
from shared.training.method import Method

KINDS = {
    "pretrained": "pre-training",
    "prompter": "the prompter",
    "retrieval": "retrieval",
    "vqa": "question answering",
}
PARTS = (  # that not every task has
    r"prompter|mpm_head|itm_head|temp|(vision|text)_proj|text_encoder\.cls"
)
PROMPTS = {"video_prompt_feat": "video_prompts", "image_prompt_feat": "image_prompts"}
ANEW = "the prompts are encoded when training begins"
LAYER = re.compile(r"text_encoder\.bert\.encoder\.layer\.(\d+)\.")


def load(module: Method, source: Checkpoint) -> KeyReport:
    """Load an official checkpoint into a module of the same task, its embeddings of space and time
    interpolated. A file that cannot be read without executing code or does not fit key by key
    raises CheckpointError; the module is then unchanged."""
    state = official_state(source)
    return fill(module, state, key_table(module, state))


def export(module: Method) -> dict[str, Any]:
    """The module's state under official names, which `load` turns back bit for bit."""
    return with_ties(export_official(module, key_table(module, {})))


def warm_start(module: Method, path: str | PathLike[str], kind: str) -> KeyReport:
    """Start a task from another one's weights, as the official scripts do: parts that the task has
    not are dropped, and a new classifier keeps its initial values.

    `kind` is that of the file, ours or official. `pretrained`: for any task; `retrieval`: for the
    same on another data set. CheckpointError is raised as by `load`, and where there is no such
    file, or one of another kind or method.
    """
    state = start_state(path, kind)
    if not hasattr(module, "contrast"):
        state = {key.replace("text_encoder.bert.", "text_encoder."): state[key] for key in state}
    table = key_table(module, state)
    dropped, _ = left_over(module, state, table, PARTS)
    fresh = {"encoders.classifier.{rest}": "a new head"}
    return fill(module, state, KeyTable(table.rules, {**table.dropped, **dropped}, fresh))


def load_prompter(prompter: EntityPrompter, path: str | PathLike[str]) -> KeyReport:
    """Load the file of a prompter, ours or official, whose prompts stay as they are;
    CheckpointError as of `warm_start`."""
    state = start_state(path, "prompter", "method.initial.prompter")
    table = prompter_table(prompter, state)
    return import_official(state, table, prompter)


def start_state(
    path: str | PathLike[str], kind: str, key: str = "warm_start.path"
) -> dict[str, Any]:
    """The state dict of the file that `key` names, which must be of this kind."""
    state = official_state(start_content(path, kind, KINDS, "ALPRO", export, key))
    found = kind_of(state)
    # A retrieval model has all that pre-training without PEM has.
    if (found, kind) != ("retrieval", "pretrained"):
        check_kind(path, found, kind, KINDS)
    return state


def kind_of(state: Mapping[str, Any]) -> str | None:
    """Which of `KINDS` a file is of; None: of none."""
    parts = {key.split(".")[0] for key in state}
    if "classifier" in parts:
        return "vqa"
    if "mpm_head" in parts:
        return "pretrained"
    # The prompter's official file has a matching head as well; ours has neither that nor prompts.
    if parts & PROMPTS.keys() or ("temp" in parts and "itm_head" not in parts):
        return "prompter"
    return "retrieval" if "itm_head" in parts else None


# --- which key is which ---


def key_table(module: Method, state: Mapping[str, Any]) -> KeyTable:
    """The table for `module`; `state` is that of the file."""
    parts: Any = module
    if not hasattr(parts, "contrast"):
        unused = ("temp", "vision_proj.{rest}", "text_proj.{rest}", "itm_head.{rest}")
        dropped = constants() | dict.fromkeys(unused, "unused by the official model")
        classifier = Rule("classifier.{rest}", "encoders.classifier.{rest}")
        return KeyTable([*encoder_rules(body=""), classifier], dropped)
    if not hasattr(parts, "matching"):
        return prompter_table(parts, state)
    rules = [
        *encoder_rules(),
        Rule("itm_head.{rest}", "matching.head.{rest}"),
        Rule("mpm_head.{rest}", "entity_head.{rest}"),
    ]
    dropped = constants()
    if parts.encoders.word_head is None:
        dropped["text_encoder.cls.{rest}"] = UNUSED
    elif parts.prompter is None:
        dropped |= dict.fromkeys(("prompter.{rest}", "mpm_head.{rest}"), "method.prompt is false")
    else:
        inner = prompter_table(parts.prompter, state, "prompter.")
        named = [Rule(f"prompter.{theirs}", f"prompter.{ours}") for theirs, ours in PROMPTS.items()]
        rules = [*inner.rules, *named, *rules]
        dropped |= {key: why for key, why in inner.dropped.items() if why != ANEW}
    return KeyTable(rules, dropped)


def prompter_table(module: nn.Module, state: Mapping[str, Any], within: str = "") -> KeyTable:
    """The table for a prompter, whose names have the prefix `within` on both sides."""
    parts: Any = module
    dropped = constants(within) | {
        f"{within}text_encoder.cls.{{rest}}": "unused by the prompter",
        f"{within}itm_head.{{rest}}": "unused by the prompter",
        **dict.fromkeys((f"{within}{name}" for name in PROMPTS), ANEW),
    }
    for key in state:
        layer = LAYER.search(key) if key.startswith(within) else None
        if layer and int(layer[1]) >= parts.encoders.text_encoder.fusion_layer:
            dropped[key] = "a layer that the prompter does not use"
    return KeyTable(encoder_rules(within), dropped, dict.fromkeys(PROMPTS.values(), ANEW))


def encoder_rules(within: str = "", body: str = "bert.") -> list[Rule]:
    """Rules of the encoders, what joins them, and the temperature."""
    there, here = f"{within}visual_encoder.model", f"{within}encoders.visual_encoder"
    text, ours = f"{within}text_encoder", f"{within}encoders"
    return [
        Rule(f"{there}.pos_embed", f"{here}.pos_embed", POSITIONS),
        Rule(f"{there}.time_embed", f"{here}.time_embed", TIMES),
        Rule(f"{there}.{{rest}}", f"{here}.{{rest}}"),
        *(Rule(f"{within}{part}.{{rest}}", f"{ours}.{part}.{{rest}}")
          for part in ("vision_proj", "text_proj")),
        *word_head_rules(f"{text}.cls.", f"{ours}.word_head."),
        *bert_rules(f"{text}.{body}", f"{ours}.text_encoder."),
        Rule(f"{within}temp", f"{within}contrast.temp"),
    ]  # fmt: skip


def constants(within: str = "") -> dict[str, str]:
    """Keys that hold nothing of their own."""
    text = f"{within}text_encoder"
    return {
        f"{within}visual_encoder.model.head.{{rest}}": "a classifier that is never used",
        f"{text}.bert.embeddings.position_ids": POSITION_IDS,
        f"{text}.embeddings.position_ids": POSITION_IDS,
        f"{text}.cls.predictions.decoder.{{key}}": TIED,
    }
