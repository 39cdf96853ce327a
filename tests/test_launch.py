"""The files under examples/launch do what they say: the scripts run, with stand-ins for Slurm and
ssh."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from forked import launcher_environment
from torch.distributed import run as torchrun

from redetr.cli import parse_command
from redetr.commands.train import Train
from redetr.config import TrainConfig

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="needs Linux: the scripts are for it, and 127.0.0.2"
)

LAUNCH = Path(__file__).parent.parent / "examples" / "launch"
SLURM, SSH = LAUNCH / "slurm.sbatch", LAUNCH / "ssh.sh"
BIN = Path(sys.executable).parent
TORCHRUN = "torch.distributed.run"
HOSTS = ("127.0.0.1", "127.0.0.2")  # two names of this machine
JOB_ID = str(os.getpid())  # Slurm's; the port follows from it
COMMAND = [
    "train",
    "detr_r50",
    "--data",
    "/shared/coco",
    "--output",
    "/shared/runs/detr",
    "--seed",
    "3",
]

# srun starts the command once per process, and kills it for a TERM, as the real one does. scancel
# signals the steps only. `distributed/test_slurm.py` has the real ones.
SLURM_COMMANDS = {
    "scontrol": """
        if [[ $1 == show ]]; then tr , '\\n' <<<"$3"; else echo "$@" >>"$RECORD/scontrol"; fi""",
    "srun": """
        : >"$RECORD/tasks"
        while [[ $1 == --* ]]; do echo "$1" >>"$RECORD/srun"; shift; done
        for ((number = 0; number < WORLD_SIZE; number++)); do
            SLURM_PROCID=$number SLURM_LOCALID=$((number % LOCAL_WORLD_SIZE)) "$@" &
            echo $! >>"$RECORD/tasks"
        done
        trap 'kill -KILL $(cat "$RECORD/tasks")' TERM
        code=0
        for task in $(cat "$RECORD/tasks"); do wait "$task" || code=$?; done
        exit $code""",
    "scancel": """
        [[ "$*" == "--signal=TERM $SLURM_JOB_ID" ]] || exit 9
        kill -TERM $(cat "$RECORD/tasks")""",
}
# ssh runs what the real one would hand to the login shell of the host, where no signal reaches it.
SSH_COMMANDS = {
    "ssh": """
        while [[ $1 == -o ]]; do shift 2; done
        echo "$1" >>"$RECORD/ssh"
        shift
        exec setsid --wait sh -c "$*"
        """
}
# torchrun that notes its command line, and ends with the code of this host.
RECORDER = """
    printf '%s\\n' "$@" >"$RECORD/torchrun-$$"
    case "$*" in *--local-addr\\ 127.0.0.1*) exit "${FIRST_CODE:-0}" ;; esac
    exit "${CODE:-0}"
"""
# redetr that does the same for its rank. `$CODES` has a code for each start, of which the last one
# stays.
RANK_RECORDER = """
    echo "$*" >>"$RECORD/redetr-$RANK"
    env | grep -E '^(WORLD_SIZE|LOCAL_RANK|LOCAL_WORLD_SIZE|MASTER_|OMP_)' >"$RECORD/rank-$RANK"
    codes=(${CODES:-0})
    start=$(wc -l <"$RECORD/redetr-$RANK")
    exit "${codes[start - 1]:-${codes[-1]}}"
