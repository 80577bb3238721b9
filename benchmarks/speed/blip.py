"""Our BLIP: the method's own configs; pre-training, captions, and ranking of given tokens."""

from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.speed import albef
from benchmarks.speed.albef import STEPS, below, overrides
from benchmarks.speed.blip_peer import Comparable
from benchmarks.speed.stepping import OurSide
from methods.blip import hugging_face, network, official
from shared.nn.generation import CachedDecoder

LONGEST = 30  # tokens of a text in pre-training
WRITING = ("captions", "captions_uncached")


class Ours(Comparable, albef.Ours):
    official = official
    terms = ("loss_ita", "loss_itm", "loss_lm")
    scoring = MappingProxyType({"score": "itm+itc"})

    @staticmethod
    def overrides(settings: dict[str, Any], name: str) -> list[str]:
        networks = {"pretraining": pretraining, "captioning": captioning}
        return networks[name](settings) if name in networks else ranking(settings, name)

    def step(self, precision: str, what: str) -> Callable[[], float]:
        if what not in WRITING:
            return super().step(precision, what)
        write = self.writing(precision, cached=what == "captions")
        return lambda: float(write().sum())

    def writing(self, precision: str, cached: bool = True) -> Callable[[], Tensor]:
        module = OurSide(self.settings, captioning(self.settings)).module().eval()
        module = self.loaded(module, "captioning")
        batch = {"images": torch.load(self.folder / "images.pt")}

        def write() -> Tensor:
            decoder = CachedDecoder if cached else Rereader
            with (
                torch.no_grad(),
                torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
                patch.object(network, "CachedDecoder", decoder),
            ):
                return module.predict_step(batch, 0)

        return write


class Rereader(CachedDecoder):
    """Writes without a cache of words: each step reads the whole text again. The images' keys and
    values are still projected once."""

    read: Tensor | None = None

    def __call__(self, ids: Tensor) -> Tensor:
        self.read = ids if self.read is None else torch.cat([self.read, ids], dim=1)
        seen = self.read.new_ones(1, self.read.shape[1])
        hidden = self.transformer(self.read, seen, self.context, causal=True)
        return self.head(hidden[:, -1], self.transformer.embeddings.word).float()

    def reorder(self, rows: Tensor) -> None:
        assert self.read is not None
        self.read = self.read[rows]


def networks(settings: dict[str, Any]) -> dict[str, Any]:
    """Changes of a config: the network of the settings."""
    return below("vision", settings["vision"]) | below("text", settings["text"])


def pretraining(settings: dict[str, Any]) -> list[str]:
    """Overrides: the network and batch of the settings."""
    names = ("embed_dim", "queue_size", "temperature", "alpha", "label_smoothing", "weight_decay")
    changes = networks(settings) | {name: settings[name] for name in (*names, "bos_id", "enc_id")}
    changes |= {"encoder_momentum": settings["momentum"]}
    changes |= dict.fromkeys(("lr", "min_lr", "warmup_lr"), settings["lr"]) | {"lr_decay": 1.0}
    return overrides("blip_pretrain", changes)


def captioning(settings: dict[str, Any]) -> list[str]:
    """Overrides: the network of the settings; texts of a fixed length."""
    of = settings["captions"]
    lengths = {"max_length": of["length"], "min_length": of["length"]}
    same = {"num_beams": of["num_beams"], "end_id": of["end_id"]}
    changes = networks(settings) | below("generation", lengths | same)
    changes |= {"bos_id": settings["bos_id"], "prompt_ids": of["prompt_ids"]}
    changes |= {"text.initial_std": of["initial_std"]}
    return overrides("blip_captioning", changes)


def ranking(settings: dict[str, Any], name: str) -> list[str]:
    """Overrides: a gallery's matcher on a vision transformer of hardly more than projections."""
    of = settings[name]
    changes = albef.matcher(of, of["vocab"], of["text_tokens"])
    return overrides("blip_retrieval", changes | {"vision.gradient_checkpointing": False})


def make_data(folder: Path, settings: dict[str, Any]) -> None:
    """Write weights under official names, batches, images and draws for both sides."""
    for name in ("pretraining", "captioning", *Comparable.galleries):
        kept = albef.weights(Ours, settings, name)
        if name == "captioning":
            kept = hugging_face.hugging_face_names(kept)
        torch.save(kept, folder / f"{name}_weights.pt")
    made = albef.batch(settings, LONGEST, settings["bos_id"], settings["cls_id"], pad_id=0)
    torch.save(made, folder / "batch.pt")
    torch.save([albef.negatives(settings["batch_size"]) for _ in range(STEPS)], folder / "draws.pt")
    count, side = settings["captions"]["images"], settings["vision"]["image_size"]
    torch.save(torch.randn(count, 3, side, side), folder / "images.pt")
    for name in Comparable.galleries:
        sizes = settings[name]
        ids = torch.randint(1, sizes["vocab"], (sizes["texts"], sizes["text_tokens"]))
        gallery = albef.gallery(sizes, settings["embed_dim"]) | {"text_tokens": ids}
        torch.save(gallery, folder / f"{name}_gallery.pt")
