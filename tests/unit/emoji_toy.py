"""Made-up drawings for the tests of the emoji sets."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.miniatures.emoji.concepts import Concept
from benchmarks.miniatures.emoji.packages import RENDERINGS
from benchmarks.miniatures.emoji.render import Renderings

NAMES = [f"{a}{b}" for a in "bdfklm" for b in ("aro", "ibe", "uno", "ela", "ozi")]


def made_up() -> Renderings:
    """Ten tools, eight birds, three symbols-to-be and three small sub-groups' concepts."""
    kinds = [("tool", "objects")] * 10 + [("bird", "animals-nature")] * 8
    kinds += [("arrow", "symbols")] * 9 + [("hotel", "travel-places")] * 3
    concepts = [
        Concept(i, f"{i:X}", NAMES[i], [], [], group, subgroup)
        for i, (subgroup, group) in enumerate(kinds)
    ]
    generator = np.random.default_rng(0)
    shape = (len(concepts), 9, 9, 4)  # of squares of 8 px
    coarse = {r.id: generator.integers(0, 256, shape).astype(np.uint8) for r in RENDERINGS}
    pictures = {name: drawn.repeat(8, 1).repeat(8, 2) for name, drawn in coarse.items()}
    present = {r.id: np.ones(len(concepts), bool) for r in RENDERINGS}
    present["fx"][:9] = False
    present["etwo"][::2] = False
    return Renderings(concepts, pictures, present, "Drawn by chance.\n")


def read(root: Path, name: str) -> Any:
    return json.loads((root / f"{name}.json").read_text())
