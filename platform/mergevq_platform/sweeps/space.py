"""Search spaces over recipe keys: declared as values, walked by whoever chooses (a random draw, a grid, Optuna, PBT).

A space maps dotted recipe keys to domains. An option of a `choice` may be a tree that holds domains itself: then those
are only drawn where that option was chosen (the sigma of a Gaussian means nothing to a uniform distribution).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import PurePath
from typing import Any, Protocol

import numpy as np

from mergevq.config import Tree, merged
from mergevq.errors import InputError
from mergevq.rng import generator_at

Params = dict[str, Any]  # what was chosen: parameter name -> label or number; JSON types only
RESAMPLED_SHARE = 0.25  # of the parameters that a population's exploration draws anew (Jaderberg et al. 2017, as in Ray Tune)
FACTORS = (0.8, 1.2)  # by which it changes the other numbers


@dataclass(frozen=True)
class Choice:
    """One of several values."""

    options: tuple[Any, ...]


@dataclass(frozen=True)
class Uniform:
    """A real number in [low, high], evenly or, with `log`, evenly in its logarithm."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Integer:
    """A whole number in [low, high]."""

    low: int
    high: int


Domain = Choice | Uniform | Integer
Space = Mapping[str, Domain | Mapping[str, Any]]


def choice(*options: Any) -> Choice:
    """One of `options`: plain values, lists, or trees that may hold further domains."""
    return Choice(options)


def uniform(low: float, high: float) -> Uniform:
    """A real number in [low, high]."""
    return Uniform(low, high)


def log_uniform(low: float, high: float) -> Uniform:
    """A positive number in [low, high], evenly in its logarithm."""
    return Uniform(low, high, log=True)


def integer(low: int, high: int) -> Integer:
    """A whole number in [low, high]."""
    return Integer(low, high)


