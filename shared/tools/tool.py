"""The parts of a tool that works through captioned images; `shared.tools.command` runs it.

Its models judge block after block. What they say goes into a journal, from which all outputs are
made when the last block is done, so that the same command goes on wherever it was stopped.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Tool:
    """What a tool does, in one command besides `merge`.

    Attributes:
        program, about: name of the console script, and what it is for.
        verb, does: name of the command, and what it does.
        template: of its sheet, which extends shared/tools/frame.html.
        settings: a frozen dataclass of all that decides a result beside models and input, with
            `batch_size`, `seed`, `limit`, `max_pixels` and `licence`.
        options: adds the arguments of its own by two functions, `add_argument`, and one that takes
            name, type and help of a setting that has a value.
        open: loads what arguments name, for settings, an input and a device; WorkError of what
            cannot be used.
        fault_of: why an entry with its row is unusable by settings, or not wholly usable, or "".
        log: name of the file with a line for each fault of an entry, and perhaps for more.
        output: name of what is made of an input.
        results: the outputs in a folder, of an input by settings: whole when the context ends
            without an error, else not there.
        card: its part of the data card, of the facts.
        drawn: an example's image (H, W, 3), with what is shown of it, as the sheet has it.
    """

    program: str
    about: str
    verb: str
    does: str
    template: Path
    settings: type[Any]
    options: Callable[[Callable[..., Any], Callable[..., None]], None]
    open: Callable[[argparse.Namespace, Any, Source, str], Opened]
    fault_of: Callable[[Record, Row, Any], str]
    log: str
    output: Callable[[Source], str]
    results: Callable[[Path, Source, Any], AbstractContextManager[Results]]
    card: Callable[[Mapping[str, Any]], Card]
    drawn: Callable[[Pixels, Any], Pixels] = lambda pixels, shown: pixels
