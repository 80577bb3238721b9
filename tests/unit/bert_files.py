"""Files of BERT and RoBERTa with random weights, under the keys that their libraries write.

The keys are written down from docs/papers/cascode.md, section 9, not taken from our tables.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from shared.checkpoints.writing import AtomicCheckpointIO


@dataclass(frozen=True)
class Sizes:
    """Of an encoder, and what tells RoBERTa from BERT."""

    vocab: int = 20
    positions: int = 12
    types: int = 1
    width: int = 8
    inner: int = 16
    layers: int = 2
    heads: int = 4
    pad: int = 1
    after_pad: bool = True


ROBERTA = Sizes()
BERT = replace(ROBERTA, types=2, pad=0, after_pad=False)
Shapes = dict[str, tuple[int, ...]]


def linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def attention(name: str, width: int, source: int) -> Shapes:
    shapes = linear(f"{name}.self.query", width, width)
    shapes |= linear(f"{name}.self.key", source, width)
    shapes |= linear(f"{name}.self.value", source, width)
    shapes |= linear(f"{name}.output.dense", width, width)
    return shapes | norm(f"{name}.output.LayerNorm", width)


def encoder(prefix: str, s: Sizes) -> Shapes:
    d, embeddings = s.width, f"{prefix}embeddings"
    rows = {"word": s.vocab, "position": s.positions, "token_type": s.types}
    shapes: Shapes = {f"{embeddings}.{of}_embeddings.weight": (n, d) for of, n in rows.items()}
    shapes |= norm(f"{embeddings}.LayerNorm", d)
    for n in range(s.layers):
        layer = f"{prefix}encoder.layer.{n}"
        shapes |= attention(f"{layer}.attention", d, d)
        shapes |= linear(f"{layer}.intermediate.dense", d, s.inner)
        shapes |= linear(f"{layer}.output.dense", s.inner, d)
        shapes |= norm(f"{layer}.output.LayerNorm", d)
    return shapes


def words(head: str, norm_name: str, dense: str, s: Sizes) -> Shapes:
    """The prediction of words: `lm_head` of RoBERTa, `cls.predictions` of BERT."""
    shapes = linear(f"{head}.{dense}", s.width, s.width) | norm(f"{head}.{norm_name}", s.width)
    return shapes | linear(f"{head}.decoder", s.width, s.vocab) | {f"{head}.bias": (s.vocab,)}


def bert_words(prefix: str, s: Sizes) -> Shapes:
    return words(f"{prefix}cls.predictions", "transform.LayerNorm", "transform.dense", s)


def tree(kind: str, s: Sizes) -> Shapes:
    """The keys of a file of a kind, with their shapes."""
    prefix, d = ENCODERS[kind][0], s.width
    pooler = linear(f"{prefix}pooler.dense", d, d)
    lm_head = words("lm_head", "layer_norm", "dense", s)
    constants: Shapes = {f"{prefix}embeddings.position_ids": (1, s.positions)}
    types: Shapes = {"embeddings.token_type_ids": (1, s.positions)}
    parts = {
        "hub": pooler,
        "hub, with constants": pooler | constants | types,  # of older versions of the library
        "masked words": lm_head,
        "masked words, with more": lm_head | pooler | constants,
        "BERT": pooler | bert_words("", s) | linear("cls.seq_relationship", d, 2),
        "bi-encoder": pooler | constants,
        "classifier": constants
        | linear("classifier.dense", d, d)
        | linear("classifier.out_proj", d, 2),
    }
    return encoder(prefix, s) | parts[kind]


# Kind of a file: prefix of its encoder, sizes.
ENCODERS = {
    "hub": ("", ROBERTA),
    "hub, with constants": ("", BERT),
    "masked words": ("roberta.", ROBERTA),
    "masked words, with more": ("roberta.", ROBERTA),
    "BERT": ("bert.", BERT),
    "bi-encoder": ("encoder.", ROBERTA),
    "classifier": ("roberta.", ROBERTA),
}
CONSTANT = ("position_ids", "token_type_ids")


def random_state(kind: str, s: Sizes = ROBERTA, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}
    for key, shape in tree(kind, s).items():
        if key.endswith(CONSTANT):
            state[key] = torch.arange(s.positions)[None]
        else:
            state[key] = torch.randn(shape, generator=generator)
    return state


def config(s: Sizes) -> dict[str, Any]:
    """What stands in config.json."""
    return {
        "model_type": "roberta" if s.after_pad else "bert", "vocab_size": s.vocab,
        "max_position_embeddings": s.positions, "type_vocab_size": s.types, "hidden_size": s.width,
        "intermediate_size": s.inner, "num_hidden_layers": s.layers,
        "num_attention_heads": s.heads, "pad_token_id": s.pad, "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
        "layer_norm_eps": 1e-5 if s.after_pad else 1e-12, "torch_dtype": "float32",
    }  # fmt: skip


def folder_of(state: Mapping[str, Tensor], s: Sizes, path: Path, pickled: bool = False) -> Path:
    """A folder in Hugging Face's layout."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config(s)))
    if pickled:
        torch.save(dict(state), path / "pytorch_model.bin")
    else:
        whole = {key: value.contiguous() for key, value in state.items()}
        save_file(whole, path / "model.safetensors")
    return path


# --- our modules ---


def text(s: Sizes) -> dict[str, Any]:
    """CasCode's arguments of an encoder of those sizes."""
    return {
        "vocab_size": s.vocab, "hidden_size": s.width, "num_layers": s.layers,
        "num_heads": s.heads, "intermediate_size": s.inner, "max_positions": s.positions,
        "type_vocab_size": s.types, "dropout": 0.1, "eps": 1e-5 if s.after_pad else 1e-12,
        "pad_id": s.pad, "positions_after_pad": s.after_pad,
    }  # fmt: skip


def save_run(module: Any, path: Path, **more: Any) -> Path:
    """A checkpoint of the module as a run would have saved it."""
    target = f"{type(module).__module__}.{type(module).__qualname__}"
    content = {"_target_": target, "hyper_parameters": dict(module.hparams), "epoch": 3}
    content["state_dict"] = module.state_dict()
    AtomicCheckpointIO().save_checkpoint(content | more, path)
    return path
