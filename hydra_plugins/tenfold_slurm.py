"""Hydra's launcher of SLURM arrays by submitit, with honest endings and one number of processes.

It lies here because Hydra takes plugins from no other package.
"""

import logging
import re
import time
from collections.abc import Sequence
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, filter_overrides

try:
    from hydra_plugins.hydra_submitit_launcher import submitit_launcher

    Launcher: Any = submitit_launcher.SlurmLauncher
except ImportError:  # without the extra `slurm` there is nothing to launch
    Launcher = object

log = logging.getLogger(__name__)
LASTS = 10.0  # seconds
COMMON = {"name", "timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node"}
COMMON |= {"tasks_per_node", "stderr_to_stdout"}
"""What submitit calls the same for every kind of cluster."""


class SlurmLauncher(Launcher):
    """A member that fails does so in SLURM's eyes too, and is named once all members have ended.

    Args:
        processes: of one run; a run of more than `processes_per_node` fills whole nodes.
        gpus: whether each process gets a GPU; a cluster that counts them by `gres` says false.
        params: what sbatch and submitit take.
    """

    def __init__(self, processes: int, processes_per_node: int, gpus: bool, **params: Any) -> None:
        here = min(processes, processes_per_node)
        nodes, rest = divmod(processes, here)
        if rest:
            said = f"hydra.launcher.processes={processes} does not fill nodes of {here}"
            raise ValueError(f"{said}: take a multiple, or set hydra.launcher.processes_per_node")
        super().__init__(
            nodes=nodes, tasks_per_node=here, gpus_per_node=here if gpus else None, **params
        )

    def __call__(self, *args: Any) -> JobReturn:
        done = super().__call__(*args)
        done.return_value  # noqa: B018  (raises what the run has raised)
        return done

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        import submitit

        given = {**self.params, "name": self.params["name"] or _name(job_overrides)}
        executor = submitit.AutoExecutor(
            folder=given.pop("submitit_folder"),
            cluster="slurm",
            slurm_max_num_timeout=given.pop("max_num_timeout"),
        )
        executor.update_parameters(
            **{key if key in COMMON else f"slurm_{key}": value for key, value in given.items()}
        )
        numbers = range(initial_job_idx, initial_job_idx + len(job_overrides))
        jobs = executor.map_array(
            self,
            [list(overrides) for overrides in job_overrides],
            ["hydra.sweep.dir"] * len(numbers),
            numbers,
            [f"job_id_for_{number}" for number in numbers],
            [Singleton.get_state()] * len(numbers),
        )
        for job, overrides in zip(jobs, job_overrides, strict=True):
            log.info("job %s: %s", job.job_id, " ".join(filter_overrides(overrides)))
        return [_result(job, given) for job, given in zip(jobs, job_overrides, strict=True)]


def _name(job_overrides: Sequence[Sequence[str]]) -> str:
    """Experiments and seeds of an array, for SLURM's lists."""
    pairs = [override.partition("=") for job in job_overrides for override in job]
    names = [
        ",".join(dict.fromkeys(value for key, _, value in pairs if key == wanted))
        for wanted in ("experiment", "seed")
    ]
    return " seed ".join(filter(None, names))[:120] or "tenfold"


def _results(job: Any) -> Sequence[JobReturn]:
    """What a job's processes returned, once they have ended. A job that SLURM queues again is
    cancelled for a moment, so that an end without results counts only if it lasts."""
    from submitit.core.utils import FailedJobError, UncompletedJobError

    while True:
        try:
            return job.results()
        except FailedJobError:  # a kind of the other; it has run and raised
            raise
        except UncompletedJobError:
            time.sleep(LASTS)
            job.watcher.clear()  # which asks no more for jobs that have ended
            if job.done() or job.state == "UNKNOWN":
                raise


def _result(job: Any, overrides: Sequence[str]) -> JobReturn:
    """What the first process of a job returned, once its processes have ended."""
    try:
        return _results(job)[0]
    except Exception as error:  # submitit's; its text holds the traceback, or the end in SLURM
        text = str(error)
        *_, reason = ["", *re.findall(r"^[\w.]+: .+$|\(state: \w+\)", text, re.MULTILINE)]
        named = " ".join(filter_overrides(overrides))
        failure = RuntimeError(f"job {job.job_id} failed ({named}): {reason or text[:200]}")
        failure.add_note(f"its output: {job.paths.stdout}")
        log.error("%s", failure)
        return JobReturn(overrides=overrides, status=JobStatus.FAILED, _return_value=failure)
