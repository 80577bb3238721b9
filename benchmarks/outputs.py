"""Files of the outputs folder, damaged ones and a stranger's too: what is read has a known shape.

A shape is a `Kind` of value, a dict {key: shape} ("key?" may be missing, others are ignored; a kind
as the only key is that of all keys), a list [shape] of any length or [shape, shape, ...] of that
many items, or a tuple of shapes of which one must fit.
"""

import math
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from omegaconf.errors import OmegaConfBaseException

from shared.data.readers.files import is_number, is_text, nested_too_deep, one_line, shortened
from shared.files import open_regular, parse_json

T = TypeVar("T")
LARGEST = 1 << 26  # bytes of a file
LONGEST = 100_000  # letters of a text
PNG = b"\x89PNG\r\n\x1a\n"
LARGEST_PICTURE = 20_000_000  # bytes


@dataclass(frozen=True)
class Kind:
    """A kind of single value, in words and as a check."""

    words: str
    fits: Callable[[Any], bool]


number = Kind("a finite number", lambda value: is_number(value, 1e15))
figure = Kind("a number", lambda v: number.fits(v) or (type(v) is float and not math.isfinite(v)))
count = Kind("a number of things", lambda value: type(value) is int and 0 <= value < 1e15)
text = Kind("a text", lambda value: is_text(value) and len(value) <= LONGEST)
seed = Kind("the digits of a seed", lambda v: type(v) is str and v.isdecimal() and len(v) < 20)
verdict = Kind("yes, no or undecided", lambda value: value in ("yes", "no", "undecided"))
word = Kind(
    "a word of letters, digits and hyphens",
    lambda v: type(v) is str and re.fullmatch("[a-zA-Z0-9-]+", v) is not None,
)
file_name = Kind(
    "the name of a file", lambda v: text.fits(v) and v == Path(v).name and "\0" not in v
)
plain = Kind(
    "a value of few levels that a table can show",
    lambda value: not nested_too_deep(value, 5) and len(repr(value)) <= LONGEST,
)
flag = Kind("true or false", lambda value: type(value) is bool)
absent = Kind("null", lambda value: value is None)


RESULTS = {
    "status": text,
    "metrics": {text: figure},
    **dict.fromkeys(("experiment?", "git_commit?", "precision?"), (absent, text)),
    "cpu_seconds?": (absent, number),
    "data?": (absent, {text: {"figures?": {text: {text: number}}, "page?": text}}),
}
_PAIR = {
    **dict.fromkeys(("method", "baseline"), text),
    **dict.fromkeys(("mean", "low", "high", "pvalue"), (absent, number)),
    "differences": {seed: number},
    "queries?": (absent, count),
}
_FURTHER = {
    **dict.fromkeys(("name", "claim", "metric", "reason"), text),
    "smallest_difference": number,
    "verdict": verdict,
    "comparisons": [_PAIR, _PAIR],
}
SUMMARY = {
    **dict.fromkeys(("method", "name"), file_name),
    **dict.fromkeys(("hash", "reason"), text),
    "overrides": [text],
    "claim": {
        **dict.fromkeys(("title", "claim", "source", "control"), text),
        "primary": {"metric": text},
        "smallest_difference": number,
    },
    "verdict": verdict,
    "arms": {
        text: {
            "values": {seed: number},
            "failed": {seed: text},
            **dict.fromkeys(("mean", "std", "cpu_seconds"), (absent, number)),
            "metrics?": (absent, {text: (absent, number)}),
            "at_chance?": flag,
        }
    },
    "comparisons": [_PAIR],
    "further?": (absent, [_FURTHER]),
    "git_commits": [text],
    "precisions": [text],
    "data": [text],
    "figures?": (absent, {text: {text: number}}),
    "also?": [text],
    "pages?": [text],
    "prepared?": (absent, {text: {"experiment": text, "cpu_seconds": (absent, number)}}),
}
CHECKS = {
    "parity": {"passed": count, "total": count},
    "mutants": {"caught": count, "total": count},
    "speed": {"rows?": (absent, [plain]), "ratio?": plain, "iqr?": plain},
    "chaos": {"kills?": (count, [{"moment?": plain}]), "first_difference": plain},
}


def check(value: Any, shape: Any, where: str = "it") -> None:
    """Raise ValueError, which says where, unless a value of a file has the shape."""
    if isinstance(shape, tuple):
        *others, last = shape
        for other in others:
            with suppress(ValueError):
                return check(value, other, where)
        return check(value, last, where)
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            raise ValueError(f"{where} is {shortened(value)}, not an object")
        for key, inner in shape.items():
            if isinstance(key, Kind):
                for name, item in value.items():
                    check(name, key, f"a name in {where}")
                    check(item, inner, f"{where}, {shortened(name)}")
            elif (name := key.removesuffix("?")) in value:
                check(value[name], inner, name)
            elif name == key:
                raise ValueError(f"{where} has no {name!r}")
    elif isinstance(shape, list):
        if not isinstance(value, list) or len(shape) not in (1, len(value)):
            raise ValueError(f"{where} is {shortened(value)}, not a list of that length")
        for place, item in enumerate(value):
            check(item, shape[place % len(shape)], where)
    elif not shape.fits(value):
        raise ValueError(f"{where} is {shortened(value)}, not {shape.words}")
    return None


class Outputs:
    """Reads the files below `root`; of those that can't be used, `damaged` has the reasons."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.damaged: dict[str, str] = {}

    def refuse(self, path: Path, reason: object) -> None:
        said = getattr(reason, "strerror", None) or reason or type(reason).__name__
        self.damaged[os.path.relpath(path, self.root)] = one_line(said)

    def read(
        self, path: Path, parse: Callable[[bytes], T], most: int = LARGEST, links: bool = True
    ) -> T | None:
        """What `parse` makes of a file's content; None if there is no file, or none to be used."""
        if not os.path.lexists(path):
            return None
        try:
            with open_regular(path, links) as file:
                content = file.read(most + 1)
            if len(content) > most:
                raise ValueError(f"it is larger than {most} bytes")
            return parse(content)
        except (OSError, ValueError, SyntaxError, OmegaConfBaseException) as error:
            self.refuse(path, error)
            return None

    def json(self, path: Path, shape: Any) -> Any:
        """Content of a JSON file of that shape, or None."""

        def parsed(content: bytes) -> Any:
            value = parse_json(content)
            check(value, shape)
            return value

        return self.read(path, parsed)

    def picture(self, path: Path) -> bytes:
        """Content of a PNG file that is no link, or nothing."""

        def checked(content: bytes) -> bytes:
            if not content.startswith(PNG):
                raise ValueError("it is no PNG picture")
            return content

        return self.read(path, checked, LARGEST_PICTURE, links=False) or b""
