"""Ray workers that are forked from a process which has imported their libraries: these imports take 3 to 6 CPU seconds each time.

The workers are Ray's own, in processes of their own; only their start differs. That a worker imports what it needs by itself is what
clusters without this show: that of `tests/cluster`, of which one test is of the ordinary suite, those of `tests/faults` and `tests/soak`.
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import worker_template

# What Ray starts in place of Python. It asks for a worker and ends when that does; all else it leaves to Python, a worker with a
# runtime environment of more than variables too.
STARTER = """#!{python} -IS
import json, os, socket, sys
command, environment, context = sys.argv[1:], dict(os.environ), dict()
if command and os.path.basename(command[0]) == "setup_worker.py":
    name = "--serialized-runtime-env-context="
    context = json.loads(next((word[len(name):] for word in command if word.startswith(name)), "null")) or dict()
    command = [word for word in command[1:] if not word.startswith((name, "--language="))]
    variables = context.pop("env_vars", None) or dict()
    environment.update(variables)
    del context["py_executable"]  # this file
    context["expanded"] = any("$" in value for value in variables.values())
if any(context.values()) or not command or os.path.basename(command[0]) != "default_worker.py":
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
connection.connect({address!r})
asked = dict(command=command, environment=environment, directory=os.getcwd(), group=os.getpgrp())
socket.send_fds(connection, [json.dumps(asked).encode()], [0, 1, 2])
if connection.recv(1):  # no process can be forked here
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
"""


# Threads are not forked: those of OpenMP and BLAS (Ray gives a worker of one CPU one, too), and that of Arrow's allocator.
WITHOUT_THREADS = {"OMP_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}


@contextmanager
def starter(directory: Path) -> Iterator[Path]:
    """The executable with which a Ray cluster must be started so that its workers are forked, in this context.

    Elsewhere than on Linux it is Python, and no worker is forked.
    """
    if sys.platform != "linux":
        yield Path(sys.executable)
        return
    executable, address = directory / "starter", str(directory / "requests")
    executable.write_text(STARTER.format(python=sys.executable, address=address))
    executable.chmod(0o700)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address)
        listener.listen(64)
        # A process and no thread: Ray holds the interpreter while it waits for the first workers.
        passing_on = subprocess.Popen(
            [sys.executable, __file__, str(listener.fileno())],
            stdin=subprocess.PIPE,
            pass_fds=[listener.fileno()],
        )
    with passing_on:  # closes its input, waits
        yield executable


def pass_on(listener: socket.socket) -> None:
    """Pass requests on until the input is closed, each to the template of its job.

    Ray keeps, from its import on, the job that the environment names.
    """
    templates: dict[str | None, socket.socket | None] = {}
    while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
        connection, _ = listener.accept()
        message, files, _, _ = socket.recv_fds(connection, worker_template.LONGEST, 3)
        environment = json.loads(message)["environment"]
        job = environment.get("RAY_JOB_ID")
        if job not in templates:
            templates[job] = _template(environment)
        if (template := templates[job]) is None:
            connection.send(b"-")
        else:
            socket.send_fds(template, [message], [connection.fileno(), *files])
        for file in (connection.detach(), *files):
            os.close(file)


def _template(environment: dict[str, str]) -> socket.socket | None:
    """The template of a job, when it has imported; None where it cannot be forked, as it says on its standard error."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        subprocess.Popen(
            [sys.executable, worker_template.__file__, str(theirs.fileno())],
            env=environment | WITHOUT_THREADS,
            pass_fds=[theirs.fileno()],
        )
    return ours if ours.recv(1) else None


if __name__ == "__main__":
    pass_on(socket.socket(fileno=int(sys.argv[1])))
