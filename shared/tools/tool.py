"""The parts of a tool that works through captioned images; `shared.tools.command` runs it.

Its models judge block after block. What they say goes into a journal, from which all outputs are
made when the last block is done, so that the same command goes on wherever it was stopped.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from shared.data.captioned.decoding import Decoded, Decoder
from shared.data.captioned.records import Record, Source
from shared.data.captioned.working import Row
from shared.data.images import Pixels


class Opened(NamedTuple):
    """Models that are loaded: what judges a block, what decodes its images for them, and what the
    header says of them, `models` with name and SHA-256 of each."""

    judge: Callable[[Decoded], list[Row]]
    decoder: Decoder
    about: dict[str, Any]


class Told(NamedTuple):
    """What is said of an entry: `lines` of the tool's log, and for the sheet the `group` that it is
    an example of, by its place among the groups and its title, and what is `shown` of it."""

    lines: Sequence[Mapping[str, Any]] = ()
    group: tuple[int, str] | None = None
    shown: Any = None


class Results(Protocol):
    """The outputs of a tool while they are written."""

    def add(self, record: Record, row: Row) -> Told:
        """Write what became of the next entry."""

    def facts(self) -> dict[str, Any]:
        """What the card says of them, when all are written."""


class Card(NamedTuple):
    """What of a data card is the tool's own: sentences, of which the first counts the result, items
    of a list, and a table with the title of its section, whose first column is text."""

    summary: list[str]
    items: list[str]
    title: str
    columns: list[str]
    rows: list[list[str]]


class Tool(Protocol):
    """What a tool does, in one command besides `merge`.

    Attributes:
        program, about: name of the console script, and what it is for.
        verb, does: name of the command, and what it does.
        settings: a frozen dataclass of all that decides a result beside models and input, with
            `batch_size`, `seed`, `limit`, `max_pixels` and `licence`.
        log: name of the file with a line for each fault of an entry, and perhaps for more.
        folder: where its sheet.html lies, which extends shared/tools/frame.html.
    """

    program: str
    about: str
    verb: str
    does: str
    settings: type[Any]
    log: str
    folder: Path

    def options(self, add: Callable[..., Any], option: Callable[..., None]) -> None:
        """Add the arguments of its own: `add` as `add_argument`, `option(name, type, help)` of a
        setting that has a value."""

    def open(
        self, arguments: argparse.Namespace, settings: Any, source: Source, device: str
    ) -> Opened:
        """Load the models that the arguments name; WorkError of what cannot be used."""

    def fault_of(self, record: Record, row: Row, settings: Any) -> str:
        """Why an entry is unusable, or not wholly usable, or ""."""

    def output(self, source: Source) -> str:
        """Name of what is made of the input."""

    def results(
        self, folder: Path, source: Source, settings: Any
    ) -> AbstractContextManager[Results]:
        """The outputs in a folder: whole when the context ends without an error, else not there."""

    def card(self, facts: Mapping[str, Any]) -> Card:
        """Its part of the data card."""

    def drawn(self, pixels: Pixels, shown: Any) -> Pixels:
        """An example's image (H, W, 3) as the sheet shows it."""
