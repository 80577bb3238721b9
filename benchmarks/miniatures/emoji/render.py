"""Draw every concept in every rendering, once: 72 px RGBA, kept in one .npz below the cache.

`renderings()` is the entry: the concept table and the drawings, from the cache or built there.
"""

import hashlib
import io
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from resvg_py import svg_to_bytes

from benchmarks.miniatures.building import build_once
from benchmarks.miniatures.emoji.concepts import Concept
from benchmarks.miniatures.emoji.packages import PACKAGES, RENDERINGS, attribution, load, of_split
from shared.data.packages import cache_folder

log = logging.getLogger(__name__)
SIZE = 72
OPAQUE = 50  # of 255: above it a pixel belongs to the drawing
SMALLEST = 0.02  # share of the square that a drawing covers at least
CROP = 24  # side at which two drawings are compared
NEAR = 4.0  # mean absolute difference (0-255) below which two concepts are drawn alike
VERSION = 3  # raise it with any change of the drawings or of the concept table

Box = tuple[int, int, int, int]  # x, y, width, height


@dataclass
class Renderings:
    """`pictures[rendering]` (concepts, 72, 72, 4) RGBA, straight alpha; `present` (concepts,)."""

    concepts: list[Concept]
    pictures: dict[str, NDArray[np.uint8]]
    present: dict[str, NDArray[np.bool_]]
    attribution: str


def renderings() -> Renderings:
    """Return all concepts and drawings; the first call on a machine fetches and draws (15-30 s)."""
    recipe: dict[str, Any] = {"packages": {p.name: p.sha256 for p in PACKAGES}, "size": SIZE}
    recipe |= {"version": VERSION, "resvg": version("resvg_py")}
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]
    folder = cache_folder() / "emoji" / digest
    build_once(folder, "renderings", recipe, _build)
    table = json.loads((folder / "concepts.json").read_text())
    with np.load(folder / "renderings.npz") as content:
        pictures = {r.id: content[r.id] for r in RENDERINGS}
        present = {r.id: content[f"{r.id}_present"] for r in RENDERINGS}
    told = (folder / "ATTRIBUTION.md").read_text()
    return Renderings([Concept(**row) for row in table], pictures, present, told)


def _build(folder: Path) -> None:
    concepts, icons, info = load()
    log.info("drawing %d concepts in %d renderings", len(concepts), len(RENDERINGS))
    names = {name: [concept.icons[name] for concept in concepts] for name in icons}
    pictures = {name: draw_all(names[name], icon_set) for name, icon_set in icons.items()}
    present = {name: is_drawn(drawn) for name, drawn in pictures.items()}
    for concept in concepts:
        for name, there in present.items():
            if not there[concept.id]:
                concept.icons[name] = None
    (held_out,) = of_split("test")
    for first, second in near_pairs(comparison_crops(pictures[held_out]), NEAR):
        concepts[first].near.append(second)
        concepts[second].near.append(first)
    arrays: dict[str, Any] = dict(pictures)
    arrays |= {f"{name}_present": there for name, there in present.items()}
    np.savez(folder / "renderings.npz", **arrays)
    rows = [asdict(concept) for concept in concepts]
    (folder / "concepts.json").write_text(json.dumps(rows, ensure_ascii=False, indent=0))
    (folder / "ATTRIBUTION.md").write_text(attribution(info))


def svg(icon_set: Mapping[str, Any], name: str) -> str:
    """One icon of an Iconify set as a document of its own, so that its gradient ids are unique.
    Its own left, top, width and height go before those of the set."""
    icon = icon_set["icons"][name]
    usual = {"left": 0, "top": 0, "width": 16, "height": 16}
    left, top, width, height = (icon.get(k, icon_set.get(k, usual[k])) for k in usual)
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}" width="{SIZE}" height="{SIZE}">'
        f"{icon['body']}</svg>"
    )


