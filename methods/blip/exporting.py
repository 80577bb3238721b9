"""A trained captioner, retrieval model or question answerer as a folder for transformers.

    python -m methods.blip.exporting checkpoint=FILE output=FOLDER
    python -m methods.blip.exporting checkpoint=model_base_caption_capfilt_large.pth output=FOLDER
        official=blip/captioning_coco data.vocab=FOLDER_OF_BERT

FILE is one of our runs, or with `official` an official checkpoint, of which that names an
experiment; further arguments are its overrides. `transformers` loads FOLDER by `from_pretrained`
of the class in its config.json, and by `BlipProcessor`; see README.md for what computes otherwise
there. Stochastic depth and the list of answers have no place in such a folder.
Source: docs/papers/blip.md, section 9.2.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from safetensors.torch import save

from methods.blip.hugging_face import class_name, described, hugging_face_names
from methods.blip.official import export
from shared.checkpoints.reading import CheckpointError
from shared.data.readers.model_files import CONFIG, WEIGHTS
from shared.data.text.cleaning import TEXT_RULES
from shared.data.text.wordpiece import VOCABULARY, WordPiece
from shared.files import new_folder, replacing
from shared.predict.inputs import PredictError, load_predictor
from shared.predict.official import load_official

USAGE = (
    "python -m methods.blip.exporting checkpoint=FILE output=FOLDER "
    "[official=blip/EXPERIMENT [KEY.OF.IT=VALUE ...]]"
)
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation of pixels, by which BLIP was trained."""
TIED = ("predictions.decoder.weight", "predictions.decoder.bias", "position_ids")
PLAIN = {"type_vocab_size": 0, "positions_after_pad": False, "share_projections": 1}
ADDED = {"bos_id": "[DEC]", "enc_id": "[ENC]"}
BICUBIC = 3


def export_folder(
    module: Any,
    output: str | PathLike[str],
    tokenizer: WordPiece,
    pixels: tuple[Sequence[float], Sequence[float]] = CLIP,
) -> None:
    """Write a folder of transformers' port, whole or not at all. `pixels` are mean and standard
    deviation. CheckpointError of what the port has no place for, OSError of the disk, as of an
    `output` that exists."""
    named = _entries(module, tokenizer)
    state = hugging_face_names(export(module))
    tensors = {
        key: value.detach().cpu().contiguous()
        for key, value in state.items()
        if not key.endswith(TIED)
    }
    side = named["vision_config"]["image_size"]
    longest = named["text_config"]["max_position_embeddings"]
    files = {
        WEIGHTS[0]: save(tensors, {"format": "pt"}),
        VOCABULARY: "".join(f"{word}\n" for word in tokenizer.tokens).encode(),
        "tokenizer.json": tokenizer.to_json().encode(),
        "tokenizer_config.json": _json(_tokenizer_config(longest)),
        "preprocessor_config.json": _json(_preprocessor_config(side, *pixels)),
        CONFIG: _json(named),
    }
    with new_folder(output) as folder:
        for name, content in files.items():
            with replacing(folder / name) as file:
                file.write(content)


def _entries(module: Any, tokenizer: WordPiece) -> dict[str, Any]:
    """The content of config.json; CheckpointError of a module that the port cannot be."""
    kind = class_name(module)
    if kind is None:
        raise CheckpointError(f"transformers has no class for BLIP's {type(module).__name__}")
    flat = described(module)
    vision, text = flat["vision_config.hidden_size"], flat["text_config.hidden_size"]
    if kind == "BlipForQuestionAnswering" and vision != text:
        told = f"images of width {vision}, but questions of {text}"
        raise CheckpointError(f"{kind} has one width for what its decoders read: {told}")
    arguments = {"type_vocab_size": 2, **module.hparams["text"]}  # the default of the network
    unlike = [key for key, value in PLAIN.items() if arguments.get(key, value) != value]
    unlike += ["stem"] if module.hparams["vision"].get("stem") else []
    if unlike:
        raise CheckpointError(f"{kind} has no place for {', '.join(unlike)}")
    flat |= _ids(module, tokenizer)
    dropout, smoothing = arguments.get("dropout", 0.1), module.hparams.get("label_smoothing", 0.0)
    flat |= {
        "text_config.encoder_hidden_size": vision,
        "text_config.hidden_dropout_prob": dropout,
        "text_config.attention_probs_dropout_prob": dropout,
        "text_config.label_smoothing": smoothing,
        "text_config.model_type": "blip_text_model",
        "vision_config.model_type": "blip_vision_model",
        "label_smoothing": smoothing,
        "model_type": "blip",
        "architectures": [kind],
        "tie_word_embeddings": True,
    }
    nested: dict[str, Any] = {"text_config": {}, "vision_config": {}}
    for key, value in flat.items():
        section, _, name = key.rpartition(".")
        (nested[section] if section else nested)[name] = value
    return nested


