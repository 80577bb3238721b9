"""Two gloo processes take ALPRO's whole pre-training step as one process does.

VTC has the pairs of both ranks as negatives, with their gradient. Wrong pairs of VTM keep to a
rank's own, so that here they are given; words and regions are compared as many on each rank.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from tests.unit.alpro_toy import CLS, FRAMES, MASK, SEP, WORDS, build, lively

from .two_processes import WORLD, Record, Values, assert_ranks_equal_one, fit, ranks

STEPS, PAIRS = 2, 6  # PAIRS: over both ranks
LENGTHS = torch.tensor([8, 5, 4, 6, 6, 5])  # as many words on each rank
TERMS = ("loss_mlm", "loss_vtm", "loss_vtc", "loss_pem")


class RecordStep(Record):
    """The gradients of everything that learns."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        for name, p in pl_module.named_parameters():
            if p.grad is not None:
                self.keep(trainer, f"grad.{name}", p.grad)


def batches() -> list[dict[str, Tensor]]:
    """The batches of both ranks, concatenated."""
    generator, whole = torch.Generator().manual_seed(11), []
    mask = (torch.arange(8) < LENGTHS[:, None]).long()
    for _ in range(STEPS):
        ids = torch.randint(MASK + 1, WORDS, (PAIRS, 8), generator=generator) * mask
        ids[:, 0] = CLS
        ids.scatter_(1, LENGTHS[:, None] - 1, SEP)
        images = torch.randn(PAIRS, FRAMES, 3, 32, 32, generator=generator)
        texts = {"input_ids": ids, "attention_mask": mask}
        whole.append({"images": images, "indices": torch.arange(PAIRS), **texts})
    return whole


def next_of_rank(*of_batch: Any) -> tuple[Tensor, Tensor]:
    """The next pair of the same rank, whether the batch is one rank's or both ranks'."""
    places = torch.arange(len(of_batch[1])).view(-1, PAIRS // WORLD)
    return places.roll(1, dims=1).flatten(), places.roll(-1, dims=1).flatten()


def run(form: str, rank: int | None, **options: Any) -> Values:
    """`form`: "step"; without a rank one process takes both batches."""
    module = lively(build("pretrained", mlm_probability=1.0))
    module.contrast.negatives = next_of_rank
    module.on_train_start = lambda: None  # the prompts are there
    # AdamW would blow up the rounding noise of gradients that are analytically zero (key biases).
    module.configure_optimizers = lambda: torch.optim.SGD(
        [p for p in module.parameters() if p.requires_grad], 0.01
    )
    data = [
        batch if rank is None else {name: x.chunk(WORLD)[rank] for name, x in batch.items()}
        for batch in batches()
    ]
    loader = DataLoader(data, batch_size=None)
    return fit(module, RecordStep(), loader, options | {"max_steps": STEPS, "max_epochs": -1})


def test_two_processes_equal_one() -> None:
    first, second = ranks(run, "step")
    whole = run("step", None, devices=1)
    assert_ranks_equal_one(first, second, whole)
    for term in TERMS:
        assert not torch.equal(first[f"step0.{term}"], second[f"step0.{term}"]), term
