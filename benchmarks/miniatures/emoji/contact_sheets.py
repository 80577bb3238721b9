"""Contact sheets: pictures of the pictures, for a person to look at after a change of version."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Box = tuple[int, int, int, int]  # x, y, width, height
Cell = tuple[Sequence[NDArray[np.uint8]], Sequence[str]]  # pictures and lines of text about them
LINE = 12  # px


def sheet(cells: Sequence[Cell], across: int) -> Image.Image:
    """Cells in rows of `across`: their (H, W, 3) pictures side by side, the texts below."""
    side = max(len(picture) for pictures, _ in cells for picture in pictures) + 4
    width = max(side * max(len(pictures) for pictures, _ in cells), 200) + 8
    height = side + LINE * max(len(lines) for _, lines in cells) + 8
    drawn = Image.new("RGB", (across * width, -(-len(cells) // across) * height), "lightgrey")
    pen = ImageDraw.Draw(drawn)
    for i, (pictures, lines) in enumerate(cells):
        left, top = i % across * width, i // across * height
        for place, picture in enumerate(pictures):
            drawn.paste(Image.fromarray(picture), (left + place * side, top))
        pen.multiline_text((left + 2, top + side), "\n".join(lines), "black", spacing=1)
    return drawn


def spread(values: Sequence[int], count: int) -> list[int]:
    """Up to `count` of the values, evenly spread over them."""
    places = np.linspace(0, len(values) - 1, min(count, len(values))).round().astype(int)
    return [int(values[place]) for place in places]


def boxed(picture: NDArray[np.uint8], boxes: Iterable[tuple[Box, str]]) -> NDArray[np.uint8]:
    """A picture at twice its size, (2H, 2W, 3), with labelled boxes drawn on it."""
    image = Image.fromarray(picture)
    image = image.resize((2 * image.width, 2 * image.height))
    pen = ImageDraw.Draw(image)
    for (x, y, width, height), label in boxes:
        corners = (2 * x, 2 * y, 2 * (x + width) - 1, 2 * (y + height) - 1)
        pen.rectangle(corners, outline="red")
        pen.text(corners[:2], label, fill="white", stroke_width=1, stroke_fill="black")
    return np.asarray(image)
