"""BLIP's modules for captioning and retrieval as the tool's captioner and filter.

They come from checkpoints of ours, which know their vocabulary and images, or from official files
and folders of transformers' port, whose sizes are those of their tensors and whose other settings
are those of conf/method and conf/data.

Captioner and filter must not be one network: the paper's table 4 has a filter that shares its
weights with the captioner drop 8 % of the texts instead of 25 %, because it believes what it wrote
itself.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from numpy.typing import NDArray
from omegaconf import OmegaConf
from torch import Tensor

from methods.blip.capfilt.settings import Settings
from shared.checkpoints.pretrained_text import hugging_face_state
from shared.checkpoints.reading import load_checkpoint
from shared.data.captioned.decoding import Decoder
from shared.data.captioned.origins import origin_of
from shared.data.errors import WorkError
from shared.data.readers.model_files import PACKAGE
from shared.data.text.cleaning import text_rules
from shared.data.text.wordpiece import WordPiece
from shared.data.views.interface import build_views
from shared.experiments import CONF
from shared.nn.building import build
from shared.nn.generation import Generation
from shared.predict.inputs import Predictor, load_predictor
from shared.randomness import key_uniforms
from shared.training.method import Method

PENALTY = 1.1  # of repetition where captions are sampled, as `BLIP_Decoder.generate` has it
WORDS, TOKENS = 30, 35  # of a text that is judged: salesforce/BLIP@056a169 `configs/retrieval_coco`
ANY = "trainer.max_epochs=1"  # the configuration asks for it, nothing here does
HEAD = 64  # width of each attention head in all official models


class Loaded:
    """A module of a task, "captioning" or "retrieval", and what it sees of images (B, 3, S, S) on
    the CPU: `size` is S, transparent ones lie `on_white` or lose their alpha."""

    def __init__(self, path: str, device: str, task: str, part: str, settings: Settings) -> None:
        try:
            folder = Path(path).is_dir()
            source: Any = hugging_face_state(path) if folder else load_checkpoint(path)
            self.official = "_target_" not in source
            if self.official:
                vocab = settings.vocab or (path if folder else "")
                self.predictor = official_predictor(source, task, vocab, settings, device)
            else:
                self.predictor = load_predictor(Path(path), device)
        except KeyError as error:
            raise WorkError(f"{path} is no checkpoint of BLIP's {task}: no {error}") from error
        self.module: Any = self.predictor.module
        self.tokenizer: Any = self.predictor.tokenizer
        if not hasattr(self.module, part) or self.tokenizer is None:
            found = type(self.module).__name__
            raise WorkError(f"{path} holds {found}: give a checkpoint of {task}")
        transform = self.predictor.transform
        self.size, self.mean, self.std = transform.size, transform.mean, transform.std
        self.on_white = self.predictor.image_mode == "RGBA"


class ModuleCaptioner(Loaded):
    """Writes with `methods.blip.captioning.Captioning`."""

    def __init__(self, path: str, settings: Settings, device: str) -> None:
        super().__init__(path, device, "captioning", "captions", settings)
        self.prompt = self.tokenizer.opening(settings.prompt).tolist()[1:]
        learned = list(self.module.hparams["prompt_ids"])
        if self.prompt != learned:
            own = self.tokenizer.decode(torch.tensor([learned]))[0]
            raise WorkError(f"{path} learned to go on from another prompt: --prompt '{own} '")
        if len(self.prompt) + 1 >= settings.max_length:
            raise WorkError(f"--max-length {settings.max_length}: no room after the prompt")
        self.generation = Generation(
            settings.max_length,
            settings.min_length,
            self.tokenizer.sep_id,
            self.tokenizer.pad_id,
            num_beams=max(1, settings.beams),
            repetition_penalty=1.0 if settings.beams else PENALTY,
            sample=not settings.beams,
            top_k=settings.top_k,
            top_p=settings.top_p,
        )

    def write(self, images: Tensor, keys: NDArray[np.uint64]) -> list[str]:
        """One text for each image, without the prompt. The j-th token that row b draws inverts the
        nucleus's cumulative distribution at `key_uniforms(keys, n)[b, j]`, whatever else there is.
        """
        module, length = self.module, self.generation.max_length
        draws = torch.from_numpy(key_uniforms(keys, length)).to(module.device)
        context = module.look(images.to(module.device))
        found = module.decoder.write(context, self.prompt, self.generation, draws).sequences
        return self.tokenizer.decode(found[:, 1 + len(self.prompt) :].cpu())


class ModuleFilter(Loaded):
    """Judges with `methods.blip.retrieval.Retrieval`, as `methods.blip.filtering` does."""

    def __init__(self, path: str, settings: Settings, device: str) -> None:
        super().__init__(path, device, "retrieval", "matching", settings)

    def score(self, images: Tensor, texts: Sequence[str], owners: Tensor) -> Tensor:
        """(T,) match probabilities of texts and `images[owners[t]]`, each encoded once. Position 0
        is [ENC] as in training; the official `models/blip_itm.py:BLIP_ITM` leaves [CLS] there."""
        encoders, device = self.module.encoders, self.module.device
        cleaned = [self.predictor.rules.clean_caption(text, WORDS) for text in texts]
        ids, mask = (part.to(device) for part in self.tokenizer.batch(cleaned, TOKENS))
        ids[:, 0] = encoders.enc_id
        tokens, _ = encoders.encode_image(images.to(device))
        context = [seen.rows(owners.to(device)) for seen in encoders.text_encoder.project(tokens)]
        read = encoders.read_text(ids, mask)
        logits = self.module.matching.quick_logits(encoders.text_encoder, context, read, mask)
        return logits.float().softmax(dim=1)[:, 1]


def official_predictor(
    source: Mapping[str, Any], task: str, vocab: str, settings: Settings, device: str
) -> Predictor:
    """A module with the weights of an official file. KeyError if it lacks a part, CheckpointError
    if it does not fit key by key."""
    from methods.blip.official import load, official_state

    if not vocab:
        raise WorkError("an official file has no vocabulary: --vocab names BERT's vocab.txt")
    rules = text_rules("blip")
    tokenizer = WordPiece(vocab, rules.added, rules.closed)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        chosen = compose("config", [f"method=blip_{task}", f"data=blip_coco_{task}", ANY])
    method: Any = OmegaConf.to_container(chosen.method, resolve=True)
    views: Any = OmegaConf.to_container(chosen.data.augmentation, resolve=True)

    state = official_state(source)
    text = "text_decoder.bert." if task == "captioning" else "text_encoder."
    words = state[f"{text}embeddings.word_embeddings.weight"]
    patch = state["visual_encoder.patch_embed.proj.weight"]
    side = math.isqrt(state["visual_encoder.pos_embed"].shape[1] - 1) * patch.shape[-1]
    if len(tokenizer) != len(words):
        counts = f"{len(tokenizer):,} tokens, [DEC] and [ENC] among them, the model {len(words):,}"
        raise WorkError(f"the vocabulary {vocab} has {counts}")
    method["vision"] |= {"image_size": side, "patch_size": patch.shape[-1]}
    method["vision"]["gradient_checkpointing"] = False
    method["vision"] |= {"width": len(patch), "heads": len(patch) // HEAD}
    method["vision"]["depth"] = _count(state, "visual_encoder.blocks.", ".norm1.weight")
    method["text"] |= {"vocab_size": len(words), "hidden_size": words.shape[1]}
    method["text"] |= {"num_heads": words.shape[1] // HEAD}
    method["text"]["num_layers"] = _count(state, f"{text}encoder.layer.", "intermediate.dense.bias")
    inner = state[f"{text}encoder.layer.0.intermediate.dense.bias"]
    positions = state[f"{text}embeddings.position_embeddings.weight"]
    method["text"] |= {"intermediate_size": len(inner), "max_positions": len(positions)}
    if task == "captioning":
        prompt = tokenizer.opening(settings.prompt).tolist()
        method |= {"bos_id": prompt[0], "prompt_ids": prompt[1:]}
    else:
        queue = state.get("image_queue", torch.empty(0, 1))  # of which the filter has no use
        method |= {"enc_id": tokenizer.id_of("[ENC]"), "queue_size": queue.shape[1]}
        method["embed_dim"] = len(state["vision_proj.bias"])
    module: Any = build(method, Method)
    load(module, source)
    transform = build_views(views | {"size": side})
    return Predictor(module.eval().to(device), transform, "RGB", None, tokenizer, "", rules)


def _count(state: Mapping[str, Any], begin: str, end: str) -> int:
    return sum(key.startswith(begin) and key.endswith(end) for key in state)


@dataclass(frozen=True)
class Models:
    """The networks that settings need, and for each its name and SHA-256."""

    captioner: ModuleCaptioner | None
    filter: ModuleFilter | None
    about: dict[str, dict[str, str]]

    def decoder(self, root: str | None, most_pixels: int) -> Decoder:
        """What makes of files the images that the networks see."""
        networks = [network for network in (self.captioner, self.filter) if network is not None]
        if len(grounds := {network.on_white for network in networks}) > 1:
            raise WorkError("one model was trained on transparent images, the other was not")
        sizes = sorted({network.size for network in networks})
        return Decoder(root, tuple(sizes), most_pixels, grounds.pop())


def load_models(
    captioner: str | None, filter: str | None, settings: Settings, device: str
) -> Models:
    """Load what the settings need from checkpoints of ours, official ones or Hugging Face folders;
    WorkError names what is not given or not there. No connection is opened."""
    needed = {"captioner": settings.synthetic, "filter": settings.filtered}
    given = {"captioner": captioner, "filter": filter}
    given = {name: path for name, path in given.items() if needed[name]}
    if missing := [f"--{name}" for name, path in given.items() if not path]:
        kinds = "a checkpoint of ours, an official one or a Hugging Face folder"
        raise WorkError(f"{' and '.join(missing)} not given: {kinds}")
    about = {name: origin_of(Path(path)) for name, path in given.items() if path}
    if settings.vocab and not settings.vocab.startswith(PACKAGE):
        about["vocabulary"] = origin_of(Path(settings.vocab))
    writer, judge = given.get("captioner"), given.get("filter")
    return Models(
        ModuleCaptioner(writer, settings, device) if writer else None,
        ModuleFilter(judge, settings, device) if judge else None,
        about,
    )
