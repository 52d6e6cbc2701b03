"""The state that Ray Tune stores of a sweep: whether a driver can go on from what a killed one left.

Tune writes its state in place, every ten seconds or so, and first once a trial has been started.
"""

from __future__ import annotations

import json
import pickle
import sys

import pyarrow.fs
from ray import tune
from ray.tune.experiment import Trial

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
    while states:
        session = states[-1].removeprefix(PREFIX).removesuffix(SUFFIX)
        if all(_is_whole(filesystem, f"{path}/{name}") for name in names if session in name):
            break
        del states[-1]
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
    """Whether a file of JSON, or a pickle whatever it is called, has its end."""
    with filesystem.open_input_stream(file) as stream:
        content = stream.readall()
    if not content.startswith(b"{"):
        return content.endswith(pickle.STOP)
    try:
        json.loads(content)
    except ValueError:
        return False
    return True


class LostCheckpoints(tune.Callback):
    """Lets a trial whose checkpoint is gone go on without it: Tune fails it for good.

    Of a trial's checkpoints Tune drops the oldest, and notes afterwards which there are; its driver may be killed between.
    """

    looked = False

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: object) -> None:
        """Before Tune's first step: forget the checkpoints that are not there."""
        if self.looked:
            return
        self.looked = True
        for trial in trials:
            if trial.status == Trial.PENDING and trial.checkpoint is not None and _is_gone(trial.checkpoint):
                manager = trial.run_metadata.checkpoint_manager
                assert manager is not None  # a checkpoint came from it
                trial.run_metadata.checkpoint_manager = type(manager)(manager.checkpoint_config)
                trial.run_metadata.invalidate_cache()


def _is_gone(checkpoint: tune.Checkpoint) -> bool:
    filesystem = checkpoint.filesystem
    assert filesystem is not None  # optional in its constructor alone
    return filesystem.get_file_info(checkpoint.path).type == pyarrow.fs.FileType.NotFound