class Chooser(Protocol):
    """Who decides; Optuna's trials are choosers."""

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> Any:
        """One of the labels."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """A number in [low, high]."""

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """A whole number in [low, high]."""


def chosen(space: Space, chooser: Chooser) -> dict[str, Any]:
    """Walk the space: recipe key -> value, every domain in it replaced by what `chooser` decides."""
    return {key: _resolved(key, domain, chooser) for key, domain in space.items()}


def laid_over(tree: Mapping[str, Any], values: Mapping[str, Any]) -> Tree:
    """The recipe tree with the values of dotted keys laid over it; a value with a `kind` replaces the whole variant."""
    result = dict(tree)
    for key, value in values.items():
        result = _placed(result, key.split("."), value)
    return result


def labels(domain: Choice) -> list[str]:
    """A short text per option, all different: its kind, or the value as JSON."""
    kinds = [
        option["kind"] if isinstance(option, Mapping) and "kind" in option else None
        for option in domain.options
    ]
    found: list[str] = []
    for option, kind in zip(domain.options, kinds, strict=True):
        label = kind if kind is not None and kinds.count(kind) == 1 else _text(option)
        found.append(label if label not in found else f"{label} ({len(found)})")
    return found


def plain(value: Any, key: str) -> Any:
    """A space, or any value in it, of Python's own numbers, texts, lists and mappings, as JSON and recipes hold them.

    NumPy's numbers and arrays become Python's, a path its text, a member of an enumeration its value. Raises `InputError`, naming
    `key`, for what is none of these.
    """
    match value:
        case Choice(options):
            return Choice(tuple(plain(option, key) for option in options))
        case Uniform(low, high, log):
            return Uniform(_number(low, key), _number(high, key), log=bool(log))
        case Integer(low, high):
            return Integer(_whole(low, key), _whole(high, key))
        case Mapping():
            return {
                str(name): plain(part, f"{key}.{name}" if key else str(name)) for name, part in value.items()
            }
        case np.ndarray():
            return plain(value.tolist(), key)
        case np.generic():
            inner = value.item()
            return plain(float(inner) if isinstance(inner, np.longdouble) else inner, key)
        case Enum():
            return plain(value.value, key)
        case PurePath():
            return str(value)
        case list() | tuple():
            return [plain(part, key) for part in value]
        case bool() | int() | float() | str() | None:
            return value
    raise InputError(
        f"the choice for '{key}' holds {value!r} of type {type(value).__name__}: a recipe holds numbers, texts, lists and mappings"
    )


def _number(value: Any, key: str) -> float:
    found = plain(value, key)
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise InputError(f"the range of '{key}' has {value!r} at one end: give a number")
    return found


def _whole(value: Any, key: str) -> int:
    found = _number(value, key)
    if not math.isfinite(found) or found != int(found):
        raise InputError(
            f"the range of '{key}' has {value!r} at one end: give a whole number, or a uniform range"
        )
    return int(found)


def check(space: Space) -> None:
    """Raise `InputError` for a space with nothing to choose in it, an empty choice or a range the wrong way round."""
    if not space:
        raise InputError("the search space is empty: give at least one recipe key with a choice or a range")
    for key, domain in space.items():
        _check(key, domain)


def corners(space: Space) -> list[Params]:
    """Choices that together touch every option and both ends of every range, the rest at its first value."""
    found: dict[str, Params] = {}
    waiting: list[Params] = [{}]
    while waiting:
        walk = _Corner(waiting.pop())
        chosen(space, walk)
        if found.setdefault(json.dumps(walk.taken), walk.taken) is walk.taken:
            waiting += walk.others
    return list(found.values())


def grid(space: Space) -> list[Params]:
    """Every combination, conditional parts included. Raises `InputError` for a space with a range in it."""
    found: list[Params] = []
    prefix: list[tuple[int, int]] = []
    while True:
        walk = _Grid(prefix)
        chosen(space, walk)
        found.append(walk.taken)
        prefix = walk.path
        while prefix and prefix[-1][0] + 1 == prefix[-1][1]:
            prefix.pop()
        if not prefix:
            return found
        prefix[-1] = (prefix[-1][0] + 1, prefix[-1][1])


def draw(space: Space, *, seed: int, number: int) -> Params:
    """The `number`-th random choice: a function of (seed, number) alone."""
    walk = _Draw(generator_at(seed, number))
    chosen(space, walk)
    return walk.taken


def perturbed(space: Space, params: Params, *, seed: int) -> Params:
    """`params` changed a little, as population-based training explores: a quarter drawn anew, other numbers times 0.8 or 1.2."""
    walk = _Perturb(np.random.default_rng(seed), params)
    chosen(space, walk)
    return walk.taken


def logarithmic(space: Space) -> set[str]:
    """The names of the parameters that are drawn evenly in their logarithm."""
    walk = _Scales({})
    for walk.params in corners(space):
        chosen(space, walk)
    return walk.logarithmic


class Fixed:
    """A chooser that repeats `params`."""

    def __init__(self, params: Params) -> None:
        self.params = params

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> Any:
        """What was chosen."""
        return self.params[name]

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """What was chosen."""
        return self.params[name]

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """What was chosen."""
        return self.params[name]


def encoded(value: Any) -> Any:
    """A space, or any value in it, as JSON types: domains become `{"!choice": …}`, `{"!uniform": …}`, `{"!integer": …}`."""
    match value:
        case Choice(options):
            return {"!choice": [encoded(option) for option in options]}
        case Uniform(low, high, log):
            return {"!log_uniform" if log else "!uniform": [low, high]}
        case Integer(low, high):
            return {"!integer": [low, high]}
        case Mapping():
            return {key: encoded(part) for key, part in value.items()}
        case list() | tuple():
            return [encoded(part) for part in value]
    return value


def _resolved(name: str, value: Any, chooser: Chooser) -> Any:
    match value:
        case Choice(options):
            names = labels(value)
            label = chooser.suggest_categorical(name, names)
            option = options[names.index(label)]
            return _resolved(f"{name}.{label}", option, chooser) if isinstance(option, Mapping) else option
        case Uniform(low, high, log):
            return chooser.suggest_float(name, low, high, log=log)
        case Integer(low, high):
            return chooser.suggest_int(name, low, high)
        case Mapping():
            return {key: _resolved(f"{name}.{key}", part, chooser) for key, part in value.items()}
    return value


def _placed(tree: Mapping[str, Any], path: list[str], value: Any) -> Tree:
    head, *rest = path
    inner = tree.get(head)
    if rest:
        value = _placed(inner if isinstance(inner, Mapping) else {}, rest, value)
    elif isinstance(value, Mapping) and isinstance(inner, Mapping) and "kind" not in value:
        value = merged(inner, value)
    return {**tree, head: value}


def _check(key: str, value: Any) -> None:
    match value:
        case Choice(options):
            if not options:
                raise InputError(f"the choice for '{key}' is empty: give at least one option")
            for option in options:
                if isinstance(option, Mapping):
                    _check(key, option)
        case Uniform(low, high, log):
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise InputError(f"the range of '{key}' is {low} to {high}: it must rise")
            if log and low <= 0:
                raise InputError(f"the range of '{key}' is logarithmic but begins at {low}: begin above 0")
        case Integer(low, high):
            if low >= high:
                raise InputError(f"the range of '{key}' is {low} to {high}: it must rise")
        case Mapping():
            for name, part in value.items():
                if isinstance(part, Choice | Uniform | Integer | Mapping):
                    _check(f"{key}.{name}", part)


def _text(option: Any) -> str:
    return option if isinstance(option, str) else json.dumps(encoded(option), separators=(",", ":"))


class _Scales(Fixed):
    """Repeats choices and notes which were of a logarithmic range."""

    def __init__(self, params: Params) -> None:
        super().__init__(params)
        self.logarithmic: set[str] = set()

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        if log:
            self.logarithmic.add(name)
        return super().suggest_float(name, low, high, log=log)


class _Walk:
    def __init__(self) -> None:
        self.taken: Params = {}

    def _take(self, name: str, value: Any) -> Any:
        self.taken[name] = value
        return value


class _Corner(_Walk):
    """The given values, else the first; collects the alternatives."""

    def __init__(self, given: Params) -> None:
        super().__init__()
        self.given, self.others = given, []

    def _either(self, name: str, values: Sequence[Any]) -> Any:
        if name not in self.given:
            self.others += [{**self.taken, name: value} for value in values[1:]]
        return self._take(name, self.given.get(name, values[0]))

    others: list[Params]

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> Any:
        return self._either(name, choices)

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        return self._either(name, (low, high))

    def suggest_int(self, name: str, low: int, high: int) -> int:
        return self._either(name, (low, high))


class _Grid(_Walk):
    """Follows a path of (index, number of options), then takes first options."""

    def __init__(self, prefix: list[tuple[int, int]]) -> None:
        super().__init__()
        self.prefix, self.path = prefix, []

    path: list[tuple[int, int]]

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> Any:
        depth = len(self.path)
        index = self.prefix[depth][0] if depth < len(self.prefix) else 0
        self.path.append((index, len(choices)))
        return self._take(name, choices[index])

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        raise InputError(
            f"a grid needs choices, but '{name}' is a range: list values, or use random or TPE search"
        )

    def suggest_int(self, name: str, low: int, high: int) -> int:
        index = int(self.suggest_categorical(name, [str(n) for n in range(low, high + 1)]))
        return self._take(name, index)


class _Draw(_Walk):
    def __init__(self, generator: np.random.Generator) -> None:
        super().__init__()
        self.generator = generator

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> Any:
        return self._take(name, choices[int(self.generator.integers(len(choices)))])

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        if log:
            return self._take(name, float(math.exp(self.generator.uniform(math.log(low), math.log(high)))))
        return self._take(name, float(self.generator.uniform(low, high)))

    def suggest_int(self, name: str, low: int, high: int) -> int:
        return self._take(name, int(self.generator.integers(low, high + 1)))


class _Perturb(_Draw):
    def __init__(self, generator: np.random.Generator, old: Params) -> None:
        super().__init__(generator)
        self.old = old

    def _anew(self, name: str) -> bool:
        return name not in self.old or self.generator.random() < RESAMPLED_SHARE

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> Any:
        return (
            super().suggest_categorical(name, choices)
            if self._anew(name)
            else self._take(name, self.old[name])
        )

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        if self._anew(name):
            return super().suggest_float(name, low, high, log=log)
        return self._take(name, min(max(self.old[name] * float(self.generator.choice(FACTORS)), low), high))

    def suggest_int(self, name: str, low: int, high: int) -> int:
        if self._anew(name):
            return super().suggest_int(name, low, high)
        return self._take(
            name, min(max(round(self.old[name] * float(self.generator.choice(FACTORS))), low), high)
        )
