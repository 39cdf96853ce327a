"""Everything that only a GPU can show, in one call: tests, proofs, resuming, speed and memory.

    python benchmarks/gpu.py                        # like `make bench-gpu`; at most nine minutes
    python benchmarks/gpu.py --device cpu --quick   # tiny sizes, to see that it runs
    python benchmarks/gpu.py --stages resume rates  # only these stages

Each stage is a process with its own time limit and log; if one fails, the others still run. Stages
whose times do not matter run first, side by side: tests, proofs, and compilations, which are cached
for later. Then the stages that measure time run one after another, the most important first. A
stage that does not fit into --budget-s is skipped. Writes FOLDER/logs, FOLDER/results (as
benchmarks/results) and FOLDER/summary.json, and after each stage all of it to --archive (default:
FOLDER.tar.gz).
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SMALLEST_S = 15  # a stage with less time than this is not begun


@dataclass(frozen=True)
class Stage:
    """A command, and the seconds after which it is ended. `timed` ones run alone."""

    name: str
    command: str
    limit_s: int
    timed: bool = True


def stages_of(device: str, quick: bool) -> list[Stage]:
    """All stages in their order."""
    return _quick_stages(device) if quick else _full_stages(device)


def _full_stages(device: str) -> list[Stage]:
    on = f"--device {device}"
    large = "--height 800 --width 1066"
    verify_n = f"-m redetr verify redetr_n {on} --json"
    verify_r50 = f"-m redetr verify detr_r50 {on} --json --image-size 128"
    step = f"benchmarks/training_step.py {on} {large} --batch-size 4"
    inference = f"benchmarks/inference.py {on} {large} --precision bf16 --compile"
    throughput = f"benchmarks/throughput.py {on}"
    compiled = "--precision bf16 --compile --alone"
    return [
        Stage(
            "tests",
            "-m pytest -m gpu -rA -W default -p no:cacheprovider tests/test_gpu.py",
            170,
            False,
        ),
        Stage("verify-fp32", f"{verify_n} --precision fp32", 90, False),
        Stage("verify-split-fp32", f"{verify_n} --precision fp32 --accumulate 2", 90, False),
        Stage("verify-split-bf16", f"{verify_n} --precision bf16 --accumulate 2", 90, False),
        Stage("verify-split-r50", f"{verify_r50} --precision fp32 --accumulate 2", 120, False),
        Stage("resume", f"benchmarks/resume.py {on}", 170, False),
        Stage("compile-training", f"{throughput} --modes bf16-compiled --steps 10", 170, False),
        Stage("compile-step", f"{step} {compiled} --rounds 1", 170, False),
        Stage("compile-inference", f"{inference} --alone --rounds 1", 170, False),
        Stage("rates", f"benchmarks/rates.py {on}", 45),
        Stage("throughput", throughput, 130),
        Stage("step-bf16", f"{step} --precision bf16 --rounds 10", 80),
        Stage("step-fp32", f"{step} --precision fp32 --rounds 10", 80),
        Stage("inference", f"{inference} --rounds 20", 100),
        Stage("graphs", f"benchmarks/graphs.py {on}", 80),
        Stage("step-compiled", f"{step} {compiled} --rounds 10", 60),
        Stage("criterion", f"benchmarks/criterion.py {on}", 40),
    ]


def _quick_stages(device: str) -> list[Stage]:
    on = f"--device {device}"
    small = "--height 64 --width 96 --rounds 1 --precision fp32 --alone"
    verify = (
        f"{on} --json --precision fp32 --image-size 64 --model-options hidden_dim=32 "
        "nheads=4 dec_layers=1"
    )
    return [
        Stage(
            "tests",
            "-m pytest -m gpu -rA -W default -p no:cacheprovider tests/test_gpu.py",
            120,
            False,
        ),
        Stage("verify-split", f"-m redetr verify redetr_n --accumulate 2 {verify}", 120, False),
        Stage(
            "resume",
            f"benchmarks/resume.py {on} --steps 4 --image-size 64 --cases 1 --processes 2",
            240,
            False,
        ),
        Stage("rates", f"benchmarks/rates.py {on} --tries 1", 120),
        Stage(
            "throughput",
            f"benchmarks/throughput.py {on} --modes fp32 --steps 10 --batch-size 4 --image-size 64",
            120,
        ),
        Stage("step", f"benchmarks/training_step.py {on} --batch-size 1 {small}", 120),
        Stage("inference", f"benchmarks/inference.py {on} --batch-sizes 1 {small}", 120),
        Stage("graphs", f"benchmarks/graphs.py {on} --precision fp32 --rounds 1 --small", 120),
        Stage("criterion", f"benchmarks/criterion.py {on} --rounds 1", 120),
    ]


@dataclass
class Running:
    """A stage that was begun. `ended` is how: "ok", "failed" or "out of time"."""

    stage: Stage
    limit_s: float
    log: Path
    process: subprocess.Popen
    started: float = field(default_factory=time.monotonic)
    ended: str = ""
    seconds: float = 0.0

    def poll(self) -> bool:
        """Whether it has ended; ends it, with all processes that it started, when its time is
        over."""
        self.seconds = round(time.monotonic() - self.started, 1)
        if self.process.poll() is not None:
            self.ended = "ok" if self.process.returncode == 0 else "failed"
        elif self.seconds > self.limit_s:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.ended = "out of time"
        return bool(self.ended)


class Session:
    """Runs stages within a budget of seconds and keeps the summary."""

    def __init__(self, folder: Path, budget_s: float, archive: Path | None = None):
        self.folder = folder
        self.archive = archive or folder.with_name(folder.name + ".tar.gz")
        self.end = time.monotonic() + budget_s
        self.rows: list[dict[str, Any]] = []
        (folder / "logs").mkdir(parents=True, exist_ok=True)

    def run(self, stages: list[Stage]) -> None:
        """Runs `stages` side by side."""
        running = [started for stage in stages if (started := self._start(stage))]
        while running:
            time.sleep(0.1)
            for each in [each for each in running if each.poll()]:
                running.remove(each)
                self._note(each.stage.name, each.ended, each.seconds, each.log)

    def _start(self, stage: Stage) -> Running | None:
        remaining_s = self.end - time.monotonic()
        if remaining_s < SMALLEST_S:
            self._note(stage.name, "skipped", 0.0, None)
            return None
        log = self.folder / "logs" / f"{stage.name}.txt"
        results = self.folder / ("results" if stage.timed or stage.name == "resume" else "untimed")
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(
                os.pathsep
            ),
            "PYTHONUNBUFFERED": "1",
            "REDETR_RESULTS": str(results.resolve()),
            # One process trains: no address of another machine is looked for, which takes a network
            # to find.
            "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo"),
            "NCCL_SOCKET_IFNAME": os.environ.get("NCCL_SOCKET_IFNAME", "lo"),
        }
        with log.open("w") as file:
            file.write(f"$ python {stage.command}\n")
            file.flush()
            command = [sys.executable, *shlex.split(stage.command)]
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return Running(stage, min(stage.limit_s, remaining_s), log, process)

    def _note(self, name: str, ended: str, seconds: float, log: Path | None) -> None:
        lines = log.read_text(errors="replace").splitlines() if log else []
        self.rows.append({"stage": name, "ended": ended, "seconds": seconds, "last": lines[-1:]})
        print(f"{name:20} {ended:12} {seconds:6.1f} s", flush=True)
        if ended in ("failed", "out of time"):
            print("\n".join(f"    {line[:200]}" for line in lines[-12:]), flush=True)
        (self.folder / "summary.json").write_text(json.dumps(self.rows, indent=2))
        with tarfile.open(self.archive, "w:gz") as packed:
            packed.add(self.folder, arcname=self.folder.name)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "gpu", metavar="FOLDER")
    parser.add_argument("--archive", type=Path, metavar="FILE", help="where all of it is packed")
    parser.add_argument("--budget-s", type=float, default=540)
    parser.add_argument(
        "--stages", nargs="+", metavar="NAME", help="these alone, in the usual order"
    )
    parser.add_argument("--list", action="store_true", help="print the stages and end")
    arguments = parser.parse_args()
    stages = stages_of(arguments.device, arguments.quick)
    unknown = set(arguments.stages or ()) - {stage.name for stage in stages}
    if unknown:
        parser.error(
            f"unknown stages {', '.join(sorted(unknown))}: --list shows those that there are"
        )
    stages = [stage for stage in stages if not arguments.stages or stage.name in arguments.stages]
    if arguments.list:
        for stage in stages:
            print(f"{stage.name:20} {stage.limit_s:4} s  python {stage.command}")
        return
    session = Session(arguments.output, arguments.budget_s, arguments.archive)
    session.run([stage for stage in stages if not stage.timed])
    for stage in stages:
        if stage.timed:
            session.run([stage])
    if any(row["ended"] != "ok" for row in session.rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
