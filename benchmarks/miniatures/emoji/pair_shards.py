"""The common emoji pairs once more, as webdataset shards; `pair_shards` is a config's `source`."""

import io
import json
import tarfile
from itertools import pairwise
from pathlib import Path

import numpy as np

from benchmarks.miniatures.building import Provenance, build_once
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
    items = json.loads((root / "common_pairs_train.json").read_text())
    (folder / "shards").mkdir()
    cuts = np.linspace(0, len(items), SHARDS + 1).astype(int)
    for shard, (first, last) in enumerate(pairwise(cuts)):
        path = folder / "shards" / f"common-{shard:06}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
            for number in range(first, last):
                item = items[number]
                about = {"caption": item["caption"], "image_id": item["image_id"]}
                picture = (root / item["image"]).read_bytes()
                for suffix, value in (("png", picture), ("json", json.dumps(about).encode())):
                    member = tarfile.TarInfo(f"{number:06}.{suffix}")
                    member.size = len(value)
                    archive.addfile(member, io.BytesIO(value))
