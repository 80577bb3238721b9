"""Two processes that take turns: our training step beside a peer's, in one run.

Both workers stay alive, one idle while the other steps, so that both meet the same machine. In
each block every variant takes a few steps; ratios are formed within a block, which cancels what
changes slowly (clock, neighbours), and the order turns round from block to block.
"""

import json
import math
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from shared.files import write_json

Variant = tuple[str, str]
"""(side, variant), as ("ours", "float32")."""


class SpeedError(RuntimeError):
    """The comparison cannot be made; the message says what to do."""


class Worker:
    """A long-lived process that serves the workload MODULE:CLASS, see `benchmarks.speed.serving`,
    by the interpreter `python` in the folder `root`; what it prints goes to the log, which
    SpeedError names if the process ended or reported an error."""

    def __init__(self, python: Path, name: str, settings: Mapping[str, Any], root: Path, log: Path):
        self.name, self.log = name, log
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [str(python), "-m", "benchmarks.speed.serving", name, json.dumps(settings)]
        pipe = subprocess.PIPE
        with log.open("w") as stderr:
            self._process = subprocess.Popen(
                command, cwd=root, stdin=pipe, stdout=pipe, stderr=stderr, text=True
            )

    def ask(self, command: str, **given: Any) -> Any:
        """The reply to "describe", "values", "run" (of a `variant`, so many `steps`) or to what
        else the workload's class can be asked."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):  # then it has said why
            self._process.stdin.write(json.dumps({"command": command, **given}) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"error": "the process ended"}
        if "error" in answer:
            raise SpeedError(f"{self.name} failed (log: {self.log}):\n{answer['error']}")
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Comparison(NamedTuple):
    """One row to measure: our variant beside the peer's, or, where this begins with "ours ", beside
    another variant of ours."""

    name: str
    ours: str
    peer: str

    @property
    def variants(self) -> tuple[Variant, Variant]:
        """Ours and what stands beside it."""
        side, _, variant = self.peer.partition(" ")
        return ("ours", self.ours), ("ours", variant) if side == "ours" else ("peer", self.peer)


@dataclass(frozen=True)
class Row:
    """A measured row: medians and quartiles per step, and the paired ratio: `ratio` is the median
    over blocks of ours / peer (medians within the block), `iqr` its quartiles."""

    name: str
    ours_ms: float
    ours_iqr: tuple[float, float]
    peer_ms: float
    peer_iqr: tuple[float, float]
    ratio: float
    iqr: tuple[float, float]


def check_same_work(ours: Mapping[str, Any], peer: Mapping[str, Any]) -> None:
    """Raise SpeedError if work or torch differ, or the network's size by more than one per cent."""
    for key in ("images_per_step", "threads", "torch"):
        if ours[key] != peer[key]:
            raise SpeedError(f"not the same work: {key} is {ours[key]} here, {peer[key]} there")
    mine, theirs = ours["parameters"], peer["parameters"]
    if abs(mine / theirs - 1) > 0.01:
        raise SpeedError(f"not the same network: {mine:,} parameters here, {theirs:,} there")


def check_same_values(
    ours: Mapping[str, Sequence[float]],
    peer: Mapping[str, Sequence[float]],
    tolerances: Mapping[str, float],
) -> None:
    """Raise SpeedError unless both sides have each list of `tolerances`, apart by at most that."""
    for name, tolerance in tolerances.items():
        mine, theirs = ours.get(name, []), peer.get(name, [])
        if not mine or len(mine) != len(theirs):
            raise SpeedError(f"{name}: {len(mine)} values here, {len(theirs)} there")
        apart = [
            f"number {number} is {a:.6g} here, {b:.6g} there"
            for number, (a, b) in enumerate(zip(mine, theirs, strict=True))
            if not abs(a - b) <= tolerance
        ]
        if apart:
            count = f"{len(apart)} of {len(mine)} values: {'; '.join(apart[:4])}"
            said = f"{name} differ by more than {tolerance:g} in {count}"
            raise SpeedError(f"not the same computation: {said}")


def alternate(
    sides: Mapping[str, Any],
    comparisons: Sequence[Comparison],
    blocks: int,
    steps: int,
    warm_up: int,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[Variant, list[list[float]]]:
    """Seconds of each variant's steps, one list a block; SpeedError if a loss is not finite."""
    taken: dict[Variant, list[list[float]]] = {v: [] for c in comparisons for v in c.variants}

    def run(side: str, variant: str, count: int) -> list[float]:
        seconds, losses = sides[side].ask("run", variant=variant, steps=count)
        if not all(map(math.isfinite, losses)):
            raise SpeedError(f"a loss of {side} ({variant}) is not finite: {losses}")
        return seconds

    for side, variant in taken:
        progress(f"warming up {side} {variant}")
        run(side, variant, warm_up)
    for block in range(blocks if taken else 0):
        progress(f"block {block + 1} of {blocks}")
        for key in taken if block % 2 == 0 else reversed(taken):
            taken[key].append(run(*key, steps))
    return taken


def compare(
    comparisons: Sequence[Comparison], taken: Mapping[Variant, Sequence[Sequence[float]]]
) -> list[Row]:
    """Medians, quartiles and paired ratios of what `alternate` measured."""
    rows = []
    for comparison in comparisons:
        ours, peer = (taken[variant] for variant in comparison.variants)
        ratios = [median(a) / median(b) for a, b in zip(ours, peer, strict=True)]
        ms = ([1e3 * s for block in blocks for s in block] for blocks in (ours, peer))
        figures = [(median(values), quartiles(values)) for values in (*ms, ratios)]
        rows.append(Row(comparison.name, *figures[0], *figures[1], *figures[2]))
    return rows


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """First and third quartile; of one value, the value twice."""
    first, third = np.quantile(values, [0.25, 0.75]).tolist()
    return first, third


def table(title: str, rows: Sequence[Row]) -> str:
    """The rows as text."""

    def time(value: float, iqr: tuple[float, float]) -> str:
        return f"{value:7.0f} [{iqr[0]:.0f}, {iqr[1]:.0f}]"

    width = max(len(title), *(len(row.name) for row in rows))
    lines = [f"{title:<{width}}  {'ours, ms [IQR]':>22}  {'peer, ms [IQR]':>22}  ratio [IQR]"]
    for row in rows:
        ours, peer = time(row.ours_ms, row.ours_iqr), time(row.peer_ms, row.peer_iqr)
        ratio = f"{row.ratio:.3f} [{row.iqr[0]:.3f}, {row.iqr[1]:.3f}]"
        lines.append(f"{row.name:<{width}}  {ours:>22}  {peer:>22}  {ratio}")
    return "\n".join(lines)


def ratio_lines(row: Row) -> str:
    """The last two lines of the benchmark: the interquartile range, and the ratio."""
    spread = f"interquartile range of the ratio over blocks {row.iqr[0]:.3f} to {row.iqr[1]:.3f}"
    return f"{row.name}: {spread}\nratio: {row.ratio:.3f} (ours/peer, lower is better)"


def write(path: Path, rows: Sequence[Row], facts: Mapping[str, Any]) -> None:
    """Write the file that the report reads; the first row gives `ratio` and `iqr`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    of_rows = {"ratio": rows[0].ratio, "iqr": rows[0].iqr, "rows": [asdict(row) for row in rows]}
    write_json(path, {**of_rows, **facts})
