"""Features of a whole data set in one buffer, in data-set order and the same on every rank."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from shared.distributed import gather_objects, rank, world_size

ROWS_PER_MESSAGE = 65536


class Features(NamedTuple):
    """features (n, d) float32, labels (n,) or (n, C), indices (n,) ascending; all on the CPU."""

    features: Tensor
    labels: Tensor
    indices: Tensor


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Evaluation mode within the block; afterwards every submodule has its own mode back.

    `module.train()` instead would also wake what was frozen in evaluation mode before.
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@torch.no_grad()
def extract_features(
    forward: Callable[[Tensor], Tensor],
    loader: Iterable[Mapping[str, Any]],
    device: torch.device | str,
) -> Features:
    """Features by `forward`, (B, C, H, W) on `device` -> (B, d), of every image of `loader`, whose
    batches have `images`, `labels` and `indices`, over all ranks, each data-set index once.

    They are written once into the buffer that is returned; in a single process with a loader in
    order nothing is copied. Each rank reads its share and afterwards holds all rows.
    """
    features, labelled = _local_rows(forward, loader, torch.device(device))
    labelled = gather_rows(labelled, device)
    if not labelled:
        raise ValueError("no image to extract features from: the loader is empty on every rank")
    first, place = first_rows(labelled["indices"])
    rows = torch.arange(len(place))
    destination = torch.where(first[place] == rows, place, -1)
    if world_size() > 1:
        features = gather_rows(features, device, destination)
    elif not torch.equal(destination, rows):
        features = {"features": features["features"][first]}
    return Features(**features, **{name: value[first] for name, value in labelled.items()})


def gather_rows(
    own: Mapping[str, Tensor], device: torch.device | str, places: Tensor | None = None
) -> dict[str, Tensor]:
    """Each value (n, ...) -> the rows of all ranks on the CPU, in their order, or each at its place
    in `places`, where -1 leaves a row out.

    n may differ between ranks; a rank without rows may lack the value. NCCL passes them on
    `device`, in messages of bounded size.
    """
    if world_size() == 1:
        return {name: value.cpu() for name, value in own.items()}
    forms = gather_objects({name: (v.shape, v.dtype) for name, v in own.items() if v.numel()})
    link = torch.device(device if dist.get_backend() == "nccl" else "cpu")
    gathered = {}
    for name in sorted(set().union(*forms)):
        shares = [(owner, *form[name]) for owner, form in enumerate(forms) if name in form]
        total = sum(shape[0] for _, shape, _ in shares)
        destination = torch.arange(total) if places is None else places
        _, shape, dtype = shares[0]
        joined = torch.empty(int(destination.max()) + 1, *shape[1:], dtype=dtype)
        start = 0
        for owner, shape, _ in shares:
            for first in range(0, shape[0], ROWS_PER_MESSAGE):
                count = min(ROWS_PER_MESSAGE, shape[0] - first)
                message = torch.empty(count, *shape[1:], dtype=dtype, device=link)
                if owner == rank():
                    message.copy_(own[name][first : first + count])
                dist.broadcast(message.view(torch.uint8), owner)  # as bytes: any dtype and backend
                target = destination[start + first : start + first + count]
                joined[target[target >= 0]] = message.cpu()[target >= 0]
            start += shape[0]
        gathered[name] = joined
    return gathered


def first_rows(values: Tensor) -> tuple[Tensor, Tensor]:
    """(n,) -> first row of each distinct value, ascending, and the place of each row's value."""
    distinct, place = values.unique(return_inverse=True)
    rows = torch.arange(len(values), device=values.device)
    first = rows.new_zeros(len(distinct))
    return first.scatter_reduce(0, place, rows, "amin", include_self=False), place


def _local_rows(
    forward: Callable[[Tensor], Tensor], loader: Iterable[Mapping[str, Any]], device: torch.device
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """This rank's `features` (n, d), and `labels` and `indices`, in the loader's order; nothing of
    an empty loader."""
    buffer: Tensor | None = None
    labels, indices, used = [], [], 0
    # The bar appears only on a terminal, and only if there is more than a moment to wait.
    bar = tqdm(loader, "features", delay=3, leave=False, disable=None if rank() == 0 else True)
    for batch in bar:
        if missing := {"images", "labels", "indices"} - batch.keys():
            raise ValueError(
                f"features need a loader of un-augmented images: its batches have {sorted(batch)}, "
                f"without {', '.join(sorted(missing))}"
            )
        rows = forward(batch["images"].to(device))
        if rows.ndim != 2 or len(rows) != len(batch["indices"]):
            raise ValueError(
                f"`forward` must return one feature vector per image, got {tuple(rows.shape)} for "
                f"{len(batch['indices'])} images"
            )
        if buffer is None:
            # A little more than all batches like this one, since unreadable images may be missing
            # from it; memory that is never written to is never taken.
            batches = len(loader) if isinstance(loader, Sized) else 1
            buffer = torch.empty(batches * (len(rows) + len(rows) // 16 + 1), rows.shape[1])
        if used + len(rows) > len(buffer):  # a loader without length, or with uneven batches
            buffer = torch.cat([buffer, buffer.new_empty(len(buffer) + len(rows), rows.shape[1])])
        buffer[used : used + len(rows)] = rows
        labels.append(batch["labels"].cpu())
        indices.append(batch["indices"].cpu())
        used += len(rows)
    if buffer is None:
        return {}, {}
    small = {"labels": torch.cat(labels), "indices": torch.cat(indices).long()}
    return {"features": buffer[:used]}, small
