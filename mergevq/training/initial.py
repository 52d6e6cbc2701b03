"""Fine-tuning: a tokenizer's training that starts from a trained one, with its optimizer and its steps at their beginning.

Of a training's state all is taken that this training has too: weights, discriminator, prototypes, the teacher of
self-distillation, moving averages. A tokenizer alone gives its weights.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from mergevq.config import flattened, to_tree
from mergevq.errors import InputError
from mergevq.tokenizer import MergeVQ, TokenizerConfig
from mergevq.training.tokenizer import TokenizerTraining

Part = Literal["alignment", "discriminator", "head", "recovery"]
Shapes = Mapping[str, Collection[int]]  # by names of `Training.resume_state`

TOKENIZER = "phases.tokenizer.tokenizer."
DISCRIMINATOR = "phases.discriminator.discriminator."
# What one training has and another may lack. Everything else is the tokenizer itself, and must be there.
PARTS: dict[Part, tuple[str, ...]] = {
    "alignment": ("phases.tokenizer.alignment.", "self_teacher.", "averages.centre."),
    "discriminator": ("phases.discriminator.", "averages.lecam."),
    "head": (f"{TOKENIZER}head.",),
    "recovery": (f"{TOKENIZER}recovery.",),
}
CALLED: dict[Part, str] = {
    "alignment": "trained weights of its alignment",
    "discriminator": "discriminator",
    "head": "summary head",
    "recovery": "Source Recovery",
}
OF_THE_START = (
    "layer_scale",
    "initial_std",
    "summary_std",
)  # settings of initial weights: of a trained model they say nothing
SHOWN = 6  # settings and parameters that a message names


@dataclass(frozen=True, kw_only=True)
class InitialState:
    """A trained tokenizer, to start from."""

    name: str  # where it lies
    config: TokenizerConfig
    weights: Mapping[str, Tensor]  # the averaged ones
    training: Mapping[str, Tensor] = field(
        default_factory=dict
    )  # its `resume_state`; empty: the weights alone are there

    @property
    def state(self) -> Mapping[str, Tensor]:
        """The tensors by names of `resume_state`."""
        if any(name.startswith(TOKENIZER) for name in self.training):
            return self.training
        return {f"{TOKENIZER}{name}": value for name, value in self.weights.items()}


@torch.no_grad()
def start_from(
    training: TokenizerTraining,
    averaged: MergeVQ,
    initial: InitialState,
    *,
    without: Collection[Part] = (),
    key: str = "task",
) -> list[str]:
    """Fill `training`, and the average of its tokenizer, from `initial`, without some parts; returns what did not come, and why.

    The averaged weights become those of `initial`, bit for bit, the trained ones those at its last step (the averaged ones where
    it is a tokenizer alone). Raises `InputError`, before any change, where a tensor is missing or has another shape; `key`
    prefixes the configuration's keys.
    """
    own, given = training.resume_state(), initial.state
    require_fit(
        {name: value.shape for name, value in own.items()},
        {name: value.shape for name, value in given.items()},
        here=training.model().config,
        there=initial.config,
        without=without,
        name=initial.name,
        key=key,
    )
    anew = {part for part in PARTS if part in without or not _of(part, given) & _of(part, own)}
    taken = {name for name in own if _part(name) not in anew}
    for name in taken:
        own[name].copy_(given[name])
    for name, value in averaged.state_dict().items():
        if f"{TOKENIZER}{name}" in taken:
            value.copy_(initial.weights[name])
    if "alignment" in anew:
        training.restart_teacher()
    return list(_remarks(initial, own, anew - set(without), f"{key}.initial_run"))


def require_fit(
    own: Shapes,
    given: Shapes,
    *,
    here: TokenizerConfig,
    there: TokenizerConfig,
    without: Collection[Part] = (),
    name: str,
    key: str = "task",
) -> None:
    """Raise `InputError` unless all tensors have the names and shapes of those that are given, but for parts that one side lacks.

    `here`, `there`: the two configurations, whose differences the message names as the causes, beside the parameters.
    """
    misfits: dict[str, str] = {}
    for tensor in sorted(own.keys() | given.keys()):
        part = _part(tensor)
        if part is not None and (part in without or not (_of(part, own) and _of(part, given))):
            continue
        if part == "alignment" and not _of(part, own) & _of(part, given):
            continue  # of another kind
        mine, theirs = _shape(own, tensor), _shape(given, tensor)
        if mine != theirs:
            misfits[tensor] = f"{tensor.removeprefix(TOKENIZER)} ({theirs} there, {mine} here)"
    if not misfits:
        return
    shapes = _some(list(misfits.values()))
    causes = [f"{key}.model.{cause}" for cause in differences(here, there)]
    parts = sorted({part for tensor in misfits if (part := _part(tensor))})
    fixes = ["make them equal (left out, they are its own)"] if causes else []
    if all(_part(tensor) for tensor in misfits):
        fixes.append(f"start these anew with {key}.initial_except=[{','.join(parts)}]")
    fix = ", or ".join(fixes) or "give another"
    because = f"{_some(causes)}, so that these differ: {shapes}" if causes else shapes
    raise InputError(f"{key}.initial_run: {name} does not fit: {because}: {fix}")


def _some(things: Sequence[str]) -> str:
    more = f" and {len(things) - SHOWN} more" if len(things) > SHOWN else ""
    return ", ".join(things[:SHOWN]) + more


def differences(here: TokenizerConfig, there: TokenizerConfig) -> list[str]:
    """The settings that differ between two tokenizers, with both values; those of initial weights alone are left out."""
    mine, theirs = flattened(to_tree(here)), flattened(to_tree(there))
    return [
        f"{name} is {theirs.get(name, 'not there')} there, {mine.get(name, 'not')} here"
        for name in dict.fromkeys([*mine, *theirs])
        if mine.get(name) != theirs.get(name) and name.rpartition(".")[2] not in OF_THE_START
    ]


def _remarks(initial: InitialState, own: Shapes, anew: Collection[Part], key: str) -> Iterator[str]:
    state = initial.state
    if state is not initial.training:
        yield f"{key}: {initial.name} holds weights alone, and no state of a training: it goes on from the averaged weights"
    for part, called in CALLED.items():
        if part in anew and _of(part, own):
            yield f"{key}: {initial.name} has no {called}: that of this training starts untrained"
        elif _of(part, state) and not _of(part, own) & _of(part, state):
            yield f"{key}: the {called} of {initial.name} has no place in this training, and is left out"


def _part(name: str) -> Part | None:
    return next((part for part, prefixes in PARTS.items() if name.startswith(prefixes)), None)


def _of(part: Part, names: Collection[str]) -> set[str]:
    return {name for name in names if name.startswith(PARTS[part])}


def _shape(shapes: Shapes, name: str) -> str:
    return " x ".join(map(str, shapes[name])) or "a number" if name in shapes else "not"
