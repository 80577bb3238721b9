"""Sweeps through a real Ray cluster on this machine, one of whose processes is killed.

`make test-ray`, which installs the extra `ray`.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.clusters.sweeps import (
    LONG,
    ROOT,
    SECONDS,
    assert_resumed_as_if_never_stopped,
    last,
    results,
    sweep,
)
from tests.processes import ended, run, started, until

pytestmark = pytest.mark.ray
ON_RAY = ["hydra/launcher=ray_cpu", "hydra.launcher.ray.init.address=auto"]
ON_RAY += ["hydra.launcher.ray.remote.num_cpus=1"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A cluster of two processors, as `ray start` gives it, which ends with the tests.

    It knows no tokens: one that an earlier `ray.init` has left in the user's folder would be asked.
    """
    pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        yield from _started()


def _started() -> Iterator[None]:
    ray = str(Path(sys.executable).with_name("ray"))
    quiet = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)}
    start = ["start", "--head", "--block", "--port=0", "--num-cpus=2", "--include-dashboard=false"]
    with started([ray, *start], env=quiet, cwd=ROOT) as process:

        def answers() -> bool:
            assert process.poll() is None, ended(process, 0).stdout
            return run([ray, "status"], SECONDS, env=quiet).returncode == 0

        until(answers, 120)
        yield
        process.terminate()
        process.wait(60)


def workers() -> list[int]:
    """The processes of Ray that run something of ours."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (folder / "cmdline").read_text().startswith("ray::_run_job"):
                found.append(int(folder.name))
    return found


def test_a_sweep_runs_through_ray(cluster: None, tmp_path: Path) -> None:
    done = run(sweep(tmp_path, ON_RAY, "seed=1,2"), SECONDS, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [results(tmp_path, seed)["status"] for seed in (1, 2)] == ["finished", "finished"]


def test_a_run_whose_process_is_killed_goes_on(
    cluster: None, tmp_path: Path, undisturbed: Path
) -> None:
    with started(sweep(tmp_path, ON_RAY, *LONG), cwd=ROOT) as process:
        until(lambda: last(tmp_path).exists() or process.poll() is not None, SECONDS)
        (worker,) = workers()
        os.kill(worker, signal.SIGKILL)
        done = ended(process, SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_resumed_as_if_never_stopped(tmp_path, undisturbed)


def test_a_member_that_fails_is_named_and_the_others_finish(cluster: None, tmp_path: Path) -> None:
    occupied = tmp_path / "runs/2/checkpoints"
    occupied.mkdir(parents=True)
    (occupied / "last.ckpt").write_bytes(b"no checkpoint")
    done = run(sweep(tmp_path, ON_RAY, "seed=1,2"), SECONDS, cwd=ROOT)
    assert done.returncode == 2, done.stdout
    (said,) = (line for line in done.stderr.splitlines() if line.startswith("tenfold: "))
    assert "runs/2/checkpoints/last.ckpt" in said
    assert results(tmp_path, 1)["status"] == "finished"
