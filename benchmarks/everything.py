"""Runs every claim of every method, and shows all verdicts in one table: `make reproduce-all`.

    python -m benchmarks.everything [--methods comatch,pcl] [--jobs 2] [overrides]

The methods' own claims come first, then their others, all as `benchmarks.reproduce` runs them. What
is finished is reused, so that the same command goes on after an interruption; a claim that fails is
said and does not stop the rest. Exit status: 0 once all claims have all their runs, else 1; 2 if
what was asked makes no sense.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from benchmarks import report, summary
from benchmarks.claims import CONF, ClaimError, nearest
from benchmarks.evidence import gather
from benchmarks.launch import Launcher, launch
from benchmarks.outputs import Outputs
from benchmarks.reproduce import OUTPUTS, reproduce
from shared.data.errors import DataCorruptError, DataNotFoundError

HEADER = ["method", "claim", "difference", "95% interval", "compared", "control", "holds"]
FORESEEN = (
    ClaimError,
    DataCorruptError,
    DataNotFoundError,
    HydraException,
    OmegaConfBaseException,
    OSError,  # as of a checkpoint that an arm needs and nothing has made
)


def claims_of(methods: Sequence[str] | None, conf: Path = CONF) -> list[tuple[str, str | None]]:
    """Method and name of every claim, the methods' own first; ClaimError of an unknown method."""
    root = conf / "reproduce"
    own = [(path.stem, None) for path in sorted(root.glob("*.yaml"))]
    known = [method for method, _ in own]
    if unknown := [method for method in methods or [] if method not in known]:
        raise ClaimError(f"no claim of method '{unknown[0]}'{nearest(unknown[0], known)}")
    others = [(path.parent.name, path.stem) for path in sorted(root.glob("*/*.yaml"))]
    return [one for one in (*own, *others) if methods is None or one[0] in methods]


def everything(
    methods: Sequence[str] | None = None,
    jobs: int = 2,
    overrides: Sequence[str] = (),
    *,
    launcher: Launcher = launch,
    conf: Path = CONF,
    outputs: Path = OUTPUTS,
    console: Console | None = None,
) -> int:
    """Runs what is missing of every claim of some methods, by default of all; returns 1 if
    something of one failed. ClaimError of an unknown method."""
    console = console or Console(width=None if sys.stdout.isatty() else 140)
    wanted = claims_of(methods, conf)
    failed: dict[str, str] = {}
    for number, (method, name) in enumerate(wanted, 1):
        title = f"{method} {name or ''}".strip()
        console.rule(f"{number} of {len(wanted)}: {title}")
        start = time.monotonic()
        given = {"launcher": launcher, "conf": conf, "outputs": outputs, "console": console}
        try:
            if reproduce(method, name, jobs=jobs, overrides=overrides, **given):  # type: ignore[arg-type]
                failed[title] = "runs failed, see above"
        except FORESEEN as error:
            failed[title] = str(error)
        console.print(f"{title}: {(time.monotonic() - start) / 60:.1f} min", highlight=False)
    found = gather(Outputs(outputs), conf)
    shown = [evidence for evidence in found if methods is None or evidence.method in methods]
    lines = report.lines(shown)
    rows = [[line.method, line.name, *cells_of(line), line.verdict] for line in lines]
    console.print(summary.rich_table("all claims", HEADER, rows))
    _say(console, failed)
    console.print(f"report:  {report.build(outputs, conf)}", soft_wrap=True)
    return 1 if failed else 0


def cells_of(line: report.Line) -> list[str]:
    """Difference, interval, what is compared, and the control, of a claim's line."""
    mean, interval, compared, *control = line.cells
    return [mean, interval, compared, *(control or ["-"])]


def _say(console: Console, failed: Mapping[str, str]) -> None:
    for title, reason in failed.items():
        console.print(f"failed: {title}", style="bold red")
        console.print(reason, markup=False, highlight=False)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.everything", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--methods", type=lambda text: text.split(","), help="a,b; default: all")
    parser.add_argument("--jobs", type=int, default=2, help="processes side by side (2)")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides for all arms of all claims")
    options = parser.parse_intermixed_args(arguments)
    try:
        return everything(**vars(options))
    except ClaimError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
