"""More trials for a sweep that has ended: the search goes on where it was, and what was trained stays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import killed_driver
from mergevq.errors import InputError
from mergevq_platform.sweeps import (
    Grid,
    Population,
    Random,
    Sweep,
    Tpe,
    choice,
    driver,
    mean_psnr,
    tuning,
    uniform,
)
from mergevq_platform.sweeps.more import with_more
from mergevq_platform.sweeps.stored import SweepSettings
from mergevq_platform.sweeps.trial import chosen
from mergevq_platform.tracking.journal import JOURNAL_NAME, Journal, RunIdentity
from mergevq_platform.tracking.listing import list_runs
from mergevq_platform.tracking.store import Store

KEY = "task.losses.entropy.weight"


def made(**changes: Any) -> Sweep:
    given: dict[str, Any] = {
        "name": "s",
        "question": "?",
        "recipe": "demo",
        "space": {KEY: uniform(0.1, 0.2)},
        "search": Random(trials=4),
        "objectives": (mean_psnr(),),
    }
    return Sweep(**(given | changes))


@pytest.fixture
def ended(tmp_path: Path) -> SweepSettings:
    """The settings of a sweep whose journal says that it has ended."""
    settings = SweepSettings("s", str(tmp_path), None, None, "u", "cpu")
    path = settings.run("s").directory / JOURNAL_NAME
    with Journal(path, RunIdentity(name="s", experiment="e", user="someone")) as journal:
        journal.append_status("RUNNING")
        journal.append_status("FINISHED")
    return settings


def test_four_random_choices_and_four_more_are_the_eight_of_one_sweep(ended: SweepSettings) -> None:
    for seeds in (1, 2):
        four, eight = (made(search=Random(trials=n, seeds=seeds, seed=3)) for n in (4, 8))
        more = with_more(four, 4, ended)
        assert more.listed() == eight.listed()
        assert more.rounds == (4 * seeds,)
        one, two = (tuning.param_space(more, first)["trial"]["grid_search"] for first in (0, 4 * seeds))
        assert [*one, *two] == tuning.param_space(eight)["trial"]["grid_search"]
        assert with_more(more, 2, ended).rounds == (4 * seeds, 8 * seeds)


def test_optuna_goes_on_as_if_it_had_never_stopped(ended: SweepSettings) -> None:
    def proposed(sweep: Sweep, numbers: range, folder: str) -> list[dict[str, Any]]:
        searcher = tuning.search_algorithm(sweep, ended)
        assert searcher is not None
        found = []
        for number in numbers:
            found.append(searcher.suggest(f"trial-{number}"))
            result = {"mean_psnr": -((found[-1][KEY] - 0.13) ** 2), "training_iteration": 1}
            searcher.on_trial_complete(f"trial-{number}", result)
        state = ended.run("s").directory / folder
        state.mkdir(exist_ok=True)
        searcher.save_to_dir(str(state), "2026-01-01")
        return found

    whole = proposed(made(search=Tpe(trials=16, seed=5)), range(16), "whole")
    first = made(search=Tpe(trials=12, seed=5))
    parts = proposed(first, range(12), tuning.TUNE_FOLDER)
    parts += proposed(with_more(first, 4, ended), range(12, 16), "tune_012")
    assert parts == whole
    assert [choices["number"] for choices in parts] == list(range(16))


def test_a_choice_that_optuna_proposes_again_gets_the_next_seed(ended: SweepSettings) -> None:
    sweep = made(space={KEY: choice(0.1, 0.2)}, search=Tpe(trials=12, seed=5))
    searcher = tuning.search_algorithm(sweep, ended)
    assert searcher is not None
    seeds: dict[str, list[int]] = {}
    for number in range(12):
        config = searcher.suggest(f"trial-{number}")
        params, seed, name = chosen(config, sweep, ended)
        assert (set(params), name) == ({KEY}, f"s-{number:03d}")
        seeds.setdefault(params[KEY], []).append(seed)
        if number % 2:  # others are under way
            searcher.on_trial_complete(
                f"trial-{number}", {"mean_psnr": float(params[KEY]), "training_iteration": 1}
            )
        assert chosen(config, replace(sweep, fork="run@3"), ended)[1] == 0
    assert sorted(seeds) == ["0.1", "0.2"]
    assert all(found == list(range(len(found))) for found in seeds.values())


@pytest.mark.parametrize(
    ("search", "message"),
    [
        (Grid(), "a grid has all of its combinations"),
        (Population(size=2, every_steps=1), "a population takes no new members"),
    ],
)
def test_a_search_without_more_choices_is_refused(search: Any, message: str, ended: SweepSettings) -> None:
    with pytest.raises(InputError, match=rf"--more 3 means nothing to sweep 's': {message}"):
        with_more(made(space={KEY: choice(0.1, 0.2)}, search=search), 3, ended)


def test_trials_that_are_left_come_first(ended: SweepSettings) -> None:
    with Journal(ended.run("s").directory / JOURNAL_NAME) as journal:
        journal.append_status("KILLED")
    with pytest.raises(InputError, match=r"sweep 's' has trials left: .* mergevq sweep --resume s"):
        with_more(made(), 2, ended)
    with pytest.raises(InputError, match="has trials left"):
        with_more(made(), 2, replace(ended, name="never-begun"))


DRIVER = """
import sys
from pathlib import Path
from mergevq_platform.sweeps import driver, loading
home = Path(sys.argv[1])
driver.sweep(loading.load(sys.argv[2]), home=home, name="more", concurrent=1)
(home / "ended").touch()
driver.sweep(None, home=home, resume="more", more=2, concurrent=1)
"""


@pytest.mark.slow
@pytest.mark.ray
def test_more_trials_that_were_killed_are_resumed_and_the_earlier_ones_untouched(
    small_recipe: dict[str, Any], tmp_path: Path, joining: dict[str, str]
) -> None:
    small_recipe |= {"steps": 2, "checkpoint_every": 1, "cluster": {"workers": 1, "device": "cpu"}}
    small_recipe["evaluation"] |= {
        "keeps": [4],
        "untrained_baseline": False,
        "images": 32,
        "probe_images": 32,
    }
    base, file, home = tmp_path / "small.yaml", tmp_path / "question.py", tmp_path / "home"
    base.write_text(yaml.safe_dump(small_recipe))
    file.write_text(
        "from mergevq_platform.sweeps import *\n"
        f"SWEEP = Sweep(name='more', question='?', recipe={str(base)!r}, search=Random(trials=2, seed=1), "
        f"space={{{KEY!r}: uniform(0.1, 0.5)}}, objectives=(mean_psnr(),))\n"
    )
    one_more = home / "ray" / "more-002"
    killed_driver.killed(DRIVER, home, file, environment=joining, when=one_more.is_dir)
    assert (home / "ended").exists()
    before = {path: path.stat().st_mtime_ns for path in (home / "ray").glob("more-00[01]/finished.json")}
    assert len(before) == 2

    outcome = driver.sweep(None, home=home, resume="more", concurrent=2)
    assert outcome.complete
    assert [trial.name for trial in outcome.finished] == [f"more-00{i}" for i in range(4)]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    wanted = made(space={KEY: uniform(0.1, 0.5)}, search=Random(trials=4, seed=1)).listed()
    assert [trial.params for trial in outcome.finished] == [params for params, _ in wanted or ()]
    assert "| more-003 |" in outcome.files["sweep.md"].read_text()
    runs = {run.name: run for run in list_runs(Store.at(home))}
    assert (runs["more"].status, runs["more-003"].parent) == ("FINISHED", runs["more"].uid)
