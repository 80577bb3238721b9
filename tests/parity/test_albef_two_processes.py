"""Two gloo processes compute what one process computes on the concatenated batch.

With negatives of all ranks ("global") that holds for contrast, matching and their gradients, and
for both queues; with this rank's negatives, as in the official code, for the queues. Masked words
are averaged over each rank's own selection, so that loss is left out.
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from methods.albef.module import Pretraining
from methods.albef.retrieval import Retrieval
from shared.tasks import image_text_matching
from tests.unit.albef_toy import TEXT, pretraining, retrieval

from .recording import recording
from .two_processes import WORLD, Record, Values, assert_ranks_equal_one, fit, ranks

STEPS, PAIRS, IMAGES, WORDS = 3, 6, 4, 30  # PAIRS: over both ranks
FORMS = ["pretraining", "retrieval", "local"]


class RecordAlignment(Record):
    """All gradients; the masked words' loss is not comparable."""

    def keep(self, trainer, name, value) -> None:
        if name != "loss_mlm":
            super().keep(trainer, name, value)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        for name, p in pl_module.named_parameters():
            if p.grad is not None:
                self.keep(trainer, f"grad.{name}", p.grad)


def build(form: str) -> Pretraining | Retrieval:
    changes = {"negatives": "local" if form == "local" else "global", "queue_size": 15}
    changes |= {"text": TEXT | {"vocab_size": WORDS}, "temperature": 0.2, "ramp": True}
    if form == "retrieval":
        return retrieval(**changes)
    return pretraining(objectives=["ita", "itm"], identity="image", **changes)


def batches(rank: int | None) -> list[dict[str, Tensor]]:
    """The batches of one rank, or with None the concatenation of both.

    The ranks' texts differ in length, as their longest ones do.
    """
    generator = torch.Generator().manual_seed(11)
    out = []
    for _ in range(STEPS):
        lengths = torch.randint(3, 6, (PAIRS,), generator=generator)
        lengths[0], lengths[-1] = 5, 8
        mask = (torch.arange(8) < lengths[:, None]).long()
        ids = torch.randint(5, WORDS, (PAIRS, 8), generator=generator) * mask
        ids[:, 0] = 2
        batch = {
            "images": torch.randn(PAIRS, 3, 16, 16, generator=generator),
            "input_ids": ids,
            "attention_mask": mask,
            "image_ids": torch.randint(IMAGES, (PAIRS,), generator=generator),
            "indices": torch.arange(PAIRS),
        }
        batch["image_ids"][0], batch["image_ids"][-1] = 0, 1
        if rank is not None:
            batch = {name: value.chunk(WORLD)[rank] for name, value in batch.items()}
            longest = int(batch["attention_mask"].sum(dim=1).max())
            batch |= {n: batch[n][:, :longest] for n in ("input_ids", "attention_mask")}
        out.append(batch)
    return out


def run(form: str, rank: int | None, **options: Any) -> Values:
    options |= {"max_steps": STEPS, "max_epochs": -1}
    record, module = RecordAlignment(), build(form)
    # AdamW would blow up the rounding noise of gradients that are analytically zero (key biases).
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), 0.1)
    watched = [(image_text_matching, name) for name in ("negative_weights", "draw_negatives")]
    with recording(*watched) as calls:
        values = fit(module, record, DataLoader(batches(rank), batch_size=None), options)
    for name in ("negative_weights", "draw_negatives"):
        for number, call in enumerate(calls[name]):
            values[f"rows.{name}{number}"] = call.result
    return values


def rows_apart(values: Values) -> tuple[Values, Values]:
    rows = {name: value for name, value in values.items() if name.startswith("rows.")}
    return rows, {name: value for name, value in values.items() if name not in rows}


@pytest.mark.parametrize("form", ["pretraining", "retrieval"])
def test_two_processes_equal_one(form: str) -> None:
    first, second = ranks(run, form)
    (first_rows, first), (second_rows, second) = rows_apart(first), rows_apart(second)
    whole_rows, whole = rows_apart(run(form, None, devices=1))
    assert_ranks_equal_one(first, second, whole)
    assert len(whole_rows) == 4 * STEPS
    for name, rows in whole_rows.items():  # the same candidates, weights and draws
        torch.testing.assert_close(torch.cat([first_rows[name], second_rows[name]]), rows)
    assert not torch.equal(first["step0.loss_itm"], second["step0.loss_itm"])
    drawn = [first_rows[f"rows.draw_negatives{n}"] for n in range(2 * STEPS)]
    assert any((rows >= PAIRS // WORLD).any() for rows in drawn), "of the other rank, too"


def test_queues_hold_the_pairs_of_both_ranks() -> None:
    first, second = ranks(run, "local")
    whole = run("local", None, devices=1)
    queue = [name for name in whole if name.startswith("contrast.queue.")]
    assert {f"contrast.queue.{n}" for n in ("features", "text", "idx", "pointer")} <= set(queue)
    for name in queue:
        assert torch.equal(first[name], second[name]), name
    # Before the second step both runs have the same weights: the first batch's rows agree.
    for name in ("contrast.queue.features", "contrast.queue.text", "contrast.queue.idx"):
        torch.testing.assert_close(first[name][:PAIRS], whole[name][:PAIRS], atol=2e-2, rtol=0.1)
    assert first["rows.negative_weights0"].shape == (PAIRS // WORLD, PAIRS // WORLD)
    assert torch.equal(first["contrast.queue.pointer"], whole["contrast.queue.pointer"])
