"""Slurm as Debian packages it, on hosts of its own (`hosts.py`): a controller and two nodes.

Nothing of the system's Slurm is used or changed: its configuration, keys, logs and state lie in one
folder, and all daemons end with the context.
"""

import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hosts import Host, network, wait_for

NAMES = ("controller", "node1", "node2")
LIMIT_S = 240  # for each thing that is waited for

# Without control groups and systemd, which a container may lack. A node without a sign of life for
# 10 s is down, and usable again once its slurmd is back.
CONFIGURATION = """
ClusterName=redetr
SlurmctldHost=controller
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SlurmdTimeout=10
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2
GresTypes=gpu
NodeName=node[1-2] CPUs=8 Gres=gpu:2
PartitionName=main Nodes=node[1-2] Default=YES
"""
FURTHER_FILES = {
    "gres.conf": "NodeName=node[1-2] Name=gpu File=/dev/null,/dev/zero\n",  # what stands for GPUs
    "cgroup.conf": "CgroupPlugin=cgroup/v1\n",  # slurmd asks for its kind, and makes no group
}

# A process with the names of all hosts, and that of its own.
INSIDE = 'mount --bind "$1" /etc/hosts && hostname "$2" && shift 2 && exec "$@"'


@dataclass
class Slurm:
    """Hosts with the daemons of Slurm; `folder` holds all of its files."""

    folder: Path
    hosts: dict[str, Host]

    def start(self, name: str, command: list[str], log: str, **environment: str) -> None:
        self._popen(name, command, self.folder / log, environment)

    def start_node(self, name: str) -> None:
        self.start(name, ["slurmd", "-D", "-N", name], f"{name}.log")

    def command(self, *words: str, **environment: str) -> str:
        """Standard output and errors of one of Slurm's commands."""
        output = self.folder / "output"
        output.unlink(missing_ok=True)
        process = self._popen("controller", list(words), output, environment)
        code = process.wait(LIMIT_S)
        text = output.read_text()
        assert code == 0, f"{words}: {text}\n{self.logs()}"
        return text

    def submit(self, words: list[str], **environment: str) -> str:
        """The number of a new job."""
        return self.command("sbatch", "--parsable", *words, **environment).strip()

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` says: JobState, Restarts, ExitCode and more."""
        return dict(re.findall(r"(\w+)=(\S*)", self.command("scontrol", "show", "job", number)))

    def end_of(self, number: str, log: Path) -> dict[str, str]:
        """Waits for the end of a job, and starts it at once where Slurm would let it wait after it
        was requeued."""
        deadline = time.monotonic() + LIMIT_S
        while True:
            job = self.job(number)
            if job["JobState"] == "PENDING" and job["Reason"] == "BeginTime":
                self.command("scontrol", "update", f"JobId={number}", "StartTime=now")
            elif job["JobState"] not in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING"):
                return job
            if time.monotonic() > deadline:
                said = log.read_text() if log.exists() else ""
                raise TimeoutError(f"{job}\n{said}\n{self.logs()}")
            time.sleep(1)

    def logs(self) -> str:
        """The end of what the daemons wrote."""
        files = sorted(self.folder.glob("*.log"))
        return "\n".join(f"--- {file.name}\n{file.read_text()[-3000:]}" for file in files)

    def _popen(
        self, name: str, command: list[str], log: Path, environment: dict[str, str]
    ) -> subprocess.Popen:
        named = ["unshare", "--mount", "--uts", "sh", "-c", INSIDE, "sh"]
        words = [*named, str(self.folder / "hosts"), name, *command]
        configuration = {"SLURM_CONF": str(self.folder / "slurm.conf")}
        return self.hosts[name].start(words, log, **configuration, **environment)


@contextmanager
def slurm(folder: Path) -> Iterator[Slurm]:
    """A Slurm with its files in `folder`. Raises HostsUnavailable where no hosts can be made."""
    (folder / "state").mkdir()
    (folder / "slurm.conf").write_text(CONFIGURATION.format(folder=folder))
    for name, text in FURTHER_FILES.items():
        (folder / name).write_text(text)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    with network(len(NAMES)) as hosts:
        cluster = Slurm(folder, dict(zip(NAMES, hosts, strict=True)))
        lines = [f"{host.address} {name}\n" for name, host in cluster.hosts.items()]
        (folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(lines))
        cluster.start("controller", munged(folder), "munged.log")
        complaint = cluster.logs
        wait_for((folder / "munge.socket").exists, LIMIT_S, complaint)
        cluster.start("controller", ["slurmctld", "-D"], "slurmctld.log")
        for name in NAMES[1:]:
            cluster.start_node(name)
        ready = "main up 2 idle"
        sinfo = ["sinfo", "--noheader", "--format=%P %a %D %T", "--partition=main"]
        wait_for((folder / "slurmctld.pid").exists, LIMIT_S, complaint)
        wait_for(lambda: ready in cluster.command(*sinfo).replace("*", ""), LIMIT_S, complaint)
        yield cluster


def munged(folder: Path) -> list[str]:
    """The daemon that vouches for users; `--force`: temporary folders may be open to others."""
    files = {"socket": "socket", "key-file": "key", "pid-file": "pid", "seed-file": "seed"}
    flags = [f"--{flag}={folder}/munge.{name}" for flag, name in files.items()]
    return ["munged", "--foreground", "--force", *flags]
