"""Runs the arms of a claim as one Hydra multirun in its own process, and shows its progress."""

import csv
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from benchmarks.outputs import RESULTS, check
from shared.files import open_regular, read_json

ERROR_FILE = "error.txt"
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
TAIL = 1 << 16  # bytes at the end of a file that are looked at


@dataclass(frozen=True)
class Run:
    """One arm with one seed.

    Attributes:
        folder: where shared.run writes results.json, metrics.csv and checkpoints.
        total: training steps, or epochs where the config limits those; None if unknown.
        unit: the column of metrics.csv that counts towards `total`, "step" or "epoch".
    """

    arm: str
    seed: int
    experiment: str
    folder: Path
    total: int | None = None
    unit: str = "step"

    def results(self) -> dict[str, Any] | None:
        """results.json of a finished run; None if there is none yet, or it is damaged."""
        try:
            results = read_json(self.folder / "results.json")
            check(results, RESULTS)
        except (OSError, ValueError):
            return None
        return results if results["status"] == "finished" else None

    def position(self) -> int:
        """How far training has come, in `unit`s, by the last row of metrics.csv; 0 before any."""
        try:
            with open_regular(self.folder / "metrics.csv") as file:
                header = next(csv.reader([file.readline(TAIL).decode()]))
                rows = [line for line in _tail(file).split("\n")[:-1] if line]
            return int(float(next(csv.reader(rows[-1:]))[header.index(self.unit)]))
        except (OSError, ValueError, OverflowError, IndexError, StopIteration, csv.Error):
            return 0

    def error(self, log: Path, lines: int = 8) -> str:
        """The tail of what went wrong: the run's own traceback, else the multirun's output."""
        for path in (self.folder / ERROR_FILE, log):
            with suppress(OSError), open_regular(path) as file:
                found = _tail(file).strip().splitlines()[-lines:]
                return "\n".join(_CONTROL.sub("\ufffd", line) for line in found)
        return "it left no error message"


def _tail(file: BinaryIO) -> str:
    file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
    return file.read().decode(errors="replace")


def multirun_command(
    runs: Sequence[Run], base: Path, claim: dict[str, str], jobs: int, overrides: Sequence[str]
) -> list[str]:
    """The command that does `runs` (and whatever else the product of their arms and seeds holds,
    which shared.run reuses). `seed` varies slowest, so that early results cover all arms."""
    experiments = list(dict.fromkeys(run.experiment for run in runs))
    seeds = sorted({run.seed for run in runs})
    return [
        *(sys.executable, "-m", "shared.run", "-m"),
        # First, because the key that comes first varies slowest.
        f"seed={','.join(map(str, seeds))}",
        # Hydra composes once without what is swept over, where `data.num_labels` and the like would
        # not exist: this experiment is for that, the later `experiment=` for the runs.
        f"experiment={experiments[0]}",
        f"experiment={','.join(experiments)}",
        *overrides,
        f"output_dir={quoted(str(base), '/${arm}/seed${seed}')}",
        f"claim={{name:{quoted(claim['name'])},hash:{quoted(claim['hash'])}}}",
        *("hydra/launcher=local", f"hydra.launcher.n_jobs={jobs}"),
        f"hydra.sweep.dir={quoted(str(base / 'multirun'))}",
    ]


def quoted(text: str, interpolated: str = "") -> str:
    """A Hydra override value that is this very string (a hash of digits is no number), followed by
    an end whose interpolations work."""
    literal = text.replace("'", "\\'").replace("${", "\\${")
    return f"'{literal}{interpolated}'"


Launcher = Callable[[Sequence[str], Sequence[Run], Path, int, Console], int]


def launch(
    command: Sequence[str], runs: Sequence[Run], log: Path, jobs: int, console: Console
) -> int:
    """Runs the command, its output going to `log`, and shows the progress of `runs`.

    Args:
        jobs: processes side by side; with more than one, each gets one thread.

    Returns:
        The command's exit status.
    """
    for run in runs:  # a message of an earlier try must not speak for this one
        (run.folder / ERROR_FILE).unlink(missing_ok=True)
    environment = dict(os.environ)
    if jobs > 1:
        environment |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    log.unlink(missing_ok=True)  # a link in the way would lead elsewhere, a pipe nowhere
    with (
        log.open("x") as output,
        subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment
        ) as process,
    ):
        try:
            _watch(process, runs, console)
        except BaseException:  # Ctrl-C too: the runs would go on unseen
            process.terminate()
            raise
    return process.returncode


@dataclass
class _Watched:
    """What the display remembers of a run in progress."""

    task: TaskID
    first: int
    since: float = field(default_factory=time.monotonic)


def _watch(process: subprocess.Popen, runs: Sequence[Run], console: Console) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        TextColumn("{task.fields[detail]}"),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=console, speed_estimate_period=600) as progress:
        overall = progress.add_task("all runs", total=len(runs), detail=f"0 of {len(runs)}")
        waiting, active, done = list(runs), dict[Run, _Watched](), 0
        while True:
            ended = process.poll() is not None  # before the look at the files, which then is whole
            fractions = 0.0
            for run in list(waiting):
                label = f"{run.arm} seed {run.seed}"
                position = run.position()
                if run.results() is not None:
                    waiting.remove(run)
                    if shown := active.pop(run, None):
                        progress.remove_task(shown.task)
                    done += 1
                    console.print(f"  finished {label} ({done} of {len(runs)})", highlight=False)
                elif position or run in active:
                    fractions += _show(progress, active, run, label, position)
            progress.update(
                overall, completed=done + fractions, detail=f"{done} of {len(runs)} runs"
            )
            if ended:
                return
            time.sleep(1.0)


def _show(
    progress: Progress, active: dict[Run, _Watched], run: Run, label: str, position: int
) -> float:
    """Updates the row of a run in progress; returns the fraction of it that is done."""
    if run not in active:
        task = progress.add_task(label, total=run.total, detail="")
        active[run] = _Watched(task, position)
    shown = active[run]
    seconds = time.monotonic() - shown.since
    rate = (position - shown.first) / seconds if seconds > 2 else math.nan
    letters = "it" if run.unit == "step" else "epochs"
    speed = "" if math.isnan(rate) else f"  {rate:.1f} {letters}/s"
    detail = f"{run.unit} {position}{f' of {run.total}' if run.total else ''}{speed}"
    progress.update(shown.task, completed=position, detail=detail)
    return min(1.0, position / run.total) if run.total else 0.0
