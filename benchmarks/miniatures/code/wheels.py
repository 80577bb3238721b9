"""What the wheels of Python packages hold: sources, licences, functions that are left out and why.

Rules are those of docs/papers/cascode.md, section 14.3. Nothing of a wheel is installed or run.
"""

import email
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from pathlib import Path

from methods.cascode.cleaning import query_problem
from methods.cascode.extraction import Function
from shared.data.errors import DataCorruptError

FEWEST_LINES = 3
_VENDORED = re.compile(r"(?:^|/)(?:_?vendor(?:ed)?|_?extern(?:als?)?|third_party)/")
_LICENCE_FILE = re.compile(r"[^/]*\.dist-info/(?:.*/)?[^/]*(licen[cs]e|copying|notice)[^/]*", re.I)
_ADDRESS = re.compile(r"\s*<[^>]*>")
_CLASSIFIERS = {  # to SPDX, where the classifier says as much
    "MIT License": "MIT",
    "Apache Software License": "Apache-2.0",
    "ISC License (ISCL)": "ISC",
    "Python Software Foundation License": "PSF-2.0",
}


@dataclass(frozen=True)
class Licence:
    """Licence of a package: its name (SPDX where known), who gives it, and its full text."""

    name: str
    holder: str
    text: str


def source_files(archive: Path) -> Iterator[tuple[str, str, str | None]]:
    """(path, text, why it is left out) of a wheel's Python files; what is left out has no text.
    Tests and vendored copies are left out (rule 1)."""
    with _opened(archive) as wheel:
        for path in sorted(name for name in wheel.namelist() if name.endswith(".py")):
            if "test" in path.lower():
                yield path, "", "test"
            elif _VENDORED.search(path):
                yield path, "", "vendored"
            else:
                try:
                    yield path, wheel.read(path).decode(), None
                except UnicodeDecodeError:
                    yield path, "", "not UTF-8"


def licence(archive: Path) -> Licence:
    """From METADATA: License-Expression, else the first classifier, else License."""
    with _opened(archive) as wheel:
        names = wheel.namelist()
        about = [n for n in names if re.fullmatch(r"[^/]*\.dist-info/METADATA", n)]
        if not about:
            raise DataCorruptError(f"{archive}: a wheel without METADATA")
        metadata = email.message_from_string(wheel.read(about[0]).decode())
        texts = [
            wheel.read(name).decode(errors="replace").strip()
            for name in sorted(names)
            if _LICENCE_FILE.fullmatch(name) and not name.endswith("/")
        ]
    holders = (metadata[key] for key in ("Author", "Author-email", "Maintainer"))
    holder = next((_ADDRESS.sub("", str(h)) for h in holders if h), "its authors")
    return Licence(_licence_name(metadata), holder, "\n\n".join(texts))


def problem(function: Function, query: list[str]) -> str | None:
    """Why a function with these query tokens is left out (rules 3 to 10), None if it is kept."""
    if not function.documentation:
        return "undocumented"
    if _body(function.tokens)[:1] in ((), ("pass",), ("raise",)):
        return "no body"
    if sum(bool(line.strip()) for line in function.code.split("\n")) < FEWEST_LINES:
        return "few lines"
    name = function.name.rpartition(".")[2]
    if "test" in name.lower() or (name.startswith("__") and name.endswith("__")):
        return "name"
    reason = query_problem(query)
    return f"query: {reason}" if reason else None


def _opened(archive: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(archive)
    except (OSError, zipfile.BadZipFile) as error:
        raise DataCorruptError(f"{archive}: can't be read ({error})") from error


def _licence_name(metadata: Message) -> str:
    if expression := metadata["License-Expression"]:
        return str(expression)
    for classifier in metadata.get_all("Classifier", []):
        if classifier.startswith("License ::"):
            name = classifier.rpartition(" :: ")[2]
            return _CLASSIFIERS.get(name, name)
    return str(metadata["License"] or "unknown").split("\n")[0]


def _body(tokens: tuple[str, ...]) -> tuple[str, ...]:
    """What follows the header's colon."""
    depth = 0
    for i, token in enumerate(tokens):
        depth += (token in ("(", "[", "{")) - (token in (")", "]", "}"))
        if token == ":" and depth == 0:
            return tokens[i + 1 :]
    return ()
