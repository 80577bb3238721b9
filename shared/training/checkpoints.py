"""Reading checkpoints, which cannot run code.

Tensors and plain containers only are admitted (``torch.load(weights_only=True)`` or safetensors),
and a module is rebuilt only from classes of ours that are named by where they are defined.
Written they are by `shared.training.checkpoint_io`. Nothing here imports Lightning before a module
of it is asked for: whoever reads weights alone need not wait for it.
"""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from shared.training.trust import trusted_class

if TYPE_CHECKING:
    import pytorch_lightning as pl


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; the message says which file and why."""


def load_checkpoint(path: str | os.PathLike, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint of tensors and plain containers; nothing in the file is executed.

    A ``.safetensors`` file becomes a flat dict of tensors. Checksums of torch's zip format are
    verified, which ``torch.load`` does not do: a flipped bit would resume with other weights.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: empty, truncated, damaged, not a checkpoint, or holding pickled objects.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    if path.stat().st_size == 0:
        raise CheckpointError(f"refused checkpoint {path}: the file is empty")
    try:
        if path.suffix == ".safetensors":
            device = map_location if isinstance(map_location, str | int) else "cpu"
            return load_file(path, device=device)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():
                    raise ValueError(f"the checksum of {damaged} is wrong")
        content = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"refused checkpoint {path}: {_pickle_reason(error)}") from None
    except MemoryError as error:
        raise CheckpointError(f"cannot load checkpoint {path}: out of memory") from error
    # A damaged file surfaces as whatever its first wrong byte provokes (EOFError, KeyError, ...).
    except (Exception, SafetensorError) as error:
        raise CheckpointError(
            f"refused checkpoint {path}: truncated, damaged or not a checkpoint "
            f"({type(error).__name__}: {first_line(error)})"
        ) from error
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise CheckpointError(f"refused checkpoint {path}: it holds a {kind}, not a dictionary")
    return content


def load_module(path: str | os.PathLike, map_location: Any = "cpu") -> pl.LightningModule:
    """Rebuild the module a checkpoint names by ``_target_``, with its weights, in eval mode.

    Raises:
        CheckpointError: unreadable file, a target that is not a LightningModule defined under
            ``methods.``, a nested network that is not one of ours, hyperparameters that do not
            fit, or differing keys.
    """
    from pytorch_lightning import LightningModule

    checkpoint = load_checkpoint(path, map_location)
    lacking = [k for k in ("_target_", "hyper_parameters", "state_dict") if k not in checkpoint]
    if lacking:
        raise CheckpointError(
            f"refused checkpoint {path}: it lacks {', '.join(lacking)}, so it is not one of ours; "
            "official checkpoints go through the method's official.py"
        )
    hyper_parameters = checkpoint["hyper_parameters"]
    try:
        module_class = _ours(checkpoint["_target_"], LightningModule, "methods.")
        for target in _targets(hyper_parameters):
            _ours(target, nn.Module)
    except ValueError as error:
        raise CheckpointError(f"refused checkpoint {path}: {error}") from None
    try:
        module = module_class(**hyper_parameters)
    except (TypeError, ValueError) as error:
        name = module_class.__name__
        raise CheckpointError(
            f"refused checkpoint {path}: its hyperparameters do not fit {name}: {error}"
        ) from error
    module.on_load_checkpoint(checkpoint)
    load_state(module, checkpoint["state_dict"], source=path)
    # Not every map_location names a device (it may be a function), so ask the weights.
    first = next((v for v in checkpoint["state_dict"].values() if isinstance(v, Tensor)), None)
    return module.to(first.device if first is not None else "cpu").eval()


def load_state(module: nn.Module, state: Mapping[str, Any], source: object) -> None:
    """Load ``state`` into ``module``, all or nothing.

    Raises:
        CheckpointError: names every missing, unexpected and differently shaped key;
            ``module`` is then unchanged.
    """
    expected = module.state_dict()
    problems = {
        "missing": [key for key in expected if key not in state],
        "unexpected": [key for key in state if key not in expected],
        "of another shape": [
            f"{key} {_shape(state[key])} in the file, {_shape(value)} in the module"
            for key, value in expected.items()
            if key in state and _shape(state[key]) != _shape(value)
        ],
    }
    if any(problems.values()):
        lines = [
            f"  {len(keys)} {kind}:\n    " + "\n    ".join(keys)
            for kind, keys in problems.items()
            if keys
        ]
        name = type(module).__name__
        raise CheckpointError(f"{source} does not fit {name}; nothing loaded\n" + "\n".join(lines))
    module.load_state_dict(dict(state), strict=True)


def _shape(value: object) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def _ours(target: object, base: type, prefix: str = "") -> type:
    if not isinstance(target, str) or not target.startswith(prefix):
        raise ValueError(f"_target_ {target!r} is not the name of a class under {prefix}")
    return trusted_class(target, base)


def _targets(value: object) -> Iterator[object]:
    """Every ``_target_`` in nested hyperparameters."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            yield value["_target_"]
        for item in value.values():
            yield from _targets(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _targets(item)


def _pickle_reason(error: Exception) -> str:
    named = re.search(r"(?:GLOBAL|global)\s+`?([\w.]+)", str(error))
    what = f"it refers to {named.group(1)}" if named else "it is not a plain tensor file"
    return f"{what}; only tensors and plain containers are admitted, nothing was executed"


def first_line(error: BaseException) -> str:
    """Of its message."""
    return (str(error).strip().splitlines() or [""])[0]
