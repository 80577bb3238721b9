"""A folder of code in three languages, and a model that hashes subtokens into a vector."""

import hashlib
import os
import sqlite3
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from methods.cascode.lexical import subtokens
from methods.cascode.search.index import Index
from methods.cascode.search.indexing import Options, Report, build_index
from methods.cascode.search.models import Decision, Settings
from methods.cascode.search.query import Searcher
from methods.cascode.search.store import DATABASE, FOLDER

# The key that indexes are sealed with: also for the processes that tests start.
_STATE = tempfile.TemporaryDirectory()
os.environ["XDG_STATE_HOME"] = _STATE.name

FILES = {
    "config.py": (
        "import json\n\n\n"
        "def read_config(path):\n"
        '    """Read the settings from a JSON file.\n\n'
        "    More words.\n"
        '    """\n'
        "    with open(path) as file:\n"
        "        return json.load(file)\n\n\n"
        "class Config:\n"
        "    def save(self, path):\n"
        '        """Write the settings to disk."""\n'
        "        path.write_text(json.dumps(self.values))\n"
    ),
    "net/client.py": (
        "def open_connection(host, port):\n"
        '    """Connect to a server by TCP."""\n'
        "    return socket.create_connection((host, port))\n"
    ),
    "net/copy_of_client.py": (
        "# another comment\n\n\n"
        "def open_connection(host, port):\n"
        '    """Connect to a server by TCP."""\n'
        "    return socket.create_connection((host, port))  # the same\n"
    ),
    "empty.py": "print(3)\n",
}


@cache
def direction(name: str, dimension: int) -> NDArray[np.float64]:
    digest = hashlib.sha256(name.encode()).digest()
    return np.random.default_rng(list(digest)).standard_normal(dimension)


class HashingModel:
    """Each subtoken adds a direction of its own; pairs are judged by how many words they share."""

    can_rerank = True
    precision = "float32"

    def __init__(self, seed: str = "", dimension: int = 48) -> None:
        self.name, self.dimension = f"hashing{seed}", dimension
        self.fingerprint = f"fingerprint{seed}"
        self.encoded: list[str] = []
        self.judged: list[tuple[str, str]] = []

    def encode_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return np.stack([self._vector(text) for text in texts])

    def encode_codes(
        self, texts: Sequence[str], progress: Callable[[int], None] | None = None
    ) -> NDArray[np.float32]:
        self.encoded += texts
        if progress is not None:
            progress(len(texts))
        return self.encode_queries(texts)

    def score_pairs(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float32]:
        self.judged += pairs
        shared = [len({*subtokens(query)} & {*subtokens(code)}) for query, code in pairs]
        return np.array(shared, np.float32)

    def _vector(self, text: str) -> NDArray[np.float32]:
        text.encode()  # as a tokeniser does
        total = np.full(self.dimension, 1e-3)
        for token in subtokens(text):
            total += direction(f"{self.name} {token}", self.dimension)
        return (total / np.linalg.norm(total)).astype(np.float32)


def write_tree(root: Path, files: dict[str, str] | None = None) -> Path:
    for name, content in (FILES if files is None else files).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return root


def build(root: Path, model: HashingModel | None = None, **options: object) -> Report:
    home = options.pop("home", root / FOLDER)
    settings = Settings(source="hashing", precision="float32")
    return build_index(
        Options(root, home, **options),  # type: ignore[arg-type]
        model or HashingModel(),
        settings,
        lambda *_: None,
    )


def searcher(root: Path, model: HashingModel | None = None, rerank: bool = False) -> Searcher:
    decision = Decision(rerank, "re-ranked" if rerank else "first stage only")
    return Searcher(Index(root / FOLDER), model or HashingModel(), decision)


def content(home: Path) -> dict[str, bytes]:
    """All parts of an index, which must not depend on how it came about; nothing else is left."""
    left = {path.name for path in home.iterdir()}
    assert left == {DATABASE, "lock", ".gitignore", "CACHEDIR.TAG"}
    with closing(sqlite3.connect(home / DATABASE)) as database:
        assert database.execute("SELECT DISTINCT kind FROM kept").fetchall() == [("stamps",)]
        return dict(database.execute("SELECT name, content FROM parts"))
