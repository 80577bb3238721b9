"""Common steps of the methods' `official.py`: read a file, and find the model in it."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from shared.checkpoints.official import Rule
from shared.checkpoints.reading import Checkpoint, CheckpointError, content_of

OTHER_TRAINER = "training state of another trainer"
TRAINER_KEYS = dict.fromkeys(("epoch", "arch", "optimizer", "optimizer/{rest}"), OTHER_TRAINER)
"""Keys that PyTorch's ImageNet example saves beside the state dict, and so do its descendants."""


def model_prefix(source: Mapping[str, Any], level: str = "state_dict") -> str:
    """Prefix of the model's tensors in a file: the `level` and a slash, `module.`, both or none."""
    prefix = f"{level}/" if level in source else ""
    keys = source.get(level, source)
    return prefix + ("module." if any(str(key).startswith("module.") for key in keys) else "")


def read_start(path: Checkpoint, kind: str, kinds: Iterable[str], remedy: str) -> Mapping[str, Any]:
    """Content of the file that `warm_start={path, kind}` names; CheckpointError if the kind is none
    of the method's `kinds`, or the file is unreadable or missing, for which `remedy` is told."""
    if kind not in kinds:
        raise CheckpointError(f"warm_start.kind {kind!r} is unknown: {', '.join(kinds)}")
    try:
        return content_of(path)
    except FileNotFoundError as error:
        official = "docs/weights.md says where official files come from"
        raise CheckpointError(f"{error}: {remedy}; {official}") from None


def state_of_run(source: Mapping[str, Any], package: str, path: Checkpoint) -> dict[str, Tensor]:
    """State dict of a checkpoint that a run of `package` wrote; CheckpointError of any other."""
    target = source.get("_target_")
    state = source.get("state_dict")
    if not (str(target).startswith(f"{package}.") and isinstance(state, Mapping)):
        found = f"it is of {target}" if target else "it is not of Tenfold"
        raise CheckpointError(f"{path} is no checkpoint of {package}: {found}")
    return dict(state)


def moco_rules(official: str, ours: str = "encoder.") -> list[Rule]:
    """An encoder of MoCo or PCL, whose head is `fc`: of two layers (v2) or of one (v1)."""
    return [
        Rule(f"{official}fc.0.{{rest}}", f"{ours}projection.fc1.{{rest}}"),
        Rule(f"{official}fc.2.{{rest}}", f"{ours}projection.fc2.{{rest}}"),
        Rule(f"{official}fc.{{rest}}", f"{ours}projection.fc.{{rest}}"),
        Rule(f"{official}{{rest}}", f"{ours}backbone.{{rest}}"),
    ]


def network_rules(official: str, ours: str, backbone: str = "") -> list[Rule]:
    """An encoder of CoMatch or MoPro, whose projection is `fc1` and `fc2` there; the layers of the
    ResNet are beside the heads, or have the prefix `backbone`."""
    heads = {"classifier": "classifier", "fc1": "projection.fc1", "fc2": "projection.fc2"}
    rules = [Rule(f"{official}{k}.{{rest}}", f"{ours}{v}.{{rest}}") for k, v in heads.items()]
    # Last, because without a prefix it matches every key.
    return [*rules, Rule(f"{official}{backbone}{{rest}}", f"{ours}backbone.{{rest}}")]
