"""Sweeps, and searches by Optuna as conf/sweep writes them, with a run that trains nothing."""

import math
import shlex
import sys
from importlib import import_module

import pytest
from omegaconf import OmegaConf

from shared import cli
from shared import run as entry


def test_a_failing_member_is_logged_and_the_others_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = []

    def run(cfg):
        ran.append(cfg.seed)
        if cfg.seed == 2:
            raise RuntimeError("the disk broke")
        return {"metrics": {}}

    monkeypatch.setattr(entry, "run", run)
    line = "tenfold -m experiment=comatch/smoke seed=1,2,3 hydra.sweep.dir=sweep"
    monkeypatch.setattr(sys, "argv", line.split())
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code != 0
    assert ran == [1, 2, 3]
    logs = [(tmp_path / f"sweep/{number}/run.log").read_text() for number in range(3)]
    assert ["Traceback" in log for log in logs] == [False, True, False]
    assert "failed: outputs/comatch/smoke/seed2: RuntimeError: the disk broke" in logs[1]


@pytest.fixture
def search(tmp_path, monkeypatch):
    """search(command line) -> (temperature, folder, seed) of its trials and the best values;
    the nearer a temperature is to 0.2, the better."""
    pytest.importorskip("optuna", minversion="4")
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
    study = import_module("optuna").load_study(study_name="comatch/mini", storage=storage)
    assert [trial.params["method.temperature"] for trial in study.trials] == tried
    assert best.best_value == max(trial.value for trial in study.trials)
