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
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

QUESTIONS = Path(__file__).with_name("questions.json")
GRADES = (1, 2)
_FOREIGN = {"site-packages", "dist-packages", "__pycache__"}
_BLOCKS = ("body", "handlers", "orelse", "finalbody")

Lines = tuple[int, int]
"""First and last line of a definition, from 1, both inclusive."""


class Label(NamedTuple):
    """A function that answers a question; `lines` of each of its definitions, several under
    conditions."""

    path: str  # in the repository
    name: str  # "Class.method" or "function"
    grade: int
    lines: tuple[Lines, ...]


class Question(NamedTuple):
    text: str
    labels: tuple[Label, ...]
    card: bool  # whether the method card shows it


def copy_library(out: Path, only: Sequence[str] = ()) -> Path:
    """A folder in `out` with the library's Python files, without installed packages; made once.

    Args: only: top-level modules and packages, as ("shlex", "json"); all if empty.

    Raises:
        ValueError: this Python has no such module.
    """
    library = Path(sysconfig.get_path("stdlib"))
    version = ".".join(map(str, sys.version_info[:3]))
    folder = out / "-".join(["library", version, *sorted(only)])
    if folder.exists():
        return folder
    missing = set(only)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as new:
        for inside, folders, files in os.walk(library):
            folders[:] = [name for name in folders if name not in _FOREIGN]
            for name in files:
                path = Path(inside, name).relative_to(library)
                top = path.parts[0].removesuffix(".py")
                if path.suffix == ".py" and (not only or top in only):
                    missing.discard(top)
                    target = Path(new, "library", path)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(library / path, target)
        if missing:
            raise ValueError(f"{library} has no Python module named {', '.join(sorted(missing))}")
        Path(new, "library").rename(folder)
    return folder


def load_questions(repository: Path, source: Path = QUESTIONS) -> tuple[list[Question], list[str]]:
    """The questions that the repository can answer, and the labels it does not have.

    Labels that this version of Python lacks are left out, and questions without one of grade 2.

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
    """Digest of the questions and labels, so that a later change shows."""
    return hashlib.sha256(source.read_bytes()).hexdigest()[:16]


def _definitions(file: Path) -> dict[str, list[Lines]]:
    """Lines of a file's functions, in classes and conditional blocks, by qualified name."""
    found: dict[str, list[Lines]] = {}

    def collect(block: ast.AST, prefix: str) -> None:
        for field in _BLOCKS:
            for node in getattr(block, field, ()):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    lines = node.lineno, node.end_lineno or node.lineno
                    found.setdefault(prefix + node.name, []).append(lines)
                else:
                    inner = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
                    collect(node, prefix + inner)

    if file.is_file():
        collect(ast.parse(file.read_bytes()), "")
    return found
