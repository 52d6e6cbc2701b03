"""Forked sweeps: trials go on from a trunk, exactly, through kills; what cannot be forked is said before anything starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import killed_driver
from mergevq.errors import InputError
from mergevq_platform import loop, recipe
from mergevq_platform.distributed.local import LocalHost
from mergevq_platform.storage import checkpoints, forks
from mergevq_platform.storage.runs import Run
from mergevq_platform.sweeps import Grid, Sweep, Trunk, choice, driver, loading, mean_psnr
from mergevq_platform.sweeps.savings import trunk_cpu_seconds
from mergevq_platform.tracking.listing import list_runs
from mergevq_platform.tracking.records import JOURNAL_NAME, read_metrics
from mergevq_platform.tracking.store import Store
from raynodes import same, state

pytestmark = pytest.mark.usefixtures("one_thread")


KEY = "task.losses.entropy.weight"


@pytest.fixture
def base(small_recipe: dict[str, Any], tmp_path: Path) -> Path:
    """The small recipe as a file: 12 steps, a checkpoint every second, a curve of one count."""
    small_recipe |= {"steps": 12, "checkpoint_every": 2}
    small_recipe["cluster"] = {"workers": 1, "device": "cpu"}
    small_recipe["evaluation"] |= {
        "keeps": [4],
        "untrained_baseline": False,
        "images": 32,
        "probe_images": 32,
    }
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(small_recipe))
    return path


def made(base: Path, **changes: Any) -> Sweep:
    given: dict[str, Any] = {
        "name": "forked",
        "question": "?",
        "recipe": str(base),
        "space": {KEY: choice(0.1, 0.5)},
        "search": Grid(),
        "objectives": (mean_psnr(),),
        "fork": Trunk(steps=6),
    }
    return Sweep(**(given | changes))


DRIVER = """
import sys
from pathlib import Path
from mergevq_platform.sweeps import driver, loading
driver.sweep(loading.load(sys.argv[2]), home=Path(sys.argv[1]), name="forked", concurrent=1)
"""


def kill_driver(home: Path, base: Path, environment: dict[str, str], when: str, *ends: str) -> None:
    """Begin the sweep in a process of its own, and kill that as soon as a file is there; see `killed_driver`."""
    file = base.with_name("question.py")
    file.write_text(
        "from mergevq_platform.sweeps import *\n"
        f"SWEEP = Sweep(name='forked', question='?', recipe={str(base)!r}, search=Grid(), fork=Trunk(steps=6), "
        f"space={{{KEY!r}: choice(0.1, 0.5)}}, objectives=(mean_psnr(),))\n"
    )
    killed_driver.killed(
        *(DRIVER, home, file),
        environment=environment,
        when=lambda: any((home / "ray").glob(when)),
        ends=ends,
    )


@pytest.mark.slow
@pytest.mark.ray
def test_trials_of_a_trunk_are_whole_trainings_bit_for_bit_though_the_driver_was_killed(
    base: Path, tmp_path: Path, joining: dict[str, str]
) -> None:
    home = tmp_path / "home"
    kill_driver(home, base, joining, "forked-trunk/checkpoint_*/checkpoint.json", "train_trunk")
    trunk = home / "ray" / "forked-trunk"
    assert not (home / "ray" / "forked-000").exists()
    # A trunk that was trained from its start again would have to write its first checkpoint here.
    (trunk / f".{checkpoints.directory_name(2)}").touch()
    outcome = driver.sweep(None, home=home, resume="forked", concurrent=2)
    assert outcome.complete
    assert not outcome.failed
    assert [trial.steps for trial in outcome.finished] == [12, 12]
    assert all(sum(trial.drawn.values()) == 6 for trial in outcome.finished)

    # The first trial changes nothing: it is the base recipe's whole training.
    whole = tmp_path / "whole"
    whole.mkdir()
    loop.train(recipe.resolve(recipe.load(base)), loop.Worker(), LocalHost(whole))
    model = f"{checkpoints.directory_name(12)}/model.safetensors"
    same, other = ((home / "ray" / f"forked-00{i}" / model).read_bytes() for i in range(2))
    assert same == (whole / model).read_bytes()
    assert other != same

    journals = {name: home / "ray" / name / JOURNAL_NAME for name in ("forked-trunk", "forked-000")}
    totals = {name: read_metrics(path, "train/total")["train/total"] for name, path in journals.items()}
    assert sorted(totals["forked-trunk"]) == list(range(1, 7))
    assert sorted(totals["forked-000"]) == list(range(7, 13))
    runs = {run.name: run for run in list_runs(Store.at(home))}
    assert runs["forked-001"].tags["mergevq.trunk"] == "forked-trunk@6"
    assert runs["forked-001"].tags["mergevq.trunk_run"] == runs["forked-trunk"].uid
    assert {runs[name].parent for name in ("forked-trunk", "forked-001")} == {runs["forked"].uid}
    sentence = "trials go on from forked-trunk@6: 18 steps trained, the trunk's 6 once, in place of 24 (75%)"
    assert sentence in outcome.files["sweep.md"].read_text()
    fork = recipe.ForkConfig(run=str(trunk / checkpoints.directory_name(6)), step=6)
    assert (trunk_cpu_seconds(fork) or 0) > 0


@pytest.mark.slow
@pytest.mark.ray
def test_forks_whose_driver_was_killed_end_bit_for_bit_and_their_trunk_is_not_touched(
    base: Path, tmp_path: Path, joining: dict[str, str]
) -> None:
    home = tmp_path / "home"
    first = "forked-000/checkpoint_*/checkpoint.json"
    kill_driver(home, base, joining, first, *killed_driver.TRIALS)
    trunk = home / "ray" / "forked-trunk"
    before = {path: path.stat().st_mtime_ns for path in trunk.rglob("*") if path.is_file()}
    assert trunk / checkpoints.directory_name(6) / "resume.pt" in before
    assert not list((home / "ray").glob("forked-*/finished.json"))
    outcome = driver.sweep(None, home=home, resume="forked", concurrent=1)
    assert outcome.complete
    assert not outcome.failed
    assert {path: path.stat().st_mtime_ns for path in before} == before
    for trial in outcome.finished:
        alone = Run(f"alone-{trial.name}", tmp_path, str(tmp_path))
        Path(alone.location).mkdir()
        host = LocalHost(Path(alone.location))
        loop.train(recipe.resolve(trial.recipe), loop.Worker(), host)
        run = Run(trial.name, home, str(home / "ray"))
        assert same(state(run), state(alone))
        totals = read_metrics(run.directory / JOURNAL_NAME, "train/total")["train/total"]
        assert sorted(totals) == list(range(7, 13))
        assert totals == {
            step: values["train/total"] for step, values in host.history if "train/total" in values
        }
    statuses = {run.name: run.status for run in list_runs(Store.at(home))}
    assert statuses == dict.fromkeys(("forked", "forked-trunk", "forked-000", "forked-001"), "FINISHED")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"space": {"global_batch": choice(8, 16)}},
            r"with global_batch=16: a fork of 'the trunk' cannot change",
        ),
        ({"space": {"seed": choice(0, 1)}}, "with seed=1: a fork of 'the trunk' cannot change 'seed'"),
        ({"search": Grid(seeds=2)}, r"leave search\.seeds at 1"),
        ({"fork": Trunk(steps=12)}, "the trunk has 12 steps of 12: take at least 1, and leave some"),
        ({"fork": "runs/none@4"}, "'none@4' is no checkpoint, it has kept none"),
        ({"fork": "nobody"}, "write RUN@STEP"),
    ],
)
def test_what_no_fork_can_answer_is_said_before_anything_starts(
    changes: dict[str, Any], message: str, base: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    with pytest.raises(InputError, match=message) as error:
        driver.sweep(made(base, **changes), home=home, name="forked")
    assert "\n" not in str(error.value)
    assert not home.exists()


@pytest.mark.parametrize("given", [{}, {"steps": 3, "fraction": 0.5}, {"fraction": 1.0}])
def test_a_trunk_has_one_length_within_the_training(given: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="Trunk: "):
        Trunk(**given)


def test_the_command_line_takes_a_run_or_a_share() -> None:
    assert loading.parse_trunk("50%") == Trunk(fraction=0.5)
    assert loading.parse_trunk("runs/ray/some@40") == "runs/ray/some@40"
    assert Trunk(fraction=0.25).steps_of(600) == 150
    for text in ("half%", "40", "run@"):
        with pytest.raises(InputError, match=r"--fork .*: write RUN@STEP"):
            loading.parse_trunk(text)


def test_a_sweep_of_a_finished_run_starts_from_its_recipe(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = yaml.safe_load(base.read_text()) | {"steps": 4}
    run = tmp_path / "home" / "ray" / "finished"
    run.mkdir(parents=True)
    resolved = recipe.resolve(tree)
    (run / "recipe.yaml").write_text(checkpoints.recipe_yaml(resolved))
    loop.train(resolved, loop.Worker(), LocalHost(run))
    file = forks.recipe_file(f"{run}@2", str)
    sweep = loading.opened(file, [f"{KEY}=0.1,0.5"], fork=f"{run}@2")
    assert sweep.name == "small-sweep"
    pinned, first = sweep.pinned(str)
    assert first.fork is not None
    assert first.fork.run == str(run / checkpoints.directory_name(2))
    other = recipe.resolve(pinned.recipe_of({KEY: "0.5"}), pins=pinned.pins)
    assert (other.fork, other.tokenizer.losses.entropy.weight) == (first.fork, 0.5)

    # However many the choices, the trunk is opened by the name that was given, and by the place that it is pinned to.
    opened: list[object] = []
    of_fork = forks.trunk_checkpoint
    monkeypatch.setattr(forks, "trunk_checkpoint", lambda *given: opened.append(given) or of_fork(*given))
    many = replace(sweep, space={KEY: choice(*(number / 50 for number in range(1, 30)))})
    assert many.pinned(str)[1].fork == first.fork
    assert len(opened) <= 2
