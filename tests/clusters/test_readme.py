"""Every sweep that README shows runs as it is written there: on this machine, by Ray, in a queue.

`make test-slurm` and `make test-ray` run what needs theirs; each line is a command of a shell.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.clusters.slurm_here import cluster, jobs, lacking
from tests.clusters.sweeps import ROOT, SECONDS
from tests.processes import ended, run, started, until

README = (ROOT / "README.md").read_text()
LINES = re.findall(r"^(tenfold -m .+?)(?:\s+#.*)?$", README, re.MULTILINE)


def those(word: str) -> list[Any]:
    return [line for line in LINES if word in line]


def shell(line: str, environment: dict[str, str]) -> dict[str, Any]:
    """How a user's shell starts a line, with the environment's programs at hand."""
    here = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    data = {"TENFOLD_DATA": os.environ.get("TENFOLD_DATA", str(ROOT / "data"))}
    return {"command": ["bash", "-c", line], "env": {**environment, **data, "PATH": here}}


def test_readme_shows_each_way_of_sweeping():
    assert all(those(word) for word in ("=local", "=slurm", "=ray", "+sweep=optuna"))


@pytest.mark.parametrize(
    "line",
    [
        *(pytest.param(line, marks=pytest.mark.ray) for line in those("=ray")),
        *(line for line in LINES if "=ray" not in line and "=slurm" not in line),
    ],
)
def test_a_sweep_runs_as_written(line, tmp_path):
    if "=ray" in line:
        pytest.importorskip("ray")
    done = run(seconds=2 * SECONDS, cwd=tmp_path, **shell(line, dict(os.environ)))
    assert done.returncode == 0, done.stdout + done.stderr
    found = [json.loads(path.read_text()) for path in tmp_path.rglob("results.json")]
    assert len(found) == 3
    assert {results["status"] for results in found} == {"finished"}


@pytest.mark.slurm
@pytest.mark.skipif(bool(lacking()), reason=lacking() or "")
@pytest.mark.parametrize("line", those("=slurm"))
def test_a_sweep_reaches_the_queue_as_written(line, tmp_path):
    """There are no GPUs here and no CIFAR-10, so that its jobs are cancelled."""
    with cluster(tmp_path / "slurm") as slurm:
        (tmp_path / "here").mkdir()
        with started(cwd=tmp_path / "here", **shell(line, slurm)) as process:
            until(lambda: jobs(slurm) or process.poll() is not None, SECONDS)
            (queued, *_) = found = jobs(slurm)
            assert {job["Partition"] for job in found} == {"gpu"}
            assert {job["TresPerNode"] for job in found} == {"gres/gpu:1"}
            wanted = ["scontrol", "show", "job", "-o", queued["ArrayJobId"]]
            told = subprocess.run(wanted, env=slurm, check=True, capture_output=True, text=True)
            assert re.search(r"ArrayTaskId=\S*4", told.stdout)  # 0 to 4
            subprocess.run(["scancel", queued["ArrayJobId"]], env=slurm, check=True)
            done = ended(process, SECONDS)
    assert done.returncode == 1
    assert (
        f"job {queued['ArrayJobId']}_0 failed (experiment=comatch/cifar10_40 seed=1)" in done.stdout
    )
