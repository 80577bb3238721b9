"""A trained encoder as a file for other programs.

    python -m shared.checkpoints.exporters checkpoint=FILE output=mopro.pkl layout=detectron2

FILE is one of our runs, or an official checkpoint of MoCo, PCL or MoPro, of which the query encoder
is taken. Layouts:

    backbone     torchvision's names of a ResNet without classifier (the default)
    torchvision  the same with the classifier as `fc`, where there is one
    detectron2   the pickle of arrays that MODEL.WEIGHTS takes; it needs INPUT.FORMAT RGB, and the
                 mean and standard deviation that the network was trained with
    retraining   what MoPro's official script for retraining the classifier takes

An output called *.safetensors is written in that format, any other by torch.save. Sources:
docs/papers/pcl.md, section 7.4, docs/papers/mopro.md, sections 7 and 9
(salesforce/MoPro@155cae3 `detection/convert-pretrain-to-detectron2.py`).
"""

import pickle
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from shared.checkpoints.official import KeyTable, Rule, export_official
from shared.checkpoints.reading import CheckpointError, load_checkpoint
from shared.checkpoints.warm_start import model_prefix, network_rules
from shared.files import replacing

USAGE = "python -m shared.checkpoints.exporters checkpoint=FILE output=FILE [layout={}]"


def detectron2_rules() -> list[Rule]:
    pairs = {"stem.conv1.weight": "conv1.weight", "stem.conv1.norm.{rest}": "bn1.{rest}"}
    for stage in range(1, 5):
        there, here = f"res{stage + 1}.{{block}}.", f"layer{stage}.{{block}}."
        pairs[f"{there}shortcut.weight"] = f"{here}downsample.0.weight"
        pairs[f"{there}shortcut.norm.{{rest}}"] = f"{here}downsample.1.{{rest}}"
        for number in range(1, 4):
            pairs[f"{there}conv{number}.weight"] = f"{here}conv{number}.weight"
            pairs[f"{there}conv{number}.norm.{{rest}}"] = f"{here}bn{number}.{{rest}}"
    return [Rule(theirs, f"encoder.backbone.{mine}") for theirs, mine in pairs.items()]


HEADS = {"classifier": "", "fc": "projection.", "fc1": "projection.", "fc2": "projection."}
"""Where our encoder keeps the heads that official networks have beside the backbone."""
BACKBONE = Rule("{rest}", "encoder.backbone.{rest}")
LAYOUTS: dict[str, list[Rule]] = {
    "backbone": [BACKBONE],
    "torchvision": [Rule("fc.{rest}", "encoder.classifier.{rest}"), BACKBONE],
    "detectron2": detectron2_rules(),
    "retraining": [  # backbone and linear layer, both under DistributedDataParallel
        Rule("module.{rest}", "encoder.classifier.{rest}"),
        *network_rules("module.", "encoder."),
    ],
}


def export_layout(state: nn.Module | Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
    """The tensors of `encoder` that a layout holds, under its names."""
    if layout not in LAYOUTS:
        raise CheckpointError(f"no export for {layout!r}: {', '.join(LAYOUTS)}")
    return export_official(state, KeyTable(LAYOUTS[layout], fresh={"{rest}": "not used there"}))


def query_encoder(source: Mapping[str, Any]) -> dict[str, Tensor]:
    """The encoder in a checkpoint under the names of our modules; CheckpointError if no ResNet."""
    state = source.get("state_dict", source)
    if "_target_" in source:
        found = {key: value for key, value in state.items() if key.startswith("encoder.")}
    else:
        prefix = model_prefix(source).removeprefix("state_dict/") + "encoder_q."
        found = {}
        for key, value in state.items():
            if (name := key.removeprefix(prefix)) != key:
                part = HEADS.get(name.split(".")[0], "backbone.")
                found[f"encoder.{part}{name}"] = value
    if "encoder.backbone.conv1.weight" not in found:
        raise CheckpointError("no encoder that is a ResNet: not a MoCo, PCL or MoPro checkpoint")
    return found


def write(tensors: Mapping[str, Tensor], path: str | Path, layout: str) -> None:
    """Write the tensors of a layout, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    on_cpu = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with replacing(path) as file:
        if layout == "detectron2":
            arrays = {name: value.numpy() for name, value in on_cpu.items()}
            about = {"__author__": "Tenfold", "matching_heuristics": True}
            pickle.dump({"model": arrays, **about}, file)
        elif path.suffix == ".safetensors":
            file.write(save(on_cpu))
        else:
            torch.save(on_cpu, file)


def main(arguments: Sequence[str]) -> int:
    """Command line; what is wrong goes to stderr in one line, with exit status 2."""
    given = dict(argument.partition("=")[::2] for argument in arguments)
    layout = given.pop("layout", "backbone")
    if given.keys() != {"checkpoint", "output"} or layout not in LAYOUTS:
        print(f"usage: {USAGE.format('|'.join(LAYOUTS))}", file=sys.stderr)
        return 2
    try:
        tensors = export_layout(query_encoder(load_checkpoint(given["checkpoint"])), layout)
    except (CheckpointError, FileNotFoundError) as error:
        print(f"exporters: {given['checkpoint']}: {error}", file=sys.stderr)
        return 2
    write(tensors, given["output"], layout)
    print(f"{given['output']}: {len(tensors)} tensors for {layout}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
