"""Learning-rate factors as plain functions of progress, for `torch.optim.lr_scheduler.LambdaLR`."""

from collections.abc import Callable, Mapping, Sequence
from math import cos, pi
from typing import Any


def cosine_7_16(step: int, total_steps: int) -> float:
    """cos(7 pi t / 16 N): FixMatch's and CoMatch's decay, from 1 to 0.195, never 0."""
    return cos(7 * pi * step / (16 * total_steps))


def half_cosine(epoch: int, total_epochs: int) -> float:
    """(1 + cos(pi e / E)) / 2: from 1 to 0."""
    return (1 + cos(pi * epoch / total_epochs)) / 2


def steps(epoch: int, milestones: Sequence[int], gamma: float) -> float:
    """gamma to the power of the milestones reached; the rate changes AT a milestone."""
    return gamma ** sum(epoch >= milestone for milestone in milestones)


def warm_up_decay(step: int, ceiling: float) -> float:
    """min(ceiling, (1 + t) / (10 + t)): an EMA decay that forgets the first steps of short runs."""
    return min(ceiling, (1 + step) / (10 + step))


def epoch_factor(schedule: Mapping[str, Any], total_epochs: int) -> Callable[[int], float]:
    """Epoch -> factor of the learning rate."""
    values = dict(schedule)
    kind = values.pop("kind", None)
    if kind == "steps" and values.keys() == {"milestones", "gamma"}:
        return lambda epoch: steps(epoch, **values)
    if kind == "cosine" and not values:
        return lambda epoch: half_cosine(epoch, total_epochs)
    known = "{kind: steps, milestones, gamma} or {kind: cosine}"
    raise ValueError(f"schedule must be {known}, got {dict(schedule)}")


def rate_factor(time: int, schedule: Mapping[str, Any]) -> float:
    """Factor of the learning rate at `time`, counted from 0 in `schedule["every"]` (step, epoch).

    The product of a linear warm-up, min(1, (t + 1) / warm_up), of `gamma` for each milestone that
    is reached, and of a half cosine of length `cosine`, down to 0.
    """
    keys = {"every", "cosine", "warm_up", "milestones", "gamma"}
    if schedule.keys() != keys or schedule["every"] not in ("step", "epoch"):
        needed = f"{', '.join(sorted(keys))}, and every: step or epoch"
        raise ValueError(f"schedule needs {needed}; got {dict(schedule)}")
    factor = steps(time, schedule["milestones"], schedule["gamma"])
    if schedule["warm_up"]:
        factor *= min(1.0, (time + 1) / schedule["warm_up"])
    if schedule["cosine"] is not None:
        factor *= half_cosine(time, schedule["cosine"])
    return factor


def decay_by_epoch(
    epoch: int,
    iteration: int,
    *,
    lr: float,
    min_lr: float,
    warmup_lr: float,
    warmup_steps: int,
    decay: float,
) -> float:
    """The rate at an iteration of BLIP's pre-training (docs/papers/blip.md, section 3.7).

    In epoch 0 a linear warm-up of `warmup_steps`, which a shorter epoch cuts off, then lr
    decay^epoch, at least `min_lr`.
    """
    if epoch == 0 and warmup_steps > 0:
        return min(lr, warmup_lr + (lr - warmup_lr) * iteration / warmup_steps)
    return max(min_lr, lr * decay**epoch)


def linear_rate(
    step: int, total_steps: int, *, lr: float, min_lr: float, warmup_ratio: float
) -> float:
    """The rate of the `step`-th update, from 1 on, in ALPRO (docs/papers/alpro.md, section 3.9): up
    to `lr` in the first `warmup_ratio` of all updates, then down to `min_lr` instead of 0."""
    warmup_steps = int(warmup_ratio * total_steps)
    if step < warmup_steps:
        return lr * step / warmup_steps
    rate = lr * (total_steps - step) / max(1, total_steps - warmup_steps)
    return rate if rate > 0 else min_lr


def stepped_cosine(
    epoch: int,
    iteration: int,
    *,
    lr: float,
    min_lr: float,
    warmup_lr: float,
    warmup_blocks: int,
    epochs: int,
    warmup_block: int = 100,
) -> float:
    """The rate at an iteration in ALBEF and its descendants (docs/papers/albef.md, section 3.5).

    In epoch 0 a linear warm-up in `warmup_blocks` stairs of `warmup_block` iterations; a shorter
    epoch cuts it off. Each later epoch has one rate, a cosine in the epoch's number.
    """
    if epoch == 0 and warmup_blocks > 0:
        stair = min(max(iteration - 1, 0) // warmup_block, warmup_blocks)
        return warmup_lr + stair * (lr - warmup_lr) / warmup_blocks
    if epoch >= epochs:
        return min_lr
    return min_lr + (lr - min_lr) * (1 + cos(pi * epoch / epochs)) / 2
