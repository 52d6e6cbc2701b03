"""Generator presets: the published sizes in each order, and small ones to try things with."""

from __future__ import annotations

from typing import Any

from mergevq.errors import InputError
from mergevq.generation.config import (
    GeneratorConfig,
    MergeARConfig,
    RandomOrderConfig,
    RasterConfig,
    TransformerConfig,
)
from mergevq.keep import published

# Depth, width and heads (LlamaGen's B, L and XL; L with 18-bit codes is the paper's 343M).
SIZES = {"b": (12, 768, 12), "l": (24, 1024, 16), "xl": (36, 1280, 20)}


def _transformer(size: str) -> TransformerConfig:
    depth, width, heads = SIZES[size]
    return TransformerConfig(depth=depth, width=width, heads=heads)


def _published() -> dict[str, GeneratorConfig]:
    """Over a G+R tokenizer's 16 x 16 cells and, in raster order, a G tokenizer's 32 x 32."""
    found: dict[str, GeneratorConfig] = {}
    for size in SIZES:
        shape: dict[str, Any] = {"transformer": _transformer(size), "classes": 1000}
        for suffix, cells, variant in (("", 256, "gr"), ("_1024", 1024, "g")):
            found[f"raster_{size}{suffix}"] = RasterConfig(**shape, grid_tokens=cells)
            keeps = published("gr" if variant == "gr" else "g", 2).candidates(cells)
            found[f"mergear_{size}{suffix}"] = MergeARConfig(**shape, grid_tokens=cells, keeps=keeps)
        found[f"random_order_{size}"] = RandomOrderConfig(**shape, grid_tokens=256, keeps=(144,))
        found[f"random_order_{size}_1024"] = RandomOrderConfig(**shape, grid_tokens=1024, keeps=(256,))
    return found


def _small(prefix: str, transformer: TransformerConfig, **shape: Any) -> dict[str, GeneratorConfig]:
    keeps = shape.pop("keeps")
    shape["transformer"] = transformer
    return {
        f"{prefix}_raster": RasterConfig(**shape),
        f"{prefix}_mergear": MergeARConfig(**shape, keeps=keeps),
        f"{prefix}_random_order": RandomOrderConfig(**shape, keeps=keeps),
    }


PRESETS: dict[str, GeneratorConfig] = {
    **_published(),
    # For the demo's tokenizer (N = 64): trains in minutes on two CPU cores.
    **_small(
        "tiny",
        TransformerConfig(depth=4, width=192, heads=6, hidden=512),
        classes=12,
        grid_tokens=64,
        intra_depth=1,
        keeps=(16, 25, 36, 49, 64),
    ),
}
# For tests alone, with the tokenizer presets test_*: created by name, never listed.
TEST_PRESETS = _small(
    "test",
    TransformerConfig(depth=2, width=32, heads=2, hidden=48),
    classes=3,
    grid_tokens=16,
    bits=6,
    intra_depth=1,
    keeps=(4, 9, 16),
)


def generator_preset(name: str) -> GeneratorConfig:
    """The configuration of a named generator. Raises `InputError` that lists the names."""
    known = PRESETS | TEST_PRESETS
    if name not in known:
        raise InputError(f"no generator '{name}': {', '.join(list_generators())}")
    return known[name]


def list_generators() -> list[str]:
    """The names of all generators to train; `test_*`, which are for tests alone, are created by name."""
    return sorted(PRESETS)
