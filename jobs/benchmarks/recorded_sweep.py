"""A finished sweep of any number of trials, made from one trial that really ran: records, journals and runs in MLflow.

Every trial has the stored files of the real one, with a choice, numbers and an identity of its own; Ray Tune and MLflow's store are
filled by the code that fills them otherwise. Artifacts above 64 KiB are left out: two thousand interactive pages are ten gigabytes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from benchmarks.recorded_tune import record_tune
from mergevq.rng import generator_at
from mergevq_platform.data import write_shapes
from mergevq_platform.sweeps import (
    Random,
    Rung,
    Sweep,
    choice,
    driver,
    log_uniform,
    mean_log_frechet,
    mean_psnr,
    stored,
    uniform,
)
from mergevq_platform.sweeps.finished import RECORD, Finished
from mergevq_platform.sweeps.objectives import Objective
from mergevq_platform.sweeps.space import Params
from mergevq_platform.sweeps.trial import trial_name, trial_tags
from mergevq_platform.sweeps.tuning import TUNE_FOLDER
from mergevq_platform.tracking.delivery import Delivery
from mergevq_platform.tracking.journal import Journal
from mergevq_platform.tracking.records import JOURNAL_NAME, JournalRecord, RunIdentity, read_journal
from mergevq_platform.tracking.store import Store

NAME, TEMPLATE = "many", "one"
LARGEST_ARTIFACT_BYTES = 64 * 1024


def record_sweep(home: Path, trials: int) -> None:
    """Record the sweep `many` of so many trials in `home`: all files of its trials and Tune's state, nothing in MLflow yet."""
    definition = _definition(home, trials)
    driver.sweep(replace(definition, name=TEMPLATE, search=Random(trials=1)), home=home, name=TEMPLATE)
    settings = stored.begun(definition, home, name=NAME, storage=None, tracking_uri=None)
    pinned, _ = definition.pinned(lambda _: None)
    settings.run(NAME).directory.mkdir()
    settings.save(replace(pinned, folder=os.getcwd()))
    source = settings.run(trial_name(TEMPLATE, 0)).directory
    record = Finished.load(source / RECORD)
    assert record is not None
    written = list(read_journal(source / JOURNAL_NAME))
    records = []
    for number, (params, seed) in enumerate(definition.listed() or ()):
        directory = settings.run(trial_name(NAME, number)).directory
        directory.mkdir()
        made = _trial(record, number, params, seed, definition.objectives)
        made.save(directory / RECORD)
        own = {"mergevq.run": made.name} | trial_tags(definition, settings, params)
        _write_journal(written, made, own, settings.uid, source, directory)
        records.append(made)
    record_tune(
        settings.run(TEMPLATE).directory / TUNE_FOLDER, settings.run(NAME).directory / TUNE_FOLDER, records
    )


def deliver(home: Path, numbers: Iterator[int]) -> None:
    """Deliver the journals of these trials to MLflow as a trial does, without the pages of the experiment."""
    store = Store.at(home)
    for number in numbers:
        delivery = Delivery(home / "ray" / trial_name(NAME, number) / JOURNAL_NAME, store)
        while delivery.advance():
            pass
        delivery.close()


def _definition(home: Path, trials: int) -> Sweep:
    images = home / "images"
    write_shapes(images, images=192, val_images=64, size=16, seed=0)
    recipe = home / "small.yaml"
    recipe.write_text(yaml.safe_dump(_recipe(images)))
    return Sweep(
        name=NAME,
        question="What does a sweep of many trials cost?",
        recipe=str(recipe),
        space={
            "task.keep": choice(
                {"kind": "exponential", "merge_ratio": [0.0, 0.75], "rate": 1.0},
                {"kind": "uniform", "merge_ratio": [0.0, 0.75]},
                {"kind": "list", "merge_ratios": [0.0]},
            ),
            "optimizer.learning_rate": log_uniform(1e-5, 1e-2),
            "task.losses.entropy.weight": uniform(0.01, 0.1),
        },
        search=Random(trials=trials),
        objectives=(mean_log_frechet(), mean_psnr()),
        rung=Rung(keeps=(4,), images=32, probe_images=32),
    )


def _recipe(images: Path) -> dict[str, Any]:
    losses = {
        "adversarial": {"kind": "patch", "discriminator": {"channels": 8, "num_layers": 1}},
        "alignment": {"kind": "self", "prototypes": 16},
    }
    return {
        "name": "small",
        "task": {"preset": "test_gr", "losses": losses},
        "data": {"path": str(images), "views": {"image_size": 16, "student_scale": [0.5, 1.0]}},
        "steps": 8,
        "global_batch": 8,
        "log_every": 1,
        "checkpoint_every": 4,
        "optimizer": {"learning_rate": 1e-3, "schedule": {"kind": "constant"}},
        "evaluation": {"keeps": [4, 9, 16], "batch": 16, "validation_images": 32},
        "cluster": {"device": "cpu", "workers": 1},
    }


def _trial(
    record: Finished, number: int, params: Params, seed: int, objectives: tuple[Objective, ...]
) -> Finished:
    """The record with another choice, and with numbers that follow from it and from a noise of its own."""
    rate = math.log10(float(params["optimizer.learning_rate"]))
    better = 0.3 * math.exp(-((rate + 3.5) ** 2)) + 0.1 * (params["task.keep"] == "exponential")
    noise = generator_at(1, number).normal(0, 0.03)
    rows = [
        {
            key: value
            if key == "keep"
            else value * (1 - better + noise if key.startswith("rf") else 1 + better - noise)
            for key, value in row.items()
        }
        for row in record.curve["rows"]
    ]
    made = replace(
        record,
        name=trial_name(NAME, number),
        params=params,
        seed=seed,
        curve={**record.curve, "run": trial_name(NAME, number), "rows": rows},
    )
    values = {objective.name: objective.of(made.evaluation(), None) for objective in objectives}
    return replace(made, objectives=values)


def _write_journal(
    written: list[JournalRecord],
    made: Finished,
    tags: dict[str, str],
    parent: str,
    source: Path,
    directory: Path,
) -> None:
    values = {key: value for key, value in made.params.items() if key != "task.keep"} | {"name": made.name}
    rows = {int(row["keep"]): row for row in made.curve["rows"]}
    first = RunIdentity(**written[0].data)
    identity = RunIdentity(name=made.name, experiment=first.experiment, kind="trial", parent=parent)
    with Journal(directory / JOURNAL_NAME, identity) as journal:
        for record in written[1:]:
            data = record.data
            match record.kind:
                case "params":
                    journal.append_params({key: values.get(key, text) for key, text in data.items()})
                case "tags":
                    journal.append_tags({key: tags.get(key, text) for key, text in data.items()})
                case "metrics":
                    row = rows.get(data["step"], {})
                    own = {k: row.get(k.removeprefix("curve/"), float(v)) for k, v in data["values"].items()}
                    journal.append_metrics(data["step"], own)
                case "artifact":
                    file = source / data["file"]
                    if file.stat().st_size <= LARGEST_ARTIFACT_BYTES:
                        (directory / data["file"]).parent.mkdir(parents=True, exist_ok=True)
                        os.link(file, directory / data["file"])
                        journal.append_artifact(directory / data["file"], data["directory"])
                case "dataset":
                    journal.append_dataset(**data)
                case "status":
                    journal.append_status(data["status"])
