"""From the configuration of an allocator without weights to the allocator."""

from __future__ import annotations

from mergevq.allocation.compressed_size import CompressedSizeAllocator
from mergevq.allocation.config import (
    AllocatorConfig,
    CompressedSizeAllocatorConfig,
    FixedAllocatorConfig,
    LearnedAllocatorConfig,
    OracleAllocatorConfig,
    SimilarityAllocatorConfig,
)
from mergevq.allocation.fixed import FixedAllocator
from mergevq.allocation.oracle import OracleAllocator
from mergevq.allocation.protocol import Allocator, Menu
from mergevq.allocation.similarity import SimilarityAllocator
from mergevq.errors import InputError


def build_allocator(config: AllocatorConfig, menu: Menu) -> Allocator:
    """The allocator of a configuration, for the counts of an ascending menu. Raises `InputError` for one that has weights."""
    match config:
        case FixedAllocatorConfig():
            return FixedAllocator(menu)
        case SimilarityAllocatorConfig():
            return SimilarityAllocator(menu)
        case CompressedSizeAllocatorConfig():
            return CompressedSizeAllocator(menu, config)
        case OracleAllocatorConfig():
            return OracleAllocator(menu, config)
        case LearnedAllocatorConfig():
            raise InputError("a learned allocator has weights: mergevq.load_allocator reads them")
