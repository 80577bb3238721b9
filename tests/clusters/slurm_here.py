"""A real SLURM of two nodes on this machine, on loopback, which ends with the tests.

All of it lies in one folder and talks through ports of its own: no service is started, no file of
the system is changed. Without slurmdbd `sacct`, which submitit asks, has nothing to say; the one
here answers from `scontrol`.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.processes import started, until

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
CONFIG = """\
ClusterName=tenfold
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=3,sched_interval=3,batch_sched_delay=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool_%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd_%n.pid
SlurmctldPort={ports[0]}
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
MinJobAge=3600
JobRequeue=1
GresTypes=gpu
NodeName=DEFAULT Sockets=1 CoresPerSocket=8 ThreadsPerCore=1 RealMemory=64000 Gres=gpu:8
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]}
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]}
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
PartitionName=gpu Nodes=n1,n2 State=UP
PartitionName=low Nodes=n2 PriorityTier=1 GraceTime=300 State=UP
PartitionName=high Nodes=n2 PriorityTier=10 PreemptMode=OFF State=UP
"""
SACCT = """\
#!{python}
import re, subprocess, sys

print("JobID|State|NodeList")
for before, job in zip(sys.argv, sys.argv[1:]):
    if before == "-j":
        command = ["scontrol", "show", "job", "-o", job]
        for line in subprocess.run(command, capture_output=True, text=True).stdout.splitlines():
            about = dict(re.findall(r"(\\S+?)=(\\S*)", line))
            name = about["JobId"]
            if "ArrayJobId" in about:
                task = about["ArrayTaskId"]
                waiting = re.search("[-,%]", task)
                name = about["ArrayJobId"] + "_" + (f"[{{task}}]" if waiting else task)
            print(name, about["JobState"], about.get("NodeList", ""), sep="|")
"""


def lacking() -> str | None:
    """What this machine lacks to run the tests, in words; None if nothing."""
    if os.geteuid() != 0:
        return "SLURM's daemons are started by root"
    if absent := [program for program in PROGRAMS if shutil.which(program) is None]:
        return f"no {', '.join(absent)}: apt-get install slurm-wlm munge"
    return None


@contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Start the daemons; yields the environment in which their commands find them."""
    (folder / "state").mkdir(parents=True)
    folder.chmod(0o755)
    ports = [_free_port() for _ in range(3)]
    host = socket.gethostname().split(".")[0]
    config = folder / "slurm.conf"
    config.write_text(CONFIG.format(host=host, folder=folder, ports=ports))
    (folder / "cgroup.conf").write_text("CgroupPlugin=disabled\n")
    for number in range(8):  # what SLURM takes for GPUs
        (folder / f"gpu{number}").touch()
    (folder / "gres.conf").write_text(f"AutoDetect=off\nName=gpu File={folder}/gpu[0-7]\n")
    (folder / "bin").mkdir()
    (folder / "bin/sacct").write_text(SACCT.format(python=sys.executable))
    (folder / "bin/sacct").chmod(0o755)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    environment = {
        **os.environ,
        "SLURM_CONF": str(config),
        "PATH": f"{folder}/bin{os.pathsep}{os.environ['PATH']}",
        "MASTER_ADDR": "127.0.0.1",  # the nodes' names mean nothing outside SLURM
    }
    munged = ["munged", "--foreground", "--force", f"--key-file={key}"]
    munged += [f"--socket={folder}/munge.socket", f"--pid-file={folder}/munged.pid"]
    munged += [f"--log-file={folder}/munged.log", f"--seed-file={folder}/munged.seed"]
    daemons = [
        munged,
        ["slurmctld", "-D"],
        *(["slurmd", "-D", "-N", name] for name in ("n1", "n2")),
    ]
    with ExitStack() as stack:
        # So that the daemons end with tests that are told to end, too.
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        stack.callback(signal.signal, signal.SIGTERM, before)
        for command in daemons:
            stack.enter_context(started(command, env=environment))
            if command is munged:
                until((folder / "munge.socket").exists, 30)
        until(lambda: _ask(environment, "sinfo", "-h", "-t", "idle", "-o", "%D") == "2", 60)
        try:
            yield environment
        finally:
            _ask(environment, "scancel", "--user=root")
            _ask(environment, "scancel", "--user=root", "--signal=KILL")
            until(lambda: not _ask(environment, "squeue", "-h"), 60)


def jobs(environment: dict[str, str]) -> list[dict[str, str]]:
    """What SLURM knows of each job, oldest first."""
    shown = _ask(environment, "scontrol", "show", "job", "-o").splitlines()
    found = [dict(re.findall(r"(\S+?)=(\S*)", line)) for line in shown]
    return sorted((job for job in found if "JobId" in job), key=lambda job: int(job["JobId"]))


def _ask(environment: dict[str, str], *command: str) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
