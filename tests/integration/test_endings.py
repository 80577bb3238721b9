"""SIGTERM to a run of two processes: both save as one, and end by it."""

import os
import signal
import sys
import time

import pytest

from shared.checkpoints.reading import load_checkpoint
from shared.run import TERMINATED
from tests.processes import ended, started


@pytest.mark.slow
@pytest.mark.parametrize("to_all", [False, True], ids=["to the first", "to all, as SLURM does"])
def test_two_processes_end_together(tmp_path, to_all):
    places = [f"data_root={tmp_path}/data", f"output_dir={tmp_path}/run"]
    command = [sys.executable, "-m", "shared.run", "experiment=comatch/smoke", "trainer=ddp_cpu"]
    command += ["logger=csv", "trainer.max_steps=1000000", "checkpoint_every=1000000", *places]
    with started(command) as process:
        end = time.monotonic() + 900
        while not (tmp_path / "run/metrics.csv").exists() and process.poll() is None:
            assert time.monotonic() < end, "no step was logged within 900 s"
            time.sleep(0.1)
        if to_all:
            os.killpg(process.pid, signal.SIGTERM)
        else:
            process.send_signal(signal.SIGTERM)
        done = ended(process, 120)
        while time.monotonic() < end + 60:
            try:
                os.killpg(process.pid, 0)  # the second process, which outlives the first a little
            except ProcessLookupError:
                break
            time.sleep(0.1)
        else:
            pytest.fail("the second process goes on")
    assert done.returncode == TERMINATED, done.stderr
    assert load_checkpoint(tmp_path / "run/checkpoints/last.ckpt")["global_step"] > 0
    left = {path.name for path in (tmp_path / "run").glob("*")}
    assert not {name for name in left if name.startswith(("error", "results"))}
