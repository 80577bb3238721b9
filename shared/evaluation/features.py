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
    """Features of every image of `loader`, over all ranks, each data-set index once.

    The features are written once into the buffer that is returned: no list of batches is joined
    and, in a single process with a loader in order, nothing is copied. In a distributed run each
    rank reads its share and afterwards holds all rows.

    Args:
        forward: (B, C, H, W) on `device` -> (B, d); evaluation mode is the caller's affair.
        loader: batches with `images`, `labels` and `indices`. Indices may repeat, as with
            samplers that pad: the first occurrence counts.
        device: where `forward` runs; with NCCL also where rows pass between ranks.
    """
    rows, labels, indices = _local_rows(forward, loader, torch.device(device))
    shares = gather_objects((indices, labels, None if rows is None else rows.shape[1]))
    width = next((share[2] for share in shares if share[2] is not None), None)
    if width is None:
        raise ValueError("no image to extract features from: the loader is empty on every rank")
    filled = [share for share in shares if len(share[0])]
    all_indices = torch.cat([share[0] for share in filled])
    all_labels = torch.cat([share[1] for share in filled])

    # Of equal indices the first row counts; -1 sends the others nowhere.
    first, place = first_rows(all_indices)
    destination = torch.where(first[place] == torch.arange(len(place)), place, -1)
    sizes = [len(share[0]) for share in shares]
    features = _all_rows(rows, sizes, width, destination, torch.device(device))
    return Features(features, all_labels[first], all_indices[first])


def first_rows(values: Tensor) -> tuple[Tensor, Tensor]:
    """(n,) -> first row of each distinct value, ascending, and the place of each row's value."""
    distinct, place = values.unique(return_inverse=True)
    rows = torch.arange(len(values), device=values.device)
    first = rows.new_zeros(len(distinct))
    return first.scatter_reduce(0, place, rows, "amin", include_self=False), place


def _local_rows(
    forward: Callable[[Tensor], Tensor], loader: Iterable[Mapping[str, Any]], device: torch.device
) -> tuple[Tensor | None, Tensor, Tensor]:
    """This rank's features (n, d) or None, labels and indices, in the loader's order."""
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
        return None, torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long)
    return buffer[:used], torch.cat(labels), torch.cat(indices).long()


def _all_rows(
    rows: Tensor | None, sizes: list[int], width: int, destination: Tensor, device: torch.device
) -> Tensor:
    """Every rank's rows at their destinations, passed on in messages of bounded size."""
    total = int(destination.max()) + 1
    if rows is not None and world_size() == 1 and torch.equal(destination, torch.arange(len(rows))):
        return rows
    everything = torch.empty(total, width)
    start = 0
    for owner, size in enumerate(sizes):
        for first in range(0, size, ROWS_PER_MESSAGE):
            count = min(ROWS_PER_MESSAGE, size - first)
            places = destination[start + first : start + first + count]
            if owner == rank():
                assert rows is not None
                message = rows[first : first + count]
            else:
                message = torch.empty(count, width)
            if world_size() > 1:
                message = message.to(device) if dist.get_backend() == "nccl" else message
                message = message.contiguous()
                dist.broadcast(message, owner)
            everything[places[places >= 0]] = message.cpu()[places >= 0]
        start += size
    return everything
