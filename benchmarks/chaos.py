"""Kill a run at random moments, start it again by the same command, and compare bit by bit.

`python -m benchmarks.chaos comatch --kills 3 [--seed 0] [hydra overrides]`: the method's miniature,
shortened, runs once undisturbed and once killed with SIGKILL. Final weights, EMA and other buffers,
optimiser, schedules, generators, loader position, metrics.csv and results.json must be the same.
The last line is `chaos: identical` (exit 0) or `chaos: first difference: ...` (exit 1); a run that
fails, or kills that did not land in training, exit with 2.

SHORT is what shortens the miniature; overrides on the command line come after it and win.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from shared.training.checkpoints import load_checkpoint
from shared.training.loggers import read_metrics

SHORT = [
    "trainer.max_steps=240",
    "data.steps_per_epoch=40",
    "checkpoint_every=15",
    "trainer.log_every_n_steps=1",
    "precision=32-true",
    "threads=1",
    "logger=csv",
]
SPREAD = (0.05, 0.92)  # of the steps; kills land in there, one in each of equal parts
ATTEMPTS = 3
COMPARED = ("state_dict", "optimizer_states", "lr_schedulers", "callbacks", "global_step", "epoch")


class ChaosError(RuntimeError):
    """The experiment itself failed: nothing can be said about resumption."""


@dataclass
class Kill:
    """One kill that landed: steps done when it came, and the step the next start goes on from."""

    steps_done: int
    resumes_from: int
    resumes_within_epoch: bool


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    parser.add_argument("method")
    parser.add_argument("--kills", type=int, default=3, help="how many SIGKILLs (default 3)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default 0)")
    parser.add_argument("--experiment", help="default: METHOD/mini")
    parser.add_argument("--output", type=Path, default=Path("outputs/chaos"))
    parser.add_argument("overrides", nargs="*", help="hydra overrides")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.kills < 1:
        parser.error("--kills must be at least 1")
    experiment = arguments.experiment or f"{arguments.method}/mini"
    command = [sys.executable, "-m", "shared.run", f"experiment={experiment}"]
    command += [*SHORT, *arguments.overrides]
    folder = arguments.output / arguments.method
    try:
        report = chaos(command, folder, arguments.kills, arguments.seed)
    except ChaosError as error:
        print(f"chaos: failed: {error}")
        return 2
    report = {"schema": 1, "method": arguments.method, "experiment": experiment, **report}
    path = arguments.output / f"{arguments.method}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    difference = report["first_difference"]
    print("chaos: identical" if difference is None else f"chaos: first difference: {difference}")
    return 0 if difference is None else 1


def chaos(command: list[str], folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Run `command` undisturbed and killed, both below `folder`; what was done and found.

    `command` must accept `output_dir=...` as a further argument.

    Raises:
        ChaosError: a run failed, or the kills did not land as they should.
    """
    shutil.rmtree(folder, ignore_errors=True)
    whole, broken = folder / "undisturbed", folder / "killed"
    print(f"undisturbed: {' '.join(command[1:])}", flush=True)
    begin = time.perf_counter()
    _run(command, whole)
    seconds = time.perf_counter() - begin
    epochs = _epochs(whole / "metrics.csv")
    print(f"undisturbed: {len(epochs)} steps in {seconds:.1f} s", flush=True)
    generator = random.Random(seed)
    for _ in range(ATTEMPTS):
        shutil.rmtree(broken, ignore_errors=True)
        landed = _run_with_kills(command, broken, epochs, kills, generator)
        if len(landed) == kills and any(kill.resumes_within_epoch for kill in landed):
            break
        print(f"{len(landed)} of {kills} kills landed, none usable within an epoch; once more")
    else:
        raise ChaosError(
            f"in {ATTEMPTS} attempts, {kills} kills with one resumption within an epoch did not "
            "come about; make the run longer (trainer.max_steps) or checkpoint_every smaller"
        )
    _print_table(landed)
    return {
        "command": command[1:],
        "kills": [asdict(kill) for kill in landed],
        "seed": seed,
        "steps": len(epochs),
        "undisturbed_seconds": seconds,
        "first_difference": compare_runs(whole, broken),
    }


def compare_runs(a: Path, b: Path) -> str | None:
    """The first difference between two finished output folders, None if there is none.

    Figures of speed and memory (`perf/...`) are not compared, nor Lightning's own counters of
    started and repeated batches.
    """
    return (
        first_difference(_outcome(a), _outcome(b), "checkpoint")
        or first_difference(_rows(a), _rows(b), "metrics.csv")
        or first_difference(_results(a), _results(b), "results.json")
    )


