"""Our ALBEF: the method's own configs; pre-training, and `RetrievalEvaluation` on given tokens."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.speed.albef_peer import GALLERIES, Comparable, mask_draws
from benchmarks.speed.stepping import OurSide, by_hand
from methods.albef import official
from shared.evaluation.retrieval import Precision
from shared.losses.language import MaskDraws
from shared.tasks import image_text_matching
from shared.tasks.image_text_retrieval import RetrievalEvaluation

STEPS = 2  # whose losses are compared
MASKS = ("selected", "replaced", "random", "words")  # fields of `MaskDraws`
LONGEST = 25  # tokens of a text in pre-training


class Ours(Comparable, OurSide):
    official: Any = official
    terms = ("loss_ita", "loss_itm", "loss_mlm")
    scoring: Mapping[str, Any] = {}  # further arguments of `RetrievalEvaluation`

    def __init__(self, settings: dict[str, Any]):
        super().__init__(settings, self.overrides(settings, "pretraining"))

    @staticmethod
    def overrides(settings: dict[str, Any], name: str) -> list[str]:
        """The network and batch of pre-training, or a gallery's matcher."""
        return pretraining(settings) if name == "pretraining" else ranking(settings, name)

    def module(self) -> Any:
        return self.loaded(super().module(), "pretraining").train()

    def loaded(self, module: Any, name: str) -> Any:
        """The module with the weights that both sides are given."""
        self.official.load(module, torch.load(self.folder / f"{name}_weights.pt"))
        return module

    def step(self, precision: str, what: str) -> Callable[[], float]:
        if what not in self.galleries:
            return super().step(precision, what)
        rank = self.ranking(what, precision)
        return lambda: float(rank()[0].mean())

    def losses(self, draws: list[dict[str, Tensor]]) -> list[float]:
        text = self.settings["text"] | {"dropout": 0.0}
        module = type(self)(self.settings | {"text": text}).module()
        return recorded_losses(module, self.batches(""), self.terms, draws)

    def ranking(self, name: str, precision: str) -> Callable[[], tuple[Tensor, Tensor]]:
        module = OurSide(self.settings, self.overrides(self.settings, name)).module().eval()
        module = self.loaded(module, name)
        form: Precision = "bfloat16" if precision == "bf16" else "float32"
        k = self.settings[name]["k_test"]
        evaluation = RetrievalEvaluation(k, precision=form, **self.scoring)
        g = torch.load(self.folder / f"{name}_gallery.pt")
        evaluation.collector.add(
            (torch.arange(len(g["image_tokens"])), g["image_features"], g["image_tokens"]),
            (g["text_image"], g["text_features"], g["text_tokens"], g["mask"]),
        )
        collected = evaluation.collector.gallery()
        return lambda: evaluation.scores(module, collected)


def recorded_losses(
    module: Any,
    batches: Iterator[dict[str, Tensor]],
    terms: Sequence[str],
    draws: Sequence[dict[str, Tensor]],
) -> list[float]:
    """The terms of each of the steps whose draws are given; the last one's gradients stay."""
    step = by_hand(module, batches, mixed=False)
    losses: list[float] = []
    total_loss = module.total_loss

    def recorded(values: dict[str, Tensor], *rest: Any) -> Tensor:
        losses.extend(float(values[name].detach()) for name in terms)
        return total_loss(values, *rest)

    for given in draws:
        negatives = [given["text_of_image"], given["image_of_text"]]
        masks = [given[n] for n in MASKS if n in given]
        with (
            patch.object(module, "total_loss", recorded),
            patch.object(MaskDraws, "from_uniforms", lambda *_, m=masks: MaskDraws(*m)),
            patch.object(image_text_matching, "draw_negatives", lambda *_, n=negatives: n.pop()),
        ):
            step()
    return losses


def pretraining(settings: dict[str, Any]) -> list[str]:
    """Overrides: the network and batch of the settings."""
    special = settings["special"]
    changes = below("vision", settings["vision"]) | below("text", settings["text"])
    changes |= {"text.pad_id": special["pad"], "cls_id": special["cls"], "mask_id": special["mask"]}
    names = ("embed_dim", "queue_size", "temperature", "alpha", "mlm_probability", "weight_decay")
    changes |= {name: settings[name] for name in names}
    changes |= {"ramp": False, "encoder_momentum": settings["momentum"]}
    changes |= dict.fromkeys(("lr", "min_lr", "warmup_lr"), settings["lr"])
    return overrides("albef_pretrain", changes)


