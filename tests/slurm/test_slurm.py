"""Runs, claims and searches through a real SLURM: how they end, and where they go on.

`make test-slurm`; minutes, because a job that is queued again waits, and every job imports torch.
"""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shared.checkpoints.reading import load_checkpoint
from tests.integration.test_claims_smoke import HERE as CLAIMS
from tests.processes import ended, run, started
from tests.slurm.cluster import cluster, jobs, lacking, until

ROOT = Path(__file__).parents[2]
SECONDS = 1200.0  # of a few jobs on a busy machine
pytestmark = [pytest.mark.slurm, pytest.mark.skipif(bool(lacking()), reason=lacking() or "")]
SMOKE = ["experiment=comatch/smoke", "logger=csv", "trainer.enable_progress_bar=false"]
ON_SLURM = ["hydra/launcher=slurm_cpu", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=2"]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with cluster(tmp_path_factory.mktemp("slurm")) as environment:
        yield {**environment, "PYTHONPATH": str(ROOT)}


def sweep(folder: Path, *overrides: str) -> list[str]:
    """The command of a multirun of CoMatch's smoke experiment, each run in a folder of its own."""
    places = [f"data_root={folder}/data", f"hydra.sweep.dir={folder}/sweep"]
    command = [sys.executable, "-m", "shared.run", "-m", *SMOKE, *ON_SLURM, *places]
    return [*command, f"output_dir={folder}/runs/${{seed}}", *overrides]


def results(folder: Path, seed: int = 0) -> dict[str, Any]:
    return json.loads((folder / f"runs/{seed}/results.json").read_text())


def test_the_failing_member_of_an_array_is_named_and_the_others_finish(slurm, tmp_path):
    occupied = tmp_path / "runs/2/checkpoints"
    occupied.mkdir(parents=True)
    (occupied / "last.ckpt").write_bytes(b"no checkpoint")
    done = run(sweep(tmp_path, "seed=1,2,3"), SECONDS, env=slurm, cwd=ROOT)
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


LONG = ["trainer.max_steps=300", "trainer.check_val_every_n_epoch=100", "checkpoint_every=20"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    done = run([part for part in sweep(folder, *LONG) if part not in ON_SLURM], SECONDS, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return folder


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
    with started(sweep(tmp_path, *LONG, *options), env=slurm, cwd=ROOT) as process:
        last = tmp_path / "runs/0/checkpoints/last.ckpt"  # USR2 saves nothing
        until(lambda: last.exists() or process.poll() is not None, SECONDS)
        job = jobs(slurm)[-1]["JobId"]
        about = {}

        def queued_again() -> bool:
            about.update(*(j for j in jobs(slurm) if j["JobId"] == job))
            return about["Restarts"] != "0"

        interrupt(slurm, job)
        until(queued_again, SECONDS)
        until(lambda: queued_again() and about["JobState"] == "PENDING", SECONDS)
        soon = ["scontrol", "update", f"JobId={job}", "StartTime=now"]  # else two minutes later
        subprocess.run(soon, env=slurm, check=True)
        done = ended(process, SECONDS)
    assert done.returncode == 0, done.stderr
    assert results(tmp_path)["resumed"]
    assert results(tmp_path)["metrics"] == results(undisturbed)["metrics"]
    first, second = (load_checkpoint(f / "runs/0/checkpoints/last.ckpt")["state_dict"]
                     for f in (tmp_path, undisturbed))  # fmt: skip
    assert all(bool((first[key] == second[key]).all()) for key in second)


def test_two_processes_learn_the_same_on_one_node_and_on_two(slurm, tmp_path):
    for nodes in (1, 2):
        given = [f"hydra.launcher.processes_per_node={2 // nodes}", "hydra.launcher.processes=2"]
        given += ["trainer=ddp_cpu"]
        done = run(sweep(tmp_path / str(nodes), *given), SECONDS, env=slurm, cwd=ROOT)
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
    command = [part for part in sweep(tmp_path, *given) if "output_dir" not in part]
    done = run(command, SECONDS, env=slurm, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "sweep/optimization_results.yaml").is_file()
    assert {job["JobState"] for job in jobs(slurm)[-2:]} == {"COMPLETED"}