"""


def commands(folder: Path, scripts: dict[str, str]) -> dict[str, str]:
    """An environment in which these bash scripts come first; `$RECORD` is a folder for their
    notes."""
    record, programs = folder / "record", folder / "bin"
    for made in (record, programs):
        made.mkdir(exist_ok=True)
    for name, script in scripts.items():
        (programs / name).write_text(f"#!/bin/bash\n{script}\n")
        (programs / name).chmod(0o755)
    launcher = launcher_environment()
    python = shlex.quote(launcher["PYTHON_EXEC"])
    torchrun = programs / "torchrun"  # the real one, in a fork
    if not torchrun.exists():
        torchrun.write_text(f'#!/bin/sh\nexec {python} -m {TORCHRUN} "$@"\n')
        torchrun.chmod(0o755)
    redetr = programs / "redetr"
    if not redetr.exists():
        redetr.write_text(f'#!/bin/sh\nexec {python} -m redetr "$@"\n')
        redetr.chmod(0o755)
    path = f"{programs}:{BIN}:{os.environ['PATH']}"
    return (
        os.environ
        | launcher
        | {
            "PATH": path,
            "RECORD": str(record),
            "OMP_NUM_THREADS": os.environ["OMP_NUM_THREADS"],
            "GLOO_SOCKET_IFNAME": "lo",
        }
    )


def slurm_job(folder: Path, nodes: int = 2, **more: str) -> dict[str, str]:
    """What Slurm tells the script."""
    return commands(folder, SLURM_COMMANDS | more) | {
        "SLURM_JOB_ID": JOB_ID,
        "SLURM_JOB_NODELIST": ",".join(HOSTS[:nodes]),
        "SLURM_JOB_NUM_NODES": str(nodes),
        "SLURM_GPUS_ON_NODE": "1",
        "SLURM_CPUS_PER_TASK": "1",
    }


def ssh_job(folder: Path, **more: str) -> dict[str, str]:
    return commands(folder, SSH_COMMANDS | more) | {
        "HOSTS": f"{HOSTS[0]} me@{HOSTS[1]}",
        "PROCESSES": "1",
    }


def small_training(data: Path, output: Path, steps: int) -> list[str]:
    flags = {
        "data": data,
        "output": output,
        "steps": steps,
        "batch-size": 4,
        "image-size": 64,
        "device": "cpu",
        "precision": "fp32",
        "num-workers": 0,
        "log-every": 1,
        "eval-every": steps,
    }
    model = [
        "backbone=[16,32,64]",
        "hidden_dim=32",
        "nheads=4",
        "dec_layers=2",
        "dim_feedforward=64",
    ]
    return [
        "train",
        "redetr_n",
        *(f"--{name}={value}" for name, value in flags.items()),
        "--model-options",
        *model,
    ]


@contextmanager
def started(command: list[Any], environment: dict[str, str]) -> Iterator[subprocess.Popen]:
    """A process in a group of its own, which is killed at the end if something of it is left."""
    process = subprocess.Popen(
        [str(word) for word in command],
        env=environment,
        text=True,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def run(command: list[Any], environment: dict[str, str], limit_s: float = 300) -> tuple[int, str]:
    """Exit code and output."""
    with started(command, environment) as process:
        output, _ = process.communicate(timeout=limit_s)
    return process.returncode, output


def wait_for_steps(
    process: subprocess.Popen, folder: Path, count: int, limit_s: float = 300
) -> None:
    """Until `count` steps are logged."""
    deadline = time.monotonic() + limit_s
    while len(logged(folder)) < count:
        assert process.poll() is None, process.stdout.read()  # type: ignore[union-attr]
        assert time.monotonic() < deadline
        time.sleep(0.1)


def logged(folder: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl that are complete."""
    file = folder / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().split("\n")[:-1]] if file.exists() else []


def assert_saved(folder: Path) -> None:
    """The checkpoint is of the last step."""
    assert torch.load(folder / "last.pt", weights_only=True)["step"] == logged(folder)[-1]["step"]


def understood(command: list[str]) -> tuple[Any, TrainConfig]:
    """What torchrun and redetr understand of a command line, without starting anything."""
    options = torchrun.parse_args(command)
    assert (options.module, options.training_script) == (True, "redetr")
    parsed = parse_command(options.training_script_args)
    assert isinstance(parsed, Train)
    return options, parsed.config


def recorded(environment: dict[str, str]) -> list[tuple[Any, TrainConfig]]:
    """What each torchrun was asked to do."""
    files = sorted(Path(environment["RECORD"]).glob("torchrun-*"))
    return [understood(file.read_text().splitlines()) for file in files]


@pytest.mark.parametrize("script", [SLURM, SSH], ids=lambda path: path.name)
def test_scripts_are_clean(script):
    assert os.access(script, os.X_OK)
    for check in (["bash", "-n"], [BIN / "shellcheck", "--norc"]):
        code, output = run([*check, script], dict(os.environ))
        assert code == 0, output


