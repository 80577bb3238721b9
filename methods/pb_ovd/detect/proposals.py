"""Boxes of an image that may hold an object of any class: from a file, or a detector's RPN."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shared.checkpoints.reading import load_checkpoint, rebuild_module
from shared.data.captioned.decoding import Picture
from shared.data.captioned.origins import origin_of
from shared.data.captioned.records import Record
from shared.data.detection.framing import framing
from shared.data.errors import WorkError
from shared.data.readers.instances import read_instances
from shared.nn.detection.detector import Detector


class FileProposals:
    """The boxes of an instances file in COCO's form, of whatever category, by `file_name`."""

    pixels = False

    def __init__(self, path: str, most: int) -> None:
        self._found, self._most, self.origin = read_instances(path, ""), most, origin_of(Path(path))
        self._rows = {os.fsdecode(name): row for row, name in enumerate(self._found.paths)}

    def propose(self, records: Sequence[Record], pictures: Sequence[Picture]) -> list[Tensor | str]:
        return [self._of(r.name, p.size) for r, p in zip(records, pictures, strict=True)]

    def _of(self, name: str, size: tuple[int, int]) -> Tensor | str:
        if (row := self._rows.get(name)) is None:
            return f"no proposals: {self.origin['name']} does not name it"
        if self._found.size(row) != size:
            height, width = self._found.size(row)
            return f"another image: its proposals are of one of {width} x {height} pixels"
        return torch.from_numpy(self._found.corners[self._found.of_image(row)][: self._most])


class DetectorProposals:
    """The first stage of any of our detectors, on images prepared as in its evaluation."""

    pixels = True

    def __init__(self, path: str, most: int, device: str) -> None:
        checkpoint = load_checkpoint(path)
        module: Any = rebuild_module(checkpoint, path)
        if not isinstance(getattr(module, "detector", None), Detector):
            raise WorkError(f"{path} holds {type(module).__name__}, which is no detector")
        data: Any = checkpoint.get("datamodule_hyper_parameters")
        try:
            self._framing = framing(data or {})
        except Exception as error:  # whatever arguments of a stranger provoke
            raise WorkError(f"{path} does not say how images are prepared: {error}") from error
        self._detector: Detector = module.to(device).detector
        self._most, self._device, self.origin = most, device, origin_of(Path(path))

    @torch.no_grad()
    def propose(self, records: Sequence[Record], pictures: Sequence[Picture]) -> list[Tensor | str]:
        batch = self._framing.batch([p.pixels for p in pictures if p.pixels is not None])
        images, seen, original = (value.to(self._device) for value in batch.values())
        found = self._detector.propose(
            self._detector.rpn(self._detector.maps(images)), seen, "test"
        )
        ended = self._detector.geometry.ends(found.boxes).double().cpu()
        original = original.double().cpu()
        zoom = (original / seen.cpu()).flip(1).repeat(1, 2)
        rows = zip(ended, zoom, found.valid.cpu(), original.flip(1).repeat(1, 2), strict=True)
        return [
            (boxes[valid][: self._most] * factors).clamp(min=0).minimum(limit)
            for boxes, factors, valid, limit in rows
        ]


Proposer = FileProposals | DetectorProposals
"""Its `propose` gives the boxes (P, 4), x1, y1, x2, y2 in pixels, of each image, or says why there
are none; `pixels` says whether it looks at the images."""


def open_proposals(path: str, most: int, device: str) -> Proposer:
    """The proposals that a path names: a .json in COCO's form, or a detector's checkpoint."""
    if Path(path).suffix == ".json":
        return FileProposals(path, most)
    return DetectorProposals(path, most, device)
