"""Kill a run at random moments, start it again by the same command, and compare bit by bit.

`python -m benchmarks.chaos comatch --kills 3 [--seed 0] [hydra overrides]`: the method's miniature,
shortened, runs once undisturbed and once killed with SIGKILL. Final weights, EMA and other buffers,
optimiser, schedules, generators, loader position, metrics.csv and results.json must be the same.
The last line is `chaos: identical` (exit 0) or `chaos: first difference: ...` (exit 1); a run that
fails, or kills that did not land where they should, exit with 2.

conf/chaos/METHOD.yaml says what runs (`Plan`), and at which moments a kill must land in addition to
the random ones. Overrides on the command line come last and win.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import MISSING

from benchmarks.claims import CONF, ClaimError, read, typed
from shared.checkpoints.reading import load_checkpoint
from shared.training.loggers import read_metrics

ALWAYS = [
    "checkpoint_every=15",
    "trainer.log_every_n_steps=1",
    "precision=32-true",
    "threads=1",
    "logger=csv",
]
SPREAD = (0.05, 0.92)  # of the steps; kills land in there, one in each of equal parts
ATTEMPTS = 3
COMPARED = ("state_dict", "optimizer_states", "lr_schedulers", "callbacks", "global_step", "epoch")
RESULTS = ("status", "metrics", "config_hash", "precision")


class ChaosError(RuntimeError):
    """The experiment itself failed: nothing can be said about resumption."""


@dataclass
class Moment:
    """When a kill must land: so many training steps after a run says a phrase in its log; with 0
    before another step is done, inside of what the phrase announces."""

    phrase: str = MISSING
    steps: int = 0


@dataclass
class Plan:
    """What conf/chaos/METHOD.yaml says: what runs, what shortens it, moments of further kills."""

    experiment: str = MISSING
    overrides: list[str] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    parser.add_argument("method")
    parser.add_argument("--kills", type=int, default=3, help="how many SIGKILLs (default 3)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default 0)")
    parser.add_argument("--experiment", help="instead of the plan's, whose moments then go")
    parser.add_argument("--output", type=Path, default=Path("outputs/chaos"))
    parser.add_argument("overrides", nargs="*", help="hydra overrides")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.kills < 1:
        parser.error("--kills must be at least 1")
    folder = arguments.output / arguments.method
    try:
        plan = load_plan(arguments.method)
        experiment = arguments.experiment or plan.experiment
        moments = plan.moments if experiment == plan.experiment else []
        command = [sys.executable, "-m", "shared.run", f"experiment={experiment}"]
        command += [*ALWAYS, *plan.overrides, *arguments.overrides]
        report = chaos(command, folder, arguments.kills, arguments.seed, moments)
    except (ChaosError, ClaimError) as error:
        print(f"chaos: failed: {error}")
        return 2
    report = {"schema": 1, "method": arguments.method, "experiment": experiment, **report}
    path = arguments.output / f"{arguments.method}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    difference = report["first_difference"]
    print("chaos: identical" if difference is None else f"chaos: first difference: {difference}")
    return 0 if difference is None else 1


def load_plan(method: str, conf: Path = CONF) -> Plan:
    """Read conf/chaos/METHOD.yaml, where a moment may be its phrase alone, or raise ClaimError."""
    path = conf / "chaos" / f"{method}.yaml"
    written = read(path, "plan")
    if isinstance(moments := written.get("moments"), list):
        written["moments"] = [{"phrase": m} if isinstance(m, str) else m for m in moments]
    return typed(Plan, written, path)


def chaos(
    command: list[str], folder: Path, kills: int, seed: int, moments: Sequence[Moment] = ()
) -> dict[str, Any]:
    """Run `command`, to which `output_dir=...` is added, undisturbed and killed, both below
    `folder`: `kills` times at steps that `seed` draws and once at each of `moments`; what was done
    and found. ChaosError if a run failed, or the kills did not land as they should."""
    shutil.rmtree(folder, ignore_errors=True)
    whole, broken = folder / "undisturbed", folder / "killed"
    print(f"undisturbed: {' '.join(command[1:])}", flush=True)
    begin = time.perf_counter()
    _run(command, whole)
    seconds = time.perf_counter() - begin
    epochs = _epochs(whole)
    print(f"undisturbed: {len(epochs)} steps in {seconds:.1f} s", flush=True)
    said = _log(whole).read_text(errors="replace") if moments else ""
    if silent := [repr(m.phrase) for m in moments if not _says(said, m.phrase)]:
        raise ChaosError(f"{_log(whole)} never says {' nor '.join(silent)}")
    generator = random.Random(seed)
    wanted = kills + len(moments)
    for _ in range(ATTEMPTS):
        shutil.rmtree(broken, ignore_errors=True)
        landed = _run_with_kills(command, broken, epochs, kills, moments, generator)
        within = sum(kill["resumes_within_epoch"] for kill in landed)
        if len(landed) == wanted and within:
            break
        print(f"{len(landed)} of {wanted} kills landed, {within} within an epoch; once more")
    else:
        said = f"in {ATTEMPTS} attempts, {wanted} kills with one resumption within an epoch did not"
        longer = "make the run longer (trainer.max_steps) or checkpoint_every smaller"
        raise ChaosError(f"{said} come about; {longer}")
    return {
        "command": command[1:],
        "kills": landed,
        "seed": seed,
        "steps": len(epochs),
        "undisturbed_seconds": seconds,
        "first_difference": compare_runs(whole, broken),
    }


def compare_runs(a: Path, b: Path) -> str | None:
    """The first difference between two finished output folders, or None; figures of speed and
    memory (`perf/...`) and Lightning's own counters of batches are not compared."""

    def outcome(folder: Path) -> dict[str, Any]:
        checkpoint = load_checkpoint(folder / "checkpoints" / "last.ckpt")
        loader = checkpoint["loops"]["fit_loop"]["state_dict"].get("combined_loader")
        rows = read_metrics(folder / "metrics.csv")
        results = json.loads((folder / "results.json").read_text())
        return {
            "checkpoint": {key: checkpoint[key] for key in COMPARED} | {"loader": loader},
            "metrics.csv": [row for row in rows if not row["metric"].startswith("perf/")],
            "results.json": {key: results[key] for key in RESULTS},
        }

    one, other = outcome(a), outcome(b)
    return _first((one[name], other[name], name) for name in one)


