"""Folders of transformers' port of BLIP: their names of weights, and what their config.json says.

The port's three classes are our captioning, retrieval and question answering. It has other defaults
than the official code, which trained the weights: LayerNorms of the vision transformer add 1e-5,
and the text transformer has 8 heads. Our modules compute as the official code does, whatever a
config.json says of these two; all other sizes in it must be the module's.
Source: docs/papers/blip.md, section 9.2; huggingface/transformers `models/blip`, versions 4.57
and 5.24.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from methods.blip.captioning import Captioning
from methods.blip.retrieval import Retrieval
from methods.blip.vqa import VQA
from shared.checkpoints.pretrained_text import hugging_face_state
from shared.checkpoints.reading import CheckpointError
from shared.data.readers.files import is_number, one_line, shortened
from shared.data.readers.model_files import CONFIG, model_folder
from shared.files import read_json
from shared.training.method import Method

log = logging.getLogger(__name__)
Names = Sequence[tuple[str, str]]
VISION: Names = [  # the text parts have the official names
    ("vision_model.embeddings.class_embedding", "visual_encoder.cls_token"),
    ("vision_model.embeddings.position_embedding", "visual_encoder.pos_embed"),
    ("vision_model.embeddings.patch_embedding", "visual_encoder.patch_embed.proj"),
    ("vision_model.post_layernorm", "visual_encoder.norm"),
    ("vision_model.encoder.layers", "visual_encoder.blocks"),
]
IN_BLOCKS: Names = [
    (".layer_norm1.", ".norm1."),
    (".layer_norm2.", ".norm2."),
    (".self_attn.projection.", ".attn.proj."),
    (".self_attn.qkv.", ".attn.qkv."),
]
CLASSES: dict[type[Method], str] = {
    Captioning: "BlipForConditionalGeneration",
    Retrieval: "BlipForImageTextRetrieval",
    VQA: "BlipForQuestionAnswering",
}
CLIP_STYLE = (
    "BlipModel is not BLIP: its loss is CLIP's, its text model has a pooler, and no official "
    f"checkpoint fills its projections; give a folder of {', '.join(CLASSES.values())}"
)
DEFAULTS: dict[str, Any] = {  # of the port, whose config.json may leave them out
    "vision_config.hidden_size": 768, "vision_config.intermediate_size": 3072,
    "vision_config.num_hidden_layers": 12, "vision_config.num_attention_heads": 12,
    "vision_config.image_size": 384, "vision_config.patch_size": 16,
    "vision_config.hidden_act": "gelu", "vision_config.layer_norm_eps": 1e-5,
    "text_config.vocab_size": 30524, "text_config.hidden_size": 768,
    "text_config.intermediate_size": 3072, "text_config.num_hidden_layers": 12,
    "text_config.num_attention_heads": 8, "text_config.max_position_embeddings": 512,
    "text_config.hidden_act": "gelu", "text_config.layer_norm_eps": 1e-12,
    "text_config.pad_token_id": 0, "text_config.bos_token_id": 30522,
    "text_config.sep_token_id": 102, "image_text_hidden_size": 256,
}  # fmt: skip
UNOFFICIAL = {
    "vision_config.layer_norm_eps": (1e-5, 1e-6),
    "text_config.num_attention_heads": (8, 12),
}
"""Defaults of the port, which its files may name, and what the weights were trained with."""


def read_folder(module: Method, path: str | PathLike[str], starts: bool = False) -> dict[str, Any]:
    """The weights, under the port's names, of a folder, `hub:NAME` or `package:NAME`.

    CheckpointError of files that cannot be read without executing code, and of a config.json that
    does not fit `module`, which names what differs. What a training only `starts` from may be of
    another task and another size of images.
    """
    folder = model_folder(path)
    config = folder / CONFIG
    try:
        content = read_json(config)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{config}: no readable config ({one_line(repr(error))})") from error
    if not isinstance(content, dict) or content.get("model_type") != "blip":
        kind = content.get("model_type") if isinstance(content, dict) else content
        raise CheckpointError(f"{config}: model_type {shortened(kind)} is not blip")
    _check_class(module, content.get("architectures"), config, starts)
    _check_sizes(module, content, config, starts)
    return hugging_face_state(folder)


def _check_class(module: Method, architectures: Any, config: Path, starts: bool) -> None:
    """CheckpointError where the folder is of another class than the module's."""
    if architectures == ["BlipModel"]:
        raise CheckpointError(f"{config}: {CLIP_STYLE}")
    if starts:
        return
    name = type(module).__name__
    wanted = class_name(module)
    if wanted is None:
        raise CheckpointError(f"{config}: transformers has no class for BLIP's {name}")
    if architectures not in (None, [wanted]):
        told = f"it is of {shortened(architectures)}, but {name} is {wanted} there"
        raise CheckpointError(f"{config}: {told}")


