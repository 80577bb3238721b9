"""One page of examples, by what became of an image's texts; nothing in it comes from elsewhere."""

import base64
import io
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from methods.blip.capfilt.outcome import Outcome
from shared.data.captioned.decoding import Decoder, UnusableError
from shared.data.captioned.records import Record
from shared.files import replacing
from shared.showing import printable

SIDE = 240  # pixels of a thumbnail's longer side
LONGEST = 300  # characters shown of a text


def write(path: Path, outcome: Outcome, facts: dict[str, Any], decoder: Decoder) -> None:
    """Write the page, whole or not at all. All values are escaped by the template."""
    # Texts of different fates first: there the filter had to choose.
    fates = sorted(outcome.examples, key=lambda fate: (-len({t.split()[1] for t in fate}), fate))
    titles = [", ".join(part.replace(" ", " text ") for part in fate) for fate in fates]
    groups = list(zip(titles, map(outcome.examples_of, fates), strict=True))
    folder = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=folder, autoescape=True, undefined=StrictUndefined)
    environment.filters.update(shown=shown, thumbnail=lambda record: thumbnail(record, decoder))
    page = environment.get_template("sheet.html").render(facts=facts, groups=groups)
    with replacing(path) as file:
        file.write(page.encode("utf-8", "backslashreplace"))


def shown(text: str) -> str:
    """A text of a stranger, with invisible signs spelled out, and not endless."""
    return printable(text if len(text) <= LONGEST else text[:LONGEST] + "…")


def thumbnail(record: Record, decoder: Decoder) -> str:
    """A data address of a small JPEG, or "" if the image is gone since."""
    try:
        image = Image.fromarray(decoder.pixels(decoder.read(record)))
    except UnusableError:
        return ""
    image.thumbnail((SIDE, SIDE))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()
