"""One page of pictures with what is said of them; nothing in it comes from elsewhere."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from shared.data.images import Pixels
from shared.files import replacing
from shared.showing import printable

SIDE = 384  # pixels of a picture's longer side
LONGEST = 300  # characters shown of a text


class Example(NamedTuple):
    """A picture as a data address, empty if it is gone, its name, and what is said of it."""

    picture: str
    name: str
    shown: Any


def write(
    path: Path,
    template: Path,
    facts: Mapping[str, Any],
    groups: Sequence[tuple[str, Sequence[Example]]],
) -> None:
    """Write the page of titled groups by a template that extends frame.html, whole or not at all.
    All values are escaped by it."""
    loader = FileSystemLoader([template.parent, Path(__file__).parent])
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    environment.filters.update(shown=shown, number="{:,}".format)
    page = environment.get_template(template.name).render(facts=facts, groups=groups)
    with replacing(path) as file:
        file.write(page.encode("utf-8", "backslashreplace"))


def shown(text: str) -> str:
    """A text of a stranger, with invisible signs spelled out, and not endless."""
    return printable(text if len(text) <= LONGEST else text[:LONGEST] + "…")


def data_address(pixels: Pixels) -> str:
    """A small JPEG of (H, W, 3)."""
    image = Image.fromarray(pixels)
    image.thumbnail((SIDE, SIDE))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()
