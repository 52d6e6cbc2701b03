"""Tokenizer presets: the paper's variants and sizes, and small ones to try things with."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from mergevq.decoder import DecoderConfig
from mergevq.encoder import HybridEncoderConfig, ViTEncoderConfig
from mergevq.errors import InputError
from mergevq.quantize import LFQConfig
from mergevq.recovery import RecoveryConfig
from mergevq.summary_head import SummaryHeadConfig
from mergevq.tokenizer import MergeVQ, TokenizerConfig

# Base channels, transformer width and heads by size name (Table A1 for d64; the release's configurations for the others).
SIZES = {"d32": (32, 384, 8), "d64": (64, 512, 8), "d96": (96, 768, 12)}


def _g(size: str, image_size: int) -> TokenizerConfig:
    multipliers = (2, 4, 8, 12) if size == "d32" else (1, 2, 4, 8)
    return _hybrid(size, multipliers, image_size, keep=(image_size // 8) ** 2 // 4, head_layers=2)


def _gr(size: str, image_size: int) -> TokenizerConfig:
    multipliers = (2, 2, 4, 8, 12) if size == "d32" else (1, 1, 2, 4, 8)
    return _hybrid(size, multipliers, image_size, keep=(image_size // 16) ** 2 * 9 // 16, head_layers=3)


def _hybrid(
    size: str, multipliers: tuple[int, ...], image_size: int, *, keep: int, head_layers: Literal[2, 3]
) -> TokenizerConfig:
    channels, width, heads = SIZES[size]
    shape: dict[str, Any] = {"channels": channels, "multipliers": multipliers, "width": width, "heads": heads}
    return TokenizerConfig(
        image_size=image_size,
        keep=keep,
        encoder=HybridEncoderConfig(**shape),
        decoder=DecoderConfig(**shape),
        quantizer=LFQConfig(bits=18),
        head=SummaryHeadConfig(layers=head_layers),
    )


def _gr_64(size: str) -> TokenizerConfig:
    """N = 64 at 64 px, by a reduction of 8: the square counts from 9 on have the six merge ratios of Table 4."""
    multipliers = (2, 4, 8, 12) if size == "d32" else (1, 2, 4, 8)
    return _hybrid(size, multipliers, 64, keep=36, head_layers=3)


def _r(image_size: int) -> TokenizerConfig:
    return TokenizerConfig(
        image_size=image_size,
        keep=(image_size // 16) ** 2 * 9 // 64,
        encoder=ViTEncoderConfig(),
        decoder=DecoderConfig(),
        quantizer=LFQConfig(bits=18),
        head=SummaryHeadConfig(layers=3),
    )


def _tiny_gr() -> TokenizerConfig:
    """N = 64 at 32 px; learns on two CPU cores in minutes, for which it starts with larger weights than the published."""
    start: dict[str, Any] = {"layer_scale": 1.0, "initial_std": 0.06}
    shape: dict[str, Any] = {"channels": 32, "multipliers": (1, 3), "width": 96, "depth": 3, "heads": 3}
    return TokenizerConfig(
        image_size=32,
        keep=36,
        encoder=HybridEncoderConfig(
            **shape, **start, res_blocks=2, stem_stride=2, positions="learned", summary_std=0.02
        ),
        decoder=DecoderConfig(**shape, **start, res_blocks=1, head_stride=2),
        quantizer=LFQConfig(bits=12),
        recovery=RecoveryConfig(width=96, hidden=192, depth=2, heads=3, initial_std=0.1),
        head=SummaryHeadConfig(layers=2, out=128),
    )


def _test(kind: str) -> TokenizerConfig:
    hybrid: dict[str, Any] = {"channels": 32, "multipliers": (1, 1), "width": 32, "depth": 2, "heads": 2}
    encoder = (
        ViTEncoderConfig(patch=4, width=32, depth=2, heads=2)
        if kind == "r"
        else HybridEncoderConfig(**hybrid, res_blocks=1, stem_stride=2)
    )
    return TokenizerConfig(
        image_size=16,
        keep=9,
        encoder=encoder,
        decoder=DecoderConfig(**hybrid, res_blocks=1, head_stride=2),
        quantizer=LFQConfig(bits=6),
        recovery=RecoveryConfig(width=32, hidden=32, depth=1, heads=2),
        head=SummaryHeadConfig(layers=2 if kind == "g" else 3, out=16),
    )


PRESETS: dict[str, Callable[[], TokenizerConfig]] = {
    **{f"g_{px}_{size}": partial(_g, size, px) for px in (128, 256) for size in ("d32", "d64")},
    **{f"gr_{px}_{size}": partial(_gr, size, px) for px in (128, 256) for size in SIZES},
    **{f"gr_64_{size}": partial(_gr_64, size) for size in ("d32", "d64")},
    **{f"r_{px}_vitb": partial(_r, px) for px in (128, 256)},
    "tiny_gr_32": _tiny_gr,
}
TEST_PRESETS = {
    f"test_{kind}": partial(_test, kind) for kind in ("g", "gr", "r")
}  # created by name, never listed


def preset(name: str) -> TokenizerConfig:
    """The configuration of a named tokenizer. Raises `InputError` that lists the names."""
    known = PRESETS | TEST_PRESETS
    if name not in known:
        raise InputError(f"no preset '{name}': {', '.join(list_presets())}")
    return known[name]()


def parameter_counts(tokenizer: MergeVQ) -> dict[str, int]:
    """Parameters by part. `encoder` and `decoder` are counted as the paper runs them (Table A1): the summary head, learned
    positions and recovery stand apart."""
    counts = dict.fromkeys(("encoder", "positions", "head", "decoder", "recovery"), 0)
    for name, parameter in tokenizer.named_parameters():
        part = name.split(".")[0]
        if name == "encoder.positions":
            part = "positions"
        elif part == "to_latents":
            part = "encoder"
        counts[part] += parameter.numel()
    return counts


def list_presets() -> list[str]:
    """The names of all presets to train; `test_*`, which are for tests alone, are created by name."""
    return sorted(PRESETS)