def draw(document: str) -> NDArray[np.uint8]:
    """Rasterise a square SVG document: (H, W, 4) RGBA."""
    png = bytes(svg_to_bytes(svg_string=document, skip_system_fonts=True))
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGBA"))


def draw_all(names: Sequence[str | None], icon_set: Mapping[str, Any]) -> NDArray[np.uint8]:
    """Icons by name, drawn: (N, 72, 72, 4); fully transparent where there is no name."""
    drawn = np.zeros((len(names), SIZE, SIZE, 4), np.uint8)
    for i, name in enumerate(names):
        if name is not None:
            drawn[i] = draw(svg(icon_set, name))
    return drawn


def is_drawn(pictures: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(N,): whether enough of the square is covered."""
    covered: NDArray[np.bool_] = (pictures[..., 3] > OPAQUE).mean((1, 2)) >= SMALLEST
    return covered


def on_ground(pictures: NDArray[np.uint8], ground: int = 255) -> NDArray[np.uint8]:
    """Lay RGBA pictures (N, H, W, 4) on a plain grey ground: (N, H, W, 3), rounded."""
    alpha = pictures[..., 3:].astype(np.uint32)
    mixed = alpha * pictures[..., :3] + (255 - alpha) * np.uint32(ground)
    return ((mixed + 127) // 255).astype(np.uint8)


def area_resize(images: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Scale (N, S, S, C) to (N, size, size, C) by the mean over the covered area. All sums are
    whole numbers, so that the result does not depend on the machine's arithmetic."""
    side = images.shape[1]
    edges = np.arange(size + 1) * side  # both grids in units of 1/size of a source pixel
    pixels = np.arange(side) * size
    lower = np.maximum(edges[:-1, None], pixels[None])
    upper = np.minimum(edges[1:, None], pixels[None] + size)
    exact = np.float32 if side * side * 255 < 2**24 else np.float64
    weights = np.maximum(upper - lower, 0).astype(exact)  # (size, S), rows sum to S
    channels = images.shape[3]
    scaled = np.empty((len(images), size, size, channels), np.uint8)
    for i, image in enumerate(images):
        rows = (weights @ image.astype(exact).reshape(side, -1)).reshape(size, side, channels)
        sums = (weights @ rows.transpose(1, 0, 2).reshape(side, -1)).astype(np.int64)
        means = (2 * sums + side * side) // (2 * side * side)
        scaled[i] = means.reshape(size, size, channels).transpose(1, 0, 2)
    return scaled


def extent(picture: NDArray[np.uint8]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom edge of what a drawing (H, W, 4) covers."""
    rows, columns = (np.flatnonzero((picture[..., 3] > OPAQUE).any(axis)) for axis in (1, 0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def comparison_crops(pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Drawings cut to their extent, squared, on white, at 24 px: (N, 24*24*3), 0-255."""
    crops = np.full((len(pictures), CROP, CROP, 3), 255, np.float32)
    for i in np.flatnonzero(is_drawn(pictures)):
        left, top, right, bottom = extent(pictures[i])
        cut = on_ground(pictures[i, top:bottom, left:right][None])[0]
        side = max(cut.shape[:2])
        square = np.full((side, side, 3), 255, np.uint8)
        top, left = (side - cut.shape[0]) // 2, (side - cut.shape[1]) // 2
        square[top : top + cut.shape[0], left : left + cut.shape[1]] = cut
        crops[i] = area_resize(square[None], CROP)[0]
    return crops.reshape(len(pictures), -1)


def near_pairs(crops: NDArray[np.float32], threshold: float) -> list[tuple[int, int]]:
    """Pairs (i < j) of rows whose mean absolute difference is below `threshold`."""
    pairs = []
    for i in range(len(crops) - 1):
        difference = np.abs(crops[i + 1 :] - crops[i]).mean(1)
        pairs += [(i, i + 1 + int(j)) for j in np.flatnonzero(difference < threshold)]
    return pairs
