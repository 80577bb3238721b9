"""Pictures of predictions: thumbnails in a grid, each with a name and a note."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

THUMBNAIL, CAPTION, GAP, COLUMNS = 128, 40, 12, 10
TITLE = 28


@dataclass(frozen=True)
class Cell:
    """One picture, at most THUMBNAIL wide and high, with two lines below."""

    picture: Image.Image
    name: str
    note: str


@dataclass(frozen=True)
class Section:
    """Cells under a title."""

    title: str
    cells: Sequence[Cell]


def thumbnail(image: NDArray[np.uint8]) -> Image.Image:
    """The picture (H, W, 3 or 4) with its longer side THUMBNAIL; transparent ones on white."""
    picture = Image.fromarray(image)
    scale = THUMBNAIL / max(picture.size)
    # Small images are shown with their pixels, large ones smoothly reduced.
    kind = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    picture = picture.resize(size, kind)
    if picture.mode == "RGBA":
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def sheet(sections: Sequence[Section], columns: int = COLUMNS) -> Image.Image:
    """All sections one below the other, each in a grid of at most `columns`."""
    columns = max(1, min(columns, max(len(section.cells) for section in sections)))
    cell, row = THUMBNAIL + GAP, THUMBNAIL + CAPTION + GAP
    heights = [TITLE + -(-len(section.cells) // columns) * row for section in sections]
    width = max(columns * cell + GAP, 260)
    page = Image.new("RGB", (width, sum(heights) + GAP), "white")
    draw, top = ImageDraw.Draw(page), 0
    for section, height in zip(sections, heights, strict=True):
        title = fitted(draw, section.title, ImageFont.load_default(16), width - 2 * GAP)
        draw.text((GAP, top + 8), title, "black", font=ImageFont.load_default(16))
        for number, item in enumerate(section.cells):
            down, across = divmod(number, columns)
            _draw_cell(page, draw, item, GAP + across * cell, top + TITLE + GAP + down * row)
        top += height
    return page


def _draw_cell(
    page: Image.Image, draw: ImageDraw.ImageDraw, item: Cell, left: int, top: int
) -> None:
    picture = item.picture
    x = left + (THUMBNAIL - picture.width) // 2
    y = top + (THUMBNAIL - picture.height) // 2
    page.paste(picture, (x, y))
    # A frame, because a white picture would be lost on a white page.
    draw.rectangle((x, y, x + picture.width - 1, y + picture.height - 1), outline="silver")
    for text, size, colour, offset in ((item.name, 14, "black", 3), (item.note, 12, "dimgray", 21)):
        font = ImageFont.load_default(size)
        line = fitted(draw, text, font, THUMBNAIL)
        draw.text((left, top + THUMBNAIL + offset), line, colour, font=font)


def fitted(draw: ImageDraw.ImageDraw, text: str, font: Any, width: int) -> str:
    """`text` on one line, shortened with an ellipsis to `width` pixels."""
    text = "".join(c if c.isprintable() else "\ufffd" for c in text[:width])
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(text + "…", font) > width:
        text = text[:-1]
    return text + "…"


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"
