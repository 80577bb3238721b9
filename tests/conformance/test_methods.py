"""What every method package keeps, whichever it is.

The packages are found under `methods/`, each with `conf/experiment/<method>/smoke.yaml` and its
card `README.md`. A new method needs no line here.
"""

import csv
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from shared.checkpoints.reading import load_module
from shared.training.method import Method, NonFiniteLoss

from .conftest import METHODS, ROOT, TWO_STEPS, Finished, Smoke, assert_same, compose_experiment


def predictions(run: Finished, module: pl.LightningModule) -> Tensor:
    with torch.no_grad():
        return module.eval().predict_step(run.batch(), 0)


def test_there_are_methods() -> None:
    assert METHODS


def test_package_is_complete(method: str) -> None:
    for name in ("module.py", "official.py", "README.md"):
        assert (ROOT / "methods" / method / name).is_file(), name
    assert (ROOT / "conf" / "experiment" / method / "smoke.yaml").is_file()


@pytest.mark.parametrize("experiment", ["mini", "smoke"])
def test_configs_compose(method: str, experiment: str) -> None:
    """All others, rows and arms are composed by tests/unit/test_configs.py."""
    config = compose_experiment(f"{method}/{experiment}")
    assert config.method._target_.startswith(f"methods.{method}.")
    assert config.data._target_


def card_metrics(method: str) -> tuple[set[str], set[str]]:
    """Names in the card's table of logged metrics: (always logged, absent in some steps)."""
    always, sometimes = set(), set()
    for line in (ROOT / "methods" / method / "README.md").read_text().splitlines():
        if match := re.match(r"\|\s*`((?:train|val)/\w+)`", line):
            (sometimes if "absent" in line else always).add(match.group(1))
    return always, sometimes


def test_two_steps_change_the_weights_and_log_the_card(method: str, two_steps: Finished) -> None:
    parameters = dict(two_steps.module.named_parameters())
    trained = {name for name, p in parameters.items() if p.requires_grad}
    unchanged = {name for name in trained if torch.equal(two_steps.before[name], parameters[name])}
    assert trained
    assert not unchanged

    always, sometimes = card_metrics(method)
    assert {"train/loss", *always} == always
    assert any(name.startswith("val/") for name in always)
    with open(two_steps.output / "metrics.csv", newline="") as file:
        logged = {row["metric"] for row in csv.DictReader(file)}
    assert always <= logged
    explained = always | sometimes | {"train/lr"}  # the base class's, of every method
    unexplained = {name for name in logged if name.startswith(("train/", "val/"))} - explained
    assert not unexplained


def test_checkpoint_rebuilds_the_module(two_steps: Finished) -> None:
    module = two_steps.module
    rebuilt = load_module(two_steps.output / "checkpoints" / "last.ckpt")
    assert type(rebuilt) is type(module)
    assert rebuilt is not module
    assert_same(dict(rebuilt.state_dict()), dict(module.state_dict()))
    assert_same(predictions(two_steps, rebuilt), predictions(two_steps, module))


def test_a_killed_run_with_workers_continues_as_an_undisturbed_one_without(smoke: Smoke) -> None:
    class Kill(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.global_step == 5:
                raise RuntimeError("killed")

    saving = "checkpoint_every=3"
    undisturbed = smoke(saving, "data.num_workers=0", output="undisturbed")
    kill = {"before_fit": lambda trainer, _: trainer.callbacks.append(Kill())}
    with pytest.raises(RuntimeError, match="killed"):
        smoke(saving, "data.num_workers=2", output="killed", **kill)
    resumed = smoke(saving, "data.num_workers=2", output="killed")
    assert resumed.module.trainer.global_step == undisturbed.module.trainer.global_step > 5
    mine, other = resumed.checkpoint(), undisturbed.checkpoint()
    for part in ("global_step", "epoch", "state_dict", "optimizer_states", "lr_schedulers"):
        assert_same(mine[part], other[part], part)
    assert metric_values(resumed.output) == metric_values(undisturbed.output)


def metric_values(output: Path) -> list[tuple[str, ...]]:
    """Rows of metrics.csv, but for measured times."""
    with open(output / "metrics.csv", newline="") as file:
        rows = [tuple(row.values()) for row in csv.DictReader(file)]
    return sorted(row for row in rows if re.match(r"train/|val/|test/", row[2]))


def test_nan_in_any_term_stops_before_the_update(
    smoke: Smoke, two_steps: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Method.total_loss
    weights: dict[str, Tensor] = {}
    modules: list[Method] = []

    def poison(self: Method, terms: dict[str, Tensor], *rest: Any) -> Tensor:
        if self.global_step == 1:
            assert terms.keys() == two_steps.terms
            weights.update({n: p.detach().clone() for n, p in self.named_parameters()})
            modules.append(self)
            *others, last = terms
            for name in others:
                with pytest.raises(NonFiniteLoss, match=rf"step 1: {name} not finite"):
                    original(self, terms | {name: terms[name] * torch.nan}, *rest)
            terms = terms | {last: terms[last] * torch.nan}
        return original(self, terms, *rest)

    monkeypatch.setattr(Method, "total_loss", poison)
    with pytest.raises(NonFiniteLoss, match=r"step 1: \w+ not finite"):
        smoke(*TWO_STEPS)
    assert_same(weights, {n: p.detach() for n, p in modules[0].named_parameters()})


def test_export_and_import_are_inverse(method: str, two_steps: Finished) -> None:
    official = import_module(f"methods.{method}.official")
    module = two_steps.module
    torch.manual_seed(99)
    fresh = type(module)(**module.hparams)
    assert any(
        not torch.equal(p, q) for p, q in zip(fresh.parameters(), module.parameters(), strict=True)
    )
    official.load(fresh, official.export(module))
    assert_same(dict(fresh.state_dict()), dict(module.state_dict()))


@pytest.mark.parametrize(
    ("precision", "layout"),
    [  # two_steps is float32 in the method's own layout
        ("bf16-mixed", torch.channels_last),
        pytest.param("32-true", torch.channels_last, marks=pytest.mark.slow),
        pytest.param("bf16-mixed", torch.contiguous_format, marks=pytest.mark.slow),
    ],
)
def test_precisions_and_layouts_run(
    precision: str, layout: torch.memory_format, smoke: Smoke
) -> None:
    lay_out = {"before_fit": lambda _, module: module.to(memory_format=layout)}
    run = smoke(*TWO_STEPS, f"precision={precision}", **lay_out)
    for p in run.module.parameters():
        assert torch.isfinite(p).all()
        assert p.dtype == torch.float32


def test_predicts(two_steps: Finished) -> None:
    module, batch = two_steps.module, two_steps.batch()
    predicted = predictions(two_steps, module)
    size = len(batch["indices"])
    assert len(predicted) == size
    assert torch.isfinite(predicted).all()
    # Of the first sample again, alone: no prediction depends on its neighbours in the batch.
    tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
    first = {name: value[:1] for name, value in tensors.items() if len(value) == size}
    with torch.no_grad():
        alone = module.predict_step(first, 0)
    torch.testing.assert_close(alone, predicted[:1], atol=1e-5, rtol=1e-4)
