"""What text transformers start from: BERT and RoBERTa in Hugging Face's layout."""

import re
from dataclasses import replace
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor, nn

from shared.checkpoints.official import Conversion, KeyReport, KeyTable, Rule, import_official
from shared.checkpoints.reading import CheckpointError, load_checkpoint
from shared.checkpoints.zoo import is_of_zoo
from shared.data.readers.model_files import HUB, PACKAGE, model_folder, weight_file
from shared.nn.text_transformer import LanguageHead, TextTransformer

POSITION_IDS = "a constant that some versions of transformers save"


def bert_rules(official: str, ours: str) -> list[Rule]:
    """Rules for the body of a BERT with or without cross-attention; arguments are prefixes."""
    pairs = [
        ("embeddings.word_embeddings.{rest}", "embeddings.word.{rest}"),
        ("embeddings.position_embeddings.{rest}", "embeddings.position.{rest}"),
        ("embeddings.token_type_embeddings.{rest}", "embeddings.token_type.{rest}"),
        ("embeddings.LayerNorm.{rest}", "embeddings.norm.{rest}"),
    ]
    attentions = (("attention", "self_attention"), ("crossattention", "cross_attention"))
    for theirs, mine in attentions:
        there, here = f"encoder.layer.{{n}}.{theirs}", f"layers.{{n}}.{mine}"
        pairs += [
            (f"{there}.output.dense.{{rest}}", f"{here}.output.{{rest}}"),
            (f"{there}.output.LayerNorm.{{rest}}", f"{here}.norm.{{rest}}"),
            (f"{there}.self.{{rest}}", f"{here}.{{rest}}"),
        ]
    pairs += [  # after the attentions, whose names they would take for a layer's
        ("encoder.layer.{n}.intermediate.dense.{rest}", "layers.{n}.intermediate.{rest}"),
        ("encoder.layer.{n}.output.dense.{rest}", "layers.{n}.output.{rest}"),
        ("encoder.layer.{n}.output.LayerNorm.{rest}", "layers.{n}.norm.{rest}"),
    ]
    return [Rule(f"{official}{theirs}", f"{ours}{mine}") for theirs, mine in pairs]


def word_head_rules(official: str, ours: str) -> list[Rule]:
    """Rules for the word prediction (`cls.predictions`); its tied copies are left to the caller."""
    there = f"{official}predictions."
    return [
        Rule(f"{there}transform.dense.{{rest}}", f"{ours}dense.{{rest}}"),
        Rule(f"{there}transform.LayerNorm.{{rest}}", f"{ours}norm.{{rest}}"),
        Rule(f"{there}bias", f"{ours}bias"),
    ]


def hugging_face_state(folder: str | PathLike[str]) -> dict[str, Tensor]:
    """The weights in such a folder, or file of one, under today's names; CheckpointError of none or
    damaged ones."""
    if str(folder).startswith((PACKAGE, HUB)):
        folder = model_folder(folder)
    if not (is_of_zoo(folder) or Path(folder).is_file()):
        folder = weight_file(folder)
    state = load_checkpoint(folder)
    if not all(isinstance(key, str) for key in state):
        raise CheckpointError(f"{folder}: the weights there have no names")
    for oldest, today in (("gamma", "weight"), ("beta", "bias")):
        before, after = f"LayerNorm.{oldest}", f"LayerNorm.{today}"
        state = {key.replace(before, after): value for key, value in state.items()}
    return state


def load_hugging_face(
    module: TextTransformer,
    folder: str | PathLike[str],
    head: LanguageHead | None = None,
    new_words: int = 0,
    lower_layers: bool = False,
) -> KeyReport:
    """Load BERT's weights from what `model_folder` finds, a file, or the zoo;
    CheckpointError as of `hugging_face_state`, or of what does not fit. Cross-attention, which BERT
    has not, keeps its initial weights. `head` takes BERT's word prediction if the file has it. So
    many `new_words` at the end of the vocabulary keep their initial weights, too; a model without
    token types drops those of the file, and one that is to have its `lower_layers` alone those
    above them."""
    renamed = hugging_face_state(folder)
    prefix = "bert." if any(key.startswith("bert.") for key in renamed) else ""
    rules = bert_rules(prefix, "text.")
    dropped = {
        f"{prefix}embeddings.position_ids": POSITION_IDS,
        f"{prefix}pooler.{{rest}}": "the pooler is not used",
    }
    if module.embeddings.token_type is None:
        types = f"{prefix}embeddings.token_type_embeddings.{{rest}}"
        dropped[types] = "the model has no token types"
    if lower_layers:
        of_layer = re.compile(rf"{re.escape(prefix)}encoder\.layer\.(\d+)\.")
        for key in renamed:
            if (layer := of_layer.match(key)) and int(layer[1]) >= len(module.layers):
                dropped[key] = "a layer above the model's"
    fresh = {"text.layers.{n}.cross_attention.{rest}": "BERT has no cross-attention"}
    networks: dict[str, nn.Module] = {"text": module}
    if head is None:
        dropped["cls.{rest}"] = "heads of BERT's own training"
    else:
        networks["head"] = head
        rules += word_head_rules("cls.", "head.")
        dropped["cls.seq_relationship.{rest}"] = "a head of BERT's own training"
        dropped["cls.predictions.decoder.{rest}"] = "tied to another tensor of the file"
        if not any(key.startswith("cls.predictions.") for key in renamed):
            fresh["head.{rest}"] = "the file has no word prediction"
    if new_words:
        of_words = ("text.embeddings.word.{rest}", "head.bias")
        longer = Conversion(  # rows of a shorter vocabulary, then ours of the new words
            lambda value, ours: torch.cat([value, ours[-new_words:].to(value)]), None
        )
        rules = [replace(r, conversion=longer) if r.ours in of_words else r for r in rules]
    return import_official(renamed, KeyTable(rules, dropped, fresh), nn.ModuleDict(networks))