@pytest.mark.parametrize(
    ("variables", "processes", "cores"),
    [
        ({"SLURM_GPUS_ON_NODE": "2"}, 2, 4),
        ({"SLURM_GPUS_ON_NODE": "0"}, 1, 8),
        ({"SLURM_GPUS_ON_NODE": ""}, 1, 8),
        ({"SLURM_GPUS_ON_NODE": "2", "PROCESSES": "3"}, 3, 2),
    ],
    ids=str,
)
def test_slurm_starts_a_process_per_gpu(tmp_path, variables, processes, cores):
    environment = slurm_job(tmp_path, redetr=RANK_RECORDER)
    environment |= {"SLURM_CPUS_PER_TASK": "8", **variables}
    for name in [name for name in environment if name.startswith("OMP_")]:
        del environment[name]
    code, output = run([SLURM, *COMMAND], environment)
    assert code == 0, output
    record = tmp_path / "record"
    options = (record / "srun").read_text().split()
    assert {"--nodes=2", f"--ntasks-per-node={processes}", f"--ntasks={2 * processes}"} <= {
        *options
    }
    assert {f"--cpus-per-task={cores}", "--cpu-bind=none"} <= {*options}
    for rank in range(2 * processes):
        parsed = parse_command((record / f"redetr-{rank}").read_text().split())
        config = parsed.config
        assert (config.resume, config.seed, config.output) == (True, 3, "/shared/runs/detr")
        assert dict(line.split("=") for line in (record / f"rank-{rank}").read_text().split()) == {
            "WORLD_SIZE": str(2 * processes),
            "LOCAL_RANK": str(rank % processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(20000 + int(JOB_ID) % 10000),
            "OMP_NUM_THREADS": str(cores),
        }
    assert not (record / f"redetr-{2 * processes}").exists()


@pytest.mark.parametrize(
    ("codes", "starts"),
    [
        ("0", 1),
        ("1", 1),
        ("3", 1),
        ("75", 1),  # stopped by scancel
        ("130", 1),
        ("137 139 0", 3),  # killed, and then by its own fault
        ("137", 4),
        ("139 1", 2),
    ],
)
def test_slurm_starts_again_what_may_do_better(tmp_path, codes, starts):
    environment = slurm_job(tmp_path, redetr=RANK_RECORDER) | {"CODES": codes}
    code, output = run([SLURM, *COMMAND], environment)
    *_, last = codes.split()
    assert code == int(last)
    assert output.count("is restarted after exit code") == starts - 1
    for rank in range(2):
        assert len((tmp_path / "record" / f"redetr-{rank}").read_text().splitlines()) == starts
    assert not (tmp_path / "record" / "scontrol").exists()


def test_slurm_leaves_time_to_save():
    directives = dict(line.split()[1].partition("=")[::2] for line in SLURM.read_text().splitlines()
                      if line.startswith("#SBATCH"))  # fmt: skip
    assert directives.keys() == {
        "--job-name",
        "--nodes",
        "--ntasks-per-node",
        "--gpus-per-node",
        "--cpus-per-task",
        "--time",
        "--requeue",
        "--signal",
        "--output",
        "--open-mode",
    }
    (wait_s,) = re.findall(r"--wait=(\d+)", SLURM.read_text())
    target, _, seconds = directives["--signal"].partition("@")
    assert target == "B:USR1"
    assert int(seconds) > int(wait_s) > 60


@pytest.mark.parametrize(
    "number",
    [signal.SIGUSR1, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)],
    ids=lambda number: number.name,
)
def test_a_slurm_job_saves_before_its_time_is_over(shared_coco, tmp_path, number):
    """SIGUSR1 is Slurm's warning: the job saves and queues itself. SIGTERM means scancel: it only
    saves."""
    environment, folder = slurm_job(tmp_path), tmp_path / "run"
    with started([SLURM, *small_training(shared_coco, folder, 100_000)], environment) as job:
        wait_for_steps(job, folder, 3)
        job.send_signal(number)
        if number == signal.SIGTERM:  # to the steps, too
            for task in (tmp_path / "record" / "tasks").read_text().split():
                os.kill(int(task), number)
        output, _ = job.communicate(timeout=300)
    assert "nothing to resume" in output
    assert "2 x cpu" in output
    assert "stopped by a signal after step" in output
    assert job.returncode == 75
    assert_saved(folder)
    requests = tmp_path / "record" / "scontrol"
    assert (requests.read_text() if requests.exists() else "") == f"requeue {JOB_ID}\n" * (
        number == signal.SIGUSR1
    )


def test_ssh_starts_a_torchrun_per_host(tmp_path):
    environment = ssh_job(tmp_path) | {"TORCHRUN": str(tmp_path / "bin" / "recorder"), "CODE": "5"}
    commands(tmp_path, {"recorder": RECORDER})
    code, output = run(
        [SSH, *COMMAND, "--model-options", "num_queries=30", "it's=a $(word)"], environment
    )
    # The exit code of the first host: the loss of another host does not matter.
    assert (code, output) == (
        0,
        "",
    )
    assert sorted((tmp_path / "record" / "ssh").read_text().split()) == [HOSTS[0], f"me@{HOSTS[1]}"]
    told = sorted(recorded(environment), key=lambda pair: pair[0].local_addr)
    assert [options.local_addr for options, _ in told] == list(HOSTS)
    assert [options.rdzv_conf for options, _ in told] == ["is_host=1", "is_host=0"]
    for options, config in told:
        assert (options.nnodes, options.nproc_per_node) == ("1:2", "1")
        assert (options.rdzv_backend, options.rdzv_endpoint) == ("c10d", "127.0.0.1:29400")
        assert (config.resume, config.model_options) == (True, ("num_queries=30", "it's=a $(word)"))