def first_difference(a: Any, b: Any, where: str) -> str | None:
    """Where two nested values differ first, bit by bit; None if nowhere."""
    if type(a) is not type(b):
        return f"{where}: {type(a).__name__} against {type(b).__name__}"
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return f"{where}: only one run has {sorted(map(str, a.keys() ^ b.keys()))}"
        return _first((a[key], b[key], f"{where}/{key}") for key in a)
    if isinstance(a, list | tuple):
        pairs = enumerate(zip(a, b, strict=False))
        longer = None if len(a) == len(b) else f"{where}: {len(a)} against {len(b)} long"
        return _first((x, y, f"{where}[{i}]") for i, (x, y) in pairs) or longer
    if isinstance(a, torch.Tensor):
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"{where}: {a.dtype} {tuple(a.shape)} against {b.dtype} {tuple(b.shape)}"
        mine, theirs = (t.detach().cpu().contiguous().flatten().view(torch.uint8) for t in (a, b))
        if torch.equal(mine, theirs):
            return None
        largest = (a.double() - b.double()).abs().max().item()
        return f"{where}: tensors differ by up to {largest:.3g}"
    same = repr(a) == repr(b)  # also for NaN
    return None if same else f"{where}: {a!r} against {b!r}"


def _first(parts: Iterable[tuple[Any, Any, str]]) -> str | None:
    return next((found for part in parts if (found := first_difference(*part))), None)


