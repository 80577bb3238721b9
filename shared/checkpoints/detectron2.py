"""A pre-trained ResNet for detection: the names and the file that detectron2 reads.

Sources: docs/papers/pcl.md, section 7.4, docs/papers/mopro.md, sections 7 and 9
(salesforce/MoPro@155cae3 `detection/convert-pretrain-to-detectron2.py`).
"""

import pickle
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from shared.checkpoints.official import Rule
from shared.files import replacing


def detectron2_rules(ours: str = "encoder.backbone.") -> list[Rule]:
    """detectron2's names of a ResNet's tensors, beside our names below the prefix `ours`."""
    rules = [
        Rule("stem.conv1.weight", f"{ours}conv1.weight"),
        Rule("stem.conv1.norm.{rest}", f"{ours}bn1.{{rest}}"),
    ]
    for stage in range(1, 5):
        there, here = f"res{stage + 1}.{{block}}.", f"{ours}layer{stage}.{{block}}."
        rules += [
            Rule(f"{there}shortcut.weight", f"{here}downsample.0.weight"),
            Rule(f"{there}shortcut.norm.{{rest}}", f"{here}downsample.1.{{rest}}"),
        ]
        for number in range(1, 4):
            rules += [
                Rule(f"{there}conv{number}.weight", f"{here}conv{number}.weight"),
                Rule(f"{there}conv{number}.norm.{{rest}}", f"{here}bn{number}.{{rest}}"),
            ]
    return rules


def write_detectron2(state: Mapping[str, Tensor], path: str | Path, author: str) -> None:
    """Write `state` (detectron2's names) as the pickle of arrays that MODEL.WEIGHTS takes."""
    path = Path(path)
    content = {
        "model": {name: value.detach().cpu().numpy() for name, value in state.items()},
        "__author__": author,
        "matching_heuristics": True,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        pickle.dump(content, file)
