"""The process that workers of a Ray cluster are forked from: it has imported what they import, and does nothing else.

`python worker_template.py DESCRIPTOR` is started by `forked_workers` with one end of a pair of sockets. Over it comes, for every
worker, what the process that Ray made for it has: command, environment, files, and a connection to that process. A process is
forked that takes on all this and runs the command, Ray's own `default_worker.py`.
"""

from __future__ import annotations

import fcntl
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys

# Ray comes last, and `ray.train` is left to the workers: it draws an identifier when it is imported, and from then on forked processes
# would draw the same ones.
IMPORTED = (
    "torch._dynamo",  # every optimizer imports it
    "mergevq_platform.loop",
    "mergevq_platform.evaluation.tokenizer_worker",
    "mergevq_platform.sampling.job",
    "mlflow",
    "mlflow.store.tracking.sqlalchemy_store",  # a trial writes to the database itself
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "plotly.graph_objects",
    "pandas",  # for `ray.train`
    "mergevq_platform.distributed.run_actor",
    "ray._private.workers.default_worker",
)
LONGEST = 1 << 18  # bytes of a command with its environment


def main() -> None:
    """Import, fork for whoever asks until the session's end, and in the forked processes be the worker."""
    for module in IMPORTED:
        importlib.import_module(module)
    assert len(os.listdir("/proc/self/task")) == 1, "threads are not forked"
    assert _drawn_in_a_fork() != _drawn_in_a_fork(), "workers would give their tasks the same identifiers"
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the workers here
    requests = socket.socket(fileno=int(sys.argv[1]))
    requests.send(b"+")
    while True:
        message, files, _, _ = socket.recv_fds(requests, LONGEST, 4)
        if not message:  # the other end is closed
            os._exit(0)
        if not os.fork():
            break
        for file in files:
            os.close(file)
    requests.close()
    become(**json.loads(message), files=files)
    runpy.run_path(sys.argv[0], run_name="__main__")


def _drawn_in_a_fork() -> bytes:
    from ray import WorkerID

    reading, writing = os.pipe()
    if not (pid := os.fork()):
        os.write(writing, WorkerID.from_random().binary())
        os._exit(0)
    os.waitpid(pid, 0)
    drawn = os.read(reading, 64)
    os.close(reading)
    os.close(writing)
    return drawn


def become(
    command: list[str], environment: dict[str, str], directory: str, group: int, files: list[int]
) -> None:
    """Take on what the process that Ray made has. Each of the two ends when the other does."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    connection, *standard = files
    fcntl.fcntl(connection, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(connection, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(connection, fcntl.F_SETFL, os.O_ASYNC)
    for number, file in enumerate(standard):
        os.dup2(file, number)
        os.close(file)
    os.setpgid(0, group)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    sys.argv = command


if __name__ == "__main__":
    main()
