"""A wrong value is named once, as its key or option was written, with what would do: in unions, tuples, mappings."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic
import pytest

from mergevq.config import config, parse
from mergevq.errors import InputError
from mergevq.generation import GuidanceConfig, SamplingConfig

Count = Annotated[int, pydantic.Field(ge=1)]
Share = Annotated[float, pydantic.Field(gt=0, lt=1)]


@config
class Left:
    kind: Literal["left"] = "left"
    count: Count = 1


@config
class Right:
    kind: Literal["right"] = "right"
    counts: tuple[Count, ...] = ()


Side = Annotated[Left | Right, pydantic.Field(discriminator="kind")]


@config
class Everything:
    side: Side = Left()
    sides: tuple[Side, ...] = ()
    share: Share | None = None
    table: dict[str, Count] = pydantic.Field(default_factory=dict)
    word: Literal["few", "many"] = "few"
    text: str = ""
    flag: bool = True
    number_or_word: float | Literal["auto"] = "auto"
    count_or_counts: pydantic.PositiveInt | tuple[pydantic.PositiveInt, ...] | None = None
    mixed: tuple[Left | int | str | None, ...] = ()
    either: Left | Literal["none"] = "none"
    nested: tuple[tuple[Share, ...], ...] | Share = ()
    multiple: Annotated[int, pydantic.Field(multiple_of=8)] = 8
    several: Annotated[tuple[int, ...], pydantic.Field(min_length=1)] = (1,)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "within a tagged alternative": (
        {"side": {"kind": "right", "counts": [1, 0]}},
        "'side.counts.1' is 0: it must be at least 1",
    ),
    "within several": (
        {"sides": [{"kind": "left", "count": 0}]},
        "'sides.0.count' is 0: it must be at least 1",
    ),
    "an unknown tag": (
        {"sides": [{"kind": "up"}]},
        "'sides.0.kind' is 'up': it must be one of 'left', 'right'",
    ),
    "no tag": ({"side": {}}, "missing key 'side.kind': one of ['left', 'right']"),
    "an optional": ({"share": 1}, "'share' is 1: it must be less than 1"),
    "a mapping": ({"table": {"a": 0}}, "'table.a' is 0: it must be at least 1"),
    "a literal": ({"word": "none"}, "'word' is 'none': it must be 'few' or 'many'"),
    "text": ({"text": 3}, "'text' is 3: it must be text"),
    "a flag": ({"flag": "perhaps"}, "'flag' is 'perhaps': it must be true or false"),
    "no alternative": (
        {"number_or_word": "x"},
        "'number_or_word' is 'x': it must be a number or 'auto'",
    ),
    "one of a union": ({"count_or_counts": 0}, "'count_or_counts' is 0: it must be greater than 0"),
    "several of a union": (
        {"count_or_counts": [1, 0]},
        "'count_or_counts.1' is 0: it must be greater than 0",
    ),
    "a class in a union": ({"mixed": [1, {"count": 0}]}, "'mixed.1.count' is 0: it must be at least 1"),
    "no class of a union": (
        {"mixed": [1.5]},
        "'mixed.0' is 1.5: it must be keys with values or an integer or text",
    ),
    "a class or a word": ({"either": {"counts": 1}}, "unknown key 'either.counts': did you mean 'count'?"),
    "lists in lists of a union": ({"nested": [[0.5], [0.5, 2]]}, "'nested.1.1' is 2: it must be less than 1"),
    "a multiple": ({"multiple": 9}, "'multiple' is 9: it must be a multiple of 8"),
    "too few": ({"several": []}, "'several' is []: it must be at least 1 values"),
    "infinite": ({"share": float("nan")}, "'share' is nan: it must be a finite number"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_value_is_named_once_by_the_keys_that_were_written(case: str) -> None:
    tree, said = WRONG[case]
    with pytest.raises(InputError) as caught:
        parse(Everything, tree)
    assert str(caught.value) == said


def test_two_wrong_values_are_both_named() -> None:
    with pytest.raises(InputError) as caught:
        parse(Everything, {"count_or_counts": [0, 3, -2], "word": "x"}, where="a.")
    assert str(caught.value).split("; ") == [
        "'a.word' is 'x': it must be 'few' or 'many'",
        "'a.count_or_counts.0' is 0: it must be greater than 0",
        "'a.count_or_counts.2' is -2: it must be greater than 0",
    ]


OPTIONS = {"scale": "--cfg", "interval": "--cfg-interval", "top_k": "--top-k", "top_p": "--top-p"}


@pytest.mark.parametrize(
    ("cls", "tree", "said"),
    [
        (GuidanceConfig, {"scale": -1.0}, "--cfg -1: at least 0"),
        (GuidanceConfig, {"scale": (2.5, -1.5)}, "--cfg -1.5: at least 0"),
        (GuidanceConfig, {"scale": float("nan")}, "--cfg nan: a finite number"),
        (GuidanceConfig, {"scale": float("inf")}, "--cfg inf: a finite number"),
        (GuidanceConfig, {"interval": (0.0, 1.5)}, "--cfg-interval 1.5: at most 1"),
        (
            GuidanceConfig,
            {"interval": (0.5, 0.2)},
            "--cfg-interval [0.5, 0.2] must be [from, to] with from < to",
        ),
        (SamplingConfig, {"top_k": -1}, "--top-k -1: at least 0"),
        (SamplingConfig, {"top_p": 2.0}, "--top-p 2: at most 1"),
        (SamplingConfig, {"top_p": (0.5, 0.0)}, "--top-p 0: greater than 0"),
    ],
)
def test_an_option_is_named_as_it_is_typed(cls: type, tree: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(cls, tree, options=OPTIONS)
    assert str(caught.value) == said