def test_ssh_ends_with_the_code_of_the_first_host(tmp_path):
    environment = ssh_job(tmp_path) | {
        "TORCHRUN": str(tmp_path / "bin" / "recorder"),
        "FIRST_CODE": "4",
    }
    commands(tmp_path, {"recorder": RECORDER})
    assert run([SSH, *COMMAND], environment) == (4, "")


def test_ssh_asks_for_hosts(tmp_path):
    environment = ssh_job(tmp_path)
    del environment["HOSTS"]
    code, output = run([SSH, *COMMAND], environment)
    assert code != 0
    assert "HOSTS" in output


def ssh_training(folder: Path) -> dict[str, str]:
    with socket.create_server((HOSTS[0], 0)) as server:
        port = server.getsockname()[1]
    return ssh_job(folder) | {"TORCHRUN": str(folder / "bin" / "torchrun"), "PORT": str(port)}


@pytest.mark.long
@pytest.mark.parametrize("how", ["Ctrl-C", pytest.param("killed", marks=pytest.mark.slow)])
def test_ssh_leaves_no_host_running(shared_coco, tmp_path, how):
    """A terminal sends Ctrl-C to the script and to every ssh. Killed, the script cannot tell
    anybody any more."""
    folder = tmp_path / "run"
    with started(
        [SSH, *small_training(shared_coco, folder, 100_000)], ssh_training(tmp_path)
    ) as job:
        wait_for_steps(job, folder, 3)
        if how == "killed":
            job.kill()
        else:
            os.killpg(job.pid, signal.SIGINT)
        output, _ = job.communicate(timeout=300)  # until nobody is left who could write
    assert job.returncode == (-signal.SIGKILL if how == "killed" else 1)
    assert "127.0.0.1: nothing to resume" in output
    assert "2 x cpu" in output
    for host in HOSTS:
        assert f"{host}: redetr: stopped by a signal after step" in output
    assert_saved(folder)


@pytest.mark.slow
def test_ssh_trains_to_the_end(shared_coco, tmp_path):
    folder = tmp_path / "run"
    code, output = run([SSH, *small_training(shared_coco, folder, 4)], ssh_training(tmp_path))
    assert code == 0, output
    assert [line["step"] for line in logged(folder)] == [1, 2, 3, 4, 4]
    assert "127.0.0.1: step 4: AP" in output


@pytest.fixture(scope="module")
def kubernetes() -> dict[str, dict[str, Any]]:
    """The documents of kubernetes.yaml by their kind."""
    return {
        document["kind"]: document
        for document in yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    }


def test_kubernetes_documents_state_their_versions(kubernetes):
    versions = {kind: document["apiVersion"] for kind, document in kubernetes.items()}
    assert versions == {
        "PersistentVolumeClaim": "v1",
        "TrainJob": "trainer.kubeflow.org/v1alpha1",
    }


def test_kubernetes_parts_fit_together(kubernetes):
    claim, spec = kubernetes["PersistentVolumeClaim"], kubernetes["TrainJob"]["spec"]
    (patch,) = spec["runtimePatches"]
    (job,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = job["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    # The names of the runtime torch-distributed.
    assert (job["name"], container["name"]) == (
        "node",
        "node",
    )
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert [mount["name"] for mount in container["volumeMounts"]] == list(volumes)
    assert volumes["shared"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    limits = spec["trainer"]["resourcesPerNode"]["limits"]
    assert limits["nvidia.com/gpu"] == spec["trainer"]["numProcPerNode"]


def test_kubernetes_command_is_understood(kubernetes):
    """Kubernetes fills in `$(NAME)` from the container's environment, which the runtime sets."""
    trainer = kubernetes["TrainJob"]["spec"]["trainer"]
    pet = {"PET_MASTER_ADDR": "redetr-node-0-0.redetr", "PET_MASTER_PORT": "29500"}
    program, *arguments = [
        re.sub(r"\$\((\w+)\)", lambda name: pet[name[1]], word) for word in trainer["command"]
    ]
    assert program == "torchrun"
    options, config = understood(arguments)
    assert (options.rdzv_backend, options.rdzv_endpoint) == ("c10d", "redetr-node-0-0.redetr:29500")
    (mount,) = {
        word.split("=")[1].split("/")[1]
        for word in arguments
        if word.startswith(("--data", "--output"))
    }
    assert mount == "shared"
    assert config.resume
    config.check(trainer["numNodes"] * trainer["numProcPerNode"])
    assert not {entry["name"] for entry in trainer["env"]} & pet.keys()


def test_commands_in_the_readme_are_understood():
    text = (LAUNCH / "README.md").read_text()
    lines = re.findall(r"`([^`]*\btrain [^`]*)`", text)
    assert len(lines) == 4
    for line in lines:
        words = shlex.split(line.replace("\n", " "))
        parse_command(words[words.index("train") :])
