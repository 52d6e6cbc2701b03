"""Real sweeps of tiny trainings on the session's Ray cluster: early stopping, faults, populations, groups, MLflow."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

import killed_driver
from family import descendants
from mergevq.errors import InputError
from mergevq_platform import loop
from mergevq_platform import recipe as recipes
from mergevq_platform.distributed.local import LocalHost
from mergevq_platform.evaluation.compare import compare
from mergevq_platform.evaluation.generator_report import GeneratorReport
from mergevq_platform.storage import checkpoints
from mergevq_platform.sweeps import (
    EarlyStopping,
    FrontStopping,
    Grid,
    Population,
    Rung,
    Sweep,
    Tpe,
    choice,
    driver,
    mean_log_frechet,
    mean_probe,
    mean_psnr,
    psnr_at,
    sample_class_top1,
    sample_frechet,
    uniform,
)
from mergevq_platform.sweeps.finished import Finished
from mergevq_platform.sweeps.outcome import SweepOutcome
from mergevq_platform.tracking.listing import list_runs
from mergevq_platform.tracking.records import read_metrics
from mergevq_platform.tracking.store import Store

pytestmark = pytest.mark.ray

FAMILIES = choice(
    {"kind": "exponential", "merge_ratio": [0.0, 0.75], "rate": 1.0},
    {"kind": "uniform", "merge_ratio": [0.0, 0.75]},
    {"kind": "list", "merge_ratios": [0.0]},
)


@pytest.fixture
def base(small_recipe: dict[str, Any], tmp_path: Path) -> Path:
    """The small recipe as a file: one worker, a curve of two counts."""
    small_recipe["cluster"] = {"workers": 1, "device": "cpu"}
    small_recipe["evaluation"] |= {"keeps": [4, 16], "untrained_baseline": False}
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(small_recipe))
    return path


def made(base: Path, **changes: Any) -> Sweep:
    given: dict[str, Any] = {
        "name": "tiny",
        "question": "Which family?",
        "recipe": str(base),
        "space": {"task.keep": FAMILIES},
        "search": Grid(),
        "objectives": (mean_psnr(), mean_log_frechet()),
        "rung": Rung(keeps=(4,), images=32, probe_images=32),
    }
    return Sweep(**(given | changes))


def test_a_sweep_ends_in_one_figure_with_its_trials_below_it_in_mlflow(
    base: Path, ray_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Recipe and data are named as a person does who stands in a folder; trials run in others.
    monkeypatch.chdir(tmp_path)
    tree = yaml.safe_load(base.read_text())
    image_set = tree["data"]["path"]
    tree["data"]["path"] = os.path.relpath(image_set)
    base.write_text(yaml.safe_dump(tree))
    sweep = made(Path(base.name), objectives=(mean_log_frechet(), mean_probe()))
    outcome = driver.sweep(sweep, home=ray_home, name="families")
    assert outcome.complete
    assert not outcome.failed
    assert [trial.name for trial in outcome.finished] == ["families-000", "families-001", "families-002"]
    assert all(sum(trial.drawn.values()) == trial.steps == 8 for trial in outcome.finished)
    assert outcome.finished[2].drawn == {"16": 8}

    store = Store.at(ray_home)
    runs = {run.name: run for run in list_runs(store)}
    parent = runs["families"]
    assert (parent.kind, parent.status) == ("sweep", "FINISHED")
    for trial in outcome.finished:
        child = runs[trial.name]
        assert (child.parent, child.status, child.has_curve) == (parent.uid, "FINISHED", True)
        tags = store.client().get_run(child.run_id).data.tags
        assert tags["mlflow.parentRunId"] == parent.run_id
        assert tags["sweep.task.keep"] == trial.params["task.keep"]
    artifacts = {file.path for file in store.client().list_artifacts(parent.run_id, "report")}
    assert {"report/pareto.png", "report/curves.png", "report/pareto.html", "report/winner.yaml"} <= artifacts

    assert all(Path(trial.recipe["data"]["path"]).samefile(image_set) for trial in outcome.finished)
    winner = recipes.load(outcome.files["winner.yaml"])
    best = min(outcome.finished, key=lambda trial: trial.objectives["mean_log_frechet"])
    assert winner.tokenizer.keep.kind == best.recipe["task"]["keep"]["kind"]

    # A finished sweep that is resumed does nothing again.
    began = [trial.seconds for trial in outcome.finished]
    again = driver.sweep(None, home=ray_home, resume="families")
    assert [trial.seconds for trial in again.finished] == began
    for state in (ray_home / "ray" / "families" / "tune").glob("experiment_state-*.json"):
        for entry, _ in json.loads(state.read_text())["trial_data"]:
            assert len(json.loads(entry)["trial_name_creator"]["value"]) < 400  # a pickle without definition

    files = compare(["families", "families-001"], home=ray_home, out=tmp_path / "compared", paper=True)
    assert all(path.stat().st_size > 1000 for path in files.values() if path.suffix == ".png")


def test_a_sweep_over_generators_ends_in_their_figure_over_guidance_scales(
    small_recipe: dict[str, Any], ray_home: Path, tmp_path: Path
) -> None:
    small_recipe["cluster"] = {"workers": 1, "device": "cpu"}
    tokenizer = ray_home / "ray" / "tokenizer"
    tokenizer.mkdir(parents=True)
    upstream = recipes.resolve(small_recipe | {"steps": 2})
    (tokenizer / "recipe.yaml").write_text(checkpoints.recipe_yaml(upstream))
    loop.train(upstream, loop.Worker(), LocalHost(tokenizer))
    generation = {"scales": [1.0, 2.0], "images": 48, "batch": 24}
    task = {"kind": "generator", "preset": "test_mergear", "model": {"classes": 12}, "generation": generation}
    tree = small_recipe | {
        "name": "generator",
        "task": task | {"tokenizer": tokenizer.name},
        "data": {"path": small_recipe["data"]["path"], "views": {"image_size": 16}},
        "evaluation": {"batch": 16, "images": 32, "probe_images": 48},
        "steps": 4,
    }
    path = tmp_path / "generator.yaml"
    path.write_text(yaml.safe_dump(tree))
    sweep = Sweep(
        name="windows",
        question="Which window?",
        recipe=str(path),
        space={"task.model.window": choice(1, 2)},
        search=Grid(),
        objectives=(sample_frechet(), sample_class_top1(None)),
        stopping=EarlyStopping(every_steps=2, factor=4),
        rung=Rung(scales=(1.0,), images=24, probe_images=48),
    )
    outcome = driver.sweep(sweep, home=ray_home, name="windows")
    assert outcome.complete
    assert not outcome.failed
    assert [trial.recipe["task"]["model"]["window"] for trial in outcome.finished] == [1, 2]
    store = Store.at(ray_home)
    runs = {run.name: run for run in list_runs(store)}
    for trial in outcome.finished:
        report = trial.evaluation()
        assert isinstance(report, GeneratorReport)
        assert [row["scale"] for row in report.rows] == [1.0, 2.0]
        assert trial.objectives["sample_frechet_at_1"] == report.without_guidance[report.frechet_key]
        assert trial.objectives["sample_class_top1_best"] == max(row["class_top1"] for row in report.rows)
        directory = ray_home / "ray" / trial.name
        rungs = read_metrics(directory / "journal.jsonl", "rung/")
        assert list(rungs["rung/sample_frechet_at_1"]) == [2, 4]  # on fewer images than the last
        assert report.protocol["images"] == 48
        assert (directory / "generation" / "samples.png").stat().st_size > 1000
        assert trial.recipe["task"]["tokenizer_sha256"] == report.protocol["tokenizer"]["sha256"]
        child = store.client().get_run(runs[trial.name].run_id).data
        assert child.tags["mergevq.variant"] == "test_mergear"
        assert f"cfg_curve/{report.frechet_key}" in child.metrics
    assert recipes.load(outcome.files["winner.yaml"]).generator.model.kind == "mergear"
    assert "| scale |" in outcome.files["sweep.md"].read_text()

    names = [trial.name for trial in outcome.finished]
    files = compare(names, home=ray_home, out=tmp_path / "compared")
    assert all(file.stat().st_size > 1000 for file in files.values() if file.suffix == ".png")
    with pytest.raises(InputError, match="leave --paper out"):
        compare(names, home=ray_home, out=tmp_path / "compared", paper=True)


def test_hopeless_trials_stop_early_at_equal_budgets(base: Path, ray_home: Path) -> None:
    sweep = made(
        base,
        space={"optimizer.learning_rate": choice(1e-3, 1e-8, 1e-9, 1e-10)},
        stopping=FrontStopping(every_steps=2, min_trials=2),
    )
    outcome = driver.sweep(sweep, home=ray_home, name="stopping")
    assert outcome.complete
    assert outcome.stopped_early
    assert "stopping-000" in [trial.name for trial in outcome.finished]
    runs = {run.name: run for run in list_runs(Store.at(ray_home))}
    for name, trial in outcome.stopped_early.items():
        assert runs[name].status == "KILLED"
        rungs = read_metrics(ray_home / "ray" / name / "journal.jsonl", "rung/")["rung/mean_psnr"]
        assert sorted(rungs) == list(range(2, trial.step + 1, 2))
        assert trial.step < trial.steps == 8
        assert "choices were as good or better at step" in trial.reason
    assert 0 < runs["stopping"].metrics["sweep/steps_saved"] < 1
    assert "trials were stopped early, which saved" in outcome.files["sweep.md"].read_text()


def kill_once(ray_home: Path, trial: str, killed: list[int]) -> threading.Thread:
    """Kill the process of a trial as soon as it has a checkpoint."""

    def work() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not killed:
            if list((ray_home / "ray" / trial).glob("checkpoint_*/checkpoint.json")):
                for process in descendants("ImplicitFunc", "run_trial"):
                    process.kill()
                    killed.append(process.pid)
                    return
            time.sleep(0.02)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_a_killed_trial_goes_on_from_its_checkpoint(base: Path, ray_home: Path) -> None:
    sweep = made(
        base,
        space={"task.keep": choice({"kind": "uniform", "merge_ratio": [0.0, 0.75]})},
        overrides=("steps=40", "checkpoint_every=4"),
    )
    killed: list[int] = []
    thread = kill_once(ray_home, "shot-000", killed)
    outcome = driver.sweep(sweep, home=ray_home, name="shot")
    thread.join()
    assert killed
    assert [trial.steps for trial in outcome.finished] == [40]
    journal = read_metrics(ray_home / "ray" / "shot-000" / "journal.jsonl", "train/total")
    assert sorted(journal["train/total"]) == list(range(1, 41))


@pytest.fixture(scope="module")
def failing() -> dict[str, SweepOutcome]:
    """What tests share: one sweep, of which a trial finishes, one diverges and one needs more memory than there is."""
    return {}


@pytest.fixture
def failed(base: Path, ray_home: Path, failing: dict[str, SweepOutcome]) -> SweepOutcome:
    """The outcome of the sweep `failing`, run for the first test that asks."""
    if "outcome" not in failing:
        models = choice({}, {"encoder": {"layer_scale": 1e30}}, {"recovery": {"hidden": 10**13}})
        sweep = made(base, space={"task.model": models}, overrides=("steps=12",), max_failures=0)
        failing["outcome"] = driver.sweep(sweep, home=ray_home, name="failing")
    return failing["outcome"]


def test_trials_that_fail_for_good_are_named_and_the_sweep_goes_on(
    failed: SweepOutcome, ray_home: Path
) -> None:
    assert failed.complete
    assert [trial.name for trial in failed.finished] == ["failing-000"]
    assert sorted(failed.failed) == ["failing-001", "failing-002"]
    assert "step " in failed.failed["failing-001"]
    assert {run.name: run.status for run in list_runs(Store.at(ray_home))}["failing-001"] == "FAILED"


def test_a_trial_out_of_memory_says_what_to_lower(failed: SweepOutcome) -> None:
    assert failed.failed["failing-002"].startswith("out of memory")
    assert "lower micro_batch" in failed.failed["failing-002"]


@pytest.mark.long
def test_a_population_exploits_its_better_half(base: Path, ray_home: Path) -> None:
    sweep = made(
        base,
        space={
            "optimizer.learning_rate": choice(1e-3, 1e-9),
            "task.losses.entropy.weight": uniform(0.01, 0.1),
        },
        overrides=("steps=24",),
        search=Population(size=2, every_steps=4, seed=2),
        objectives=(mean_psnr(),),
    )
    begun = sweep.listed()
    assert begun is not None
    outcome = driver.sweep(sweep, home=ray_home, name="population")
    assert outcome.complete
    assert len(outcome.finished) == 2
    first = {f"population-{i:03d}": params for i, (params, _) in enumerate(begun)}
    changed = [trial for trial in outcome.finished if trial.params != first[trial.name]]
    assert changed, "no member took over another's choices"


def test_optuna_searches_two_objectives(base: Path, ray_home: Path) -> None:
    sweep = made(
        base,
        space={"task.losses.entropy.weight": uniform(0.01, 0.1)},
        search=Tpe(trials=3),
        overrides=("steps=2", "evaluation.budgets=[9]", "evaluation.allocators=[fixed, compressed_size]"),
        objectives=(mean_psnr(), psnr_at(9, "compressed_size")),
    )
    outcome = driver.sweep(sweep, home=ray_home, name="tpe", concurrent=1)
    assert [trial.name for trial in outcome.finished] == ["tpe-000", "tpe-001", "tpe-002"]
    assert len({trial.params["task.losses.entropy.weight"] for trial in outcome.finished}) == 3
    # The second is of an allocator: its report stands beside the curve in the trial's run, whose note and tags are the curve's.
    runs = {run.name: run for run in list_runs(Store.at(ray_home))}
    for trial in outcome.finished:
        run = runs[trial.name]
        key = "psnr_compressed_size"
        assert trial.objectives[f"{key}_at_9"] == run.metrics[f"allocation/{key}"]
        assert run.has_curve
        assert run.tags["mlflow.note.content"].startswith("**Fréchet distance")


@pytest.mark.long
def test_trials_with_groups_of_workers_never_wait_for_each_other(base: Path, ray_home: Path) -> None:
    sweep = made(
        base,
        space={"task.losses.entropy.weight": choice(0.01, 0.1)},
        overrides=("steps=4", "cluster.workers=2", "micro_batch=4"),
    )
    outcome = driver.sweep(sweep, home=ray_home, name="groups")
    assert [trial.steps for trial in outcome.finished] == [4, 4]


DRIVER = """
import sys
from pathlib import Path
from mergevq_platform.sweeps import driver, loading
driver.sweep(loading.load(sys.argv[2]), home=Path(sys.argv[1]), name="cut", concurrent=1)
"""


@pytest.mark.slow
def test_a_killed_driver_is_resumed_and_nothing_finished_runs_twice(
    base: Path, tmp_path: Path, joining: dict[str, str]
) -> None:
    file = tmp_path / "question.py"
    file.write_text(
        "from mergevq_platform.sweeps import *\n"
        f"SWEEP = Sweep(name='cut', question='?', recipe={str(base)!r}, search=Grid(), "
        "space={'task.losses.entropy.weight': choice(0.01, 0.02, 0.03)}, objectives=(mean_psnr(),))\n"
    )
    home = tmp_path / "home"
    killed_driver.killed(
        *(DRIVER, home, file),
        environment=joining,
        when=lambda: any((home / "ray").glob("cut-*/finished.json")),
    )
    records = sorted((home / "ray").glob("cut-*/finished.json"))
    before = {path: path.stat().st_mtime_ns for path in records}
    assert 1 <= len(before) < 3
    driver.sweep(None, home=home, resume="cut")  # by this process
    after = sorted((home / "ray").glob("cut-*/finished.json"))
    assert len(after) == 3
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert all(Finished.load(path) for path in after)
