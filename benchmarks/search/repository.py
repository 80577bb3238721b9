"""What is searched: the standard library of the running Python, and plain questions about it.

The questions in questions.json and the functions that answer them were written down before any
system was run on them, by someone who knows the library; the file's digest goes into every result.
Grade 2 is a function that does what is asked, 1 a close helper of it or a lesser variant.
"""

import ast
import hashlib
import json
import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

QUESTIONS = Path(__file__).with_name("questions.json")
GRADES = (1, 2)
_FOREIGN = {"site-packages", "dist-packages", "__pycache__"}
_BLOCKS = ("body", "handlers", "orelse", "finalbody")

Lines = tuple[int, int]
"""First and last line of a definition, from 1, both inclusive."""


@dataclass(frozen=True)
class Label:
    """A function that answers a question.

    Attributes:
        path: relative to the repository. name: "Class.method" or "function".
        grade: 2 or 1. lines: of each of its definitions; several under conditions.
    """

    path: str
    name: str
    grade: int
    lines: tuple[Lines, ...]


@dataclass(frozen=True)
class Question:
    """Attributes: `text`; `labels`; `card`, whether the method card shows it."""

    text: str
    labels: tuple[Label, ...]
    card: bool


def copy_library(out: Path, only: Sequence[str] = ()) -> Path:
    """A folder in `out` with the library's Python files, without installed packages; made once.

    A copy, so that every system is given the same files.

    Args:
        only: top-level modules and packages, as ("shlex", "json"); all if empty.

    Raises:
        ValueError: this Python has no such module.
    """
    library = Path(sysconfig.get_path("stdlib"))
    version = ".".join(map(str, sys.version_info[:3]))
    folder = out / "-".join(["library", version, *sorted(only)])
    if folder.exists():
        return folder
    paths = [path for path in sorted(_python_files(library)) if not only or _top(path) in only]
    if missing := set(only) - {_top(path) for path in paths}:
        raise ValueError(f"{library} has no Python module named {', '.join(sorted(missing))}")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as new:
        for path in paths:
            target = Path(new, "library", path)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(library / path, target)
        Path(new, "library").rename(folder)
    return folder


def load_questions(repository: Path, source: Path = QUESTIONS) -> tuple[list[Question], list[str]]:
    """The questions that the repository can answer, and the labels it does not have.

    Labels of functions that this version of Python lacks are left out, and with them a question
    that has no function of grade 2 left.

    Raises:
        ValueError: a question or grade is not as documented; the message names it.
    """
    definitions: dict[str, dict[str, list[Lines]]] = {}
    questions, absent = [], []
    for entry in json.loads(source.read_text()):
        labels = []
        for path, grades in entry["answers"].items():
            if path not in definitions:
                definitions[path] = _definitions(repository / path)
            for name, grade in grades.items():
                if grade not in GRADES:
                    raise ValueError(f"{source}: grade {grade} of {path}:{name} is none of 1, 2")
                if lines := definitions[path].get(name):
                    labels.append(Label(path, name, grade, tuple(lines)))
                else:
                    absent.append(f"{path}:{name}")
        if any(label.grade == max(GRADES) for label in labels):
            questions.append(Question(entry["question"], tuple(labels), entry.get("card", False)))
    if twice := {q.text for q in questions if [p.text for p in questions].count(q.text) > 1}:
        raise ValueError(f"{source}: asked twice: {', '.join(sorted(twice))}")
    if not questions:
        raise ValueError(f"{repository} answers no question of {source}")
    return questions, absent


def digest(source: Path = QUESTIONS) -> str:
    """Of the questions and labels, so that a later change shows."""
    return hashlib.sha256(source.read_bytes()).hexdigest()[:16]


def _python_files(library: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(library):
        folders[:] = [name for name in folders if name not in _FOREIGN]
        for name in files:
            if name.endswith(".py"):
                yield Path(folder, name).relative_to(library)


def _top(path: Path) -> str:
    return path.parts[0].removesuffix(".py")


def _definitions(file: Path) -> dict[str, list[Lines]]:
    """Lines of the functions and methods of a file by qualified name; none if there is no file."""
    found: dict[str, list[Lines]] = {}
    if file.is_file():
        _collect(ast.parse(file.read_bytes()), "", found)
    return found


def _collect(block: ast.AST, prefix: str, found: dict[str, list[Lines]]) -> None:
    """Looks into classes and conditional blocks, not into functions."""
    for field in _BLOCKS:
        for node in getattr(block, field, ()):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.lineno, node.end_lineno or node.lineno
                found.setdefault(prefix + node.name, []).append(lines)
            elif isinstance(node, ast.ClassDef):
                _collect(node, f"{prefix}{node.name}.", found)
            else:
                _collect(node, prefix, found)
