"""Writing checkpoints that survive a crash: the previous file stays until the next one is whole."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.checkpoint_io import CheckpointIO
from omegaconf import DictConfig, ListConfig, OmegaConf
from safetensors.torch import save
from torch import Tensor, nn

from shared.checkpoints.reading import ABOUT, CheckpointError, first_line, load_checkpoint
from shared.files import replacing

PLAIN: tuple[type, ...] = (type(None), bool, int, float, complex, str, bytes)
PLAIN += (torch.Size, torch.dtype, torch.device)
PREDICTING = (
    *("_target_", "hyper_parameters", "class_names", "category_ids", "vocabulary", "accuracy"),
)
# Of the data: what a network is shown; the latter two are of a detector.
SHOWN = ("augmentation", "image_mode", "eval_resizing", "preparation")


class AtomicCheckpointIO(CheckpointIO):
    """Lightning plugin: write beside, sync, rename; read without unpickling code. Lightning's own
    IO builds the whole file in memory, does not sync it, and loads with ``weights_only=False``."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: Any = None
    ) -> None:
        """Write ``checkpoint`` so that ``path`` always holds either the old or the new file;
        CheckpointError if the disk refuses, TypeError of an entry that could not be read back."""
        target = Path(path)
        plain = _plain(checkpoint, "checkpoint")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with replacing(target) as file:
                torch.save(plain, file)
        except (OSError, RuntimeError) as error:
            previous = "the previous one is untouched" if target.exists() else "there is none yet"
            said = f"cannot write checkpoint {target}: {_root_reason(error)}; {previous}. Free some"
            rest = "space or set output_dir to another disk, then run the same command to continue."
            raise CheckpointError(f"{said} {rest}") from error

    def load_checkpoint(
        self, path: str | os.PathLike, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Load for resuming; ``weights_only`` cannot be turned off."""
        return load_checkpoint(path, "cpu" if map_location is None else map_location)

    def remove_checkpoint(self, path: str | os.PathLike) -> None:
        Path(path).unlink(missing_ok=True)


def write_portable(checkpoint: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a checkpoint of ours as ``.safetensors``, a third or less of its size: weights in half
    precision, equal ones once, and of the rest what prediction needs, as JSON in the header."""
    weights: dict[str, Tensor] = {}
    copies: dict[str, str] = {}
    for key, value in checkpoint["state_dict"].items():
        small = value.half() if value.is_floating_point() else value
        known = (k for k, w in weights.items() if k not in copies.values() and _same(w, small))
        if value.numel() > 1 and (origin := next(known, None)) is not None:
            copies[key] = origin
        else:
            weights[key] = small.contiguous()
    data = checkpoint["datamodule_hyper_parameters"]
    about = {key: checkpoint[key] for key in PREDICTING if key in checkpoint}
    about["datamodule_hyper_parameters"] = {k: data[k] for k in SHOWN if k in data}
    header = json.dumps(_plain({**about, "copies": copies}, "checkpoint"), allow_nan=False)
    with replacing(Path(path)) as file:
        file.write(save(weights, {ABOUT: header}))


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def _plain(value: Any, where: str) -> Any:
    """``value`` with OmegaConf containers and dict or str subclasses turned into plain data."""
    if isinstance(value, DictConfig | ListConfig):
        value = OmegaConf.to_container(value, resolve=True)
    if isinstance(value, nn.Parameter):
        return value.detach()
    if type(value) in PLAIN or isinstance(value, Tensor):
        return value
    if isinstance(value, Mapping):
        return {_plain(k, where): _plain(v, f"{where}.{k}") for k, v in value.items()}
    if type(value) in (list, tuple, set):
        return type(value)(_plain(item, f"{where}[{i}]") for i, item in enumerate(value))
    if isinstance(value, str | os.PathLike):
        return os.fspath(value) if isinstance(value, os.PathLike) else str.__str__(value)
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    admitted = "a checkpoint holds tensors and plain containers only, convert it before saving"
    raise TypeError(f"{where} is a {kind}; {admitted}")


def _root_reason(error: BaseException) -> str:
    """Reason of an error in the operating system's own words, where torch wrapped them."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return first_line(error)
