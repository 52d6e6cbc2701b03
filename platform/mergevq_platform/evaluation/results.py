"""The results of jobs, and how they merge: in the order of the jobs, whoever did them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Protocol, Self, TypeVar

import numpy as np

AnyResult = TypeVar("AnyResult")


class Mergeable:
    """A dataclass of results that merges field by field: accumulators, arrays (B, …), counts; None is of nothing."""

    def merge(self, other: Self) -> Self:
        """The result over both sets of images, these first."""
        return merge([self, other])


class _Merges(Protocol):
    def merge(self, other: Any) -> Any: ...


def merge(results: Iterable[AnyResult]) -> AnyResult:
    """One result of many: accumulators merge, arrays (B, …) follow each other, numbers add up, None adds nothing.

    Results are taken one by one, and arrays are copied once. Dictionaries merge by name. Raises `StopIteration` for none.
    """
    results = iter(results)
    total = _begun(next(results))
    for result in results:
        total = _added(total, result)
    return _whole(total)


class _Arrays(list[np.ndarray]):
    """Arrays that will follow each other."""


@dataclass
class _Fields:
    """The parts of a dataclass or dictionary under way."""

    kind: type
    parts: dict[str, Any]


def _begun(result: Any) -> Any:
    match result:
        case np.ndarray():
            return _Arrays([result])
        case Mergeable() | dict():
            return _Fields(type(result), {name: _begun(part) for name, part in _parts(result).items()})
        case _:
            return result


def _added(total: Any, result: Any) -> Any:
    match total, result:
        case _, None:
            return total
        case None, _:
            return _begun(result)
        case _Arrays(), _:
            total.append(result)
            return total
        case _Fields(), _:
            for name, part in _parts(result).items():
                total.parts[name] = _added(total.parts.get(name), part)
            return total
        case int() | float(), _:
            return total + result
        case _:
            mergeable: _Merges = total
            return mergeable.merge(result)


def _whole(total: Any) -> Any:
    match total:
        case _Arrays():
            return np.concatenate(total)
        case _Fields():
            # One after the other, so that what was joined of one is gone before the next is.
            parts = {name: _whole(total.parts.pop(name)) for name in list(total.parts)}
            return parts if total.kind is dict else total.kind(**parts)
        case _:
            return total


def _parts(result: Any) -> dict[str, Any]:
    if isinstance(result, dict):
        return result
    return {field.name: getattr(result, field.name) for field in fields(result)}
