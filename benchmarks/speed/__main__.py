"""Time our training step beside a peer's: `python -m benchmarks.speed METHOD`.

benchmarks/speed/METHOD.yaml says what is compared: the peer's package, the settings of both sides,
a header that names what differs, and the rows of one or more of `TABLES`; `unit` if a step does not
take images; `equal` if the sides must compute the same values, and how closely; `figures` of our
side alone, which its workload counts, and their units. `METHOD.py` holds
our side, `Ours`, and `make_data(folder, settings)` if the sides read something; `METHOD_peer.py`
the peer's, `Peer`. Writes outputs/speed/METHOD.json; the last line is `ratio: R (ours/peer, lower
is better)`, of the first row, float32.
"""

import argparse
import platform
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.speed import peer_environment, protocol
from benchmarks.speed.protocol import Comparison, SpeedError, Variant, Worker
from shared.training.precision import has_bf16_units

ROOT = Path(__file__).resolve().parents[2]
TABLES = {  # of a comparison: title, and what is added to its rows' names in the results
    "step": ("training step", ""),
    "with_loading": ("with loading and augmentation", ", with loading"),
    "encoding": ("encoding", ", encoding"),
    "detecting": ("dual-head inference", ", inference"),
    "labelling": ("pseudo boxes", ""),
    "captioning": ("writing captions", ""),
    "reranking": ("re-ranking a gallery", ", re-ranking"),
    "answering": ("answering queries", ", answering"),
}
# A block times one step of these, whatever --steps says.
ONE_BY_ONE = ("captioning", "reranking", "answering")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("method")
    parser.add_argument("--blocks", type=int, default=6, help="times that the sides take turns")
    parser.add_argument("--steps", type=int, default=3, help="steps of each variant per block")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="in YAML")
    parser.add_argument("--output", default=str(ROOT / "outputs"), help="folder of results")
    options = parser.parse_args(arguments)
    try:
        measure(options, load(options.method))
    except SpeedError as error:
        print(f"speed: {error}", file=sys.stderr)
        return 1
    return 0


def load(method: str) -> dict[str, Any]:
    """What METHOD.yaml says; SpeedError if there is none."""
    if method not in {path.stem for path in Path(__file__).parent.glob("*.yaml")}:
        raise SpeedError(f"no speed comparison named {method!r} in benchmarks/speed")
    return yaml.safe_load(Path(__file__).with_name(f"{method}.yaml").read_text())


def measure(options: argparse.Namespace, spec: Mapping[str, Any]) -> None:
    """Run the whole comparison of one method and print it; SpeedError if that cannot be done."""
    module, output = f"benchmarks.speed.{options.method}", Path(options.output).resolve() / "speed"
    peer_python = peer_environment.ensure(ROOT / ".venv-peer", spec["peer"])
    with tempfile.TemporaryDirectory(prefix="tenfold-speed-") as folder:
        settings = {**spec["settings"], **changed(spec["settings"], options.set)}
        settings |= {"threads": options.threads, "data": folder}
        if make_data := getattr(import_module(module), "make_data", None):
            progress("making what the sides read")
            make_data(Path(folder), settings)
        sides = {
            side: Worker(python, name, settings, ROOT, output / f"{options.method}_{side}.log")
            for side, python, name in (
                ("ours", Path(sys.executable), f"{module}:Ours"),
                ("peer", peer_python, f"{module}_peer:Peer"),
            )
        }
        try:
            ours, peer = (side.ask("describe") for side in sides.values())
            protocol.check_same_work(ours, peer)
            print(spec["header"])
            print(
                f"network: {ours['parameters']:,} parameters here, {peer['parameters']:,} there; "
                f"{ours['images_per_step']} {spec.get('unit', 'images')} per step, "
                f"{ours['threads']} threads, torch {ours['torch']}, {machine()}\n",
                flush=True,
            )
            if "equal" in spec:
                progress("comparing what the sides compute")
                mine, theirs = (side.ask("values") for side in sides.values())
                protocol.check_same_values(mine, theirs, spec["equal"])
            tables = {name: runnable(rows) for name, rows in spec["tables"].items()}
            taken: dict[Variant, list[list[float]]] = {}
            for single in (False, True):
                rows = [r for n, of in tables.items() if (n in ONE_BY_ONE) is single for r in of]
                steps, warm_up = (1, 1) if single else (options.steps, spec["warm_up_steps"])
                taken |= protocol.alternate(sides, rows, options.blocks, steps, warm_up, progress)
            counted = sides["ours"].ask("figures") if "figures" in spec else {}
        finally:
            for worker in sides.values():
                worker.close()
    results = []
    for name, (title, addition) in TABLES.items():
        if tables.get(name):
            measured = protocol.compare(tables[name], taken)
            print(protocol.table(title, measured), end="\n\n")
            results += [replace(row, name=f"{row.name}{addition}") for row in measured]
    for name, unit in spec.get("figures", {}).items():
        value = f"{counted[name]:.4g} {unit}" if name in counted else "not installed"
        print(f"{name.replace('_', ' ')}: {value}")
    facts: dict[str, Any] = {"figures": counted} if counted else {}
    facts |= {"machine": machine(), "threads": options.threads, "torch": torch.__version__}
    protocol.write(output / f"{options.method}.json", results, facts)
    print(protocol.ratio_lines(results[0]))


def changed(settings: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """The settings that NAME=VALUE arguments change; SpeedError if one is not of that form."""
    values = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or name not in settings:
            names = ", ".join(settings)
            raise SpeedError(f"--set {assignment}: NAME=VALUE, where NAME is one of {names}")
        values[name] = yaml.safe_load(value)
    return values


def runnable(rows: Sequence[Sequence[str]]) -> list[Comparison]:
    """The rows of a table, without bf16 where the CPU would only emulate it."""
    comparisons = [Comparison(*row) for row in rows]
    possible = [c for c in comparisons if has_bf16_units("cpu") or "bf16" not in c.ours + c.peer]
    if len(possible) < len(comparisons):
        progress("this CPU has no bf16 units: float32 only")
    return possible


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def machine() -> str:
    """The processor's model as the system names it."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    names = re.findall(r"^model name\s*:\s*(.*\S)", text, re.MULTILINE)
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    sys.exit(main())
