"""Generators over MergeVQ's codes: raster order, MergeAR, and random order (section 4)."""

from mergevq.generation.config import (
    GeneratorConfig,
    GeneratorTrainingConfig,
    MergeARConfig,
    RandomOrderConfig,
    RasterConfig,
    TransformerConfig,
    parse_generator,
)
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
    "generator_preset",
    "list_generators",
    "parse_generator",
    "sample",
]
