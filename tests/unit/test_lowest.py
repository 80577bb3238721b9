"""The lowest versions at which `make test-lowest` runs the tests."""

import tomllib

import pytest
from packaging.requirements import Requirement

from tests.lowest import PROJECT, lowest, requirements


def test_the_lowest_allowed_release_is_taken() -> None:
    needed = Requirement("sums>=1.9,!=1.9.0")
    assert lowest(needed, ["2.0", "1.10", "1.9.1", "1.9.0", "1.2"]) == "sums==1.9.1"


def test_an_impossible_bound_is_named() -> None:
    with pytest.raises(ValueError, match=r"sums>=3: none of the released versions 2\.0, 1\.0"):
        lowest(Requirement("sums>=3"), ["2.0", "1.0"])


def test_the_extras_of_an_extra_are_followed() -> None:
    project = tomllib.loads(PROJECT.read_text())["project"]
    names = [needed.name for needed in requirements(project, "dev")]
    assert {"torch", "pytest", "tree-sitter", "submitit", "optuna", "av"} <= set(names)
    assert "tenfold" not in names
    assert len(names) == len(set(names))


def test_every_requirement_has_a_lowest_version() -> None:
    """Without one, what we allow would begin with versions that nobody has tried."""
    project = tomllib.loads(PROJECT.read_text())["project"]
    stubs = {"types-PyYAML"}
    assert {n.name for n in requirements(project, "dev") if not n.specifier} == stubs
