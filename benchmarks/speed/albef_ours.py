"""Our side: the method's own configs; pre-training, and `RetrievalEvaluation` on given tokens.

Variants: see `OurSide`; "full_size" and "miniature" rank that gallery.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.speed.albef import GALLERIES
from benchmarks.speed.serving import serve, timed
from benchmarks.speed.stepping import OurSide, by_hand
from methods.albef import official
from methods.albef.module import Pretraining
from shared.evaluation.retrieval import Precision
from shared.losses.language import MaskDraws
from shared.tasks import image_text_matching
from shared.tasks.image_text_retrieval import RetrievalEvaluation


class OurALBEF(OurSide):
    def __init__(self, settings: dict[str, Any]):
        super().__init__(settings, pretraining(settings))
        self.settings, self.folder = settings, Path(settings["data"])
        self.batch = torch.load(self.folder / "batch.pt")

    def module(self) -> Pretraining:
        module = self.instantiate("method")
        official.load_weights(module, torch.load(self.folder / "pretraining_weights.pt"))
        return module.train()

    def run(self, variant: str, steps: int) -> tuple[list[float], list[float]]:
        precision, _, what = variant.partition(" ")
        if what not in GALLERIES:
            return super().run(variant, steps)
        if variant not in self.steps:
            rank = self.ranking(what, "bfloat16" if precision == "bf16" else "float32")
            self.steps[variant] = lambda: float(rank()[0].mean())
        return timed(self.steps[variant], steps)

    def values(self) -> dict[str, list[float]]:
        scores, orders = [], []
        for name in GALLERIES:
            k = self.settings[name]["k_test"]
            for rows in self.ranking(name, "float32")():
                scores.append(rows[rows > -100])
                orders.append(rows.argsort(dim=1, descending=True, stable=True)[:, :k].flatten())
        return {
            "losses": self.losses(),
            "matching scores": torch.cat(scores).tolist(),
            "ranks": torch.cat(orders).tolist(),
        }

    def losses(self) -> list[float]:
        """ITA, ITM and MLM of each of the steps whose draws are given, without dropout."""
        text = self.settings["text"] | {"dropout": 0.0}
        module = OurALBEF(self.settings | {"text": text}).module()
        step = by_hand(module, self.batches(""), mixed=False)
        losses: list[float] = []
        total_loss = module.total_loss

        def recorded(terms: dict[str, Tensor], *rest: Any) -> Tensor:
            losses.extend(float(terms[f"loss_{name}"].detach()) for name in ("ita", "itm", "mlm"))
            return total_loss(terms, *rest)

        for given in torch.load(self.folder / "draws.pt"):
            negatives = [given["image_of_text"], given["text_of_image"]]
            masks = MaskDraws(*(given[n] for n in ("selected", "replaced", "random", "words")))
            with (
                patch.object(module, "total_loss", recorded),
                patch.object(MaskDraws, "from_uniforms", lambda *_, masks=masks: masks),
                patch.object(
                    image_text_matching, "draw_negatives", lambda *_, of=negatives: of.pop(0)
                ),
            ):
                step()
        return losses

    def ranking(self, name: str, precision: Precision) -> Callable[[], tuple[Tensor, Tensor]]:
        """Ranks a gallery: scores of the candidates, from images to texts and back."""
        module = OurSide(self.settings, ranking(self.settings, name)).instantiate("method").eval()
        official.load_weights(module, torch.load(self.folder / f"{name}_weights.pt"))
        evaluation = RetrievalEvaluation(self.settings[name]["k_test"], precision=precision)
        g = torch.load(self.folder / f"{name}_gallery.pt")
        evaluation.collector.add(
            (torch.arange(len(g["image_tokens"])), g["image_features"], g["image_tokens"]),
            (g["text_image"], g["text_features"], g["text_tokens"], g["mask"]),
        )
        collected = evaluation.collector.gallery()
        return lambda: evaluation.scores(module, collected)


def pretraining(settings: dict[str, Any]) -> list[str]:
    """Overrides: the network and batch of the settings."""
    special = settings["special"]
    changes = {f"vision.{key}": value for key, value in settings["vision"].items()}
    changes |= {f"text.{key}": value for key, value in settings["text"].items()}
    changes |= {"text.pad_id": special["pad"], "cls_id": special["cls"], "mask_id": special["mask"]}
    names = ("embed_dim", "queue_size", "temperature", "alpha", "mlm_probability", "weight_decay")
    changes |= {name: settings[name] for name in names}
    changes |= {"ramp": False, "encoder_momentum": settings["momentum"]}
    changes |= dict.fromkeys(("lr", "min_lr", "warmup_lr"), settings["lr"])
    return ["method=albef_pretrain", *_common(settings, changes)]


def ranking(settings: dict[str, Any], name: str) -> list[str]:
    """Overrides: a gallery's matcher on encoders of hardly more than projections."""
    sizes = settings[name]
    changes = {
        "vision.image_size": 16,
        "vision.depth": 1,
        "vision.width": sizes["width"],
        "vision.heads": sizes["heads"],
        "text.vocab_size": 2,
        "text.max_positions": 1,
        "text.hidden_size": sizes["width"],
        "text.num_layers": sizes["layers"],
        "text.num_heads": sizes["heads"],
        "text.intermediate_size": sizes["intermediate"],
        "text.cross_attention_from": 0,
        "queue_size": 1,
    }
    return ["method=albef_retrieval", *_common(settings, changes)]


def _common(settings: dict[str, Any], changes: Mapping[str, Any]) -> list[str]:
    of_run = ["name=speed", "trainer.max_epochs=1", f"seed={settings['seed']}"]
    return [*(f"method.{key}={value}" for key, value in changes.items()), *of_run]


if __name__ == "__main__":
    serve(OurALBEF)
