"""Contact sheets: pictures of the pictures, for a person to look at after a change of version."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from benchmarks.miniatures.emoji.render import SIZE, Renderings, on_ground

ROWS = 22
LABEL_WIDTH = 150
GAP = 4
PAIR_SIZE = 64
Box = tuple[int, int, int, int]  # x, y, width, height


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


def pair_sheet(folder: Path, rows: int = 20) -> Image.Image:
    """Concepts of the built pairs down: their pictures of every split, then every text about them.

    Training pictures lie on yellow, to show their alpha. Wrong signs: a dark rim, a text about
    something else than the row's pictures.
    """
    lists = {
        name: json.loads((folder / f"pairs_{name}.json").read_text())
        for name in ("train", "val", "test", "test_syn")
    }
    concepts = [item["image_id"] for item in lists["test"]]
    chosen = [
        concepts[i]
        for i in np.linspace(0, len(concepts) - 1, min(rows, len(concepts))).round().astype(int)
    ]
    files, texts = _by_concept(lists, chosen)
    cell = PAIR_SIZE + GAP
    across = max(len(names) for names in files.values())
    sheet = Image.new("RGB", (across * cell + 520, cell * len(chosen)), "white")
    pen = ImageDraw.Draw(sheet)
    for row, concept in enumerate(chosen):
        for column, name in enumerate(files[concept]):
            with Image.open(folder / name) as file:
                art = file.convert("RGBA")
            ground = Image.new("RGBA", art.size, "khaki")
            sheet.paste(Image.alpha_composite(ground, art), (column * cell, row * cell))
        for line, text in enumerate(texts[concept][:6]):
            pen.text((across * cell, row * cell + 11 * line), text[:85], fill="black")
    return sheet


def scene_sheet(
    scenes: Sequence[tuple[NDArray[np.uint8], Sequence[tuple[Box, str]]]], across: int = 8
) -> Image.Image:
    """Scenes (picture, boxes with labels) at twice their size, boxes and labels drawn.

    Wrong signs: a box that is not tight, or overlaps another, or leaves the picture.
    """
    side = 2 * max(len(picture) for picture, _ in scenes) + GAP
    rows = -(-len(scenes) // across)
    sheet = Image.new("RGB", (across * side, rows * side), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (picture, boxes) in enumerate(scenes):
        left, top = i % across * side, i // across * side
        image = Image.fromarray(picture)
        sheet.paste(image.resize((2 * image.width, 2 * image.height)), (left, top))
        for (x, y, width, height), label in boxes:
            corner = (left + 2 * x, top + 2 * y)
            opposite = (corner[0] + 2 * width - 1, corner[1] + 2 * height - 1)
            pen.rectangle((*corner, *opposite), outline="red")
            pen.text(
                (corner[0] + 2, corner[1]), label, fill="white", stroke_width=1, stroke_fill="black"
            )
    return sheet


def _by_concept(
    lists: Mapping[str, Sequence[Mapping[str, Any]]], chosen: Sequence[int]
) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """Picture files and "split: text" lines of each chosen concept, each once."""
    files: dict[int, dict[str, None]] = {concept: {} for concept in chosen}
    texts: dict[int, dict[str, None]] = {concept: {} for concept in chosen}
    for split, items in lists.items():
        for item in items:
            if item["image_id"] in files:
                files[item["image_id"]][item["image"]] = None
                caption, hard = item["caption"], item.get("hard")
                text = caption if isinstance(caption, str) else " | ".join(caption)
                line = f"{split}: {text}" + (f" (hard: {hard})" if hard else "")
                texts[item["image_id"]][line] = None
    return {c: list(f) for c, f in files.items()}, {c: list(t) for c, t in texts.items()}
