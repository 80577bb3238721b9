"""`precision=auto`: time a few real training steps in each precision, and take the faster one."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

if TYPE_CHECKING:
    import pytorch_lightning as pl

CANDIDATES = ("32-true", "bf16-mixed")
ADVANTAGE = 0.95
"""bf16 must need at most this share of float32's time: a tie keeps the exact one."""


class PrecisionChoice(NamedTuple):
    """The chosen precision (a Lightning name), and the seconds per step of those measured."""

    precision: str
    seconds_per_step: dict[str, float]

    def __str__(self) -> str:
        figures = ", ".join(f"{k} {1e3 * v:.1f} ms" for k, v in self.seconds_per_step.items())
        return f"precision {self.precision} ({figures} per step)"


def has_bf16_units(device: torch.device | str) -> bool:
    """Whether the device computes in bfloat16 rather than emulating it."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def choose_precision(
    module: pl.LightningModule, batch: Any, device: torch.device | str = "cpu", seconds: float = 1.0
) -> PrecisionChoice:
    """Time forward and backward of ``module.training_step`` on one batch in each precision.

    The steps run on a copy of the module, without a Trainer, and leave the random number generators
    as they were. `seconds` are those of all together, without the warm-up.
    """
    from lightning_fabric.utilities import move_data_to_device

    if not has_bf16_units(device):
        return PrecisionChoice(CANDIDATES[0], {})
    device = torch.device(device)
    trial = copy.deepcopy(module).to(device).train()
    batch = move_data_to_device(batch, device)
    steps = {name: partial(_step, trial, batch, device, name) for name in CANDIDATES}
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*self\.log.*|.*self.trainer.*")
        return choose_fastest(steps, seconds)


def choose_fastest(
    steps: Mapping[str, Callable[[], object]], seconds: float = 1.0, least: int = 3
) -> PrecisionChoice:
    """Compare the medians of steps timed in turn; the first one is the default that must be beaten.

    Another that raises (unsupported operation, loss not finite) is out of the race.
    """
    default, *_ = steps
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for name, step in steps.items():  # warm-up: kernels are chosen and memory is allocated here
        try:
            step()
        except (ArithmeticError, RuntimeError):
            if name == default:
                raise
            del taken[name]
    end = time.perf_counter() + seconds
    # Alternating, so that a disturbance of the machine meets all of them.
    while time.perf_counter() < end or len(taken[default]) < least:
        for name, times in taken.items():
            begin = time.perf_counter()
            steps[name]()
            times.append(time.perf_counter() - begin)
    figures = {name: median(times) for name, times in taken.items()}
    best = min(figures, key=lambda name: figures[name])
    precision = best if figures[best] <= ADVANTAGE * figures[default] else default
    return PrecisionChoice(precision, figures)


def _step(module: pl.LightningModule, batch: Any, device: torch.device, precision: str) -> None:
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16-mixed"):
        loss: Any = module.training_step(batch, 0)
    (loss["loss"] if isinstance(loss, Mapping) else loss).backward()
    module.zero_grad(set_to_none=True)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
