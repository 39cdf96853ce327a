"""What stands for `python` where a launcher starts processes: it asks for a fork, and is its proxy.

`forked.launcher_environment` names the socket. The fork has the command line, environment, folder
and output of this process; signals go on to it, and its exit code becomes this one's. This process
imports nothing large, so it starts at once.
"""

import contextlib
import json
import os
import signal
import socket
import sys

with socket.socket(socket.AF_UNIX) as connection:
    connection.connect(os.environ["FORK_SERVER"])
    request = {
        "pid": os.getpid(),
        "arguments": sys.argv[1:],
        "environment": dict(os.environ),
        "cwd": os.getcwd(),
    }
    # Until the fork is there, signals wait.
    passed_on = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}
    signal.pthread_sigmask(signal.SIG_BLOCK, passed_on)
    file = connection.makefile("rw")
    file.write(json.dumps(request) + "\n")
    file.flush()
    pid = int(file.readline())

    def pass_on(number: int, _: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    for number in passed_on:
        signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, passed_on)
    code = int(file.readline())
if code < 0:
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
