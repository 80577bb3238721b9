"""SLURM, as a process inside one of its jobs meets it."""

import os
import re
import subprocess
from contextlib import suppress

from pytorch_lightning.plugins.environments import SLURMEnvironment


def tasks() -> int:
    """How many processes SLURM has started side by side; 1 outside of it."""
    return int(os.environ["SLURM_NTASKS"]) if SLURMEnvironment.detect() else 1


def start() -> str:
    """What the processes of one start share, and no other start has; the same of all outside."""
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT", "TORCHELASTIC_RUN_ID")
    return ":".join(os.environ.get(name, "") for name in names)


def requeue() -> None:
    """Put this batch job back into the queue if it still runs, so was asked to make room: by a
    preemption with time of grace, or by a signal. `scancel` and the time limit end it at once."""
    if (job := os.environ.get("SLURM_JOB_ID")) is None:
        return
    command = ["scontrol", "show", "job", "-o", job]
    with suppress(OSError):
        shown = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        about = dict(re.findall(r"(\S+?)=(\S*)", shown))
        batch = about.get("BatchFlag", "0") != "0"  # else a person's `srun` or `salloc`
        if batch and (about.get("JobState"), about.get("Requeue")) == ("RUNNING", "1"):
            subprocess.run(["scontrol", "requeue", job], check=False)
