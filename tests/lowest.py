"""Print pip's constraints of `make test-lowest`: each dependency at the lowest version we allow."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def requirements(project: dict, extra: str) -> Iterator[Requirement]:
    """The project's requirements and those of one of its extras, which may name further ones."""
    yield from map(Requirement, project["dependencies"])
    waiting, seen = [extra], {extra}
    for name in waiting:
        for needed in map(Requirement, project["optional-dependencies"][name]):
            if needed.name == project["name"]:
                waiting += sorted(needed.extras - seen)
                seen |= needed.extras
            else:
                yield needed


def lowest(needed: Requirement, versions: Sequence[str]) -> str:
    """The constraint of the lowest of the released versions that a requirement allows."""
    allowed = list(needed.specifier.filter(versions))
    if not allowed:
        raise ValueError(f"{needed}: none of the released versions {', '.join(versions)}")
    return f"{needed.name}=={min(allowed, key=Version)}"


def released(name: str) -> list[str]:
    """The versions of a package that pip could install here."""
    command = [sys.executable, "-m", "pip", "index", "versions", "--disable-pip-version-check"]
    said = subprocess.run([*command, name], check=True, capture_output=True, text=True).stdout
    (found,) = re.findall(r"^Available versions: (.+)$", said, re.MULTILINE)
    return found.split(", ")


if __name__ == "__main__":
    for needed in requirements(tomllib.loads(PROJECT.read_text())["project"], "dev"):
        if needed.specifier:
            print(lowest(needed, released(needed.name)))
