"""Runs the arms of a claim as one Hydra multirun in its own process, and shows its progress."""

import csv
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.outputs import RESULTS, check
from shared.files import open_regular, read_json

ERROR_FILE = "error.txt"
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
TAIL = 1 << 16  # bytes at the end of a file that are looked at


@dataclass(frozen=True)
class Run:
    """One arm with one seed, in the folder where shared.run writes results.json, metrics.csv and
    checkpoints; `total` training steps, or as `unit` says epochs, by metrics.csv's column."""

    arm: str
    seed: int
    experiment: str
    folder: Path
    total: int | None = None
    unit: str = "step"

    def __str__(self) -> str:
        return f"{self.arm} seed {self.seed}"

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


LOCAL = "hydra/launcher=local"


def multirun_command(
    runs: Sequence[Run],
    base: Path,
    claim: dict[str, str],
    jobs: int,
    overrides: Sequence[str],
    launching: Sequence[str] = (LOCAL,),
) -> list[str]:
    """The command that does `runs`, and what else the product of their arms and seeds holds, by
    the launcher that `launching` chooses and sets."""
    experiments = list(dict.fromkeys(run.experiment for run in runs))
    seeds = sorted({run.seed for run in runs})
    return [
        *(sys.executable, "-m", "shared.run", "-m"),
        # First, because the key that comes first varies slowest: early results cover all arms.
        f"seed={','.join(map(str, seeds))}",
        # Hydra composes once without what is swept over, where `data.num_labels` and the like would
        # not exist: this experiment is for that, the later `experiment=` for the runs.
        f"experiment={experiments[0]}",
        f"experiment={','.join(experiments)}",
        *overrides,
        f"output_dir={quoted(str(base), '/${arm}/seed${seed}')}",
        f"claim={{name:{quoted(claim['name'])},hash:{quoted(claim['hash'])}}}",
        *([f"hydra.launcher.n_jobs={jobs}"] if LOCAL in launching else []),
        *launching,
        f"hydra.sweep.dir={quoted(str(base / 'multirun'))}",
    ]


def quoted(text: str, interpolated: str = "") -> str:
    """A Hydra override value of this very string, then an end whose interpolations work."""
    literal = text.replace("'", "\\'").replace("${", "\\${")
    return f"'{literal}{interpolated}'"


Launcher = Callable[[Sequence[str], Sequence[Run], Path, int, Console], int]


def launch(
    command: Sequence[str], runs: Sequence[Run], log: Path, jobs: int, console: Console
) -> int:
    """Runs the command, its output going to `log`, and shows the progress of `runs`; each of
    several `jobs` gets one thread. Returns the exit status."""
    for run in runs:  # a message of an earlier try must not speak for this one
        (run.folder / ERROR_FILE).unlink(missing_ok=True)
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"} if jobs > 1 else {}
    log.unlink(missing_ok=True)  # a link in the way would lead elsewhere, a pipe nowhere
    with (
        log.open("x") as output,
        subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **threads}
        ) as process,
    ):
        try:
            _watch(process, runs, console)
        except BaseException:  # Ctrl-C too: the runs would go on unseen
            process.terminate()
            raise
    return process.returncode


def _watch(process: subprocess.Popen, runs: Sequence[Run], console: Console) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        TextColumn("{task.fields[detail]}"),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=console, speed_estimate_period=600) as progress:
        overall = progress.add_task("all runs", total=len(runs), detail=f"0 of {len(runs)} runs")
        tasks = {
            run: progress.add_task(str(run), total=run.total, visible=False, detail="")
            for run in runs
        }
        while True:
            ended = process.poll() is not None  # before the look at the files, which then is whole
            fractions = 0.0
            for run, task in list(tasks.items()):
                position = run.position()
                if run.results() is not None:
                    progress.remove_task(tasks.pop(run))
                    count = f"{len(runs) - len(tasks)} of {len(runs)}"
                    console.print(f"  finished {run} ({count})", highlight=False)
                elif position:
                    detail = f"{run.unit} {position}{f' of {run.total}' if run.total else ''}"
                    progress.update(task, completed=position, detail=detail, visible=True)
                    fractions += min(1.0, position / run.total) if run.total else 0.0
            done = len(runs) - len(tasks)
            detail = f"{done} of {len(runs)} runs"
            progress.update(overall, completed=done + fractions, detail=detail)
            if ended:
                return
            time.sleep(1.0)
