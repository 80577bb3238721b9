"""Where a result comes from: the commit of the code, the machine and the job that ran it."""

import logging
import os
import re
import resource
import socket
import subprocess
import sys
from contextlib import suppress
from logging import FileHandler
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def git_state() -> dict[str, Any]:
    """Commit of the code and whether it has uncommitted changes; None outside a checkout."""

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(ROOT), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    return {
        "git_commit": git("rev-parse", "HEAD"),
        "git_dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
    }


def place() -> dict[str, str | None]:
    """The host, the job's number in SLURM's spelling (5_2 is of an array) and the file that logs
    are written to; None where there is none."""
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    job = f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")
    handlers = logging.getLogger().handlers
    files = [handler.baseFilename for handler in handlers if isinstance(handler, FileHandler)]
    return {"host": socket.gethostname(), "job": job, "log": next(iter(files), None)}


def peak_bytes() -> int:
    """The most memory that this process has had. Linux's `ru_maxrss` counts what it was before it
    began its program as well, a copy of a perhaps large parent."""
    with suppress(OSError, ValueError):
        (peak,) = re.findall(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
        return int(peak) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
