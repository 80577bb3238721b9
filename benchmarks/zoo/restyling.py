"""The same drawing by other hands: an icon's parts in other colours, outlined, or left out.

What tells one artist's drawings of a thing from another's is less its shape than its colours, lines
and details. The documents are those of Iconify's sets: flat elements with their colours as #rrggbb.
"""

import colorsys
import re

from numpy.random import Generator

COLOUR = re.compile(r"#([0-9a-fA-F]{6}|[0-9a-fA-F]{3})\b")
PART = re.compile(r"<(?:path|circle|ellipse|rect|polygon)\b[^>]*/>")
DARK = "#222222"
SHARED = ("<defs", "<mask", "<clipPath")  # parts may stand for others there


def restyle(document: str, generator: Generator) -> str:
    """An SVG document -> the same one in another style, drawn by `generator`.

    Each colour moves by itself and all of them together, one time in ten to another hue; up to a
    sixth of the parts is left out, never the first; one time in four all parts get an outline.
    """
    head, body = document.split(">", 1)
    body = recolour(body, generator)
    share = generator.choice((0.0, 0.05, 0.15))
    if not any(tag in body for tag in SHARED) and len(PART.findall(body)) > 3:
        body = leave_out(body, share, generator)
    if generator.random() < 0.25:
        _, _, side, _ = re.findall(r'viewBox="([^"]+)"', head)[0].split()
        width = float(side) * generator.uniform(0.008, 0.03)
        line = f'<g stroke="{DARK}" stroke-width="{width:.3f}" stroke-linejoin="round">'
        body = line + body.replace("</svg>", "</g></svg>")
    return f"{head}>{body}"


def recolour(text: str, generator: Generator) -> str:
    """All colours moved, the same one everywhere alike."""
    turn = generator.normal(0, 0.02)
    turn += generator.uniform(-0.5, 0.5) * (generator.random() < 0.1)
    vividness = generator.uniform(0.5, 1.3)
    moved: dict[str, str] = {}

    def move(found: re.Match[str]) -> str:
        name = found[1].lower()
        if name not in moved:
            digits = name if len(name) == 6 else "".join(2 * digit for digit in name)
            red, green, blue = (int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4))
            hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
            hue = (hue + turn + generator.normal(0, 0.025)) % 1
            saturation = saturation * vividness + generator.normal(0, 0.08)
            value += generator.normal(0, 0.12)
            saturation, value = (min(1.0, max(0.0, share)) for share in (saturation, value))
            channels = colorsys.hsv_to_rgb(hue, saturation, value)
            moved[name] = "#" + "".join(f"{round(255 * channel):02x}" for channel in channels)
        return moved[name]

    return COLOUR.sub(move, text)


def leave_out(body: str, share: float, generator: Generator) -> str:
    """The body without that share of its parts, but with the first."""
    first = PART.search(body)
    start = first.end() if first else 0
    return body[:start] + PART.sub(
        lambda part: "" if generator.random() < share else part[0], body[start:]
    )
