"""Sweep files: those shipped hold; mistakes are one line before anything starts."""

from __future__ import annotations

import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cloudpickle
import pytest

from mergevq.errors import InputError
from mergevq_platform.sweeps import (
    EarlyStopping,
    Grid,
    Population,
    Random,
    Sweep,
    choice,
    choosers,
    driver,
    loading,
    mean_psnr,
    psnr_at,
    sample_frechet,
    saved_tokens_at,
    tuning,
    uniform,
)
from mergevq_platform.sweeps.stored import SweepSettings

SHIPPED = sorted((Path(__file__).parents[3] / "sweeps").glob("*.py"))
KEY = "task.losses.entropy.weight"


def made(**changes: Any) -> Sweep:
    given: dict[str, Any] = {
        "name": "s",
        "question": "?",
        "recipe": "demo",
        "space": {KEY: choice(0.1, 0.2)},
        "search": Grid(),
        "objectives": (mean_psnr(),),
    }
    return Sweep(**(given | changes))


def test_eight_sweeps_are_shipped() -> None:
    wanted = {"keep_distribution", "keep_counts", "merge_schedule", "alignment", "loss_weights", "smoke"}
    wanted |= {"generator_window", "generator_tokens"}
    assert {path.stem for path in SHIPPED} == wanted


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_sweep_is_one_question_whose_every_corner_is_a_recipe(path: Path) -> None:
    sweep = loading.load(path)
    sweep.check()
    assert sweep.name == path.stem
    assert sweep.question.endswith(("?", ")"))
    assert path.read_text().startswith('"""')


def test_distributions_hold_at_another_resolution() -> None:
    path = next(p for p in SHIPPED if p.stem == "keep_distribution")
    at_256 = ("task.preset=gr_256_d32", "data.views.image_size=256", "task.losses.alignment={kind: none}")
    sweep = loading.changed(loading.load(path), (*at_256, "evaluation.keeps=[64,256]"))
    assert sweep.recipe_of(choosers.corners(sweep.space)[0]).tokenizer.model.grid_tokens == 256


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": {"task.losses.entropie": choice(1)}}, r"unknown key 'task\.losses\.entropie'"),
        ({"space": {KEY: choice("strong")}}, r"'task\.losses\.entropy\.weight'"),
        ({"space": {KEY: uniform(-1.0, 1.0)}}, r"task\.losses\.entropy\.weight"),
        ({"objectives": (psnr_at(16, "oracle"),)}, r"needs 16 in evaluation\.budgets"),
        (
            {"objectives": (saved_tokens_at(16, "similarity"),), "overrides": ("evaluation.budgets=[25]",)},
            r"they are \[25\.0\] and fixed, ",
        ),
        ({"space": {}}, "the search space is empty"),
        ({"space": {"task.keep": choice({"kind": "list", "counts": [2]})}}, "task.keep"),
        ({"search": Random(trials=0)}, "has no trials"),
        ({"objectives": ()}, "names no objective"),
        ({"family": "steps"}, "family 'steps' is not in the space"),
        (
            {"recipe": "shapes_teacher", "space": {"steps": choice(1, 2)}},
            "trains a classifier, neither a tokenizer nor a generator",
        ),
        ({"recipe": "nothing"}, "no recipe 'nothing'"),
        (
            {"objectives": (sample_frechet(),)},
            "sample_frechet_at_1 is of generators, but recipe 'demo' trains a tokenizer",
        ),
        (
            {"recipe": "demo_mergear", "space": {"steps": choice(1, 2)}},
            "mean_psnr is of tokenizers, but recipe 'demo_mergear' trains a generator",
        ),
        ({"search": Population(size=1, every_steps=5)}, "at least two members"),
        (
            {
                "search": Population(size=2, every_steps=5),
                "overrides": ("cluster.workers=2",),
            },
            "needs trials of one worker",
        ),
    ],
)
def test_what_cannot_work_is_said_before_anything_starts(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        made(**changes).check()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SWEEP = 1 / 0", r"raises ZeroDivisionError: division by zero"),
        ("import nothing_of_that_name", "raises ModuleNotFoundError"),
        ("x = 1", "has no value SWEEP"),
    ],
)
def test_a_file_that_is_no_sweep_is_named(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        loading.load(file)
    assert "broken.py" in str(error.value)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(InputError, match=r"no sweep file 'sweeps/none\.py'"):
        loading.load("sweeps/none.py")


def test_every_choice_is_repeated_over_its_seeds() -> None:
    trials = made(search=Grid(seeds=3), overrides=("seed=5",)).listed()
    assert trials is not None
    assert [seed for _, seed in trials] == [5, 6, 7] * 2
    assert made().recipe_of({KEY: "0.2"}, seed=6).seed == 6


def test_rungs_decide_the_checkpoints_of_a_trial() -> None:
    sweep = made(stopping=EarlyStopping(every_steps=30))
    assert sweep.recipe_of({KEY: "0.1"}).checkpoint_every == 30


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [("a.b=1..4", 1, 4), ("a.b=0.5..2", 0.5, 2.0), ("a.b=0.01..1:log", 0.01, 1.0)],
)
def test_ranges_of_the_command_line(text: str, low: float, high: float) -> None:
    key, domain = loading.parse_domain(text)
    assert (key, domain.low, domain.high) == ("a.b", low, high)


