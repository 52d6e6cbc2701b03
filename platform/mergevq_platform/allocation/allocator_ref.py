"""An allocator by name, in a form that travels to workers and into stored files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mergevq.allocation import Allocator, AllocatorConfig, Menu, build_allocator, checked_menu
from mergevq.allocation.config import KINDS
from mergevq.config import to_tree
from mergevq.errors import InputError
from mergevq_platform.recipe import TokenizerTaskConfig


@dataclass(frozen=True)
class AllocatorRef:
    """One allocator: its configuration and menu."""

    name: str  # as it is written on the command line
    config: AllocatorConfig
    menu: Menu

    @property
    def identity(self) -> dict[str, Any]:
        """All that its scores and counts depend on, beside tokenizer and images."""
        return {"allocator": to_tree(self.config), "menu": list(self.menu)}

    @property
    def weights_sha256(self) -> str | None:
        """The hash of its weights; None: it has none."""
        return None

    def load(self, device: torch.device | str = "cpu") -> Allocator:
        """The allocator on a device."""
        del device
        return build_allocator(self.config, self.menu)


def find_allocator(
    name: str, tokenizer: TokenizerTaskConfig, *, menu: Sequence[int] | None = None
) -> AllocatorRef:
    """The allocator called `name` (`fixed`, `compressed_size`, `oracle`), for the counts of a menu.

    Without a menu these are the counts that the tokenizer was trained at. Raises `InputError` for another name, and for a count that
    the tokenizer's layers cannot reach.
    """
    if name not in KINDS:
        raise InputError(f"there is no allocator '{name}': give {', '.join(KINDS)}")
    counts = checked_menu(menu or tokenizer.kept_counts(), tokenizer.model)
    return AllocatorRef(name, KINDS[name](), counts)
