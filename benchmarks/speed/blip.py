"""Our BLIP: the method's own configs; pre-training, captions, and ranking of given tokens."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.speed import albef
from benchmarks.speed.albef import STEPS, below, overrides, text_mask
from benchmarks.speed.blip_peer import Comparable
from benchmarks.speed.stepping import OurSide, by_hand
from methods.blip import hugging_face, network, official
from methods.blip.module import Pretraining
from shared.nn.generation import CachedDecoder
from shared.tasks import image_text_matching
from shared.tasks.image_text_retrieval import RetrievalEvaluation

LONGEST = 30  # tokens of a text in pre-training
WRITING = ("captions", "captions_uncached")


class Ours(Comparable, OurSide):
    def __init__(self, settings: dict[str, Any]):
        super().__init__(settings, pretraining(settings))

    def module(self) -> Pretraining:
        module = super().module()
        official.load_weights(module, torch.load(self.folder / "pretraining_weights.pt"))
        return module.train()

    def step(self, precision: str, what: str) -> Callable[[], float]:
        if what in WRITING:
            write = self.writing(precision, cached=what == "captions")
            return lambda: float(write().sum())
        if what in self.galleries:
            rank = self.ranking(what, precision)
            return lambda: float(rank()[0].mean())
        return super().step(precision, what)

    def losses(self, draws: list[dict[str, Tensor]]) -> list[float]:
        text = self.settings["text"] | {"dropout": 0.0}
        module = Ours(self.settings | {"text": text}).module()
        step = by_hand(module, self.batches(""), mixed=False)
        losses: list[float] = []
        total_loss = module.total_loss

        def recorded(terms: dict[str, Tensor], *rest: Any) -> Tensor:
            losses.extend(float(terms[f"loss_{name}"].detach()) for name in ("ita", "itm", "lm"))
            return total_loss(terms, *rest)

        for given in draws:
            negatives = [given["text_of_image"], given["image_of_text"]]
            with (
                patch.object(module, "total_loss", recorded),
                patch.object(
                    image_text_matching, "draw_negatives", lambda *_, n=negatives: n.pop()
                ),
            ):
                step()
        return losses

    def writing(self, precision: str, cached: bool = True) -> Callable[[], Tensor]:
        module = OurSide(self.settings, captioning(self.settings)).module().eval()
        weights = torch.load(self.folder / "captioning_weights.pt")
        official.load_weights(module, weights)
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

    def ranking(self, name: str, precision: str) -> Callable[[], tuple[Tensor, Tensor]]:
        module = OurSide(self.settings, ranking(self.settings, name)).module().eval()
        official.load_weights(module, torch.load(self.folder / f"{name}_weights.pt"))
        form: Any = "bfloat16" if precision == "bf16" else "float32"
        k = self.settings[name]["k_test"]
        evaluation = RetrievalEvaluation(k, score="itm+itc", precision=form)
        g = torch.load(self.folder / f"{name}_gallery.pt")
        evaluation.collector.add(
            (torch.arange(len(g["image_tokens"])), g["image_features"], g["image_tokens"]),
            (g["text_image"], g["text_features"], g["text_tokens"], g["mask"]),
        )
        collected = evaluation.collector.gallery()
        return lambda: evaluation.scores(module, collected)


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
    vision = {"width": of["width"], "heads": of["heads"], "image_size": 16, "depth": 1}
    vision["gradient_checkpointing"] = False
    text = {"hidden_size": of["width"], "num_heads": of["heads"], "num_layers": of["layers"]}
    text |= {"vocab_size": of["vocab"], "max_positions": of["text_tokens"]}
    text |= {"intermediate_size": of["intermediate"]}
    changes = below("vision", vision) | below("text", text)
    return overrides("blip_retrieval", changes | {"queue_size": 1})


def make_data(folder: Path, settings: dict[str, Any]) -> None:
    """Write weights under official names, batches, images and draws for both sides."""
    made = {"pretraining": pretraining(settings), "captioning": captioning(settings)}
    made |= {name: ranking(settings, name) for name in Comparable.galleries}
    for name, given in made.items():
        weights = official.export(OurSide(settings, given).module())
        # The momentum copies begin as what they copy, and pre-training's queue has no identities.
        own = ("tenfold", "idx_queue")
        kept = {k: v for k, v in weights.items() if not (k in own or k.split(".")[0][-2:] == "_m")}
        if name == "captioning":
            kept = hugging_face.hugging_face_names(kept)
        torch.save(kept, folder / f"{name}_weights.pt")
    torch.save(batch(settings), folder / "batch.pt")
    torch.save([draws(settings) for _ in range(STEPS)], folder / "draws.pt")
    count, side = settings["captions"]["images"], settings["vision"]["image_size"]
    torch.save(torch.randn(count, 3, side, side), folder / "images.pt")
    for name in Comparable.galleries:
        sizes = settings[name]
        ids = torch.randint(1, sizes["vocab"], (sizes["texts"], sizes["text_tokens"]))
        gallery = albef.gallery(sizes, settings["embed_dim"]) | {"text_tokens": ids}
        torch.save(gallery, folder / f"{name}_gallery.pt")


def batch(settings: dict[str, Any]) -> dict[str, Tensor]:
    """Random pictures and texts of 8 to 30 tokens, padded."""
    size, side = settings["batch_size"], settings["vision"]["image_size"]
    mask = text_mask(size, 8, LONGEST)
    ids = torch.randint(1000, settings["bos_id"], (size, LONGEST))
    ids[:, 0] = settings["cls_id"]
    return {
        "images": torch.randn(size, 3, side, side),
        "input_ids": ids.masked_fill(mask == 0, 0),
        "attention_mask": mask,
        "indices": torch.arange(size),
    }


def draws(settings: dict[str, Any]) -> dict[str, Tensor]:
    """Negatives, which a step draws."""
    size = settings["batch_size"]
    images, texts = (torch.arange(size) + torch.randint(1, size, (2, size))) % size
    return {"image_of_text": images, "text_of_image": texts}
