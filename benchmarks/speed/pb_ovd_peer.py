"""The peer's side, in the peer's environment: PB-OVD's official loop over objects and proposals.

Written plainly, as salesforce/PB-OVD@f62bdfc does in
`pseudo_bbox_generation.py:generate_pseudo_bbox`: each map is enlarged to its image, and summed in
each proposal. Nothing of ours is imported but the serving loop. Shapes: I images, L tokens, P
proposals, maps g x g.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.speed.serving import Workload


class Labelling(Workload):
    """What both sides do with the maps (I, L, g, g) of tokens, the spans of objects, and proposals
    (I, P, 4) that they are given."""

    def __init__(self, settings: dict[str, Any]):
        super().__init__(settings)
        given = torch.load(Path(settings["data"]) / "given.pt")
        self.tokens, self.spans, self.proposals = (
            given[name] for name in ("tokens", "spans", "proposals")
        )
        self.size, self.rows = tuple(settings["size"]), len(self.tokens)

    def parameters(self) -> Iterable[Tensor]:
        return [self.tokens]  # in place of a network: both sides read the same maps

    def label(self) -> list[list[float]]:
        """The box and the score of each object of each image."""
        raise NotImplementedError

    def values(self) -> dict[str, list[float]]:
        labels = torch.tensor(self.label(), dtype=torch.float64)
        return {"boxes": labels[:, :4].flatten().tolist(), "scores": labels[:, 4].tolist()}

    def step(self, precision: str, what: str) -> Callable[[], float]:
        return lambda: float(len(self.label()))


class Peer(Labelling):
    def label(self) -> list[list[float]]:
        height, width = self.size
        labels = []
        for tokens, spans, proposals in zip(
            self.tokens, self.spans, self.proposals.tolist(), strict=True
        ):
            for left, right in spans:
                small = tokens[left:right].sum(dim=0).double()
                pixels = F.interpolate(small[None, None], self.size, mode="nearest")[0, 0].numpy()
                pixels = (pixels - pixels.min()) / (pixels.max() - pixels.min())
                pixels[pixels < 0.5] = 0
                best = [0.0, 0.0, 0.0, 0.0, -1.0]
                for x1, y1, x2, y2 in proposals:
                    area = (x2 - x1) * (y2 - y1)
                    inside = x1 >= 0 and y1 >= 0 and x2 <= width and y2 <= height
                    if not inside or area <= 0 or int(y2) <= int(y1):
                        continue
                    score = pixels[int(y1) : int(y2), int(x1) : int(x2)].sum() / area**0.5
                    if score > best[4]:
                        best = [x1, y1, x2, y2, float(score)]
                labels.append(best)
        return labels