def _ids(module: Any, tokenizer: WordPiece) -> dict[str, int]:
    """Special tokens of the vocabulary; CheckpointError if it is not the module's."""
    rows = described(module)["text_config.vocab_size"]
    try:
        own = {key: tokenizer.id_of(token) for key, token in ADDED.items()}
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    wrong = {
        key: module.hparams[key] for key in own if module.hparams.get(key, own[key]) != own[key]
    }
    if wrong or len(tokenizer) > rows:
        told = f"{len(tokenizer)} words, of which {own}; the module has {rows} and {wrong or own}"
        raise CheckpointError(f"the vocabulary is not the module's: {told}")
    ends = {"sep_token_id": tokenizer.sep_id, "eos_token_id": tokenizer.sep_id}
    ends |= {"bos_token_id": own["bos_id"], "pad_token_id": tokenizer.pad_id}
    return {f"text_config.{key}": number for key, number in ends.items()}


def _tokenizer_config(longest: int) -> dict[str, Any]:
    names = ("pad", "unk", "cls", "sep", "mask")
    return {
        "tokenizer_class": "BertTokenizer",
        "processor_class": "BlipProcessor",
        "do_lower_case": True,
        "model_max_length": longest,
        "model_input_names": ["input_ids", "attention_mask"],
        "additional_special_tokens": list(ADDED.values()),
        **{f"{name}_token": f"[{name.upper()}]" for name in names},
    }


def _preprocessor_config(side: int, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
    steps = ("convert_rgb", "resize", "rescale", "normalize")
    return {
        "image_processor_type": "BlipImageProcessor",
        "processor_class": "BlipProcessor",
        **{f"do_{step}": True for step in steps},
        "size": {"height": side, "width": side},
        "resample": BICUBIC,
        "rescale_factor": 1 / 255,
        "image_mean": list(mean),
        "image_std": list(std),
    }


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, indent=2, sort_keys=True, allow_nan=False).encode() + b"\n"


def main(arguments: Sequence[str]) -> int:
    """Command line; what is wrong goes to stderr in one line, with exit status 2."""
    given = dict(argument.partition("=")[::2] for argument in arguments)
    own = {key: given.pop(key, None) for key in ("checkpoint", "output", "official")}
    checkpoint, output, experiment = own.values()
    if not checkpoint or not output or (given and experiment is None):
        print(f"usage: {USAGE}", file=sys.stderr)
        return 2
    try:
        if experiment is None:
            predictor = load_predictor(Path(checkpoint), "cpu")
        else:
            overrides = [f"{key}={value}" for key, value in given.items()]
            predictor = load_official(Path(checkpoint), experiment, overrides, "cpu")
        tokenizer = predictor.tokenizer
        if tokenizer is None:
            raise CheckpointError("it holds no vocabulary")
        rules = TEXT_RULES["blip"]
        words = WordPiece(tokenizer.tokens, rules.added, rules.closed)
        views: Any = predictor.transform
        pixels = [
            getattr(views, key, clip) for key, clip in zip(("mean", "std"), CLIP, strict=True)
        ]
        export_folder(predictor.module, output, words, tuple(pixels))  # type: ignore[arg-type]
    except (CheckpointError, PredictError, HydraException, OmegaConfBaseException) as error:
        print(f"exporting: {checkpoint}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"exporting: {error}", file=sys.stderr)
        return 2
    print(f"{output}: {class_name(predictor.module)} for transformers")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
