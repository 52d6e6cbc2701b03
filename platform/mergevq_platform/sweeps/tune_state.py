"""The state that Ray Tune stores of a sweep: whether a driver can go on from what a killed one left.

Tune writes its state in place, every ten seconds or so, and first once a trial has been started.
"""

from __future__ import annotations

import json
import sys

import pyarrow.fs

TUNER = "tuner.pkl"
PREFIX, SUFFIX = "experiment_state-", ".json"  # of a driver's states; names sort by time


def restorable(filesystem: pyarrow.fs.FileSystem, path: str) -> bool:
    """Whether Tune can go on from the folder at `path`.

    The state of a driver that was killed while it wrote is removed, and said; that of the driver before it then stands. Where
    there is none, what lies there is removed too: Tune begins anew, and trials that have finished say so from their records.
    """
    if filesystem.get_file_info(f"{path}/{TUNER}").type != pyarrow.fs.FileType.File:
        return False
    listing = filesystem.get_file_info(pyarrow.fs.FileSelector(path))
    names = [info.base_name for info in listing if info.type == pyarrow.fs.FileType.File]
    states = sorted(name for name in names if name.startswith(PREFIX) and name.endswith(SUFFIX))
    while states and not _is_whole(filesystem, f"{path}/{states[-1]}"):
        session = states.pop().removeprefix(PREFIX).removesuffix(SUFFIX)
        print(
            f"warning: the state that Ray Tune wrote as its driver was killed is not whole; going on from "
            f"{'the one before' if states else 'the records of the trials'}",
            file=sys.stderr,
        )
        for name in names:
            if session in name:
                filesystem.delete_file(f"{path}/{name}")
    if not states:
        filesystem.delete_dir_contents(path)
    return bool(states)


def _is_whole(filesystem: pyarrow.fs.FileSystem, file: str) -> bool:
    with filesystem.open_input_stream(file) as stream:
        try:
            return "trial_data" in json.loads(stream.readall())
        except ValueError:
            return False
