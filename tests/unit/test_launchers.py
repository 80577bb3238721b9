"""Sweeps: the launchers compose, and what they would hand to a cluster is what the config says."""

import os
import re
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.plugins import Plugins
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict

from shared.overrides import CONF, validate


def composed(*overrides: str) -> DictConfig:
    """The config with Hydra's own part, as a multirun has it."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", list(overrides), return_hydra_config=True)


@pytest.fixture
def fake_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that `sbatch` copies its scripts to, instead of queueing them."""
    submitit = pytest.importorskip("submitit")
    programs, scripts = tmp_path / "bin", tmp_path / "scripts"
    programs.mkdir()
    scripts.mkdir()
    (programs / "sbatch").write_text(
        f'#!/bin/sh\ncp "$1" {scripts}\necho "Submitted batch job 4711"\n'
    )
    (programs / "srun").write_text("#!/bin/sh\n")
    for program in programs.iterdir():
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(submitit.Job, "results", lambda job: [None])  # the queue never runs it
    return scripts


def launch(config: DictConfig, overrides: list[list[str]]) -> None:
    """Hand the jobs to the launcher that Hydra makes of `config`."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        from hydra.core.global_hydra import GlobalHydra

        loader = GlobalHydra.instance().config_loader()
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=HydraContext(config_loader=loader, callbacks=None),  # type: ignore[arg-type]
            task_function=print,
            config=config,
        )
        launcher.launch(overrides, initial_job_idx=0)


def test_slurm_script(fake_slurm: Path, tmp_path: Path) -> None:
    keys = ("partition=gpu", "account=lab", "constraint=a100", "gpus_per_node=4")
    config = composed(
        "experiment=comatch/cifar10_40",
        "hydra/launcher=slurm",
        *(f"hydra.launcher.{key}" for key in (*keys, "array_parallelism=1")),
        f"hydra.sweep.dir={tmp_path}/sweep",
    )
    with open_dict(config):
        config.hydra.job.name = "run"
    launch(config, [["seed=1"], ["seed=2"]])
    (script,) = fake_slurm.iterdir()
    text = script.read_text()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", text, flags=re.MULTILINE))
    expected = {
        "partition": "gpu", "account": "lab", "constraint": "a100", "gpus-per-node": "4",
        "ntasks-per-node": "4",  # Lightning needs one task per GPU
        "nodes": "1", "cpus-per-task": "8", "mem": "32GB", "time": "1440", "array": "0-1%1",
        "signal": "USR2@120", "requeue": "", "job-name": "run",
    }  # fmt: skip
    assert {key: options.get(key) for key in expected} == expected
    assert "srun" in text
    assert sys.executable in text


def test_slurm_job_goes_on_after_preemption(fake_slurm: Path) -> None:
    """What submitit calls on the signal gives the same job back, so that it is queued again."""
    from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher

    launcher = SlurmLauncher()
    again = launcher.checkpoint(["seed=1"], "hydra.sweep.dir", 0, "0", {})
    assert again.function is launcher
    assert again.args[0] == ["seed=1"]


def test_ray_launcher_gets_documented_arguments_only() -> None:
    config = composed("experiment=comatch/mini", "hydra/launcher=ray").hydra.launcher
    assert config._target_ == "hydra_plugins.hydra_ray_launcher.ray_launcher.RayLauncher"
    assert set(config) == {"_target_", "ray"}
    assert config.ray.init.address is None
    assert config.ray.remote.num_gpus == 1
    plugin = pytest.importorskip("hydra_plugins.hydra_ray_launcher._config")
    merged = OmegaConf.merge(plugin.RayLauncherConf, config)  # refuses what Ray's launcher lacks
    assert merged.ray.remote.max_retries == 3


def test_optuna_search_space_names_existing_keys() -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    config = composed("+sweep=comatch", "experiment=comatch/mini")
    space = config.hydra.sweeper.params
    assert len(space) >= 4
    for key in space:
        assert OmegaConf.select(config, key) is not None, f"{key} is no key of comatch/mini"
    validate(["+sweep=comatch", "experiment=comatch/mini", *(f"{k}={v}" for k, v in space.items())])
    assert config.hydra.sweeper.direction == "maximize"
    assert config.objective == "test/top1_ema"
    assert config.seed >= 100, "tuning seeds are never reported"
    # Trials of one seed must not share a folder.
    assert "job.num" in OmegaConf.to_container(config, resolve=False)["output_dir"]


def test_local_launcher_divides_two_jobs() -> None:
    launcher = composed("experiment=comatch/mini", "hydra/launcher=local").hydra.launcher
    assert (launcher.n_jobs, launcher.prefer) == (2, "processes")


def test_a_sweep_of_any_method_states_its_objective() -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    config = composed("+sweep=optuna", "experiment=comatch/mini")
    assert OmegaConf.is_missing(config, "objective")
    assert not config.hydra.sweeper.params
    assert composed("+sweep=optuna", "experiment=comatch/mini", "objective=a/b").objective == "a/b"
