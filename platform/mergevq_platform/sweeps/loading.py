"""A sweep from a Python file, or from dimensions of the command line."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from mergevq.errors import InputError
from mergevq.text_files import decoded
from mergevq_platform import recipe as recipes
from mergevq_platform.storage import forks, naming
from mergevq_platform.sweeps import space as spaces
from mergevq_platform.sweeps.definition import Grid, Random, Sweep, Tpe, Trunk
from mergevq_platform.sweeps.objectives import mean_log_frechet, mean_psnr, sample_class_top1, sample_frechet
from mergevq_platform.sweeps.stopping import EarlyStopping, FrontStopping

STOPPING: dict[str, type[EarlyStopping] | type[FrontStopping] | None] = {  # by its name on the command line
    "front": FrontStopping,
    "first": EarlyStopping,
    "none": None,
}
RUNGS = 4  # parts of a training, the first of which ends at the first rung


def opened(
    source: str,
    dimensions: Sequence[str] = (),
    overrides: Sequence[str] = (),
    *,
    recipe: str | None = None,
    trials: int | None = None,
    seeds: int | None = None,
    stopping: str | None = None,
    fork: str | None = None,
) -> Sweep:
    """The checked sweep that `mergevq sweep` starts: of a file or, with dimensions, of a recipe; see `changed`.

    `fork` is `RUN@STEP` or a share of the steps such as `50%`: see `Sweep.fork`.
    """
    sweep = from_dimensions(source, dimensions) if dimensions else load(source)
    if fork is not None:
        sweep = replace(sweep, fork=parse_trunk(fork))
    return changed(sweep, overrides, recipe=recipe, trials=trials, seeds=seeds, stopping=stopping)


def parse_trunk(text: str) -> str | Trunk:
    """`RUN@STEP` as it is, or the trunk of `50%`. Raises `InputError` for another text."""
    share = text.removesuffix("%")
    if share == text:
        forks.parse_fork(text)
        return text
    try:
        return Trunk(fraction=float(share) / 100)
    except ValueError:
        raise InputError(f"--fork {text}: write RUN@STEP, or a share of the steps such as 50%") from None


def load(path: str | Path) -> Sweep:
    """The SWEEP of a Python file, not yet checked. Raises `InputError` if the file is missing, raises, or holds none."""
    file = Path(path)
    if not file.is_file():
        raise InputError(
            f"no sweep file '{path}': give a Python file with a value SWEEP, such as those in sweeps/"
        )
    decoded(file, file.read_bytes(), importlib.util.decode_source)  # as Python reads it, or one line
    spec = importlib.util.spec_from_file_location(f"mergevq_sweep_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec.loader.exec_module(module)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{file} raises {type(error).__name__}: {error}") from error
    finally:
        sys.dont_write_bytecode = writes
    sweep = getattr(module, "SWEEP", None)
    if not isinstance(sweep, Sweep):
        raise InputError(f"{file} has no value SWEEP of type mergevq_platform.sweeps.Sweep")
    return sweep


def changed(
    sweep: Sweep,
    overrides: Sequence[str] = (),
    *,
    recipe: str | None = None,
    trials: int | None = None,
    seeds: int | None = None,
    stopping: str | None = None,
) -> Sweep:
    """The sweep with more overrides laid over its base, another recipe, number of trials or of seeds, other stopping; checked.

    `stopping` is a name of `STOPPING`, with or without the steps to the first rung: `front:150`. Without, it compares as often
    as the sweep did, or from a quarter of a training on. Raises `InputError` where the search has no such number.
    """
    search = sweep.search
    for name, value in (("trials", trials), ("seeds", seeds)):
        if value is not None and not hasattr(search, name):
            kind = type(search).__name__
            raise InputError(f"--{name} means nothing to a {kind} search: leave it out")
    if trials is not None and isinstance(search, Random | Tpe):
        search = replace(search, trials=trials)
    if seeds is not None and isinstance(search, Grid | Random):
        search = replace(search, seeds=seeds)
    overrides = (*sweep.overrides, *overrides)
    sweep = replace(sweep, recipe=recipe or sweep.recipe, overrides=overrides, search=search)
    if stopping is not None:
        sweep = replace(sweep, stopping=_stopping(stopping, sweep))
    sweep.check()
    return sweep


def _stopping(text: str, sweep: Sweep) -> EarlyStopping | FrontStopping | None:
    name, _, every = text.partition(":")
    if name not in STOPPING or (every and not (every.isdecimal() and int(every))):
        raise InputError(
            f"--stopping {text}: write {', '.join(STOPPING)}, or with the steps to the first rung, as front:150"
        )
    kind = STOPPING[name]
    known = sweep.rung_steps or max(1, (sweep.first_recipe().steps or 1) // RUNGS)
    return kind(every_steps=int(every or known)) if kind else None


def from_dimensions(recipe: str, dimensions: Sequence[str]) -> Sweep:
    """A sweep made on the command line: a grid where every dimension is a list, else 16 random choices.

    It aims at distance and PSNR of a tokenizer, and at distance and recognised classes of a generator without guidance.
    """
    space = dict(parse_domain(text) for text in dimensions)
    listed = all(isinstance(domain, spaces.Choice) for domain in space.values())
    stem = Path(recipe).stem
    if stem == "recipe":  # beside a checkpoint
        stem = str(recipes.read(recipe).get("name", stem))
    generates = recipes.complete(recipes.read(recipe)).task.as_generator is not None
    return Sweep(
        name=naming.fitted(f"{stem[:80]}-sweep"),
        question=f"{stem}: what do {', '.join(space)} change?",
        recipe=recipe,
        space=space,
        search=Grid() if listed else Random(trials=16),
        objectives=(sample_frechet(), sample_class_top1())
        if generates
        else (mean_log_frechet(), mean_psnr()),
    )


def parse_domain(text: str) -> tuple[str, spaces.Domain]:
    """(key, domain) of a command-line dimension: `a.b=1,2,3`, `a.b=0.1..10` or `a.b=0.1..10:log`.

    Raises `InputError` if it is none of them.
    """
    key, mark, given = text.partition("=")
    if not mark or not key or not given:
        raise InputError(f"--over {text}: write KEY=A,B,C or KEY=LOW..HIGH or KEY=LOW..HIGH:log")
    if ".." in given:
        ends, _, scale = given.partition(":")
        low, _, high = ends.partition("..")
        try:
            numbers = [yaml.safe_load(end) for end in (low, high)]
            first, last = (float(number) for number in numbers)
        except (TypeError, ValueError, yaml.YAMLError):
            raise InputError(f"--over {text}: {low!r} and {high!r} must be numbers") from None
        if scale not in ("", "log"):
            raise InputError(f"--over {text}: after the colon comes 'log' or nothing")
        if all(isinstance(number, int) for number in numbers) and not scale:
            return key, spaces.integer(int(first), int(last))
        return key, (spaces.log_uniform if scale else spaces.uniform)(first, last)
    try:
        options = yaml.safe_load(f"[{given}]")
    except yaml.YAMLError:
        raise InputError(f"--over {text}: the options are no YAML list") from None
    return key, spaces.choice(*options)
