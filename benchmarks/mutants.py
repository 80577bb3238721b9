"""Plant wrong versions of a method one at a time, and show that its parity suite goes red.

`python -m benchmarks.mutants comatch` reads `tests/mutants/comatch.yaml`, a list of
{file, old, new, reason} in which `old` occurs exactly once in `file`. Each is planted in a copy of
the tree, and the parity suite runs there. Ends with `mutants: caught N of N`; a survivor means a
missing test, and a non-zero exit. The table goes to `outputs/mutants/<method>.json` too.

Imports cost more than the tests, so this process imports the libraries (never the code under test)
and forks for each mutant.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
TREE = ("methods", "shared", "benchmarks", "tests", "pyproject.toml")
LIBRARIES = [
    "torch",
    "torchvision",
    "torchmetrics",
    "pytorch_lightning",
    "numpy",
    "safetensors",
    "hydra",
    "hypothesis",
]
TIME_LIMIT = 180.0  # seconds for one mutant; out of time proves nothing: the machine may be busy


class MutantError(ValueError):
    """A mutant that cannot be planted."""


@dataclass(frozen=True)
class Mutant:
    """`old` becomes `new` in `file`; `reason` says what is wrong then."""

    file: str
    old: str
    new: str
    reason: str

    def changed(self, tree: Path) -> str:
        """The file with the error; MutantError unless `old` occurs exactly once."""
        path = tree / self.file
        if not path.is_file():
            raise MutantError(f"no file {self.file} (mutant: {self.reason})")
        text = path.read_text()
        if (count := text.count(self.old)) != 1 or self.old == self.new:
            problem = "equals `new`" if self.old == self.new else f"occurs {count} times"
            said = f"{self.file}: `old` {problem}, it must occur once and change"
            raise MutantError(f"{said} (mutant: {self.reason})\n{self.old}")
        return text.replace(self.old, self.new)


def load_mutants(path: Path) -> list[Mutant]:
    """Raises MutantError if there is no list, or an entry has other keys than it needs."""
    if not path.is_file():
        raise MutantError(f"no list of mutants at {path}: {{file, old, new, reason}} each")
    try:
        return [Mutant(**entry) for entry in yaml.safe_load(path.read_text())]
    except TypeError as error:
        raise MutantError(f"{path}: every entry is {{file, old, new, reason}}; {error}") from error


def copy_tree(target: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
    for source in (ROOT / name for name in TREE):
        if source.is_dir():
            shutil.copytree(source, target / source.relative_to(ROOT), ignore=ignored)
        else:
            shutil.copy(source, target)


def run_suite(tree: Path, method: str, log: Path) -> None:
    """In a forked child: run the parity suite of `tree`; exits with pytest's status."""
    os.setpgrp()  # so that the ranks started by a test can be ended with it
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(tree)
    sys.path[:] = [str(tree), *(p for p in sys.path if p not in ("", str(ROOT)))]
    sys.dont_write_bytecode = True
    for name in ("methods", "shared"):
        sys.modules.pop(name, None)
    found = importlib.import_module("shared").__file__
    assert found is not None
    assert Path(found).is_relative_to(tree), f"the suite would test {found}"
    tests = [Path("tests/parity/test_golden.py"), *tree.glob(f"tests/parity/test_{method}_*.py")]
    quiet = "--exitfirst --quiet --tb=short --show-capture=no --disable-warnings"
    options = [f"--rootdir={tree}", f"--method={method}", *quiet.split(), "-p", "no:cacheprovider"]
    status = pytest.main([*map(str, tests), *options])
    os._exit(status)


