"""What `tenfold predict` writes: tables, and sheets of thumbnails with a name and a note each."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from shared.data.images import Pixels
from shared.files import own_folder, replacing

THUMBNAIL, CAPTION, GAP, COLUMNS = 128, 40, 12, 10
TITLE = 28
STRIP = 8 * THUMBNAIL  # pixels of the frames of a video side by side, at most


class Table(NamedTuple):
    columns: Sequence[str]
    rows: Iterable[Sequence[Any]]


Entries = list[dict[str, Any]]
Output = tuple[str, Table | Entries | Image.Image]  # the name of a file and what is written there


class Cell(NamedTuple):
    """One picture, no higher than the cell, with two lines below."""

    picture: Image.Image
    name: str
    note: str = ""


Section = tuple[str, Sequence[Cell]]  # a title and the cells under it


def write(path: Path, content: Table | Entries | Image.Image) -> Path:
    """Write a table as CSV, with six decimals, entries as JSON, or a picture as PNG, whole or not
    at all; odd bytes of a file name that is no UTF-8 are spelled out. Returns `path`."""
    own_folder(path.parent)
    with replacing(path) as binary:
        if isinstance(content, Image.Image):
            content.save(binary, "PNG")
            return path
        if isinstance(content, list):
            binary.write(json.dumps(content, allow_nan=False).encode("ascii"))
            return path
        file = io.TextIOWrapper(
            binary, "utf-8", errors="backslashreplace", newline="", write_through=True
        )
        writer = csv.writer(file)
        writer.writerow(content.columns)
        for row in content.rows:
            writer.writerow([f"{v:.6f}" if isinstance(v, float | np.floating) else v for v in row])
        file.detach()
    return path


def thumbnail(image: Pixels, side: int = THUMBNAIL, smooth_up_to: float = 1.0) -> Image.Image:
    """The picture with its longer side `side`; transparent ones on white. Enlarged by more than
    `smooth_up_to` it shows single pixels."""
    picture = Image.fromarray(image)
    scale = side / max(picture.size)
    kind = Image.Resampling.NEAREST if scale > smooth_up_to else Image.Resampling.LANCZOS
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    picture = picture.resize(size, kind)
    if picture.mode == "RGBA":
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def strip(frames: Pixels, numbers: Sequence[int]) -> Image.Image:
    """The frames (F, H, W, 3) of a video side by side, each with its number."""
    side = max(1, min(THUMBNAIL, STRIP // len(frames)))
    pictures = [thumbnail(frame, side) for frame in frames]
    width, height = pictures[0].size
    row = Image.new("RGB", (width * len(pictures), height))
    draw, font = ImageDraw.Draw(row), ImageFont.load_default(12)
    for place, (picture, number) in enumerate(zip(pictures, numbers, strict=True)):
        at = place * width
        row.paste(picture, (at, 0))
        draw.line((at - 1, 0, at - 1, height), "white")  # dark frames would be one
        outline: Any = {"stroke_width": 1, "stroke_fill": "black"}
        draw.text((at + 3, height - 2), str(number), "white", font, "lb", **outline)
    return row


def sheet(
    sections: Sequence[Section], columns: int = COLUMNS, side: int = THUMBNAIL, headline: str = ""
) -> Image.Image:
    """All sections one below the other, each in a grid of at most `columns` cells of `side`, or of
    fewer that are as wide as the widest picture, below the `headline`, if there is one."""
    wide = max([side, *(cell.picture.width for _, cells in sections for cell in cells)])
    columns = columns * (side + GAP) // (wide + GAP)
    columns = max(1, min(columns, max(len(cells) for _, cells in sections)))
    cell, row = wide + GAP, side + CAPTION + GAP
    heights = [TITLE + -(-len(cells) // columns) * row for _, cells in sections]
    width = max(columns * cell + GAP, 260)
    top = TITLE if headline else 0
    page = Image.new("RGB", (width, top + sum(heights) + GAP), "white")
    draw = ImageDraw.Draw(page)
    _write(draw, headline, (GAP, 8), 14, "dimgray", width - 2 * GAP)
    for (title, cells), height in zip(sections, heights, strict=True):
        _write(draw, title, (GAP, top + 8), 16, "black", width - 2 * GAP)
        for number, (picture, name, note) in enumerate(cells):
            down, across = divmod(number, columns)
            left, upper = GAP + across * cell, top + TITLE + GAP + down * row
            x, y = left + (wide - picture.width) // 2, upper + (side - picture.height) // 2
            page.paste(picture, (x, y))
            # A frame, because a white picture would be lost on a white page.
            frame = (x, y, x + picture.width - 1, y + picture.height - 1)
            draw.rectangle(frame, outline="silver")
            _write(draw, name, (left, upper + side + 3), 14, "black", wide)
            _write(draw, note, (left, upper + side + 21), 12, "dimgray", wide)
        top += height
    return page


def _write(
    draw: ImageDraw.ImageDraw, text: str, at: tuple[int, int], size: int, colour: str, width: int
) -> None:
    """One line of text, shortened with an ellipsis to `width` pixels."""
    font: Any = ImageFont.load_default(size)
    text = "".join(c if c.isprintable() else "\ufffd" for c in text[:width])
    if draw.textlength(text, font) > width:
        while text and draw.textlength(text + "…", font) > width:
            text = text[:-1]
        text += "…"
    draw.text(at, text, colour, font=font)


def percent(value: float) -> str:
    """A share from 0 to 1 as percent with one decimal."""
    return f"{100 * value:.1f} %"