def ranking(settings: dict[str, Any], name: str) -> list[str]:
    """Overrides: a gallery's matcher on encoders of hardly more than projections."""
    changes = matcher(settings[name], vocab=2, positions=1) | {"text.cross_attention_from": 0}
    return overrides("albef_retrieval", changes)


def matcher(of: dict[str, int], vocab: int, positions: int) -> dict[str, Any]:
    """Changes of a config: a gallery's text transformer, and a vision transformer of hardly more
    than projections."""
    vision = {"width": of["width"], "heads": of["heads"], "image_size": 16, "depth": 1}
    text = {"hidden_size": of["width"], "num_heads": of["heads"], "num_layers": of["layers"]}
    text |= {"vocab_size": vocab, "max_positions": positions}
    text |= {"intermediate_size": of["intermediate"]}
    return below("vision", vision) | below("text", text) | {"queue_size": 1}


def below(part: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{part}.{key}": value for key, value in values.items()}


def overrides(method: str, changes: Mapping[str, Any]) -> list[str]:
    of_method = [f"method.{key}={value}" for key, value in changes.items()]
    return [f"method={method}", "trainer.max_epochs=1", *of_method]


def make_data(folder: Path, settings: dict[str, Any]) -> None:
    """Write weights under official names, batches and draws for both sides."""
    for name in ("pretraining", *GALLERIES):
        torch.save(weights(Ours, settings, name), folder / f"{name}_weights.pt")
    special, words = settings["special"], settings["text"]["vocab_size"]
    made = batch(settings, LONGEST, words, special["cls"], special["pad"])
    made["image_ids"] = made["indices"]
    torch.save(made, folder / "batch.pt")
    torch.save([draws(settings) for _ in range(STEPS)], folder / "draws.pt")
    for name in GALLERIES:
        torch.save(gallery(settings[name], settings["embed_dim"]), folder / f"{name}_gallery.pt")


def weights(side: type[Ours], settings: dict[str, Any], name: str) -> dict[str, Tensor]:
    """A network's under official names: momentum copies begin as what they copy, and pre-training's
    queue has no identities."""
    found = side.official.export(OurSide(settings, side.overrides(settings, name)).module())
    own = ("tenfold", "idx_queue")
    return {k: v for k, v in found.items() if not (k in own or k.split(".")[0][-2:] == "_m")}


def text_mask(count: int, shortest: int, longest: int) -> Tensor:
    """(count, longest): 1 where a text of random length has a token; the first is the longest."""
    lengths = torch.randint(shortest, longest, (count,))
    lengths[0] = longest
    return (torch.arange(longest) < lengths[:, None]).long()


def batch(
    settings: dict[str, Any], longest: int, words: int, cls_id: int, pad_id: int
) -> dict[str, Tensor]:
    """Random pictures and texts of 8 to `longest` tokens below `words`, padded."""
    size, side = settings["batch_size"], settings["vision"]["image_size"]
    mask = text_mask(size, 8, longest)
    ids = torch.randint(1000, words, (size, longest))
    ids[:, 0] = cls_id
    return {
        "images": torch.randn(size, 3, side, side),
        "input_ids": ids.masked_fill(mask == 0, pad_id),
        "attention_mask": mask,
        "indices": torch.arange(size),
    }


def draws(settings: dict[str, Any]) -> dict[str, Tensor]:
    """What a step draws: negatives, and masks."""
    size = settings["batch_size"]
    return mask_draws(settings, (size, LONGEST)) | negatives(size)


def negatives(size: int) -> dict[str, Tensor]:
    """Another row for each of a batch, of images and of texts."""
    images, texts = (torch.arange(size) + torch.randint(1, size, (2, size))) % size
    return {"image_of_text": images, "text_of_image": texts}


def gallery(sizes: dict[str, int], dim: int) -> dict[str, Tensor]:
    """Features of `dim` numbers and tokens, as the encoders give them; as many texts an image."""
    images, texts, width = sizes["images"], sizes["texts"], sizes["width"]
    patches = torch.randn(images, sizes["image_tokens"], width)
    return {
        "image_features": F.normalize(torch.randn(images, dim), dim=1),
        "image_tokens": patches + 3 * torch.randn(images, 1, width),  # images differ clearly
        "text_features": F.normalize(torch.randn(texts, dim), dim=1),
        "text_tokens": torch.randn(texts, sizes["text_tokens"], width),
        "mask": text_mask(texts, 4, sizes["text_tokens"]),
        "text_image": torch.arange(texts) * images // texts,
    }
