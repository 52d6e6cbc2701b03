"""An allocator by name, in a form that travels to workers and into stored files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import torch

import mergevq
from mergevq.allocation import Allocator, AllocatorConfig, Menu, build_allocator, checked_menu
from mergevq.allocation.config import KINDS
from mergevq.allocation.menu import menu_text
from mergevq.config import to_tree
from mergevq.errors import InputError
from mergevq_platform.recipe import FindRun, TokenizerTaskConfig
from mergevq_platform.storage import checkpoints

LEARNED = "learned:"  # and the name of a run of the task `allocator`


@dataclass(frozen=True)
class AllocatorRef:
    """One allocator: its configuration and menu, and of a learned one where its weights lie."""

    name: str  # as it is written on the command line
    config: AllocatorConfig
    menu: Menu
    location: str | None = None  # of its weights: a checkpoint, a path or URI
    weights_sha256: str | None = None
    tokenizer_sha256: str | None = None  # of the tokenizer that it learnt for

    @property
    def identity(self) -> dict[str, Any]:
        """All that its scores and counts depend on, beside tokenizer and images."""
        weights = {"allocator_sha256": self.weights_sha256} if self.weights_sha256 else {}
        return {"allocator": to_tree(self.config), "menu": list(self.menu), **weights}

    def require_tokenizer(self, sha256: str | None) -> None:
        """Raise `InputError` where it learnt for a tokenizer of other weights than those with this hash (None: unknown)."""
        if self.tokenizer_sha256 not in (None, sha256):
            raise InputError(
                f"{self.name} was trained for a tokenizer of weights {(self.tokenizer_sha256 or '')[:12]}…, this one has "
                f"{(sha256 or 'none')[:12]}…: give that tokenizer, or train an allocator for this one, mergevq train allocator_gr_256"
            )

    def load(self, device: torch.device | str = "cpu") -> Allocator:
        """The allocator on a device. Raises `InputError` if other weights lie there now."""
        if self.location is None:
            return build_allocator(self.config, self.menu)
        with checkpoints.weights(self.location) as directory:
            found = checkpoints.weights_sha256(directory)
            if found != self.weights_sha256:
                raise InputError(
                    f"the allocator at {self.location} has weights {found[:12]}…, but {(self.weights_sha256 or '')[:12]}… was found "
                    "before: put those back, or begin again"
                )
            return mergevq.load_allocator(directory).to(device)


def find_allocator(
    name: str, tokenizer: TokenizerTaskConfig, *, menu: Sequence[int] | None = None
) -> AllocatorRef:
    """The allocator called `name`, for the counts of a menu: one of `KINDS`, or `learned:PLACE` (see `with_places`).

    Without a menu these are the counts that the tokenizer was trained at; a learned one has a menu of its own. Raises `InputError` for
    another name, for a count that the tokenizer's layers cannot reach, and for a menu that a learned one does not know.
    """
    if name.startswith(LEARNED):
        return _learned(name, menu)
    if name not in KINDS:
        raise InputError(
            f"there is no allocator '{name}': give {', '.join(KINDS)}, or {LEARNED}RUN with a run of the task allocator"
        )
    counts = checked_menu(menu or tokenizer.kept_counts(), tokenizer.model)
    return AllocatorRef(name, KINDS[name](), counts)


def with_places(names: Sequence[str], find_run: FindRun) -> list[str]:
    """Allocators by name, each learned one with the place of its run instead of the run's name.

    Raises `InputError` for a name that is no run.
    """
    return [
        f"{LEARNED}{find_run(name.removeprefix(LEARNED))}" if name.startswith(LEARNED) else name
        for name in names
    ]


def _learned(name: str, menu: Sequence[int] | None) -> AllocatorRef:
    place = name.removeprefix(LEARNED)
    if not place:
        raise InputError(f"{name} names no run: give {LEARNED}RUN with a run of the task allocator")
    with checkpoints.weights(place) as directory:
        allocator = mergevq.load_allocator(directory)
        bare = checkpoints.is_bare(place)
        location = place if bare else checkpoints.at_step(place, checkpoints.about(directory)["step"])
        # The run's directory, not the recipe's name: runs of one recipe are told apart.
        label = name if bare else f"{LEARNED}{PurePosixPath(location).parent.name}"
        sha256 = checkpoints.weights_sha256(directory)
    if menu is not None and tuple(sorted(set(menu))) != allocator.menu:
        raise InputError(
            f"{label} chooses among {menu_text(allocator.menu)}, not among {menu_text(tuple(menu))}: give its own counts, or train one "
            "with these as task.menu"
        )
    return AllocatorRef(label, allocator.config, allocator.menu, location, sha256, allocator.tokenizer_sha256)