def run_all(
    mutants: Iterable[Mutant | None], method: str, jobs: int
) -> Iterator[tuple[Mutant | None, int | None, str, float]]:
    """Run the suite on a copy per mutant (None: unchanged), `jobs` at a time; yields as they finish
    the mutant, pytest's exit status (None: out of time), its output, and the seconds."""
    context = multiprocessing.get_context("fork")
    waiting = list(mutants)
    running: dict[int, tuple[Mutant | None, BaseProcess, Path, float]] = {}
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    mutant, tree = waiting.pop(0), Path(folder).resolve() / f"{len(waiting)}"
                    copy_tree(tree)
                    if mutant is not None:
                        (tree / mutant.file).write_text(mutant.changed(tree))
                    arguments = (tree, method, tree / "suite.log")
                    process: BaseProcess = context.Process(target=run_suite, args=arguments)
                    process.start()
                    running[process.sentinel] = (mutant, process, tree, time.monotonic())
                finished = wait(running, timeout=1.0)
                for sentinel, (mutant, process, tree, start) in list(running.items()):
                    seconds, ended = time.monotonic() - start, sentinel in finished
                    if ended or seconds >= TIME_LIMIT:
                        _end(process)
                        del running[sentinel]
                        status = process.exitcode if ended else None
                        yield mutant, status, (tree / "suite.log").read_text(), seconds
                        shutil.rmtree(tree)
        finally:
            for _, process, _, _ in running.values():
                _end(process)


def _end(process: BaseProcess) -> None:
    """End a child's process group, which holds the ranks its tests may have left."""
    if process.pid is not None:
        with suppress(ProcessLookupError):  # nothing is left of the group
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()  # in case it was not yet the leader of its group
    process.join()


def judge(status: int | None, output: str) -> tuple[str, str]:
    """What became of a mutant, and by what: caught by a test that fails, SURVIVED, INVALID (the
    suite cannot start) or TIMEOUT; the last two prove nothing."""
    if status is None:
        return "TIMEOUT", f"no end within {TIME_LIMIT:.0f} s"
    if status == pytest.ExitCode.TESTS_FAILED:
        failed = re.search(r"^FAILED \S+?::(\S+)", output, flags=re.MULTILINE)
        return "caught", failed.group(1) if failed else "?"
    if status == pytest.ExitCode.OK:
        return "SURVIVED", ""
    return "INVALID", output.strip().splitlines()[-1] if output.strip() else "no output"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mutants", description=__doc__)
    parser.add_argument("method")
    parser.add_argument("--jobs", type=int, default=2, help="mutants tested at the same time")
    parser.add_argument("--only", default="", help="only mutants whose reason contains this")
    parser.add_argument("--output", default=str(ROOT / "outputs"), help="folder of results")
    options = parser.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        listed = load_mutants(ROOT / "tests" / "mutants" / f"{options.method}.yaml")
    except MutantError as error:
        print(f"mutants: {error}", file=sys.stderr)
        return 2
    mutants = [mutant for mutant in listed if options.only in mutant.reason]
    for mutant in mutants:  # every one can be planted, before the first suite runs
        mutant.changed(ROOT)
    for library in LIBRARIES:
        importlib.import_module(library)
    [(_, status, output, seconds)] = run_all([None], options.method, jobs=1)
    if status != pytest.ExitCode.OK:
        print(output, "the parity suite is not green without mutants", sep="\n", file=sys.stderr)
        return 1
    print(f"unchanged: green in {seconds:.1f} s", flush=True)

    verdicts = []
    for planted, status, output, seconds in run_all(mutants, options.method, options.jobs):
        assert planted is not None
        result, by = judge(status, output)
        print(f"{result:8}  {planted.reason}  ({planted.file})  {by}", flush=True)
        verdict = {"file": planted.file, "reason": planted.reason, "result": result, "by": by}
        verdicts.append({**verdict, "seconds": round(seconds, 1)})
    caught = sum(verdict["result"] == "caught" for verdict in verdicts)
    content = {"caught": caught, "total": len(mutants), "mutants": verdicts}
    results = Path(options.output) / "mutants" / f"{options.method}.json"
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps(content, indent=1) + "\n")
    print(f"mutants: caught {caught} of {len(mutants)}")
    return 0 if mutants and caught == len(mutants) else 1


if __name__ == "__main__":
    sys.exit(main())
