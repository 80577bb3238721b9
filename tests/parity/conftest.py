"""Options of the golden tests: `pytest tests/parity --golden DIR --method comatch`."""

from pathlib import Path

import pytest

from .harness import find_cases

GOLDEN = Path(__file__).parents[1] / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden", default=None, help="folder of golden cases (tests/golden)")
    parser.addoption("--method", action="append", default=None, help="only this method's cases")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden_case" not in metafunc.fixturenames:
        return
    # The options do not exist if pytest was started from another folder than this one.
    golden = Path(metafunc.config.getoption("golden", None) or GOLDEN)
    methods = metafunc.config.getoption("method", None)
    try:
        cases = find_cases(golden, methods)
    except FileNotFoundError as error:
        raise pytest.UsageError(str(error)) from error
    metafunc.parametrize("golden_case", cases, ids=str)
