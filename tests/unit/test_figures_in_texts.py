"""Figures that README, cards and the zoo's page state, where they are cheap, are computed anew."""

import json
import math
import re
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from shared.provenance import ROOT

WORDS = {19: "Nineteen"}


def cases(method: str) -> int:
    return sum(path.is_dir() for path in (ROOT / "tests" / "golden" / method).iterdir())


def mutants(method: str) -> int:
    return len(yaml.safe_load((ROOT / "tests" / "mutants" / f"{method}.yaml").read_text()))


def weights(name: str) -> str:
    """Millions of weights of a model of the zoo, by the header of its file."""
    with (ROOT / "zoo" / f"{name}.safetensors").open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    shapes = [entry["shape"] for key, entry in header.items() if key != "__metadata__"]
    return f"{sum(map(math.prod, shapes)) / 1e6:.1f}"


def chance(true: float) -> str:
    """Cross-entropy of a matching head that knows only how many pairs are right."""
    return f"{-true * math.log(true) - (1 - true) * math.log(1 - true):.3f}"


DRAWINGS = len(list((ROOT / "zoo" / "drawings").glob("*.png")))
STATED: list[tuple[str, str, Callable[[], object]]] = [
    ("README.md", r"among the (\d+) drawings in `zoo/drawings`", lambda: DRAWINGS),
    ("zoo/README.md", r"In `drawings/` lie (\d+) drawings", lambda: DRAWINGS),
    ("zoo/README.md", r"\[`vit-emoji`\].*?, (\S+) M weights", lambda: weights("vit-emoji")),
    ("zoo/README.md", r"\[`text-emoji`\].*?, (\S+) M weights", lambda: weights("text-emoji")),
    ("methods/blip/README.md", r"(\d+) of \d+ cases", lambda: cases("blip")),
    ("methods/blip/README.md", r"caught, (\d+) of \d+", lambda: mutants("blip")),
    ("methods/simcal/README.md", r"(\w+) golden cases", lambda: WORDS[cases("simcal")]),
    *(
        (f"methods/{name}/README.md", r"to two wrong ones; (\S+) knows", lambda: chance(1 / 3))
        for name in ("albef", "alpro", "blip")
    ),
]


@pytest.mark.parametrize(("page", "pattern", "computed"), STATED)
def test_a_figure_is_what_it_says(page: str, pattern: str, computed: Callable[[], object]) -> None:
    text = " ".join(Path(ROOT / page).read_text().split())
    found = re.search(pattern, text)
    assert found, f"{page} no longer says {pattern}: change this table, too"
    assert found.group(1) == str(computed())
