"""A pre-trained backbone as a file for other projects: torchvision's names, or Detectron2's.

    python -m methods.pcl.backbone checkpoint=FILE output=backbone.pth
    python -m methods.pcl.backbone checkpoint=FILE output=backbone.pkl layout=detectron2

FILE is one of our MoCo or PCL runs, or an official checkpoint of PCL or MoCo. Detectron2 needs
`INPUT.FORMAT RGB` and the mean and standard deviation that the network was trained with.
"""

import pickle
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from methods.pcl.official import official_prefix
from shared.checkpoints.reading import CheckpointError, load_checkpoint
from shared.files import replacing

LAYOUTS = ("torchvision", "detectron2")
USAGE = "python -m methods.pcl.backbone checkpoint=FILE output=FILE [layout=torchvision|detectron2]"


def query_backbone(source: Mapping[str, Any]) -> dict[str, Tensor]:
    """The query encoder's backbone without its head, under torchvision's names.

    Args: source: content of one of our checkpoints, or of an official one.

    Raises:
        CheckpointError: no such network in it.
    """
    state = source.get("state_dict", source)
    if "_target_" in source:
        prefix = "encoder.backbone."
    else:
        prefix = official_prefix(source).removeprefix("state_dict/") + "encoder_q."
    found = {
        key.removeprefix(prefix): value
        for key, value in state.items()
        if key.startswith(prefix) and not key.startswith(f"{prefix}fc.")
    }
    if "conv1.weight" not in found:
        raise CheckpointError(f"no ResNet under {prefix!r}: not a MoCo or PCL checkpoint of one")
    return found


def detectron2_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's ResNet under the names of Detectron2: `stem`, `res2` .. `res5`, `norm`."""
    renamed = {}
    for key, value in state.items():
        if key.endswith("num_batches_tracked"):
            continue
        name = re.sub(r"^layer(\d)", lambda match: f"res{int(match[1]) + 1}", key)
        if name == key:
            name = f"stem.{key}"
        name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        renamed[re.sub(r"\bbn(\d)", r"conv\1.norm", name)] = value
    return renamed


def write(state: Mapping[str, Tensor], path: Path, layout: str) -> None:
    """Write whole or not at all: a state dict of tensors, or Detectron2's pickle of arrays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        if layout == "detectron2":
            arrays = {key: value.cpu().numpy() for key, value in detectron2_names(state).items()}
            content = {"model": arrays, "__author__": "PCL", "matching_heuristics": True}
            pickle.dump(content, file)
        else:
            torch.save({key: value.cpu() for key, value in state.items()}, file)


def main(arguments: Sequence[str]) -> int:
    given = dict(argument.partition("=")[::2] for argument in arguments)
    layout = given.pop("layout", "torchvision")
    if given.keys() != {"checkpoint", "output"} or layout not in LAYOUTS:
        print(f"usage: {USAGE}", file=sys.stderr)
        return 2
    try:
        state = query_backbone(load_checkpoint(given["checkpoint"]))
    except (CheckpointError, FileNotFoundError) as error:
        print(f"backbone: {given['checkpoint']}: {error}", file=sys.stderr)
        return 2
    write(state, Path(given["output"]), layout)
    print(f"{len(state)} tensors: {given['output']}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
