"""Collectives of the contrastive papers. In a single process each of them is the identity."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather as _all_gather_with_grad

from shared.randomness import torch_generator


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if world_size() > 1 else 0


def all_gather(x: Tensor, grad: bool = False) -> Tensor:
    """(B, ...) on every rank -> (world * B, ...), in rank order; ValueError if B differs.

    With `grad` the backward pass sums every rank's gradient into the rows' owner, so that a loss
    averaged over ranks by DDP has the gradient of one process on the concatenated batch.
    """
    if world_size() == 1:
        return x
    gathered = [torch.zeros(1, dtype=torch.long, device=x.device) for _ in range(world_size())]
    dist.all_gather(gathered, torch.tensor([len(x)], device=x.device))
    if len(set(sizes := list(map(int, gathered)))) > 1:
        raise ValueError(f"ranks hold different batch sizes: {sizes}")
    if grad:
        return torch.cat(_all_gather_with_grad(x.contiguous()))
    pieces = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in sizes]
    dist.all_gather(pieces, x.detach().contiguous())
    return torch.cat(pieces)


def gather_objects(own: Any) -> list[Any]:
    """What each rank holds, in rank order."""
    everyone = [own] * world_size()
    if world_size() > 1:
        dist.all_gather_object(everyone, own)
    return everyone


def pad_to_longest(x: Tensor, value: float) -> Tensor:
    """(B, L) -> (B, L'), L' the largest L of all ranks; what is added holds `value`."""
    if world_size() == 1:
        return x
    longest = torch.tensor([x.shape[1]], device=x.device)
    dist.all_reduce(longest, op=dist.ReduceOp.MAX)
    return torch.nn.functional.pad(x, (0, int(longest) - x.shape[1]), value=value)


def all_reduce_mean(x: Tensor) -> Tensor:
    """Mean over ranks, without gradient."""
    if world_size() == 1:
        return x
    total = x.detach().clone()
    dist.all_reduce(total)
    return total / world_size()


def own_rows(x: Tensor) -> Tensor:
    """This rank's slice of a gathered (world * B, ...) tensor."""
    size = len(x) // world_size()
    return x[rank() * size : (rank() + 1) * size]


def step_permutation(seed: int, step: int, size: int) -> Tensor:
    """(size,) the permutation of this step's global batch: equal on all ranks, after a resume too
    (official code draws it on rank 0 and broadcasts it)."""
    return torch.randperm(size, generator=torch_generator(seed, step, "batch shuffle"))


@torch.no_grad()
def shuffled_forward(network: Callable[[Tensor], Any], images: Tensor, permutation: Tensor) -> Any:
    """The network's outputs, a tensor or a tuple of tensors and Nones, for this rank's images
    (B, ...) under shuffled BatchNorm (MoCo): each rank encodes a random slice of the global batch,
    so that the statistics of a key tell nothing about its query."""
    permutation = permutation.to(images.device)
    shuffled = own_rows(all_gather(images)[permutation])
    if images.dim() == 4 and images.is_contiguous(memory_format=torch.channels_last):
        shuffled = shuffled.contiguous(memory_format=torch.channels_last)

    def returned(output: Tensor | None) -> Tensor | None:
        return output if output is None else own_rows(all_gather(output)[permutation.argsort()])

    outputs = network(shuffled)
    return returned(outputs) if isinstance(outputs, Tensor) else tuple(map(returned, outputs))
