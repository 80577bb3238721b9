"""Reading checkpoints, which cannot run code.

Tensors and plain containers only are admitted (``torch.load(weights_only=True)`` or safetensors),
and a module is rebuilt only from classes of ours that are named by where they are defined.
Lightning is imported only when a module is rebuilt: who reads weights need not wait for it.
"""

from __future__ import annotations

import os
import pickle
import re
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from shared.checkpoints.zoo import is_of_zoo, zoo_file
from shared.data.errors import CheckpointError
from shared.files import open_regular, parse_json
from shared.nn.building import trusted_class

if TYPE_CHECKING:
    import pytorch_lightning as pl


MOST_PARTS = 50_000_000  # of nested containers; generators and samplers hold thousands
DEEPEST = 100  # nesting of containers
ABOUT = "tenfold"  # in the header of a .safetensors file: what a checkpoint holds beside weights


Checkpoint = str | os.PathLike[str] | Mapping[str, Any]
"""A file, or the content of one."""


def content_of(source: Checkpoint) -> Mapping[str, Any]:
    """The content of a checkpoint, which `load_checkpoint` reads if it is a file."""
    return source if isinstance(source, Mapping) else load_checkpoint(source)


def load_checkpoint(path: str | os.PathLike, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint of tensors and plain containers; nothing in the file is executed.

    A ``.safetensors`` file becomes a flat dict of tensors, or what `write_portable` was given;
    ``zoo:NAME`` is one that comes with us. FileNotFoundError if there is no such file;
    CheckpointError if it is empty, truncated, damaged (torch checks no checksums, this does), not a
    checkpoint, or holds pickled objects.
    """
    path, refused = Path(path), f"refused checkpoint {path}"
    try:
        path = zoo_file(path) if is_of_zoo(path) else path
    except ValueError as error:
        raise CheckpointError(f"{refused}: {error}") from None
    try:
        with open_regular(path) as file:
            empty = not file.read(1)
    except FileNotFoundError:
        raise FileNotFoundError(f"no checkpoint at {path}") from None
    except OSError as error:
        raise CheckpointError(f"{refused}: {error.strerror}") from None
    try:
        if empty:
            raise ValueError("the file is empty")
        if path.suffix == ".safetensors":
            device = map_location if isinstance(map_location, str | int) else "cpu"
            content = _read_safetensors(path, device)
            return _bounded(content, refused)
        if tarfile.is_tarfile(path):
            raise ValueError("torch would unpack it as its oldest format, a tar archive")
        if zipfile.is_zipfile(path):
            _check_archive(path)
        content = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{refused}: {_pickle_reason(error)}") from None
    except MemoryError as error:
        raise CheckpointError(f"cannot load checkpoint {path}: out of memory") from error
    # A damaged file surfaces as whatever its first wrong byte provokes (EOFError, KeyError, ...).
    except (Exception, SafetensorError) as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        said = f"{refused}: truncated, damaged or not a checkpoint ({reason})"
        raise CheckpointError(said) from error
    return _bounded(content, refused)


def _read_safetensors(path: Path, device: str | int) -> dict[str, Any]:
    with safe_open(path, framework="pt", device=device) as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        about = (file.metadata() or {}).get(ABOUT)
    if about is None:
        return tensors
    content = parse_json(about)
    copies = content.pop("copies")
    if len(set(copies.values())) < len(copies):  # so that no file asks for many times its size
        raise ValueError("two weights are copies of the same one")
    return {**content, "state_dict": tensors | {key: tensors[of] for key, of in copies.items()}}


def _bounded(content: Any, refused: str) -> dict[str, Any]:
    """`content`; CheckpointError if it is no dictionary, or its containers unfold to too much."""
    if not isinstance(content, dict):
        raise CheckpointError(f"{refused}: it holds a {type(content).__name__}, not a dictionary")
    if _count_parts(content) > MOST_PARTS:
        what = f"its containers hold themselves, or unfold to more than {MOST_PARTS:.0e} parts"
        raise CheckpointError(f"{refused}: {what}")
    return content


def load_module(path: str | os.PathLike, map_location: Any = "cpu") -> pl.LightningModule:
    """Rebuild the module a checkpoint names by ``_target_``, with its weights, in eval mode.
    CheckpointError if it is no LightningModule of ``methods``, a nested network is not ours, or
    hyperparameters or keys do not fit."""
    return rebuild_module(load_checkpoint(path, map_location), path)


def rebuild_module(checkpoint: Mapping[str, Any], path: str | os.PathLike) -> pl.LightningModule:
    """Rebuild a module as `load_module` does, from what `load_checkpoint` has read."""
    from pytorch_lightning import LightningModule

    lacking = [k for k in ("_target_", "hyper_parameters", "state_dict") if k not in checkpoint]
    if lacking:
        what = f"it lacks {', '.join(lacking)}, so it is not one of ours"
        other = "official checkpoints go through the method's official.py"
        raise CheckpointError(f"refused checkpoint {path}: {what}; {other}")
    hyper_parameters, state = checkpoint["hyper_parameters"], checkpoint["state_dict"]
    try:
        module_class = _ours(checkpoint["_target_"], LightningModule, "methods.")
        for target in _targets(hyper_parameters):
            _ours(target, nn.Module)
        if not isinstance(state, Mapping):
            raise ValueError("its state_dict is no mapping")
        if broken := [key for key, value in state.items() if not _is_finite(value)]:
            raise ValueError(f"weights that are not finite: {', '.join(broken[:5])}")
    except ValueError as error:
        raise CheckpointError(f"refused checkpoint {path}: {error}") from None
    try:
        # On the meta device sizes cost nothing: what does not fit the weights is never allocated.
        with torch.device("meta"), _at_most(len(state)):
            outline = module_class(**deepcopy(hyper_parameters))
        outline.on_load_checkpoint(dict(checkpoint))
        _check_state(outline, state, path)
        module = module_class(**hyper_parameters)
        module.on_load_checkpoint(dict(checkpoint))
    except CheckpointError:
        raise
    # Hyperparameters of a stranger surface as whatever their first wrong value provokes.
    except Exception as error:
        reason = first_line(error) or type(error).__name__
        what = f"its hyperparameters do not fit {module_class.__name__}: {reason}"
        raise CheckpointError(f"refused checkpoint {path}: {what}") from error
    module.load_state_dict(dict(state))
    # Not every map_location names a device (it may be a function), so ask the weights.
    first = next((value for value in state.values() if isinstance(value, Tensor)), None)
    return module.to(first.device if first is not None else "cpu").eval()


def _check_state(module: nn.Module, state: Mapping[str, Any], path: object) -> None:
    """Raise a CheckpointError that names every missing, unexpected and differently shaped key."""
    expected = module.state_dict()
    problems = {
        "missing": [key for key in expected if key not in state],
        "unexpected": [str(key) for key in state if key not in expected],
        "of another shape": [
            f"{key} {_shape(state[key])} in the file, {_shape(value)} in the module"
            for key, value in expected.items()
            if key in state and _shape(state[key]) != _shape(value)
        ],
    }
    lines = [f"  {len(k)} {kind}:\n    " + "\n    ".join(k) for kind, k in problems.items() if k]
    if lines:
        name = type(module).__name__
        raise CheckpointError(f"{path} does not fit {name}; nothing loaded\n" + "\n".join(lines))


def _check_archive(path: Path) -> None:
    """ValueError if a checksum of torch's zip format is wrong, or an entry is compressed, which
    torch never does: a small file could unfold to any size."""
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                raise ValueError(f"{entry.filename} is compressed")
        if damaged := archive.testzip():
            raise ValueError(f"the checksum of {damaged} is wrong")


def _count_parts(content: Any) -> int:
    """The number of parts that whoever walks nested containers will meet (forty lists can unfold to
    2^40); more than any limit of a container that holds itself or nests too deep."""
    counts: dict[int, int] = {}

    def count(value: Any, depth: int) -> int:
        if not isinstance(value, dict | list | tuple | set):
            return 1
        if (known := counts.get(id(value))) is not None:
            return known
        if depth == DEEPEST:
            return MOST_PARTS + 1
        counts[id(value)] = MOST_PARTS + 1  # while it is walked, so that a circle is noticed
        parts = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        counts[id(value)] = 1 + sum(count(part, depth + 1) for part in parts)
        return counts[id(value)]

    return count(content, 0)


@contextmanager
def _at_most(weights: int) -> Iterator[None]:
    """Stop by CheckpointError a constructor that makes far more parts than there are weights."""
    left = 1000 + 50 * weights  # parts without weights, and copies, come beside those with

    def count(*_: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise CheckpointError("its hyperparameters ask for more layers than it has weights")

    parts = register_module_module_registration_hook(count)
    with parts, register_module_parameter_registration_hook(count):
        yield


def _is_finite(value: Any) -> bool:
    if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
        return True
    # Expanded tensors say enormous sizes at no cost; what they repeat need be looked at only once.
    stored = value.as_strided(
        [1 if step == 0 else size for size, step in zip(value.shape, value.stride(), strict=True)],
        value.stride(),
    )
    return bool(torch.isfinite(stored).all())


def _shape(value: object) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def _ours(target: object, base: type, prefix: str = "") -> type:
    if not isinstance(target, str) or not target.startswith(prefix):
        raise ValueError(f"_target_ {target!r} is not the name of a class under {prefix}")
    return trusted_class(target, base)


def _targets(value: object) -> Iterator[object]:
    if isinstance(value, Mapping):
        if "_target_" in value:
            yield value["_target_"]
        value = list(value.values())
    for item in value if isinstance(value, list | tuple) else ():
        yield from _targets(item)


def _pickle_reason(error: Exception) -> str:
    named = re.search(r"(?:GLOBAL|global)\s+`?([\w.]+)", str(error))
    what = f"it refers to {named.group(1)}" if named else "it is not a plain tensor file"
    return f"{what}; only tensors and plain containers are admitted, nothing was executed"


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]
