"""Search spaces over recipe keys, define-by-run: a space is data, and a walk through it takes one value after the other.

A space maps dotted recipe keys to domains. An option of a `choice` may be a tree that holds domains itself: then those
are only taken where that option was chosen (the sigma of a Gaussian means nothing to a uniform distribution).
"""

from __future__ import annotations

import functools
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergevq.config import Tree, merged
from mergevq.errors import InputError

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

Value = str | int | float  # the label of an option, or a number
Params = dict[str, Value]  # what was chosen: parameter name -> value


@dataclass(frozen=True)
class Choice:
    """One of several values."""

    options: tuple[object, ...]

    @functools.cached_property
    def _labels(self) -> list[str]:
        # Every walk through a space asks for them, and there may be thousands of options.
        kinds = [option.get("kind") if isinstance(option, Mapping) else None for option in self.options]
        of_kind = Counter(kinds)
        found: list[str] = []
        taken: set[str] = set()
        for option, kind in zip(self.options, kinds, strict=True):
            label = kind if kind is not None and of_kind[kind] == 1 else _text(option)
            found.append(label if label not in taken else f"{label} ({len(found)})")
            taken.add(found[-1])
        return found


@dataclass(frozen=True)
class RealRange:
    """A real number in [low, high], evenly or, with `log`, evenly in its logarithm."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Integer:
    """A whole number in [low, high]."""

    low: int
    high: int


Domain = Choice | RealRange | Integer
Space = Mapping[str, Domain | Mapping[str, object]]  # a mapping: what a recipe holds, domains in it
Decide = Callable[[str, Domain], Value]  # (parameter name, domain) -> label or number


def choice(*options: object) -> Choice:
    """One of `options`: plain values, lists, or trees that may hold further domains."""
    return Choice(options)


def uniform(low: float, high: float) -> RealRange:
    """A real number in [low, high]."""
    return RealRange(low, high)


def log_uniform(low: float, high: float) -> RealRange:
    """A positive number in [low, high], evenly in its logarithm."""
    return RealRange(low, high, log=True)


def integer(low: int, high: int) -> Integer:
    """A whole number in [low, high]."""
    return Integer(low, high)


def walked(space: Space, decide: Decide) -> tuple[Tree, Params]:
    """(recipe key -> value, parameter name -> what `decide` chose) of one walk, in the order of the space."""
    params: Params = {}

    def resolved(name: str, value: object) -> object:
        match value:
            case Choice(options):
                label = params[name] = decide(name, value)
                option = options[labels(value).index(str(label))]
                return resolved(f"{name}.{label}", option) if isinstance(option, Mapping) else option
            case RealRange() | Integer():
                params[name] = decide(name, value)
                return params[name]
            case Mapping():
                return {key: resolved(f"{name}.{key}", part) for key, part in value.items()}
        return value

    return {key: resolved(key, domain) for key, domain in space.items()}, params


def values_of(space: Space, params: Params) -> Tree:
    """Recipe key -> value, as `params` chose."""
    return walked(space, lambda name, _: params[name])[0]


def keys_of(space: Space, params: Params) -> dict[str, str]:
    """Parameter name -> dotted recipe key, of one walk: a parameter's name holds the options that led to it, a key does not."""
    found: dict[str, str] = {}

    def resolved(name: str, key: str, value: object) -> None:
        match value:
            case Choice(options):
                found[name] = key
                label = str(params[name])
                resolved(f"{name}.{label}", key, options[labels(value).index(label)])
            case RealRange() | Integer():
                found[name] = key
            case Mapping():
                for part, inner in value.items():
                    resolved(f"{name}.{part}", f"{key}.{part}", inner)

    for key, domain in space.items():
        resolved(key, key, domain)
    return found


def suggested(trial: BaseTrial) -> Decide:
    """The function that decides for an Optuna trial: its study's sampler."""

    def decide(name: str, domain: Domain) -> Value:
        match domain:
            case Choice():
                return str(trial.suggest_categorical(name, labels(domain)))
            case RealRange(low, high, log):
                return trial.suggest_float(name, low, high, log=log)
            case Integer(low, high):
                return trial.suggest_int(name, low, high)

    return decide


def labels(domain: Choice) -> list[str]:
    """A short text per option, all different: its kind, or the value as JSON."""
    return domain._labels


def laid_over(tree: Tree, values: Tree) -> Tree:
    """The recipe tree with the values of dotted keys laid over it; a value with a `kind` replaces the whole variant."""
    result = dict(tree)
    for key, value in values.items():
        result = _placed(result, key.split("."), value)
    return result


def encoded(value: object) -> object:
    """A space, or any value in it, as JSON types: domains become `{"!choice": …}`, `{"!uniform": …}`, `{"!integer": …}`."""
    match value:
        case Choice(options):
            return {"!choice": [encoded(option) for option in options]}
        case RealRange(low, high, log):
            return {"!log_uniform" if log else "!uniform": [low, high]}
        case Integer(low, high):
            return {"!integer": [low, high]}
        case Mapping():
            return {key: encoded(part) for key, part in value.items()}
        case list() | tuple():
            return [encoded(part) for part in value]
    return value


def check(space: Space) -> None:
    """Raise `InputError` for a space with nothing to choose in it, an empty choice or a range the wrong way round."""
    if not space:
        raise InputError("the search space is empty: give at least one recipe key with a choice or a range")
    for key, domain in space.items():
        _check(key, domain)


def _check(key: str, value: object) -> None:
    match value:
        case Choice(options):
            if not options:
                raise InputError(f"the choice for '{key}' is empty: give at least one option")
            for option in options:
                if isinstance(option, Mapping):
                    _check(key, option)
        case RealRange(low, high, log):
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise InputError(f"the range of '{key}' is {low} to {high}: it must rise")
            if log and low <= 0:
                raise InputError(f"the range of '{key}' is logarithmic but begins at {low}: begin above 0")
        case Integer(low, high):
            if low >= high:
                raise InputError(f"the range of '{key}' is {low} to {high}: it must rise")
        case Mapping():
            for name, part in value.items():
                _check(f"{key}.{name}", part)


def _placed(tree: Mapping[str, object], path: list[str], value: object) -> Tree:
    head, *rest = path
    inner = tree.get(head)
    if rest:
        value = _placed(inner if isinstance(inner, Mapping) else {}, rest, value)
    elif isinstance(value, Mapping) and isinstance(inner, Mapping) and "kind" not in value:
        value = merged(inner, value)
    return {**tree, head: value}


def _text(option: object) -> str:
    return option if isinstance(option, str) else json.dumps(encoded(option), separators=(",", ":"))
