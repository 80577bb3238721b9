"""Sweeps: the launchers compose, and what they would hand to a cluster is what the config says."""

import os
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import InstantiationException
from hydra.types import HydraContext
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from shared import overrides
from shared.overrides import CONF, OverrideError, validate
from shared.training.run_folder import RunError


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
    keys = ("partition=gpu", "account=lab", "constraint=a100", "gres=gpu:a:4", "mail_user=me")
    config = composed(
        "experiment=comatch/cifar10_40",
        "hydra/launcher=slurm",
        *(f"hydra.launcher.{key}" for key in (*keys, "processes=4", "array_parallelism=1")),
        f"hydra.sweep.dir={tmp_path}/sweep",
    )
    launch(config, [["experiment=comatch/cifar10_40", f"seed={seed}"] for seed in (1, 2)])
    (script,) = fake_slurm.iterdir()
    text = script.read_text()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", text, flags=re.MULTILINE))
    expected = {
        "partition": "gpu", "account": "lab", "constraint": "a100", "gpus-per-node": "4",
        "ntasks-per-node": "4",  # Lightning needs one task per GPU
        "nodes": "1", "cpus-per-task": "8", "mem": "32GB", "time": "1440", "array": "0-1%1",
        "signal": "USR2@120", "requeue": "", "gres": "gpu:a:4", "mail-user": "me",
        "job-name": "'comatch/cifar10_40 seed 1,2'",
    }  # fmt: skip
    assert {key: options.get(key) for key in expected} == expected
    assert "srun" in text
    assert sys.executable in text


@pytest.mark.parametrize(
    ("launcher", "processes", "nodes", "tasks", "gpus"),
    [
        ("slurm", 1, 1, 1, 1),
        ("slurm", 8, 1, 8, 8),
        ("slurm", 24, 3, 8, 8),
        ("slurm_cpu", 2, 1, 2, 0),
    ],
)
def test_one_number_gives_nodes_tasks_and_gpus(launcher, processes, nodes, tasks, gpus):
    slurm = slurm_launcher(launcher, processes)
    derived = {key: slurm.params[key] for key in ("nodes", "tasks_per_node", "gpus_per_node")}
    assert derived == {"nodes": nodes, "tasks_per_node": tasks, "gpus_per_node": gpus or None}


def slurm_launcher(name: str, processes: int = 1) -> Any:
    pytest.importorskip("submitit")
    config = composed(f"hydra/launcher={name}", f"hydra.launcher.processes={processes}")
    with open_dict(config):
        config.hydra.sweep.dir = "nowhere"
    return instantiate(config.hydra.launcher)


def test_processes_that_do_not_fill_their_nodes_are_refused():
    # Hydra before 1.4 wraps what a launcher raises.
    refusal = (InstantiationException, ValueError)
    with pytest.raises(refusal, match="processes=12 does not fill nodes of 8"):
        slurm_launcher("slurm", 12)


def test_slurm_job_goes_on_after_preemption() -> None:
    """What submitit calls on the signal gives the same job back, so that it is queued again."""
    launcher = slurm_launcher("slurm")
    again = launcher.checkpoint(["seed=1"], "hydra.sweep.dir", 0, "0", {})
    assert again.function is launcher
    assert again.args[0] == ["seed=1"]


def test_a_failed_run_is_a_failed_job_and_all_are_waited_for(monkeypatch) -> None:
    """The member raises, whatever Hydra makes of it; the command names it and its reason."""
    launcher = slurm_launcher("slurm_cpu")
    failed = JobReturn(overrides=["seed=2"], status=JobStatus.FAILED)
    failed.return_value = RunError("no such data")
    monkeypatch.setattr(type(launcher).__mro__[2], "__call__", lambda *_: failed)
    with pytest.raises(RunError, match="no such data"):
        launcher(["seed=2"], "hydra.sweep.dir", 1, "1", {})

    waited = []

    class Job:
        def __init__(self, number: int) -> None:
            self.job_id, self.paths = f"5_{number}", SimpleNamespace(stdout="5.out")

        def results(self) -> list[Any]:
            waited.append(self.job_id)
            if self.job_id == "5_0":
                trace = "Traceback\n  line\nshared.RunError: no such data\n----\nsee logs"
                raise submitit.core.utils.FailedJobError(trace)
            return [JobReturn(overrides=["seed=2"], status=JobStatus.COMPLETED, _return_value=1.5)]

    import submitit

    monkeypatch.setattr(submitit.AutoExecutor, "map_array", lambda *_: [Job(0), Job(1)])
    monkeypatch.setattr(submitit.SlurmExecutor, "affinity", classmethod(lambda _: 2))
    monkeypatch.setattr(shutil, "which", lambda _: "/bin/true")
    first, second = launcher.launch([["seed=1"], ["seed=2"]], 0)
    assert waited == ["5_0", "5_1"]
    assert second.return_value == 1.5
    with pytest.raises(RuntimeError, match=r"job 5_0 failed \(seed=1\): shared.RunError: no such"):
        first.return_value  # noqa: B018


