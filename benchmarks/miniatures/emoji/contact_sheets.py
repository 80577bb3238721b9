"""Contact sheets: pictures of the pictures, for a person to look at after a change of version."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from benchmarks.miniatures.emoji.render import SIZE, Renderings, on_ground

ROWS = 22
LABEL_WIDTH = 150
GAP = 4


class Pictures(Protocol):
    @property
    def images(self) -> NDArray[np.uint8]: ...

    @property
    def labels(self) -> NDArray[np.int64]: ...


def rendering_sheet(drawn: Renderings) -> Image.Image:
    """22 concepts down, all renderings across. An empty cell: that artist drew no such icon.

    Wrong signs: a black square, another object than in the row, an art cut at the edge.
    """
    names = list(drawn.pictures)
    everywhere = np.flatnonzero(np.all([drawn.present[name] for name in names], axis=0))
    some = np.flatnonzero(drawn.present[names[0]])
    full = np.linspace(0, len(everywhere) - 1, ROWS - 4).round().astype(int)
    chosen = sorted({*everywhere[full].tolist(), *some[:: max(len(some) // 4, 1)][:4].tolist()})
    cell = SIZE + GAP
    sheet = Image.new("RGB", (LABEL_WIDTH + cell * len(names), 16 + cell * len(chosen)), "white")
    pen = ImageDraw.Draw(sheet)
    for column, name in enumerate(names):
        pen.text((LABEL_WIDTH + column * cell, 2), name, fill="black")
        images = on_ground(drawn.pictures[name][chosen])
        for row, image in enumerate(images):
            sheet.paste(Image.fromarray(image), (LABEL_WIDTH + column * cell, 16 + row * cell))
    for row, concept in enumerate(chosen):
        pen.text((2, 16 + row * cell + SIZE // 2), drawn.concepts[concept].label[:24], fill="black")
    return sheet


def subgroup_sheet(
    sets: Mapping[str, Pictures], class_names: Sequence[str], per_split: int = 10
) -> Image.Image:
    """A row per class: pictures of every split, spread evenly over the class, as a model sees."""
    size = next(iter(sets.values())).images.shape[1]
    width = per_split * size + 16
    extent = (LABEL_WIDTH + width * len(sets), 16 + (size + 2) * len(class_names))
    sheet = Image.new("RGB", extent, "lightgrey")
    pen = ImageDraw.Draw(sheet)
    for block, (split, pictures) in enumerate(sets.items()):
        left = LABEL_WIDTH + block * width
        pen.text((left, 2), split, fill="black")
        for label, name in enumerate(class_names):
            top = 16 + label * (size + 2)
            rows = np.flatnonzero(pictures.labels == label)
            spread = np.linspace(0, len(rows) - 1, min(per_split, len(rows))).round().astype(int)
            for column, row in enumerate(rows[spread]):
                image = Image.fromarray(pictures.images[row])
                sheet.paste(image, (left + column * size, top))
            if block == 0:
                pen.text((2, top + size // 3), f"{name} ({len(rows)})"[:26], fill="black")
    return sheet
