"""Generators over MergeVQ's codes: raster order, MergeAR, and random order (section 4)."""

from mergevq.generation.config import (
    GeneratorConfig,
    GeneratorTrainingConfig,
    MergeARConfig,
    RandomOrderConfig,
    RasterConfig,
    TransformerConfig,
    is_ragged,
    parse_generator,
)
from mergevq.generation.counts import draw_counts, mean_count
from mergevq.generation.model import Generator, build_generator
from mergevq.generation.presets import generator_preset, list_generators
from mergevq.generation.random_order import arccos_schedule
from mergevq.generation.sampling import Generated, sample
from mergevq.generation.sampling_config import GuidanceConfig, SamplingConfig

__all__ = [
    "Generated",
    "Generator",
    "GeneratorConfig",
    "GeneratorTrainingConfig",
    "GuidanceConfig",
    "MergeARConfig",
    "RandomOrderConfig",
    "RasterConfig",
    "SamplingConfig",
    "TransformerConfig",
    "arccos_schedule",
    "build_generator",
    "draw_counts",
    "generator_preset",
    "is_ragged",
    "list_generators",
    "mean_count",
    "parse_generator",
    "sample",
]
