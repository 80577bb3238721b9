"""How far the work is: a bar on a terminal, a line now and then in a log."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from shared.data.captioned.working import Tally
from shared.showing import printable

PAUSE = 60.0  # seconds between lines of a log


class Meter(Progress):
    """Shows entries, entries per second of this run, and unusable ones. `size`: bytes of the input,
    None if these are unknown, and so how much is left."""

    def __init__(self, size: int | None) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        super().__init__(*columns, console=console, disable=not console.is_terminal)
        self._bar = self.add_task("reading", total=size)
        self._begin = self._told = time.monotonic()

    def show(self, tally: Tally) -> None:
        now = time.monotonic()
        if tally.replayed == tally.entries:
            self._begin = now
        said = f"{tally.entries:,} entries, {self.rate(tally):,.1f} a second"
        said += f", {tally.unusable:,} unusable" if tally.unusable else ""
        self.update(self._bar, description=said, completed=tally.end)
        if self.disable and now - self._told > PAUSE:
            self._told = now
            print(said, file=sys.stderr, flush=True)

    def writing(self, entries: int) -> None:
        if entries % 100 == 0:
            self.update(self._bar, description=f"writing, {entries:,} entries")

    def rate(self, tally: Tally) -> float:
        """Entries per second of this run."""
        return (tally.entries - tally.replayed) / max(1e-6, time.monotonic() - self._begin)


def print_tally(tally: Tally, rate: float, faults: str) -> None:
    """Say what was done; `faults` is the file that names every unusable entry."""
    for example in tally.examples:
        print(f"unusable: {printable(example)}", file=sys.stderr)
    if (others := tally.unusable - len(tally.examples)) > 0:
        print(f"unusable: {others:,} more, see {faults}", file=sys.stderr)
    done = tally.entries - tally.replayed
    speed = f", {rate:,.1f} a second" if done else ""
    print(f"{tally.entries:,} entries, {done:,} of them in this run{speed}")