def _check_sizes(module: Method, content: Mapping[str, Any], config: Path, starts: bool) -> None:
    """CheckpointError that names every entry of a config.json which the module contradicts."""
    misfits, unofficial = [], []
    for key, mine in described(module).items():
        if starts and key == "vision_config.image_size":
            continue
        section, _, name = key.rpartition(".")
        entries = content.get(section) if section else content
        if entries is not None and not isinstance(entries, Mapping):
            raise CheckpointError(f"{config}: {section} is {shortened(entries)}, not an object")
        value = (entries or {}).get(name, DEFAULTS[key])
        told = f"{key} {shortened(value)} there, {mine} here"
        if (is_number(value) and value == mine) or (isinstance(value, str) and value == mine):
            continue
        if is_number(value) and UNOFFICIAL.get(key) == (value, mine):
            unofficial.append(told)
        else:
            misfits.append(told)
    if misfits:
        advice = "method.vision and method.text say what is here, data.augmentation.size goes along"
        raise CheckpointError(f"{config} does not fit; {'; '.join(misfits)} ({advice})")
    if unofficial:
        log.info("%s: %s, as in the official code", config, "; ".join(unofficial))


def class_name(module: Method) -> str | None:
    """The port's class of such a module; None if it has none."""
    return next((name for kind, name in CLASSES.items() if isinstance(module, kind)), None)


def described(module: Any) -> dict[str, Any]:
    """What the config.json of a module says: sizes, and ids that it writes with."""
    encoders = getattr(module, "encoders", module)
    vit = encoders.visual_encoder
    text = getattr(encoders, "text_encoder", None) or module.decoder.transformer
    layer, patch_size = text.layers[0], module.hparams["vision"].get("patch_size", 16)
    entries = {
        "vision_config.hidden_size": vit.embed_dim,
        "vision_config.intermediate_size": vit.blocks[0].mlp.fc1.out_features,
        "vision_config.num_hidden_layers": len(vit.blocks),
        "vision_config.num_attention_heads": vit.blocks[0].attn.num_heads,
        "vision_config.image_size": vit.grid * patch_size,
        "vision_config.patch_size": patch_size,
        "vision_config.hidden_act": "gelu",
        "vision_config.layer_norm_eps": vit.norm.eps,
        "text_config.vocab_size": text.embeddings.word.num_embeddings,
        "text_config.hidden_size": text.width,
        "text_config.intermediate_size": layer.intermediate.out_features,
        "text_config.num_hidden_layers": len(text.layers),
        "text_config.num_attention_heads": layer.self_attention.heads,
        "text_config.max_position_embeddings": text.embeddings.position.num_embeddings,
        "text_config.hidden_act": "gelu",
        "text_config.layer_norm_eps": text.embeddings.norm.eps,
        "text_config.pad_token_id": text.pad_id,
    }
    if isinstance(module, Captioning | VQA):
        entries["text_config.bos_token_id"] = module.hparams["bos_id"]
        entries["text_config.sep_token_id"] = module.generation.end_id
    if isinstance(module, Retrieval):
        entries["image_text_hidden_size"] = encoders.vision_proj.out_features
    return entries


def official_names(state: Mapping[str, Any]) -> dict[str, Any]:
    """The port's names -> official ones; CheckpointError of `BlipModel`, and of one part twice."""
    if any(key.startswith("text_model.") for key in state):
        raise CheckpointError(CLIP_STYLE)
    renamed = {_renamed(key, VISION, IN_BLOCKS): value for key, value in state.items()}
    if len(renamed) < len(state):
        raise CheckpointError("the file holds weights under the port's and under official names")
    return renamed


def hugging_face_names(state: Mapping[str, Any]) -> dict[str, Any]:
    """Official names -> those of transformers' port, which has no momentum, no temperature and no
    queues."""
    lacking = re.compile(r"\w+_m\..+|temp|\w*queue\w*|tenfold")
    outside, inside = ([(b, a) for a, b in names] for names in (VISION, IN_BLOCKS))
    return {
        _renamed(key, outside, inside): value
        for key, value in state.items()
        if not lacking.fullmatch(key)
    }


def _renamed(key: str, outside: Names, inside: Names) -> str:
    """A key whose beginning is that of one in `outside`, and in blocks also what is `inside`."""
    for one, other in outside:
        if key.startswith(f"{one}."):
            rest = key.removeprefix(one)
            for part, name in inside if one.endswith(("layers", "blocks")) else ():
                rest = rest.replace(part, name)
            return other + rest
        if key == one:
            return other
    return key
