"""Runs, claims and searches through a real SLURM: how they end, and where they go on.

`make test-slurm`; minutes, because a job that is queued again waits, and every job imports torch.
"""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.clusters.slurm_here import cluster, jobs, lacking
from tests.clusters.sweeps import (
    LONG,
    ROOT,
    SECONDS,
    assert_resumed_as_if_never_stopped,
    last,
    results,
    sweep,
)
from tests.integration.test_claims_smoke import HERE as CLAIMS
from tests.processes import ended, run, started, until

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(bool(lacking()), reason=lacking() or "")]
ON_SLURM = ["hydra/launcher=slurm_cpu", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=2"]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with cluster(tmp_path_factory.mktemp("slurm")) as environment:
        yield {**environment, "PYTHONPATH": str(ROOT)}


def test_the_failing_member_of_an_array_is_named_and_the_others_finish(slurm, tmp_path):
    occupied = tmp_path / "runs/2/checkpoints"
    occupied.mkdir(parents=True)
    (occupied / "last.ckpt").write_bytes(b"no checkpoint")
    done = run(sweep(tmp_path, ON_SLURM, "seed=1,2,3"), SECONDS, env=slurm, cwd=ROOT)
    members = jobs(slurm)[-3:]
    states = {job["ArrayTaskId"]: (job["JobState"], job["ExitCode"]) for job in members}
    assert states == {n: ("FAILED", "1:0") if n == "1" else ("COMPLETED", "0:0") for n in "012"}
    assert {job["JobName"] for job in members} == {"comatch/smoke"}
    assert done.returncode == 1, done.stderr
    assert "last.ckpt" in done.stderr.splitlines()[-1]
    assert f"job {members[0]['ArrayJobId']}_1 failed (" in done.stdout
    assert "Traceback" in (tmp_path / "runs/2/error.txt").read_text()
    assert [results(tmp_path, seed)["status"] for seed in (1, 3)] == ["finished", "finished"]
    assert results(tmp_path, 3)["job"] == f"{members[0]['ArrayJobId']}_2"
    assert results(tmp_path, 3)["log"] == f"{tmp_path}/sweep/2/run.log"
    (output,) = tmp_path.rglob(f"{members[0]['ArrayJobId']}_1_0_log.out")
    assert "Traceback" in output.read_text()


def preempt(slurm: dict[str, str], job: str) -> None:
    wanted = ["sbatch", "--partition=high", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"]
    subprocess.run(wanted, env=slurm, check=True)


def send(number: signal.Signals) -> Any:
    name = number.name.removeprefix("SIG")
    return lambda slurm, job: subprocess.run(["scancel", "-s", name, job], env=slurm, check=True)


@pytest.mark.parametrize(
    ("interrupt", "options"),
    [
        pytest.param(send(signal.SIGUSR2), [], id="USR2"),
        pytest.param(send(signal.SIGTERM), [], id="SIGTERM"),
        pytest.param(preempt, ["hydra.launcher.partition=low"], id="preemption"),
    ],
)
def test_an_interrupted_job_is_queued_again_and_goes_on(
    slurm, tmp_path, undisturbed, interrupt, options
):
    with started(sweep(tmp_path, ON_SLURM, *LONG, *options), env=slurm, cwd=ROOT) as process:
        # USR2 saves nothing
        until(lambda: last(tmp_path).exists() or process.poll() is not None, SECONDS)
        job = jobs(slurm)[-1]["JobId"]
        interrupt(slurm, job)
        until(lambda: state(slurm, job)["Restarts"] != "0", SECONDS)
        done = hurried(slurm, job, process)
    assert done.returncode == 0, done.stderr
    assert_resumed_as_if_never_stopped(tmp_path, undisturbed)


def test_a_job_that_reaches_its_time_limit_goes_on_until_it_is_done(slurm, tmp_path):
    """SLURM sends the signal 20 to 50 s after each start; the run takes longer than that."""
    steps = ["trainer.max_steps=6000", "trainer.check_val_every_n_epoch=10000"]
    whole = run(sweep(tmp_path / "whole", [], *steps), SECONDS, cwd=ROOT)
    assert whole.returncode == 0, whole.stderr
    limit = ["hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=10"]
    command = sweep(tmp_path, ON_SLURM, *steps, "checkpoint_every=100", *limit)
    with started(command, env=slurm, cwd=ROOT) as process:
        until(lambda: last(tmp_path).exists() or process.poll() is not None, SECONDS)
        job = jobs(slurm)[-1]["JobId"]
        done = hurried(slurm, job, process)
    assert done.returncode == 0, done.stderr
    assert int(state(slurm, job)["Restarts"]) >= 1
    assert_resumed_as_if_never_stopped(tmp_path, tmp_path / "whole")


def state(slurm: dict[str, str], job: str) -> dict[str, str]:
    (about,) = (found for found in jobs(slurm) if found["JobId"] == job)
    return about


def hurried(slurm: dict[str, str], job: str, process: Any) -> subprocess.CompletedProcess[str]:
    """The end of a sweep whose job never waits, as SLURM has it wait, two minutes in the queue."""

    def over() -> bool:
        if state(slurm, job)["JobState"] == "PENDING":
            soon = ["scontrol", "update", f"JobId={job}", "StartTime=now"]
            subprocess.run(soon, env=slurm, check=False)  # it may have begun
        return process.poll() is not None

    until(over, SECONDS)
    return ended(process, SECONDS)


def test_two_processes_learn_the_same_on_one_node_and_on_two(slurm, tmp_path):
    for nodes in (1, 2):
        given = [f"hydra.launcher.processes_per_node={2 // nodes}", "hydra.launcher.processes=2"]
        given += ["trainer=ddp_cpu"]
        done = run(sweep(tmp_path / str(nodes), ON_SLURM, *given), SECONDS, env=slurm, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        assert results(tmp_path / str(nodes))["world_size"] == 2
    one, two = (results(tmp_path / str(nodes))["metrics"] for nodes in (1, 2))
    assert one == two


def test_a_claim_runs_through_slurm(slurm, tmp_path):
    for name in ("benchmarks", "conf", "hydra_plugins", "methods", "shared"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.pyc"))
    shutil.copy(CLAIMS / "claim_smoke.yaml", tmp_path / "conf/reproduce/comatch")
    command = [sys.executable, "-m", "benchmarks.reproduce", "comatch", "--claim", "claim_smoke"]
    given = ["--seeds", "1", f"data_root={tmp_path}/data", *ON_SLURM]
    here = {**slurm, "PYTHONPATH": str(tmp_path)}
    done = run([*command, *given], SECONDS, env=here, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "hydra/launcher=slurm_cpu" in done.stdout
    (base,) = tmp_path.glob("outputs/reproduce/comatch/claim_smoke-*")
    found = [json.loads(path.read_text()) for path in base.glob("*/seed1/results.json")]
    array = jobs(slurm)[-1]["ArrayJobId"]
    assert {result["job"] for result in found} == {f"{array}_{number}" for number in range(3)}


def test_a_search_runs_through_slurm(slurm, tmp_path):
    pytest.importorskip("optuna", minversion="4")
    space = "method.temperature=tag(log, interval(0.05, 0.5))"
    given = ["+sweep=optuna", "objective=test/top1", "hydra.sweeper.n_trials=2", space]
    command = [part for part in sweep(tmp_path, ON_SLURM, *given) if "output_dir" not in part]
    done = run(command, SECONDS, env=slurm, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "sweep/optimization_results.yaml").is_file()
    assert {job["JobState"] for job in jobs(slurm)[-2:]} == {"COMPLETED"}
