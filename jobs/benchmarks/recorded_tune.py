"""Ray Tune's stored state of a finished sweep of many trials, from that of one trial: multiplied by Tune's own serialisation."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from ray.tune.experiment import Trial
from ray.tune.search import BasicVariantGenerator

from mergevq_platform.sweeps.finished import Finished


def record_tune(one: Path, many: Path, records: Sequence[Finished]) -> None:
    """Write the folder `many` of Tune's for finished trials with these records, as the folder `one` is that of a single one."""
    many.mkdir()
    shutil.copyfile(one / "tuner.pkl", many / "tuner.pkl")
    shutil.copyfile(one / ".validate_storage_marker", many / ".validate_storage_marker")
    (state_file,) = one.glob("experiment_state-*.json")
    search = BasicVariantGenerator()
    search.restore_from_dir(str(one))
    state = json.loads(state_file.read_text())
    trial = Trial.from_json_state(state["trial_data"][0][0], stub=True)
    trial.restore_run_metadata(state["trial_data"][0][1])
    results = (one / trial.relative_logdir / "result.json").read_text()
    prefix = trial.trial_id.rpartition("_")[0]
    state["trial_data"] = []
    for number, record in enumerate(records):
        config = {"trial": {"number": number, "params": record.params, "seed": record.seed}}
        made = _of(trial, f"{prefix}_{number:05d}", record.name, config, many)
        last = made.run_metadata.last_result
        last.update(record.objectives, config=config, trial_id=made.trial_id)
        state["trial_data"].append(made.get_json_state())
        folder = many / record.name
        folder.mkdir()
        first, *_ = results.splitlines()
        (folder / "result.json").write_text(f"{first}\n{json.dumps(last, default=str)}\n")
    (many / state_file.name).write_text(json.dumps(state))
    search._total_samples = len(records)
    search.save_to_dir(str(many), state_file.stem.removeprefix("experiment_state-"))


def _of(trial: Trial, trial_id: str, name: str, config: dict[str, object], folder: Path) -> Trial:
    made = copy.copy(trial)
    made.run_metadata = copy.deepcopy(trial.run_metadata)
    made.storage = copy.copy(trial.storage)
    made.storage.trial_dir_name = made.relative_logdir = name
    made.storage.storage_fs_path = str(folder.parent)
    made.custom_trial_name = made.custom_dirname = name
    made.stub, made._state_json, made.trial_id = False, None, trial_id
    made.config = made.evaluated_params = config
    made._Trial__unresolved_config = config  # type: ignore[attr-defined]
    return made
