"""What the papers' longest runs need: docs/scale.md, from counted work and published figures.

    python -m benchmarks.scale           (a minute; the assumptions stand in benchmarks/scale.yaml)

The work of a sample is counted by torch's FlopCounterMode in one training step of the row's own
module at full size, on a CPU, forward and backward; so is what autograd keeps of a sample.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from jinja2 import Environment, StrictUndefined
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from shared.composing import compose_experiment
from shared.nn.building import build
from shared.training.method import Method

ASSUMED = Path(__file__).with_suffix(".yaml")
TEMPLATE = Path(__file__).parent / "templates" / "scale.md.j2"
PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
SAMPLES = 2  # of the step that is counted
TOKENS = 30  # of a text
FLOAT = 4  # bytes


@dataclass
class Work:
    """Of a row of the paper's size.

    Attributes:
        flops: of a sample, forward and backward.
        kept: bytes that autograd keeps of a sample in float32.
        trained, frozen: numbers of weights; momentum copies are frozen.
        epochs: of the whole run.
    """

    flops: float
    kept: float
    trained: int
    frozen: int
    epochs: int

    @property
    def checkpoint(self) -> float:
        """Bytes of a last.ckpt: weights, and AdamW's two moments of those that are trained."""
        return FLOAT * (3 * self.trained + self.frozen)

    def memory(self, samples: int) -> float:
        """Bytes of a GPU with so many samples, in float32: weights, gradients, moments, and what
        autograd keeps, and a tenth more for workspace."""
        return 1.1 * (FLOAT * (4 * self.trained + self.frozen) + samples * self.kept)

    def gpu_hours(self, samples: float, tflops: float, utilisation: float) -> float:
        """Of all epochs of so many samples."""
        return samples * self.epochs * self.flops / (tflops * 1e12 * utilisation) / 3600


def count(run: Mapping[str, Any]) -> Work:
    """Count one training step of a run's module."""
    config = compose_experiment(run["experiment"], run["overrides"])
    torch.manual_seed(0)
    module = build(config.method, Method).train()
    batch = BATCHES[run["experiment"].split("/")[0]](run["image_size"])
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in module.parameters()}
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss: Any = module.training_step(batch, 0)
        loss.backward()
    trained = [p.numel() for p in module.parameters() if p.requires_grad]
    return Work(
        flops=counter.get_total_flops() / SAMPLES,
        kept=sum(size for place, size in kept.items() if place not in weights) / SAMPLES,
        trained=sum(trained),
        frozen=sum(p.numel() for p in module.parameters()) - sum(trained),
        epochs=config.trainer.max_epochs,
    )


def texts() -> dict[str, Tensor]:
    ids = torch.randint(1000, 30_000, (SAMPLES, TOKENS))
    ids[:, 0] = 101
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def pairs(side: int) -> dict[str, Tensor]:
    images = torch.randn(SAMPLES, 3, side, side)
    return {"images": images, "indices": torch.arange(SAMPLES), **texts()}


def clips(side: int) -> dict[str, Tensor]:
    return {**pairs(side), "images": torch.randn(SAMPLES, 4, 3, side, side)}


def views(side: int) -> dict[str, Tensor]:
    query, key = torch.randn(2, SAMPLES, 3, side, side)
    return {"query": query, "key": key, "indices": torch.arange(SAMPLES)}


BATCHES: dict[str, Callable[[int], dict[str, Tensor]]] = {
    "blip": pairs,
    "alpro": clips,
    "pcl": views,
}


def best_interval(write: float, between: float) -> float:
    """Seconds of training between two checkpoints that lose the least, by Daly's higher-order
    formula (2006, equation 37), if one takes `write` seconds and failures come every `between`."""
    if write >= 2 * between:
        return between
    ratio = write / (2 * between)
    return math.sqrt(2 * write * between) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - write


def lost(write: float, between: float, restart: float) -> float:
    """Share of the time that checkpoints and failures cost at the best interval."""
    interval = best_interval(write, between)
    return write / (interval + write) + ((interval + write) / 2 + restart) / between


def most_samples(work: Work, room: float) -> int:
    """How many samples fit so many bytes of a GPU."""
    return max(0, int((room / 1.1 - work.memory(0) / 1.1) / work.kept))


def page(assumed: Mapping[str, Any], works: Mapping[str, Work]) -> str:
    """The page, in Markdown."""
    template = Environment(undefined=StrictUndefined, trim_blocks=True).from_string(
        TEMPLATE.read_text()
    )
    functions = (math.ceil, best_interval, lost, most_samples)
    named = {function.__name__: function for function in functions}
    return template.render(**assumed, works=works, **named) + "\n"


def main() -> None:
    """Count, and write the page."""
    assumed = yaml.safe_load(ASSUMED.read_text())
    works = {}
    for name, run in assumed["runs"].items():
        print(f"counting {name} ({run['experiment']})", flush=True)
        works[name] = count(run)
    PAGE.write_text(page(assumed, works))
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
