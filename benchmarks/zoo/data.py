"""What the small models learn from: all drawings of the training artists, alone and in scenes."""

from pathlib import Path

from benchmarks.miniatures.building import Provenance
from benchmarks.miniatures.emoji.pairs import pairs
from benchmarks.miniatures.emoji.scenes import scenes

SCENES = {"train": 4000, "val": 300, "test": 300, "objects": (1, 3), "longest_side": (28, 44)}


def pairs_and_scenes(root: str | Path) -> Provenance:
    """Make `emoji-pairs` and `emoji-zoo-scenes` present in the folder of all data."""
    root = Path(root)
    return {**pairs(root / "emoji-pairs"), **scenes(root / "emoji-zoo-scenes", **SCENES)}  # type: ignore[arg-type]
