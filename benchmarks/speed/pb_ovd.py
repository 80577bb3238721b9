"""Our side: PB-OVD's pseudo boxes from activation maps, and `tenfold-detect` on pictures."""

from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image

from benchmarks.speed.pb_ovd_peer import Labelling
from benchmarks.speed.stepping import OurSide
from methods.pb_ovd.detect import cli
from methods.pb_ovd.pseudo_boxes import best_boxes, box_scores, normalised, object_maps

DETECTOR = "experiment=pb_ovd/mini"


class Ours(Labelling):
    def label(self) -> list[list[float]]:
        labels: list[list[float]] = []
        for tokens, spans, proposals in zip(self.tokens, self.spans, self.proposals, strict=True):
            maps = normalised(object_maps(tokens, spans), self.size)
            boxes, scores = best_boxes(box_scores(maps, proposals), proposals)
            labels += torch.cat([boxes, scores[:, None]], dim=1).tolist()
        return labels

    def figures(self) -> dict[str, float]:
        """Pictures a second of `tenfold-detect` with a detector of the miniature's size, from the
        call to the sheet."""
        folder, settings = Path(self.settings["data"]), self.settings["detecting"]
        side = OurSide(self.settings, [DETECTOR])
        module = side.module()
        module.texts[1:].normal_()
        method: Any = OmegaConf.to_container(side.config.method, resolve=True)
        names = [f"thing {number}" for number in range(1, len(module.texts))]
        content = {
            "_target_": method.pop("_target_"),
            "hyper_parameters": method,
            "state_dict": module.state_dict(),
            "datamodule_hyper_parameters": OmegaConf.to_container(side.config.data, resolve=True),
            "class_names": names,
        }
        torch.save(content, folder / "detector.ckpt")
        given = [str(folder / "pictures"), "--classes", ",".join(names), "--device", "cpu"]
        given += ["--detector", str(folder / "detector.ckpt"), "--out", str(folder / "found")]
        started = perf_counter()
        if status := cli.main([*given, "--min-score", "0.05"]):
            raise RuntimeError(f"tenfold-detect ended with {status}")
        return {"pictures_searched": settings["pictures"] / (perf_counter() - started)}


def make_data(folder: Path, settings: dict[str, Any]) -> None:
    """Write maps, spans and proposals for both sides, and pictures to search."""
    generator = torch.Generator().manual_seed(settings["seed"])
    images, tokens, side = (settings[name] for name in ("images", "tokens", "patches"))
    edges = torch.randint(1, tokens - 2, (images, settings["objects"]), generator=generator)
    corners = torch.rand(images, settings["proposals"], 4, generator=generator)
    low, high = (
        corners[..., :2].minimum(corners[..., 2:]),
        corners[..., :2].maximum(corners[..., 2:]),
    )
    height, width = settings["size"]
    proposals = torch.cat([low, high], dim=2).double() * torch.tensor([width, height] * 2)
    given = {
        "tokens": torch.rand(images, tokens, side, side, generator=generator),
        "spans": [[(left, left + 2) for left in row] for row in edges.tolist()],
        "proposals": proposals,
    }
    torch.save(given, folder / "given.pt")
    random = np.random.default_rng(settings["seed"])
    (folder / "pictures").mkdir()
    for number in range(settings["detecting"]["pictures"]):
        coarse = random.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        picture.save(folder / f"pictures/{number}.jpg", quality=90)
