"""Two gloo processes compute what one process computes on the concatenated batch.

Real Lightning loops with real DDP; BatchNorm runs in evaluation mode, since its statistics are per
process by design. Before cleaning everything agrees. With cleaning each rank's class losses are
means over the rows that IT keeps (official arithmetic), so that after the first step only what is
gathered agrees: queue, prototypes, key encoder.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from methods.mopro.module import MoPro

from .toys import COLOUR, PROJECTION, share, still, toy
from .two_processes import Record, Values, assert_ranks_equal_one, fit, ranks

CLASSES, BATCH = 5, 8  # BATCH: over both ranks
EPOCHS = {"web_labels": 1, "cleaning": 2}
STEPS = {"web_labels": 3, "cleaning": 1}


def build() -> MoPro:
    module = toy(MoPro, 3, backbone=COLOUR, projection=PROJECTION | {"negative_slope": 0.0})
    module.prototypes.update(torch.eye(6)[:CLASSES], torch.arange(CLASSES), 0.0)
    with torch.no_grad():  # so that some rows are confident, and some are not
        module.encoder.classifier.weight.mul_(8.0)
    module.key_encoder.update(module.encoder, 0.0)
    return still(module)


def batches(steps: int, rank: int | None) -> list[dict[str, Tensor]]:
    """The batches of one rank, or with None the concatenation of both."""
    generator = torch.Generator().manual_seed(12)
    out = []
    for _ in range(steps):
        batch = {"labels": torch.randint(CLASSES, (BATCH,), generator=generator)}
        for view in ("weak", "strong"):
            batch[view] = 2 * torch.randn(BATCH, 3, 8, 8, generator=generator)
        batch["indices"] = torch.arange(BATCH)
        out.append(share(batch, rank))
    return out


class RecordKept(Record):
    """Which rows are kept, too."""

    def on_train_start(self, trainer, pl_module) -> None:
        super().on_train_start(trainer, pl_module)
        correct = pl_module.correct

        def keep_rows(*arguments):
            correction = correct(*arguments)
            self.keep(trainer, "kept", correction.kept)
            return correction

        pl_module.correct = keep_rows


def run(form: str, rank: int | None, **options: Any) -> Values:
    options |= {"max_steps": STEPS[form], "max_epochs": -1}
    loader = DataLoader(batches(STEPS[form], rank), batch_size=None)
    return fit(build(), RecordKept(), loader, options, epoch=EPOCHS[form])


def test_before_cleaning_two_processes_equal_one() -> None:
    first, second = ranks(run, "web_labels")
    whole = run("web_labels", None, devices=1)
    compared = [
        {k: v for k, v in x.items() if not k.endswith(".kept")} for x in (first, second, whole)
    ]
    assert_ranks_equal_one(*compared)
    assert not torch.equal(first["step0.loss_cls"], second["step0.loss_cls"])


def test_with_cleaning_gathered_state_is_that_of_one_process() -> None:
    first, second = ranks(run, "cleaning")
    whole = run("cleaning", None, devices=1)
    torch.testing.assert_close(
        (first["step0.loss_inst"] + second["step0.loss_inst"]) / 2, whole["step0.loss_inst"]
    )
    gathered = [n for n in whole if n.startswith(("queue.", "prototypes.", "key_encoder."))]
    assert gathered
    for name in gathered:
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], whole[name], atol=2e-6, rtol=2e-5, msg=name)
    # Some rows were dropped, not equally many on both ranks: the means are per rank.
    kept = [rank["step0.kept"].sum() for rank in (first, second)]
    assert torch.equal(torch.cat([r["step0.kept"] for r in (first, second)]), whole["step0.kept"])
    assert kept[0] != kept[1]
    weighted = sum(
        k * r["step0.loss_cls"] for k, r in zip(kept, (first, second), strict=True)
    ) / sum(kept)
    torch.testing.assert_close(weighted, whole["step0.loss_cls"])
    for name, p in second.items():
        if name.startswith("encoder."):
            torch.testing.assert_close(p, first[name], atol=1e-6, rtol=1e-5, msg=name)
