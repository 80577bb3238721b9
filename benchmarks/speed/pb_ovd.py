"""Our side: PB-OVD's pseudo boxes from activation maps."""

from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.pb_ovd_peer import Labelling
from methods.pb_ovd.pseudo_boxes import best_boxes, box_scores, normalised, object_maps


class Ours(Labelling):
    def label(self) -> list[list[float]]:
        labels: list[list[float]] = []
        for tokens, spans, proposals in zip(self.tokens, self.spans, self.proposals, strict=True):
            maps = normalised(object_maps(tokens, spans), self.size)
            boxes, scores = best_boxes(box_scores(maps, proposals), proposals)
            labels += torch.cat([boxes, scores[:, None]], dim=1).tolist()
        return labels


def make_data(folder: Path, settings: dict[str, Any]) -> None:
    """Write maps, spans and proposals for both sides."""
    generator = torch.Generator().manual_seed(settings["seed"])
    images, tokens, side = (settings[name] for name in ("images", "tokens", "patches"))
    edges = torch.randint(1, tokens - 2, (images, settings["objects"]), generator=generator)
    corners = torch.rand(images, settings["proposals"], 4, generator=generator)
    first, second = corners.chunk(2, dim=2)
    low, high = first.minimum(second), first.maximum(second)
    height, width = settings["size"]
    proposals = torch.cat([low, high], dim=2).double() * torch.tensor([width, height] * 2)
    given = {
        "tokens": torch.rand(images, tokens, side, side, generator=generator),
        "spans": [[(left, left + 2) for left in row] for row in edges.tolist()],
        "proposals": proposals,
    }
    torch.save(given, folder / "given.pt")
