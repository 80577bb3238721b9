"""What docs/scale.md computes from counted work, and that it is what the script writes."""

import math

import pytest
import torch
import yaml
from torch import nn

from benchmarks import scale
from benchmarks.scale import ASSUMED, PAGE, Work, best_interval, count, lost, page

WORK = Work(flops=2e9, kept=5e6, trained=1_000_000, frozen=500_000, epochs=10)


def test_hours_are_the_work_over_what_is_reached_of_the_peak():
    assert WORK.gpu_hours(samples=3.6e6, tflops=100, utilisation=0.5) == pytest.approx(0.4)


def test_memory_has_weights_gradients_moments_and_what_is_kept():
    assert WORK.memory(0) == pytest.approx(1.1 * (16e6 + 2e6))
    assert WORK.memory(3) - WORK.memory(0) == pytest.approx(1.1 * 15e6)
    assert WORK.checkpoint == pytest.approx(14e6)


@pytest.mark.parametrize(("write", "between"), [(1, 1000), (60, 86_400), (10, 50)])
def test_no_other_interval_loses_much_less(write, between):
    def wasted(interval):  # Daly's exact model without restarts: time over useful time, less one
        return between / interval * (math.exp((interval + write) / between) - 1) - 1

    best = best_interval(write, between)
    assert wasted(best) <= 1.01 * min(wasted(best * factor) for factor in (0.5, 0.8, 1.25, 2))


def test_checkpoints_that_cost_more_than_a_failure_are_as_rare_as_these():
    assert best_interval(100, 40) == 40


def test_what_is_lost_grows_with_failures_and_writing():
    base = lost(10, 86_400, 300)
    assert base < lost(10, 43_200, 300)
    assert base < lost(20, 86_400, 300)
    assert base < lost(10, 86_400, 600)


def test_a_step_is_counted_forward_and_backward(monkeypatch):
    class Step(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(100, 100, bias=False)
            self.copy = nn.Linear(100, 100, bias=False).requires_grad_(False)

        def training_step(self, batch, index):
            hidden = self.layer(batch.requires_grad_())
            return (hidden * hidden).sum()

    monkeypatch.setattr(scale, "build", lambda *_: Step())
    monkeypatch.setitem(scale.BATCHES, "pcl", lambda side: torch.randn(scale.SAMPLES, 100))
    run = {"experiment": "pcl/imagenet_moco_v2", "overrides": [], "image_size": 224}
    work = count(run)
    assert work.flops == 3 * 2 * 100 * 100  # the product, and two of the same size backwards
    assert work.kept == 2 * 100 * 4  # what went in, and what is squared
    assert (work.trained, work.frozen, work.epochs) == (10_000, 10_000, 200)


@pytest.mark.slow
def test_the_page_is_what_the_script_writes():
    assumed = yaml.safe_load(ASSUMED.read_text())
    works = {name: count(run) for name, run in assumed["runs"].items()}
    assert PAGE.read_text() == page(assumed, works)
