"""The results of jobs, and how they merge: in the order of the jobs, whoever did them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Protocol, Self, TypeVar, cast

import numpy as np

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

AnyResult = TypeVar("AnyResult")


class Mergeable:
    """A dataclass of results that merges field by field: accumulators, arrays (B, …), counts; None is of nothing."""

    def merge(self, other: Self) -> Self:
        """The result over both sets of images, these first."""
        return merge([self, other])


class _Merges(Protocol):
    def merge(self, other: object) -> object: ...


def merge(results: Iterable[AnyResult]) -> AnyResult:
    """One result of many: accumulators merge, arrays (B, …) follow each other, numbers add up, None adds nothing.

    Results are taken one by one, and arrays are copied once. Dictionaries merge by name. Raises `StopIteration` for none.
    """
    results = iter(results)
    total = _begun(next(results))
    for result in results:
        total = _added(total, result)
    return cast(AnyResult, _whole(total))  # parts of one type make a whole of it


class _Arrays(list[np.ndarray]):
    """Arrays that will follow each other."""


@dataclass
class _Fields:
    """The parts of a dataclass or dictionary under way."""

    kind: Callable[..., object]
    parts: dict[str, object]


def _begun(result: object) -> object:
    match result:
        case np.ndarray():
            return _Arrays([result])
        case Mergeable() | dict():
            return _Fields(type(result), {name: _begun(part) for name, part in _parts(result).items()})
        case _:
            return result


def _added(total: object, result: object) -> object:
    match total, result:
        case _, None:
            return total
        case None, _:
            return _begun(result)
        case _Arrays(), np.ndarray():
            total.append(result)
            return total
        case _Fields(), Mergeable() | dict():
            for name, part in _parts(result).items():
                total.parts[name] = _added(total.parts.get(name), part)
            return total
        case int() | float(), int() | float():
            return total + result
        case _:
            return cast(_Merges, total).merge(result)


def _whole(total: object) -> object:
    match total:
        case _Arrays():
            return np.concatenate(total)
        case _Fields():
            # One after the other, so that what was joined of one is gone before the next is.
            parts = {name: _whole(total.parts.pop(name)) for name in list(total.parts)}
            return parts if total.kind is dict else total.kind(**parts)
        case _:
            return total


def _parts(result: Mergeable | dict[str, object]) -> dict[str, object]:
    if isinstance(result, dict):
        return result
    return {field.name: getattr(result, field.name) for field in fields(cast("DataclassInstance", result))}
