"""How far the work is: a bar on a terminal, a line now and then in a log."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from methods.blip.capfilt.running import Tally

PAUSE = 60.0  # seconds between lines of a log


class Meter:
    """Shows entries, entries per second of this run, and unusable ones. `size`: bytes of the input,
    None if they are unknown, and so how much is left."""

    def __init__(self, size: int | None) -> None:
        console = Console(stderr=True)
        self._terminal, self._size = console.is_terminal, size
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn())
        self._bar = Progress(
            *columns, TimeElapsedColumn(), console=console, disable=not self._terminal
        )
        self._task = self._bar.add_task("reading", total=size)
        self.begin = self._told = time.monotonic()

    def __enter__(self) -> "Meter":
        self._bar.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._bar.__exit__(kind, error, at)

    def show(self, tally: Tally) -> None:
        now = time.monotonic()
        if tally.replayed == tally.entries:
            self.begin = now
        said = f"{tally.entries:,} entries, {self.rate(tally):,.1f} a second"
        said += f", {tally.unusable:,} unusable" if tally.unusable else ""
        self._bar.update(self._task, description=said, completed=tally.end)
        if not self._terminal and now - self._told > PAUSE:
            self._told = now
            print(said, file=sys.stderr, flush=True)

    def finishing(self, entries: int) -> None:
        if entries % 100 == 0:
            self._bar.update(self._task, description=f"writing, {entries:,} entries")

    def rate(self, tally: Tally) -> float:
        """Entries per second of this run."""
        return (tally.entries - tally.replayed) / max(1e-6, time.monotonic() - self.begin)
