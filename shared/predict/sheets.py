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
    """One picture, no wider or higher than the cell, with two lines below."""

    picture: Image.Image
    name: str
    note: str = ""


@dataclass(frozen=True)
class Section:
    """Cells under a title."""

    title: str
    cells: Sequence[Cell]


def thumbnail(
    image: NDArray[np.uint8], side: int = THUMBNAIL, smooth_up_to: float = 1.0
) -> Image.Image:
    """The picture (H, W, 3 or 4) with its longer side `side`; transparent ones on white.

    Args: smooth_up_to: factor of enlargement beyond which single pixels are shown.
    """
    picture = Image.fromarray(image)
    scale = side / max(picture.size)
    kind = Image.Resampling.NEAREST if scale > smooth_up_to else Image.Resampling.LANCZOS
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    picture = picture.resize(size, kind)
    if picture.mode == "RGBA":
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def sheet(
    sections: Sequence[Section], columns: int = COLUMNS, side: int = THUMBNAIL
) -> Image.Image:
    """All sections one below the other, each in a grid of at most `columns` cells of `side`."""
    columns = max(1, min(columns, max(len(section.cells) for section in sections)))
    cell, row = side + GAP, side + CAPTION + GAP
    heights = [TITLE + -(-len(section.cells) // columns) * row for section in sections]
    width = max(columns * cell + GAP, 260)
    page = Image.new("RGB", (width, sum(heights) + GAP), "white")
    draw, top = ImageDraw.Draw(page), 0
    for section, height in zip(sections, heights, strict=True):
        title = fitted(draw, section.title, ImageFont.load_default(16), width - 2 * GAP)
        draw.text((GAP, top + 8), title, "black", font=ImageFont.load_default(16))
        for number, item in enumerate(section.cells):
            down, across = divmod(number, columns)
            left, upper = GAP + across * cell, top + TITLE + GAP + down * row
            x, y = (
                left + (side - item.picture.width) // 2,
                upper + (side - item.picture.height) // 2,
            )
            page.paste(item.picture, (x, y))
            # A frame, because a white picture would be lost on a white page.
            right, below = x + item.picture.width - 1, y + item.picture.height - 1
            draw.rectangle((x, y, right, below), outline="silver")
            lines = ((item.name, 14, "black", 3), (item.note, 12, "dimgray", 21))
            for text, size, colour, offset in lines:
                font = ImageFont.load_default(size)
                line = fitted(draw, text, font, side)
                draw.text((left, upper + side + offset), line, colour, font=font)
        top += height
    return page


def fitted(draw: ImageDraw.ImageDraw, text: str, font: Any, width: int) -> str:
    """`text` on one line, shortened with an ellipsis to `width` pixels."""
    text = "".join(c if c.isprintable() else "\ufffd" for c in text[:width])
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(text + "…", font) > width:
        text = text[:-1]
    return text + "…"


def percent(value: float) -> str:
    """A share from 0 to 1 as percent with one decimal."""
    return f"{100 * value:.1f} %"
