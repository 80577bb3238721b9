"""The common emoji pairs once more, as webdataset shards; `pair_shards` is a config's `source`."""

import json
from pathlib import Path

from benchmarks.miniatures.building import Provenance, build_once, write_shards
from benchmarks.miniatures.emoji.pairs import pairs

SHARDS = 4
VERSION = 1  # raise it with any change of the shards


def pair_shards(root: str | Path) -> Provenance:
    """Make the pairs and `shards/common-<number>.tar` present in `root`.

    Each pair of `common_pairs_train.json` is <key>.png and <key>.json with caption and image_id.
    """
    root = Path(root)
    provenance = pairs(root)
    origin = provenance["emoji-pairs"]["files"]["common_pairs_train.json"]
    recipe = {"version": VERSION, "shards": SHARDS, "pairs": origin}
    files = build_once(root, "shards", recipe, lambda folder: _build(folder, root))
    provenance["emoji-pairs"]["files"] |= files
    return provenance


def _build(folder: Path, root: Path) -> None:
    samples = []
    for item in json.loads((root / "common_pairs_train.json").read_text()):
        about = {"caption": item["caption"], "image_id": item["image_id"]}
        picture = (root / item["image"]).read_bytes()
        samples.append({"png": picture, "json": json.dumps(about).encode()})
    write_shards(folder / "shards", "common", SHARDS, samples)
