"""Compare a method with the golden vectors of its official code.

`python -m benchmarks.parity comatch [--golden DIR]` runs the method's cases under `tests/parity`,
writes `outputs/parity/<method>.json` and ends with `parity: N of N cases`. The exit status is 0
only if every case passed.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


class CaseRecorder:
    """Pytest plugin: what became of each golden case."""

    def __init__(self) -> None:
        self.cases: dict[str, dict[str, Any]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        _, bracket, rest = report.nodeid.partition("test_golden[")
        if not bracket:
            return
        name = rest.removesuffix("]").partition("/")[2]
        case = self.cases.setdefault(name, {"case": name, "passed": True, "outputs": 0})
        # A case that is skipped or expected to fail has not passed either.
        case["passed"] = case["passed"] and report.passed
        case["outputs"] = dict(report.user_properties).get("outputs", case["outputs"])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parity", description=__doc__)
    parser.add_argument("method")
    parser.add_argument("--golden", default=str(ROOT / "tests" / "golden"), help="folder of cases")
    parser.add_argument("--output", default=str(ROOT / "outputs"), help="folder of results")
    options = parser.parse_args(arguments)

    cases = Path(options.golden) / options.method
    if not cases.is_dir():
        print(f"parity: no golden cases at {cases}", file=sys.stderr)
        return 2
    recorder = CaseRecorder()
    quiet = ("--verbose", "--disable-warnings", "--show-capture=no", "--tb=line")
    options_of = (f"--rootdir={ROOT}", f"--golden={Path(options.golden).resolve()}")
    tests = str(ROOT / "tests" / "parity" / "test_golden.py")
    arguments = [tests, *options_of, f"--method={options.method}", *quiet, "-p", "no:cacheprovider"]
    status = pytest.main(arguments, plugins=[recorder])
    found = list(recorder.cases.values())
    passed = sum(case["passed"] for case in found)
    path = Path(options.output) / "parity" / f"{options.method}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    result = {"passed": passed, "total": len(found), "cases": found}
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"parity: {passed} of {len(found)} cases")
    return 0 if status == pytest.ExitCode.OK and found and passed == len(found) else 1


if __name__ == "__main__":
    sys.exit(main())
