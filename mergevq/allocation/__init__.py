"""Allocation of kept tokens: how many each image keeps, for a mean over images.

menu = checked_menu([9, 16, 25, 36, 49, 64], tokenizer.config)
allocator = build_allocator(CompressedSizeAllocatorConfig(), menu)
constant = calibrate(allocator.scores(tokenizer, train_images), allocator, budget=25).constant
counts = allocator.counts(allocator.scores(tokenizer, images), constant)  # (B,) int64
encoded = tokenizer.encode(images, keep=counts)
"""

from mergevq.allocation.build import build_allocator
from mergevq.allocation.calibration import Calibrated, Calibration, calibrate, calibrations, require_within
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
from mergevq.allocation.grid_tokens import encode_allocated, grid_tokens
from mergevq.allocation.lagrangian import lagrangian_counts, price_bracket
from mergevq.allocation.learned import LearnedAllocator, logarithms, pooled
from mergevq.allocation.menu import checked_menu, nearest_counts
from mergevq.allocation.oracle import OracleAllocator, distortions, squared_error
from mergevq.allocation.protocol import Allocator, Menu
from mergevq.allocation.similarity import SimilarityAllocator

__all__ = [
    "Allocator",
    "AllocatorConfig",
    "Calibrated",
    "Calibration",
    "CompressedSizeAllocator",
    "CompressedSizeAllocatorConfig",
    "FixedAllocator",
    "FixedAllocatorConfig",
    "LearnedAllocator",
    "LearnedAllocatorConfig",
    "Menu",
    "OracleAllocator",
    "OracleAllocatorConfig",
    "SimilarityAllocator",
    "SimilarityAllocatorConfig",
    "build_allocator",
    "calibrate",
    "calibrations",
    "checked_menu",
    "distortions",
    "encode_allocated",
    "grid_tokens",
    "lagrangian_counts",
    "logarithms",
    "nearest_counts",
    "pooled",
    "price_bracket",
    "require_within",
    "squared_error",
]
