"""COCO-LT from COCO's annotations: `python -m benchmarks.coco_lt instances_train2017.json OUT`.

The authors' file is the first choice; this is a rebuild for whoever can't get it. Which images each
class is kept in, and how many annotations, is recorded (docs/papers/simcal.md, section 6), how
these were chosen among an image's is not: the surplus of a class goes by lot, and no image loses
its last.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from shared.data.errors import DataCorruptError, DataNotFoundError
from shared.data.readers.files import read_json
from shared.data.readers.instances import read_instances
from shared.files import write_json

ROOT = Path(__file__).resolve().parents[1]
COUNTS: dict[str, dict[str, list[int]]] = json.loads(
    Path(__file__).with_name("class_counts.json").read_text()
)
"""Images and annotations of each class, by rising category id: of COCO-LT, of LVIS v0.5."""
MEMBERS = ROOT / "tests" / "golden" / "simcal" / "dataset_statistics" / "inputs.safetensors"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coco_lt", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("source", type=Path, help="instances_train2017.json")
    parser.add_argument("target", type=Path, help="the file to write")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    try:
        recorded = load_file(MEMBERS)
        members = np.split(recorded["image_ids_i32"], recorded["image_id_offsets"][1:-1])
        counts = COUNTS["coco_lt"]
        kept = kept_annotations(given.source, members, counts["instances"], given.seed)
        write_json(given.target, reduced(read_json(given.source), kept), indent=None)
        made = read_instances(given.target)
    except (OSError, DataNotFoundError, DataCorruptError) as error:
        print(f"coco_lt: {error}", file=sys.stderr)
        return 1
    same = made.instance_counts.tolist() == counts["instances"]
    same = same and made.image_counts.tolist() == counts["images"]
    print(f"{given.target}: {len(made)} images, {len(made.labels)} annotations, a rebuild")
    print(
        "counts of images and annotations of each class: " + ("as recorded" if same else "differ")
    )
    return 0 if same else 1


def kept_annotations(
    source: Path, members: Sequence[NDArray], instances: Sequence[int], seed: int
) -> NDArray[np.int64]:
    """Ids of the annotations that stay, given for each class its images' ids, and its number of
    annotations."""
    found = read_instances(source)
    if found.num_classes != len(members):
        told = f"{found.num_classes} categories, but COCO has {len(members)}"
        raise DataCorruptError(f"{source}: {told}; it is no instances_train2017.json")
    generator = np.random.default_rng(seed)
    image_ids = found.image_ids[found.images]
    kept = []
    for label, (own, count) in enumerate(zip(members, instances, strict=True), 1):
        rows = np.flatnonzero(found.labels == label)
        rows = generator.permutation(rows[np.isin(image_ids[rows], own)])
        # The first of each image, in this random order, stays; of the others as many as are due.
        _, first = np.unique(image_ids[rows], return_index=True)
        others = np.delete(rows, first)
        kept.append(rows[first])
        kept.append(others[: max(0, count - len(first))])
    return np.sort(found.ids[np.concatenate(kept)])


def reduced(content: dict[str, Any], kept: NDArray[np.int64]) -> dict[str, Any]:
    """The file with these annotations alone, and the images that have one."""
    stay = set(kept.tolist())
    annotations = [row for row in content["annotations"] if row["id"] in stay]
    shown = {row["image_id"] for row in annotations}
    images = [row for row in content["images"] if row["id"] in shown]
    return content | {"images": images, "annotations": annotations}


if __name__ == "__main__":
    sys.exit(main())
