"""A study as cells: each is a function whose result is one JSON file, done once, by processes that share a machine.

Cells that read the results of others name them. Run again, a study does what is missing. Not called `queue`: Python puts the
folder of a script first on its path, where the standard library's `queue` must stay to be found.
"""

from __future__ import annotations

import json
import multiprocessing
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mergevq.errors import InputError
from mergevq.files import write_whole

PATIENCE_SECONDS = 5.0  # that a process which is told to end is given to do so


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One result of a study.

    `run(folder)` returns what JSON can hold; it may read the results and files of the cells in `needs` in the folder, and write
    files of its own there. It is a function of a module, or a partial of one, because it travels to other processes.
    """

    name: str  # of its file, without .json
    run: Callable[[Path], Mapping[str, Any]]
    needs: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)  # all that decides the result


class StudyProgress(NamedTuple):
    """The cells of a study after a run, by name."""

    done: list[str]
    failed: list[str]
    left: list[str]  # not begun, or ended by the time limit


def run_cells(
    cells: Sequence[Cell],
    folder: Path,
    *,
    processes: int = 0,
    limit_seconds: float | None = None,
    threads: int = 1,
    say: Callable[[str], None] = print,
) -> StudyProgress:
    """Do the cells that have no result in `folder`, in their order, as soon as what they need is there.

    `processes` of `threads` PyTorch threads each share the work; 0: this process does it. After `limit_seconds` no cell begins,
    and processes that still work are ended: what they did is lost, and done by the next run. A cell that raises leaves its
    traceback in NAME.failed.txt, and the cells that need it are left. Raises `InputError` for a result of other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ends = float("inf") if limit_seconds is None else time.monotonic() + limit_seconds
    done = [cell.name for cell in cells if result_of(cell, folder) is not None]
    state = _State([cell for cell in cells if cell.name not in done], done, [], say)
    if processes:
        _in_processes(state, folder, processes, threads, ends)
    else:
        while time.monotonic() < ends and (cell := state.next()):
            state.finish(cell, _attempt(cell, folder))
    return StudyProgress(state.done, state.failed, [cell.name for cell in state.waiting])


def result_of(cell: Cell, folder: Path) -> dict[str, Any] | None:
    """The stored result of a cell, None where there is none. Raises `InputError` for one of other settings."""
    path = folder / f"{cell.name}.json"
    if not path.is_file():
        return None
    stored = json.loads(path.read_text())
    if stored["settings"] != json.loads(json.dumps(dict(cell.settings))):
        raise InputError(f"{path} is the result of other settings: give another folder, or delete it")
    found: dict[str, Any] = stored["result"]
    return found


def stored_result(name: str, folder: Path) -> dict[str, Any]:
    """The result of a cell that another one needs."""
    found: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())["result"]
    return found


@dataclass
class _State:
    """What is to be done, and how it went."""

    waiting: list[Cell]
    done: list[str]
    failed: list[str]
    say: Callable[[str], None]

    def next(self) -> Cell | None:
        """The first cell that can begin; it is then no longer waiting."""
        for cell in self.waiting:
            if set(cell.needs) <= set(self.done):
                self.waiting.remove(cell)
                return cell
        return None

    def finish(self, cell: Cell, error: str | None) -> None:
        """Note the end of a cell; `error` is its last line."""
        (self.failed if error else self.done).append(cell.name)
        self.say(f"{cell.name}: {error or 'done'} ({len(self.done)} done, {len(self.waiting)} waiting)")


def _attempt(cell: Cell, folder: Path) -> str | None:
    """Do a cell; returns the last line of what went wrong."""
    began, cpu = time.monotonic(), time.process_time()
    failure = folder / f"{cell.name}.failed.txt"
    try:
        result = dict(cell.run(folder))
    except Exception as error:
        write_whole(failure, traceback.format_exc())
        return f"{type(error).__name__}: {error}"
    failure.unlink(missing_ok=True)
    stored = {
        "settings": dict(cell.settings),
        "result": result,
        "seconds": round(time.monotonic() - began, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__,
    }
    write_whole(folder / f"{cell.name}.json", json.dumps(stored, indent=1))
    return None


@dataclass
class _Slot:
    """A process that does one cell after the other."""

    process: BaseProcess
    connection: Connection
    cell: Cell | None = None


def _in_processes(state: _State, folder: Path, processes: int, threads: int, ends: float) -> None:
    slots: list[_Slot] = []
    try:
        while time.monotonic() < ends:
            idle = [slot for slot in slots if slot.cell is None]
            while (idle or len(slots) < processes) and (cell := state.next()):
                slot = idle.pop() if idle else _started(folder, threads)
                if slot not in slots:
                    slots.append(slot)
                slot.cell = cell
                slot.connection.send(cell)
            busy = [slot for slot in slots if slot.cell]
            if not busy:
                return
            patience = None if ends == float("inf") else max(0.0, ends - time.monotonic())
            ready = wait([slot.connection for slot in busy], patience)
            for slot in [slot for slot in busy if slot.connection in ready]:
                _collect(slot, slots, state)
    finally:
        for slot in slots:
            slot.process.terminate()
            if slot.cell:
                state.waiting.insert(0, slot.cell)
        for slot in slots:
            slot.process.join(PATIENCE_SECONDS)
            slot.process.kill()


def _collect(slot: _Slot, slots: list[_Slot], state: _State) -> None:
    """Take the answer of a process; one that died has none, and its cell has failed."""
    assert slot.cell
    cell, slot.cell = slot.cell, None
    try:
        state.finish(cell, slot.connection.recv())
    except EOFError:
        slot.process.join()
        slots.remove(slot)
        state.finish(cell, f"its process ended with status {slot.process.exitcode}")


def _started(folder: Path, threads: int) -> _Slot:
    # Not forked: a device that this process uses cannot be used by copies of it.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, folder, threads), daemon=True)
    process.start()
    theirs.close()
    return _Slot(process, ours)


def _work(connection: Connection, folder: Path, threads: int) -> None:
    torch.set_num_threads(threads)
    while True:
        connection.send(_attempt(connection.recv(), folder))
