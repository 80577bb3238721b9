"""Two gloo processes calibrate as one process does on the concatenated episode.

Real Lightning loops with real DDP: the official code gathers the regions of all GPUs and takes one
step on the pooled batch (docs/papers/simcal.md, section 9). Losses (mean over ranks), gradients as
DDP averages them, and the heads after the updates must agree, although ranks have different numbers
of positives, of negatives and of objects to pad to.
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from methods.simcal.controls import ImageLevelOnly, ProposalLevelOnly, Unbalanced
from methods.simcal.module import SimCal
from tests.unit.simcal_toy import calibration, detector, scenes, trained

from .two_processes import WORLD, Record, Values, assert_ranks_equal_one, fit, ranks

STEPS, BATCH = 3, 6  # BATCH: over both ranks
FORMS: dict[str, type] = {
    "simcal": SimCal,
    "cascade": SimCal,
    "image_level": ImageLevelOnly,
    "unbalanced": Unbalanced,
    "proposal_level": ProposalLevelOnly,
}


class HeadRecord(Record):
    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        for name, p in pl_module.heads.named_parameters():
            self.keep(trainer, f"grad.{name}", p.grad)


def share(batch: dict[str, Any], rank: int | None) -> dict[str, Any]:
    if rank is None:
        return batch
    own = slice(rank * BATCH // WORLD, (rank + 1) * BATCH // WORLD)
    return {name: value[own] for name, value in batch.items()}


def run(form: str, rank: int | None, **options: Any) -> Values:
    stages = 2 if form == "cascade" else 1
    module = calibration(FORMS[form], detector=detector(stages=stages))
    state: dict[str, Tensor] = {**trained(20).state_dict()}
    for name, value in list(state.items()):  # both stages start alike
        state[name.replace("heads.0", "heads.1")] = value
    module.load_state_dict(state, strict=False)
    module.start_heads()
    batches = [share(scenes(BATCH, 50 + step), rank) for step in range(STEPS)]
    options |= {"max_steps": STEPS, "max_epochs": -1}
    return fit(module, HeadRecord(), DataLoader(batches, batch_size=None), options)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", FORMS)
def test_two_processes_equal_one(form: str) -> None:
    first, second = ranks(run, form)
    whole = run(form, None, devices=1)
    assert_ranks_equal_one(first, second, whole)
    # The comparison means something: ranks have different losses, and the heads have moved.
    losses = [name for name in whole if ".loss_" in name]
    assert len(losses) == STEPS * (2 if form == "cascade" else 1)
    assert all(not torch.equal(first[name], second[name]) for name in losses)
    start = trained(20).state_dict()["detector.box_heads.0.cls_score.weight"]
    assert (whole["heads.0.classifier.weight"] - start).abs().max() > 1e-3
