"""Time our training step beside a peer's: `python -m benchmarks.speed METHOD`.

benchmarks/speed/METHOD.py says what is compared: PEER, the workers OURS_MODULE and PEER_MODULE,
their SETTINGS, a HEADER that names what differs, the rows of the table, STEP, and if loading is
timed too, WITH_LOADING and `make_data(folder)`. Writes outputs/speed/METHOD.json; the last line is
`ratio: R (ours/peer, lower is better)`, of the first row, float32.
"""

import argparse
import platform
import sys
import tempfile
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch

from benchmarks.speed import peer_environment
from benchmarks.speed.protocol import (
    Comparison,
    SpeedError,
    Worker,
    alternate,
    check_same_work,
    compare,
    ratio_lines,
    table,
    write,
)
from shared.training.precision import has_bf16_units

ROOT = Path(__file__).resolve().parents[2]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("method")
    parser.add_argument("--blocks", type=int, default=6, help="times that the sides take turns")
    parser.add_argument("--steps", type=int, default=3, help="steps of each variant per block")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
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
        SpeedError: no comparison for that method, no peer, or a worker failed.
    """
    if not options.method.isidentifier() or not find_spec(f"benchmarks.speed.{options.method}"):
        raise SpeedError(f"no speed comparison named {options.method!r} in benchmarks/speed")
    spec = import_module(f"benchmarks.speed.{options.method}")
    output = Path(options.output).resolve() / "speed"
    peer_python = peer_environment.ensure(ROOT / ".venv-peer", spec.PEER)
    with tempfile.TemporaryDirectory(prefix="tenfold-speed-") as folder:
        settings = {**spec.SETTINGS, "threads": options.threads}
        if hasattr(spec, "make_data"):
            settings["data"] = str(spec.make_data(Path(folder)))
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
            print(
                f"network: {ours['parameters']:,} parameters here, {peer['parameters']:,} there; "
                f"{ours['images_per_step']} images per step, {ours['threads']} threads, torch "
                f"{ours['torch']}, {machine()}\n",
                flush=True,
            )
            tables = [runnable(spec.STEP), runnable(getattr(spec, "WITH_LOADING", ()))]
            every = [comparison for comparisons in tables for comparison in comparisons]
            variants = list(
                dict.fromkeys(v for c in every for v in (("ours", c.ours), ("peer", c.peer)))
            )
            taken = alternate(
                sides, variants, options.blocks, options.steps, spec.WARM_UP_STEPS, progress
            )
        finally:
            for worker in sides.values():
                worker.close()
    steps, loading = (compare(comparisons, taken) for comparisons in tables)
    print(table("training step", steps), end="\n\n")
    if loading:
        print(table("with loading and augmentation", loading), end="\n\n")
    with_loading = [Comparison(f"{c.name}, with loading", c.ours, c.peer) for c in tables[1]]
    facts = {"machine": machine(), "threads": options.threads, "torch": torch.__version__}
    write(output / f"{options.method}.json", [*steps, *compare(with_loading, taken)], facts)
    print(ratio_lines(steps[0]))


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
