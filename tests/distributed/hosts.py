"""Hosts on one machine: a network namespace each, joined by a switch, killed as if the power went
off.

Every host has a network of its own, with nothing in it but the others. What one binds, sends or
loses, the machine and other hosts do not see, so addresses and ports are fixed.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PORT = 29400


class HostsUnavailable(Exception):
    """This system makes no hosts: not Linux, not root, no `ip`, or a container that may not change
    its network."""


def ip(*arguments: str) -> str:
    """Output of the `ip` command. Raises HostsUnavailable if it fails."""
    try:
        done = subprocess.run(
            ["ip", *arguments], capture_output=True, text=True, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip()
        raise HostsUnavailable(f"`ip {' '.join(arguments)}`: {said}") from error
    return done.stdout


@dataclass
class Host:
    """A namespace with the interface `eth0`, whose cable ends in `port` of the namespace
    `switch`."""

    name: str
    address: str
    switch: str
    port: str
    started: list[subprocess.Popen] = field(default_factory=list)

    def start(
        self, command: list[str], log: Path | None = None, **environment: str
    ) -> subprocess.Popen:
        """Starts `command` on this host, with its output appended to `log`."""
        with open(log or os.devnull, "ab") as output:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.name, *command],
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.started.append(process)
        return process

    def kill(self) -> None:
        """SIGKILL to every process on this host. Its kernel lives on: it closes the connections,
        others are told."""
        deadline = time.monotonic() + 60
        while pids := ip("netns", "pids", self.name).split():
            for pid in pids:
                try:
                    os.kill(int(pid), signal.SIGKILL)
                except ProcessLookupError:
                    continue
            if time.monotonic() > deadline:
                raise TimeoutError(f"processes on {self.name} cannot be killed: {pids}")
            time.sleep(0.02)
        while self.started:
            self.started.pop().wait()

    def cut(self) -> None:
        """Pulls the cable: from here on nothing arrives, not even that a connection is closed."""
        ip("-n", self.switch, "link", "set", self.port, "down")

    def plug(self) -> None:
        """Puts the cable back."""
        ip("-n", self.switch, "link", "set", self.port, "up")


@contextmanager
def network(count: int) -> Iterator[list[Host]]:
    """`count` hosts on one switch, 10.77.0.1 first. All that runs on them is killed at the end.

    Raises HostsUnavailable, decided by trying: a byte has to get through.
    """
    name = f"redetr{os.getpid()}"
    switch, hosts = f"{name}-switch", []
    with ExitStack() as stack:
        _namespace(switch, stack)
        ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", switch, "link", "set", "bridge", "up")
        for number in range(1, count + 1):
            host = Host(f"{name}-{number}", f"10.77.0.{number}", switch, f"port{number}")
            _namespace(host.name, stack)
            stack.callback(host.kill)
            _connect(host)
            hosts.append(host)
        _try_out(hosts)
        yield hosts


def _namespace(name: str, stack: ExitStack) -> None:
    ip("netns", "add", name)
    stack.callback(ip, "netns", "del", name)


def _connect(host: Host) -> None:
    # Both ends are made where they belong: the machine's own interfaces stay as they are.
    ip(
        "link",
        "add",
        "eth0",
        "netns",
        host.name,
        "type",
        "veth",
        "peer",
        "name",
        host.port,
        "netns",
        host.switch,
    )
    ip("-n", host.switch, "link", "set", host.port, "master", "bridge", "up")
    ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", "eth0")
    for interface in ("lo", "eth0"):
        ip("-n", host.name, "link", "set", interface, "up")


LISTEN = "import socket, sys; socket.create_server((sys.argv[1], int(sys.argv[2]))).accept()"
KNOCK = """
import socket, sys, time
deadline = time.monotonic() + 30
while True:
    try:
        socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)
        break
    except OSError:
        if time.monotonic() > deadline:
            raise
        time.sleep(0.02)
"""


def _try_out(hosts: list[Host]) -> None:
    where = [hosts[0].address, str(PORT)]
    listening = hosts[0].start([sys.executable, "-S", "-c", LISTEN, *where])
    try:
        if hosts[-1].start([sys.executable, "-S", "-c", KNOCK, *where]).wait(60):
            raise HostsUnavailable(f"{hosts[-1].address} cannot reach {hosts[0].address}")
        listening.wait(60)
    except subprocess.TimeoutExpired as error:
        raise HostsUnavailable(f"no connection between hosts: {error}") from error
    finally:
        listening.kill()
        listening.wait()


def wait_for(condition: Callable[[], Any], limit_s: float, complaint: Callable[[], str]) -> None:
    """Polls until `condition()` is true. Raises TimeoutError with `complaint()` after `limit_s`."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(complaint())
        time.sleep(0.1)
