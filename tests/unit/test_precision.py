"""precision=auto measures, prefers float32 in a tie, and leaves the module as it was."""

from itertools import cycle

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from shared.training import precision
from shared.training.precision import choose_fastest, choose_precision, has_bf16_units


@pytest.fixture
def taking(monkeypatch):
    """`taking(*seconds)` is a step that takes so long in turn; no other time passes."""
    now = [0.0]
    monkeypatch.setattr(precision.time, "perf_counter", lambda: now[0])

    def taking(*seconds):
        turns = cycle(seconds)

        def step():
            now[0] += next(turns)

        return step

    return taking


@pytest.mark.parametrize(
    ("bf16", "chosen"), [(0.05, "bf16-mixed"), (0.098, "32-true"), (0.2, "32-true")]
)
def test_the_faster_one_wins_and_a_tie_keeps_float32(taking, bf16, chosen):
    choice = choose_fastest({"32-true": taking(0.1), "bf16-mixed": taking(bf16)}, 1.0)
    assert choice.precision == chosen
    assert choice.seconds_per_step["bf16-mixed"] == pytest.approx(bf16)
    assert "32-true 100.0 ms" in str(choice)


def test_median_ignores_a_disturbance_and_slow_steps_still_get_three(taking):
    slow = taking(9.0, 1.0, 50.0, 1.0)
    choice = choose_fastest({"32-true": taking(2.0), "bf16-mixed": slow}, 0.1)
    assert choice.seconds_per_step == {"32-true": 2.0, "bf16-mixed": 1.0}


def test_a_candidate_that_fails_is_out_and_the_default_is_not_excused(taking):
    def broken():
        raise RuntimeError("not implemented for 'BFloat16'")

    choice = choose_fastest({"32-true": taking(0.1), "bf16-mixed": broken}, 1.0)
    assert choice.precision == "32-true"
    assert list(choice.seconds_per_step) == ["32-true"]
    with pytest.raises(RuntimeError, match="BFloat16"):
        choose_fastest({"32-true": broken, "bf16-mixed": taking(0.1)}, 1.0)


class Tiny(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout())
        self.dtypes = []

    def training_step(self, batch, batch_idx):
        loss = self.net(batch["x"]).square().mean()
        self.log("train/loss", loss)
        self.dtypes.append(self.net[0](batch["x"]).dtype)
        return {"loss": loss}


def test_module_and_generators_are_left_as_they_were(monkeypatch):
    monkeypatch.setattr(precision, "has_bf16_units", lambda _: True)
    module = Tiny().eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    generator = torch.get_rng_state()
    choice = choose_precision(module, {"x": torch.randn(16, 4)}, seconds=0.05)
    generator_after = torch.get_rng_state()
    assert set(choice.seconds_per_step) == {"32-true", "bf16-mixed"}
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert not module.training
    assert module.dtypes == []
    assert all(p.grad is None for p in module.parameters())
    torch.set_rng_state(generator)
    torch.randn(16, 4)
    assert torch.equal(torch.get_rng_state(), generator_after)


def test_bf16_is_really_autocast():
    module = Tiny()
    for name, dtype in (("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)):
        precision._step(module, {"x": torch.randn(2, 4)}, torch.device("cpu"), name)
        assert module.dtypes[-1] is dtype


def test_without_units_nothing_is_measured(monkeypatch):
    monkeypatch.setattr(precision.torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert not has_bf16_units("cpu")
    choice = choose_precision(Tiny(), {"x": torch.randn(2, 4)})
    assert (choice.precision, choice.seconds_per_step) == ("32-true", {})
    monkeypatch.setattr(precision.torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert has_bf16_units("cpu")
