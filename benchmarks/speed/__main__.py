"""Time our training step beside a peer's: `python -m benchmarks.speed METHOD`.

benchmarks/speed/METHOD.py says what is compared: PEER, the workers OURS_MODULE and PEER_MODULE,
their SETTINGS, a HEADER that names what differs, and the rows of one or more of TABLES; UNIT if a
step does not take images; `make_data(folder, settings)` if they read something; EQUAL if they must
compute the same values, and how closely. Writes outputs/speed/METHOD.json; the last line is
`ratio: R (ours/peer, lower is better)`, of the first row, float32.
"""

import argparse
import platform
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.speed import peer_environment
from benchmarks.speed.protocol import (
    Comparison,
    SpeedError,
    Variant,
    Worker,
    alternate,
    check_same_values,
    check_same_work,
    compare,
    ratio_lines,
    table,
    write,
)
from shared.training.precision import has_bf16_units

ROOT = Path(__file__).resolve().parents[2]

TABLES = {  # of a comparison: title, and what is added to its rows' names in the results
    "STEP": ("training step", ""),
    "WITH_LOADING": ("with loading and augmentation", ", with loading"),
    "ENCODING": ("encoding", ", encoding"),
    "RERANKING": ("re-ranking a gallery", ", re-ranking"),
    "ANSWERING": ("answering queries", ", answering"),
}
ONE_BY_ONE = ("RERANKING", "ANSWERING")  # a block times one step of these, whatever --steps says


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("method")
    parser.add_argument("--blocks", type=int, default=6, help="times that the sides take turns")
    parser.add_argument("--steps", type=int, default=3, help="steps of each variant per block")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="other SETTINGS, in YAML",
    )
    parser.add_argument("--output", default=str(ROOT / "outputs"), help="folder of results")
    options = parser.parse_args(arguments)
    try:
        measure(options)
    except SpeedError as error:
        print(f"speed: {error}", file=sys.stderr)
        return 1
    return 0


def measure(options: argparse.Namespace) -> None:
    """Run the whole comparison of one method and print it.

    Raises:
        SpeedError: no comparison for that method, no peer, other work, or a worker failed.
    """
    if not options.method.isidentifier() or not find_spec(f"benchmarks.speed.{options.method}"):
        raise SpeedError(f"no speed comparison named {options.method!r} in benchmarks/speed")
    spec = import_module(f"benchmarks.speed.{options.method}")
    output = Path(options.output).resolve() / "speed"
    peer_python = peer_environment.ensure(ROOT / ".venv-peer", spec.PEER)
    with tempfile.TemporaryDirectory(prefix="tenfold-speed-") as folder:
        settings = {**spec.SETTINGS, **changed(spec.SETTINGS, options.set)}
        settings["threads"] = options.threads
        if hasattr(spec, "make_data"):
            settings["data"] = str(spec.make_data(Path(folder), settings))
        sides = {
            side: Worker(python, module, settings, ROOT, output / f"{options.method}_{side}.log")
            for side, python, module in (
                ("ours", Path(sys.executable), spec.OURS_MODULE),
                ("peer", peer_python, spec.PEER_MODULE),
            )
        }
        try:
            ours, peer = sides["ours"].describe(), sides["peer"].describe()
            check_same_work(ours, peer)
            print(spec.HEADER)
            unit = getattr(spec, "UNIT", "images")
            print(
                f"network: {ours['parameters']:,} parameters here, {peer['parameters']:,} there; "
                f"{ours['images_per_step']} {unit} per step, {ours['threads']} threads, torch "
                f"{ours['torch']}, {machine()}\n",
                flush=True,
            )
            if hasattr(spec, "EQUAL"):
                progress("comparing what the sides compute")
                check_same_values(sides["ours"].values(), sides["peer"].values(), spec.EQUAL)
            tables = {name: runnable(getattr(spec, name, ())) for name in TABLES}
            single = [row for name in ONE_BY_ONE for row in tables[name]]
            several = [row for name in TABLES if name not in ONE_BY_ONE for row in tables[name]]
            taken = alternate(
                sides,
                variants(several),
                options.blocks,
                options.steps,
                spec.WARM_UP_STEPS,
                progress,
            )
            if single:
                taken |= alternate(sides, variants(single), options.blocks, 1, 1, progress)
        finally:
            for worker in sides.values():
                worker.close()
    rows = []
    for name, (title, addition) in TABLES.items():
        if tables[name]:
            measured = compare(tables[name], taken)
            print(table(title, measured), end="\n\n")
            rows += [replace(row, name=f"{row.name}{addition}") for row in measured]
    facts = {"machine": machine(), "threads": options.threads, "torch": torch.__version__}
    write(output / f"{options.method}.json", rows, facts)
    print(ratio_lines(rows[0]))


def changed(settings: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """The settings that NAME=VALUE arguments change.

    Raises:
        SpeedError: not of that form, or no such setting.
    """
    found = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or name not in settings:
            raise SpeedError(
                f"--set {assignment}: NAME=VALUE, where NAME is one of {', '.join(settings)}"
            )
        found[name] = yaml.safe_load(value)
    return found


def variants(comparisons: Sequence[Comparison]) -> list[Variant]:
    """What has to be run for them, each once."""
    return list(dict.fromkeys(v for c in comparisons for v in (("ours", c.ours), ("peer", c.peer))))


def runnable(comparisons: tuple[Comparison, ...]) -> list[Comparison]:
    """Without bf16 where the CPU would only emulate it."""
    if has_bf16_units("cpu"):
        return list(comparisons)
    if any("bf16" in c.ours + c.peer for c in comparisons):
        print("this CPU has no bf16 units: float32 only", file=sys.stderr)
    return [c for c in comparisons if "bf16" not in c.ours + c.peer]


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def machine() -> str:
    """The processor's model as the system names it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    sys.exit(main())
