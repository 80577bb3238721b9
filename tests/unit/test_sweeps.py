"""Searches by Optuna as README and conf/sweep write them, with a run that trains nothing."""

import math
import shlex
import sys

import pytest
from omegaconf import OmegaConf

from shared import cli
from shared import run as entry

optuna = pytest.importorskip("optuna", minversion="4")


@pytest.fixture
def search(tmp_path, monkeypatch):
    """search(command line) -> (temperature, folder, seed) of its trials and the best values;
    the nearer a temperature is to 0.2, the better."""
    monkeypatch.chdir(tmp_path)

    def called(line):
        trials = []

        def run(cfg):
            trials.append((cfg.method.temperature, cfg.output_dir, cfg.seed))
            value = -abs(math.log(cfg.method.temperature / 0.2))
            return {"metrics": dict.fromkeys(("test/knn", "test/top1_ema"), value)}

        monkeypatch.setattr(entry, "run", run)
        monkeypatch.setattr(sys, "argv", ["tenfold", *shlex.split(line)])
        cli.main()
        (best,) = sorted(tmp_path.rglob("optimization_results.yaml"))[-1:]
        return trials, OmegaConf.load(best)

    return called


LINES = [
    "-m +sweep=comatch experiment=comatch/mini hydra.sweeper.n_trials=3",
    "-m +sweep=optuna experiment=pcl/mini_fashion objective=test/knn hydra.sweeper.n_trials=3 "
    "'method.temperature=tag(log, interval(0.05, 0.5))'",
]


@pytest.mark.parametrize("line", LINES)
def test_a_search_tries_values_and_keeps_the_best(search, line):
    trials, best = search(line)
    tried, folders, seeds = map(set, zip(*trials, strict=True))
    assert (len(tried), len(folders), seeds) == (3, 3, {100})
    assert all(0.05 <= value <= 0.5 for value in tried)
    assert best.best_params["method.temperature"] == min(
        tried, key=lambda t: abs(math.log(t / 0.2))
    )


def test_a_kept_study_goes_on_with_new_trials(search, tmp_path):
    storage = f"sqlite:///{tmp_path}/sweep.db"
    first, _ = search(f"{LINES[0]} hydra.sweeper.storage={storage}")
    second, best = search(f"{LINES[0]} hydra.sweeper.storage={storage}")
    tried = [temperature for temperature, *_ in (*first, *second)]
    assert len(set(tried)) == 6
    study = optuna.load_study(study_name="comatch/mini", storage=storage)
    assert [trial.params["method.temperature"] for trial in study.trials] == tried
    assert best.best_value == max(trial.value for trial in study.trials)
