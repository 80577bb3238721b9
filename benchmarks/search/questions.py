"""What is searched: the standard library of the running Python; plain questions, and grading.

The questions in questions.json and the functions that answer them were written down before any
system was run on them, by someone who knows the library; the file's digest goes into every result.
Grade 2 is a function that does what is asked, 1 a close helper of it or a lesser variant.

A hit is what a user sees at one position of a ranking: a function, a chunk of a file that may hold
several functions or a part of one, or one text that stands in several places. It is turned into
the labelled functions that any of its lines belongs to, the highest grade first, less those that
an earlier hit has shown. So several chunks of one function count once: a later one takes no
position. Neither does a chunk lose by holding unlabelled functions besides. A hit without any
labelled function takes one position. All three choices favour chunks over functions.
"""

import ast
import json
import os
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from math import log2
from pathlib import Path
from typing import NamedTuple

from shared.files import new_folder

QUESTIONS = Path(__file__).with_name("questions.json")
GRADES, DEPTH = (1, 2), 10
_FOREIGN = {"site-packages", "dist-packages", "__pycache__"}
_BLOCKS = ("body", "handlers", "orelse", "finalbody")

Lines = tuple[int, int]  # first and last of a definition, from 1, both inclusive
Span = tuple[str, int, int]  # path in the repository, first and last line, both inclusive
Hit = Sequence[Span]


class Label(NamedTuple):
    """A function that answers a question."""

    path: str  # in the repository
    name: str  # "Class.method" or "function"
    grade: int
    lines: tuple[Lines, ...]  # of each of its definitions, several under conditions


class Question(NamedTuple):
    text: str
    labels: tuple[Label, ...]
    card: bool  # whether the method card shows it


def copy_library(out: Path, only: Sequence[str] = ()) -> Path:
    """A folder in `out` with the library's Python files, without installed packages; made once.
    `only` names top-level modules and packages, as ("shlex", "json"); all if empty."""
    library = Path(sysconfig.get_path("stdlib"))
    version = ".".join(map(str, sys.version_info[:3]))
    folder = out / "-".join(["library", version, *sorted(only)])
    if folder.exists():
        return folder
    missing = set(only)
    with new_folder(folder) as new:
        for inside, folders, files in os.walk(library):
            folders[:] = [name for name in folders if name not in _FOREIGN]
            for name in files:
                path = Path(inside, name).relative_to(library)
                top = path.parts[0].removesuffix(".py")
                if path.suffix == ".py" and (not only or top in only):
                    missing.discard(top)
                    (new / path).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(library / path, new / path)
        if missing:
            raise ValueError(f"{library} has no Python module named {', '.join(sorted(missing))}")
    return folder


def load_questions(repository: Path, source: Path = QUESTIONS) -> tuple[list[Question], list[str]]:
    """The questions that the repository can answer, and the labels it does not have; left out are
    labels that this version of Python lacks, and questions without one of grade 2."""
    definitions: dict[str, dict[str, list[Lines]]] = {}
    questions, absent = [], []
    for entry in json.loads(source.read_text()):
        labels = []
        for path, graded in entry["answers"].items():
            if path not in definitions:
                definitions[path] = _definitions(repository / path)
            for name, grade in graded.items():
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


def grades(hits: Sequence[Hit], question: Question) -> list[int]:
    """Grade of each position of the ranking that the hits stand for; 0 for other functions."""
    seen: set[Label] = set()
    ranking = []
    for hit in hits:
        shown = [label for label in question.labels if _touches(hit, label)]
        new = [label for label in shown if label not in seen]
        seen.update(new)
        if new:
            ranking += sorted((label.grade for label in new), reverse=True)
        elif not shown:
            ranking.append(0)
    return ranking


def ndcg(ranking: Sequence[int], question: Question, depth: int = DEPTH) -> float:
    """Normalised discounted cumulative gain of the first `depth` positions, from 0 to 1, which is
    what the best order of all labels gets; gain 2^grade - 1, discount log2(position + 1)."""

    def gain(found: Sequence[int]) -> float:
        return sum((2**grade - 1) / log2(place + 2) for place, grade in enumerate(found[:depth]))

    ideal = sorted((label.grade for label in question.labels), reverse=True)
    return gain(ranking) / gain(ideal)


def _touches(hit: Hit, label: Label) -> bool:
    return any(
        path == label.path and start <= last and first <= end
        for path, start, end in hit
        for first, last in label.lines
    )