def test_lists_of_the_command_line() -> None:
    key, domain = loading.parse_domain("a.b=1,off,[2,3],{kind: list}")
    assert key == "a.b"
    assert domain.options == (1, False, [2, 3], {"kind": "list"})


@pytest.mark.parametrize("text", ["a", "=1", "a=", "a=1..x", "a=1..2:square", "a=[1"])
def test_other_dimensions_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="--over"):
        loading.parse_domain(text)


def test_a_sweep_file_may_hold_numpys_numbers(tmp_path: Path) -> None:
    file = tmp_path / "numbers.py"
    file.write_text(
        """
import numpy as np
from mergevq_platform.sweeps import EarlyStopping, Random, Rung, Sweep, choice, integer, mean_psnr

SWEEP = Sweep(
    name="numbers", question="?", recipe="demo", objectives=(mean_psnr(),), search=Random(trials=np.int64(2)),
    stopping=EarlyStopping(every_steps=np.int32(10)), rung=Rung(keeps=(np.int64(9),), images=np.int64(8)),
    space={"global_batch": choice(*np.arange(32, 97, 32)), "seed": integer(np.int64(1), np.int64(9)),
           "optimizer.learning_rate": choice(*np.array([1e-4, 1e-3], np.float32)),
           "task.keep.counts": choice([np.int64(9), np.int64(16)], [np.int64(25)])},
)
"""
    )
    sweep = loading.load(file)
    sweep.check()
    recipe = sweep.recipe_of(choosers.corners(sweep.space)[0])
    assert (recipe.global_batch, recipe.checkpoint_every) == (32, 10)
    assert sweep.rung.keeps == (9,)
    assert [type(value) for value in (sweep.search.trials, sweep.rung.images)] == [int, int]  # type: ignore[union-attr]


def test_a_value_that_no_recipe_holds_is_refused_by_its_key() -> None:
    with pytest.raises(InputError, match=r"'task\.losses\.entropy\.weight' holds .* of type set"):
        made(space={KEY: choice({0.1})})


@pytest.mark.parametrize(
    "changes",
    [
        {"space": {"task.losses.entropie": choice(1)}},
        {"search": Random(trials=0)},
        {"overrides": ("data.path=nowhere",)},
    ],
)
def test_a_refused_sweep_leaves_nothing_behind(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError):
        driver.sweep(made(**changes), home=tmp_path, name="s")
    assert list(tmp_path.iterdir()) == []


def test_tune_lists_thousands_of_trials_without_copying_all_of_them_for_each() -> None:
    from ray.tune.search.variant_generator import generate_variants

    copies = 0

    class Counted(dict[str, Any]):
        def __deepcopy__(self, memo: dict[int, Any]) -> Counted:
            nonlocal copies
            copies += 1
            return self

    space = tuning.param_space(made(space={"seed": uniform(0.0, 1.0)}, search=Random(trials=100)))
    values = space["trial"]["grid_search"]
    values[:] = [Counted(value) for value in values]
    found = [spec["trial"] for _, spec in generate_variants(space)]
    assert found == values
    assert copies <= 4 * len(values)


LISTED = {"trial": {"number": 7, "params": {"steps": 3}, "seed": 1}}
PROPOSED = {"number": 7, "steps": 3}


@pytest.mark.parametrize("config", [LISTED, PROPOSED])
def test_what_tune_stores_with_every_trial_is_the_name_of_its_sweep(config: dict[str, Any]) -> None:
    trial: Any = SimpleNamespace(config=config)
    settings = SweepSettings("s", "home", None, None, "u", "cpu")
    label = functools.partial(tuning._named, settings.name)
    assert label(trial) == "s-007"
    assert len(cloudpickle.dumps(label)) < 150
    # What the trials of sweeps of earlier versions hold.
    former = cloudpickle.loads(cloudpickle.dumps(functools.partial(tuning._label, made(), settings)))
    assert former(trial) == label(trial)
    choice_of = cloudpickle.loads(cloudpickle.dumps(functools.partial(tuning._choice, made(), settings)))
    assert choice_of(config) == tuning._choice_of(config) == '{"steps": 3}'