def _run_with_kills(
    command: list[str],
    folder: Path,
    epochs: list[int],
    kills: int,
    moments: Sequence[Moment],
    generator: random.Random,
) -> list[dict[str, Any]]:
    """Kill at a random step in each of `kills` equal parts of the run and at each moment, in the
    order in which these come; then let the run finish. Returns what is known of each kill."""
    first, last = (share * len(epochs) for share in SPREAD)
    width = (last - first) / kills
    landed: list[dict[str, Any]] = []
    parts, pending, target = list(range(kills)), list(moments), None
    while parts or pending or target is not None:
        if target is None and parts:
            target = max(1, int(first + width * (parts.pop(0) + generator.random())))
        if target is not None and landed:  # what earlier starts did does not count
            target = max(target, landed[-1]["steps_done"] + 1)
        place = _start_and_kill(command, folder, target, pending, generator.random() * 0.2)
        if place is None:
            missed = [repr(moment.phrase) for moment in pending]
            missed += [] if target is None else [f"step {target}"]
            print(f"no kill could be placed at {', '.join(missed)}", flush=True)
            return landed
        moment, done = place
        if moment:
            pending.remove(moment)
        else:
            target = None
        checkpoint = folder / "checkpoints" / "last.ckpt"
        resumes = load_checkpoint(checkpoint)["global_step"] if checkpoint.exists() else 0
        within = 0 < resumes < len(epochs) and epochs[resumes - 1] == epochs[resumes]
        epoch = epochs[min(done, len(epochs) - 1)]
        kill = {
            "moment": moment.phrase if moment else None,
            "steps_done": done,
            "epoch": epoch,  # then under way
            "steps_of_epoch": done - epochs.index(epoch),
            "resumes_from": resumes,
            "resumes_within_epoch": within,
        }
        landed.append(kill)
        print("killed:", ", ".join(f"{key} {value}" for key, value in kill.items()), flush=True)
    _run(command, folder)
    return landed


def _start_and_kill(
    command: list[str], folder: Path, target: int | None, moments: Sequence[Moment], delay: float
) -> tuple[Moment | None, int] | None:
    """SIGKILL the run at the first of `moments`, or `delay` seconds after it reports `target`
    steps; the moment and the steps done, or None if it ended or the moment was over before."""
    log = _log(folder)
    earlier = log.stat().st_size if log.exists() else 0
    reached: Moment | None = None
    steps_then = 0
    with _start(command, folder) as process:
        while process.poll() is None:
            done = len(_epochs(folder))
            if reached is None:
                said = log.read_bytes()[earlier:].decode(errors="replace")
                reached = next((m for m in moments if _says(said, m.phrase)), None)
                steps_then = done = len(_epochs(folder))
            if reached is not None and done >= steps_then + reached.steps:
                time.sleep(0.0 if reached.steps else delay / 4)
                break
            if reached is None and target is not None and done >= target:
                time.sleep(delay)
                break
            time.sleep(0.01)
    _check(process, folder, (0, -signal.SIGKILL))
    done = len(_epochs(folder))
    missed = reached is not None and reached.steps == 0 and done != steps_then
    return None if missed or process.returncode != -signal.SIGKILL else (reached, done)


def _check(process: subprocess.Popen[bytes], folder: Path, expected: Sequence[int]) -> None:
    if process.returncode not in expected:
        lines = _log(folder).read_text(errors="replace").strip().splitlines()[-15:]
        said = f"the run ended with status {process.returncode}; the end of {_log(folder)}:"
        raise ChaosError("\n".join([said, *lines]))


def _run(command: list[str], folder: Path) -> None:
    with _start(command, folder) as process:
        process.wait()
    _check(process, folder, [0])


@contextmanager
def _start(command: list[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start a run; with the block its whole process group ends, workers of the loader too."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(_log(folder), "ab") as log:
        process = subprocess.Popen(
            [*command, f"output_dir={folder}"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _log(folder: Path) -> Path:
    return folder.with_suffix(".log")


def _epochs(folder: Path) -> list[int]:
    """The epoch of every training step that metrics.csv holds so far."""
    path = folder / "metrics.csv"
    rows = read_metrics(path) if path.exists() else []
    return list({r["step"]: int(r["epoch"]) for r in rows if r["metric"] == "train/loss"}.values())


def _says(log: str, phrase: str) -> bool:
    """Whether the phrase occurs as whole words: "epoch 2" is not in "epoch 20"."""
    return re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", log) is not None


if __name__ == "__main__":
    sys.exit(main())