def first_difference(a: Any, b: Any, where: str) -> str | None:
    """Where two nested values differ first, bit by bit; None if nowhere."""
    if type(a) is not type(b):
        return f"{where}: {type(a).__name__} against {type(b).__name__}"
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return f"{where}: only one run has {sorted(map(str, a.keys() ^ b.keys()))}"
        parts = ((a[key], b[key], f"{where}/{key}") for key in a)
        return next((d for part in parts if (d := first_difference(*part))), None)
    if isinstance(a, list | tuple):
        pairs = zip(a, b, strict=False)
        parts = ((x, y, f"{where}[{i}]") for i, (x, y) in enumerate(pairs))
        found = next((d for part in parts if (d := first_difference(*part))), None)
        return found or (None if len(a) == len(b) else f"{where}: {len(a)} against {len(b)} long")
    if isinstance(a, torch.Tensor):
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"{where}: {a.dtype} {tuple(a.shape)} against {b.dtype} {tuple(b.shape)}"
        if torch.equal(_bits(a), _bits(b)):
            return None
        largest = (a.double() - b.double()).abs().max().item()
        return f"{where}: tensors differ by up to {largest:.3g}"
    same = repr(a) == repr(b)  # also for NaN
    return None if same else f"{where}: {a!r} against {b!r}"


def _run_with_kills(
    command: list[str], folder: Path, epochs: list[int], kills: int, generator: random.Random
) -> list[Kill]:
    """Kill at a random step in each of `kills` equal parts of the run, then let it finish."""
    first, last = (share * len(epochs) for share in SPREAD)
    width = (last - first) / kills
    landed: list[Kill] = []
    for part in range(kills):
        target = int(first + width * (part + generator.random()))
        target = max(target, landed[-1].steps_done + 1) if landed else max(target, 1)
        steps_done = _start_and_kill(command, folder, target, generator.random() * 0.2)
        if steps_done is None:
            print(f"the run ended before step {target} could be seen", flush=True)
            return landed
        checkpoint = folder / "checkpoints" / "last.ckpt"
        resumes = load_checkpoint(checkpoint)["global_step"] if checkpoint.exists() else 0
        within = 0 < resumes < len(epochs) and epochs[resumes - 1] == epochs[resumes]
        landed.append(Kill(steps_done, resumes, within))
        print(f"killed after step {steps_done}, goes on from step {resumes}", flush=True)
    _run(command, folder)
    return landed


def _start_and_kill(command: list[str], folder: Path, target: int, delay: float) -> int | None:
    """SIGKILL the run `delay` seconds after it reports `target` steps; steps done, or None."""
    metrics = folder / "metrics.csv"
    with _start(command, folder) as process:
        try:
            while process.poll() is None:
                if metrics.exists() and len(_epochs(metrics)) >= target:
                    time.sleep(delay)
                    break
                time.sleep(0.02)
            if process.poll() is not None:
                if process.returncode:
                    raise ChaosError(_failure(folder, process.returncode))
                return None
        finally:
            # The whole group: workers of the loader must not outlive the run either.
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    return len(_epochs(metrics)) if process.returncode == -signal.SIGKILL else None


def _run(command: list[str], folder: Path) -> None:
    with _start(command, folder) as process:
        process.wait()
    if process.returncode:
        raise ChaosError(_failure(folder, process.returncode))


def _start(command: list[str], folder: Path) -> subprocess.Popen[bytes]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_suffix(".log"), "ab") as log:
        return subprocess.Popen(
            [*command, f"output_dir={folder}"],
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _failure(folder: Path, status: int) -> str:
    log = folder.with_suffix(".log")
    lines = log.read_text(errors="replace").strip().splitlines()[-15:]
    return f"the run ended with status {status}; the end of {log}:\n" + "\n".join(lines)


def _epochs(metrics: Path) -> list[int]:
    """The epoch of every training step that is in the file."""
    rows = read_metrics(metrics)
    return list({r["step"]: int(r["epoch"]) for r in rows if r["metric"] == "train/loss"}.values())


def _outcome(folder: Path) -> dict[str, Any]:
    checkpoint = load_checkpoint(folder / "checkpoints" / "last.ckpt")
    loader = checkpoint["loops"]["fit_loop"]["state_dict"].get("combined_loader")
    return {key: checkpoint[key] for key in COMPARED} | {"loader": loader}


def _rows(folder: Path) -> list[dict[str, str]]:
    rows = read_metrics(folder / "metrics.csv")
    return [row for row in rows if not row["metric"].startswith("perf/")]


def _results(folder: Path) -> dict[str, Any]:
    results = json.loads((folder / "results.json").read_text())
    return {key: results[key] for key in ("status", "metrics", "config_hash", "precision")}


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8)


def _print_table(kills: list[Kill]) -> None:
    print("\n kill | after step | goes on from | within an epoch")
    for number, kill in enumerate(kills, 1):
        within = "yes" if kill.resumes_within_epoch else "no"
        print(f"{number:5} | {kill.steps_done:10} | {kill.resumes_from:12} | {within}")
    print()


if __name__ == "__main__":
    sys.exit(main())
