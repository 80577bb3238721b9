"""Our ALPRO: the method's own configs; pre-training, retrieval, and decoding of videos."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any
from unittest.mock import patch

import pytorch_lightning as pl
import torch
from torch import Tensor

from benchmarks.miniatures.synthetic_videos import videos
from benchmarks.speed import albef, decoding
from benchmarks.speed.albef import STEPS, below, negatives, overrides, recorded_losses
from benchmarks.speed.albef_peer import mask_draws
from benchmarks.speed.alpro_peer import TASKS, Comparable, without_dropout
from benchmarks.speed.serving import timed
from benchmarks.speed.stepping import OurSide, by_hand
from methods.alpro import module as pretraining
from methods.alpro import official
from methods.alpro.losses import TRIES, blackened, random_regions
from shared.data.readers.videos import DECODERS, decoder
from shared.losses.language import MaskDraws, mask_tokens
from shared.nn.building import build
from shared.training.precision import has_bf16_units

LONGEST = 30  # tokens of a text in pre-training
MEAN, STD = (0.5,) * 3, (0.25,) * 3
TERMS = {
    "pretraining": ("loss_vtc", "loss_vtm", "loss_mlm", "loss_pem"),
    "retrieval": ("loss_vtc", "loss_vtm"),
}


class Ours(Comparable, OurSide):
    def __init__(self, settings: dict[str, Any]):
        super().__init__(settings, training(settings, "pretraining"))

    def parameters(self) -> Iterable[Tensor]:
        modules = [self.trained_module(self.settings, task) for task in TASKS]
        return [p for module in modules for p in module.parameters() if p.requires_grad]

    def trained_module(self, settings: dict[str, Any], task: str) -> Any:
        """The module of a task with the weights that both sides are given."""
        module = OurSide(settings, training(settings, task)).module()
        official.load(module, torch.load(self.folder / f"{task}_weights.pt"))
        return module.train()

    def step(self, precision: str, what: str) -> Callable[[], float]:
        module = self.trained_module(self.settings, what)
        return by_hand(module, self.batches(""), mixed=precision == "bf16")

    def stepped(
        self, task: str, draws: list[dict[str, Tensor]]
    ) -> tuple[list[float], dict[str, Tensor]]:
        module = self.trained_module(without_dropout(self.settings), task)
        masked, inside = (self.batch["masked_ids"], self.batch["labels"]), self.batch["inside"]
        with (
            patch.object(pretraining.Pretraining, "mask", lambda *_: masked),
            patch.object(pretraining, "random_regions", lambda *_: inside),
        ):
            losses = recorded_losses(module, self.batches(""), TERMS[task], draws)
        trained = {p for p in module.parameters() if p.requires_grad}
        for parameter in trained:
            parameter.data = parameter.grad  # to name gradients as `export` names weights
        named = official.export(module).items()
        frozen = re.compile(r"prompter\.|.*position_ids$")
        return losses, {name: g for name, g in named if not frozen.match(name)}

    def batches(self, source: str) -> Iterator[dict[str, Tensor]]:
        if source != "loading":
            return super().batches(source)
        data = build(self.config.data, pl.LightningDataModule)
        data.setup("fit")
        return iter(data.train_dataloader())

    def figures(self) -> dict[str, float]:
        """Clips a second and memory of each decoder that is there, in a process of its own, and the
        share of a step's time in which it waits for the one worker that loads."""
        found: dict[str, float] = {}
        for name in DECODERS:
            try:
                decoder(name)
            except ModuleNotFoundError:
                continue
            command = [sys.executable, "-m", decoding.__name__, str(self.folder / "videos"), name]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found[f"{name}_clips"], found[f"{name}_memory"] = json.loads(printed)
        waits: list[float] = []
        batches = self.batches("loading")

        def next_batch() -> dict[str, Tensor]:
            started = perf_counter()
            batch = next(batches)
            waits.append(perf_counter() - started)
            return batch

        module = self.trained_module(self.settings, "pretraining")
        step = by_hand(module, iter(next_batch, None), mixed=has_bf16_units("cpu"))
        step()  # starts the worker
        seconds, _ = timed(step, 4)
        return found | {"waiting_for_clips": 100 * sum(waits[1:]) / sum(seconds)}


def training(settings: dict[str, Any], task: str) -> list[str]:
    """Overrides: the network and batch of the settings, and videos that are loaded."""
    changes = below("vision", settings["vision"]) | below("text", settings["text"])
    changes |= {name: settings[name] for name in ("embed_dim", "temperature", "lr")}
    if task == "retrieval":
        return overrides("alpro_retrieval", changes)
    changes |= {"num_entities": settings["entities"], "keep": "official", "entities": "null"}
    changes |= {"mean": list(MEAN), "std": list(STD)}
    folder, side = settings["data"], settings["vision"]["image_size"]
    data: dict[str, Any] = {
        "files.train": f"{folder}/pairs_train.jsonl",
        "image_root": f"{folder}/videos",
    }
    data |= {"vocab": f"{folder}/vocab.txt"}
    data |= dict.fromkeys(("stills", "annotation_index", "val_split", "test_split"), "null")
    data |= {"batch_size": settings["batch_size"], "steps_per_epoch": 100, "num_workers": 1}
    data |= {"augmentation.size": side, "frames": settings["vision"]["frames"]}
    of_data = [f"data.{key}={value}" for key, value in data.items()]
    return ["data=alpro_pretrain", *of_data, *overrides("alpro_pretrain", changes)]


def make_data(folder: Path, settings: dict[str, Any]) -> None:
    """Write videos, weights under official names, a batch and draws for both sides."""
    videos(folder, **settings["videos"])
    for task in TASKS:
        weights = official.export(OurSide(settings, training(settings, task)).module())
        for name, value in weights.items():
            # What starts at zero, or is encoded when training begins, would check nothing.
            if name.endswith(("temporal_fc.weight", "time_embed", "prompt_feat")):
                weights[name] = 0.05 * torch.randn_like(value)
        torch.save(weights, folder / f"{task}_weights.pt")
    size, frames, text = settings["batch_size"], settings["vision"]["frames"], settings["text"]
    side, patch_size = settings["vision"]["image_size"], settings["vision"]["patch_size"]
    batch = albef.batch(settings, LONGEST, text["vocab_size"], cls_id=101, pad_id=0)
    batch["images"] = torch.randn(size, frames, 3, side, side)
    draws = MaskDraws(**mask_draws(settings, (size, LONGEST)))
    ids = batch["input_ids"]
    batch["masked_ids"], batch["labels"] = mask_tokens(ids, draws, 0, 101, 103, (100, 102, 103))
    batch["inside"] = random_regions(torch.rand(size, TRIES, 4), side, patch_size)
    black = -torch.tensor(MEAN) / torch.tensor(STD)
    batch["regions"] = blackened(batch["images"], batch["inside"], black)
    torch.save(batch, folder / "batch.pt")
    torch.save([negatives(size) for _ in range(STEPS)], folder / "draws.pt")