@pytest.mark.parametrize(
    ("states", "returns"),
    [
        (["CANCELLED", "PENDING", "RUNNING", "COMPLETED"], True),  # it was queued again
        (["CANCELLED", "CANCELLED", "COMPLETED"], False),
        (["FAILED", "UNKNOWN", "COMPLETED"], False),
        (["COMPLETED"], True),
    ],
)
def test_an_end_without_results_counts_if_it_lasts(monkeypatch, states, returns) -> None:
    """Between its end and its next start SLURM calls a job that is queued again cancelled."""
    tenfold_slurm = pytest.importorskip("hydra_plugins.tenfold_slurm")
    submitit = pytest.importorskip("submitit")
    left, cleared = iter(states), []

    class Job:
        job_id, state = "5", ""
        watcher = SimpleNamespace(clear=lambda: cleared.append(1))

        def done(self) -> bool:
            self.state = next(left)
            return self.state in ("CANCELLED", "FAILED", "COMPLETED")

        def results(self) -> list[str]:
            while not self.done():
                pass
            if self.state != "COMPLETED":
                raise submitit.core.utils.UncompletedJobError(f"(state: {self.state})")
            return ["what it returned"]

    monkeypatch.setattr(tenfold_slurm, "LASTS", 0)
    if returns:
        assert tenfold_slurm._results(Job()) == ["what it returned"]
    else:
        with pytest.raises(submitit.core.utils.UncompletedJobError, match=states[0]):
            tenfold_slurm._results(Job())
    assert len(cleared) == (states != ["COMPLETED"])


def test_a_launcher_without_its_extra_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(overrides, "find_spec", lambda name: None if "submitit" in name else 1)
    with pytest.raises(OverrideError, match=r"slurm_cpu needs pip install 'tenfold\[slurm\]'"):
        validate(["experiment=comatch/mini", "hydra/launcher=slurm_cpu"])
    validate(["experiment=comatch/mini", "hydra/launcher=local"])


def test_ddp_takes_its_nodes_and_tasks_from_slurm(monkeypatch):
    assert composed("trainer=ddp", "experiment=comatch/mini").trainer.num_nodes == 1
    assert composed("trainer=ddp_cpu", "experiment=comatch/mini").trainer.devices == 2
    monkeypatch.setenv("SLURM_NNODES", "3")
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "4")
    trainer = composed("trainer=ddp_cpu", "experiment=comatch/mini").trainer
    assert (trainer.num_nodes, trainer.devices) == (3, 4)


def test_ray_launcher_gets_documented_arguments_only() -> None:
    config = composed("experiment=comatch/mini", "hydra/launcher=ray").hydra.launcher
    assert config._target_ == "hydra_plugins.hydra_ray_launcher.ray_launcher.RayLauncher"
    assert set(config) == {"_target_", "ray"}
    assert config.ray.init.address == "local"
    assert config.ray.remote.num_gpus == 1
    small = composed("experiment=comatch/mini", "hydra/launcher=ray_cpu").hydra.launcher.ray
    assert (small.remote.num_cpus, small.remote.num_gpus, small.init) == (2, 0, config.ray.init)
    plugin = pytest.importorskip("hydra_plugins.hydra_ray_launcher._config")
    merged = OmegaConf.merge(plugin.RayLauncherConf, config)  # refuses what Ray's launcher lacks
    assert merged.ray.remote.max_retries == 3


def test_optuna_search_space_names_existing_keys() -> None:
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
    config = composed("+sweep=optuna", "experiment=comatch/mini")
    assert OmegaConf.is_missing(config, "objective")
    assert not config.hydra.sweeper.params
    assert composed("+sweep=optuna", "experiment=comatch/mini", "objective=a/b").objective == "a/b"
