"""Quantizers without a codebook look-up: LFQ (section 3.1) and FSQ, with LFQ's exact entropy."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

import pydantic
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from mergevq.config import config
from mergevq.number_types import NonNegative, Positive


@config
class LFQConfig:
    """Lookup-free quantization: one bit a channel, 2^bits codes."""

    kind: Literal["lfq"] = "lfq"
    bits: Annotated[int, pydantic.Field(ge=1, le=24)] = 18
    temperature: Positive = 0.01
    epsilon: NonNegative = 0.0  # inside the codebook entropy's logarithm; the release: 1e-5

    @property
    def channels(self) -> int:
        """G, channels of a code."""
        return self.bits

    @property
    def vocabulary(self) -> int:
        """V, the number of codes."""
        return 2**self.bits

    @property
    def max_entropy(self) -> float:
        """The largest codebook entropy in nats."""
        return self.bits * float(torch.log(torch.tensor(2.0)))


class Quantized(NamedTuple):
    """`codes` (B, K, G), straight-through; `indices` (B, K) int64."""

    codes: Tensor
    indices: Tensor


class LFQ(nn.Module):
    """Sign quantization with the exact entropies of its 2^bits codes (section 3.1).

    p(code | z) = softmax(2 z . c / temperature) over all codes c in {-1, 1}^bits is a product over bits with
    p(bit j is 1) = sigmoid(4 z_j / temperature); both entropies follow exactly without a table of codes per token.
    """

    powers: Tensor

    def __init__(self, config: LFQConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("powers", 2 ** torch.arange(config.bits), persistent=False)

    def quantize(self, latents: Tensor) -> Quantized:
        """Latents (B, K, G) -> codes in {-1, 1} (zero counts as -1), straight-through; bit j of an index is channel j."""
        signs = torch.where(latents > 0, 1.0, -1.0).to(latents.dtype)
        # In this order the codes are exact: a large latent in half precision would swallow its sign in the other.
        return Quantized(signs + (latents - latents.detach()), self.indices(signs))

    def indices(self, codes: Tensor) -> Tensor:
        """Codes (..., G) -> integers (...) int64."""
        return ((codes > 0) * self.powers).sum(-1)

    def codes(self, indices: Tensor) -> Tensor:
        """Integers (...) in [0, V) -> codes (..., G) float32."""
        return ((indices[..., None] & self.powers) > 0).float() * 2 - 1

    def losses(self, latents: Tensor) -> dict[str, Tensor]:
        """`sample_entropy`, `codebook_entropy` (nats; of the average over all ranks) and `commitment`, float32 scalars."""
        with torch.autocast(latents.device.type, enabled=False):
            z = latents.float().flatten(0, -2)
            logits = 4 / self.config.temperature * z
            sample = bit_entropies(logits).sum(-1).mean()
            average = average_over_ranks(average_code(logits), z.shape[0])
            # The floor is far below any share that counts; without it an empty code's gradient is infinity times zero.
            inside = (average + self.config.epsilon).clamp(min=torch.finfo(average.dtype).tiny)
            codebook = -(average * inside.log()).sum()
            signs = torch.where(z > 0, 1.0, -1.0)
            return {
                "sample_entropy": sample,
                "codebook_entropy": codebook,
                "commitment": F.mse_loss(z, signs),
            }


# Products of two halves stay above 1e-38: below, a CPU multiplies forty times as slowly. 2^18 codes add 1e-30 to the entropy by it.
LEAST_LOG_PROBABILITY = -43.0


def bit_entropies(logits: Tensor) -> Tensor:
    """Bit logits -> each bit's entropy in nats, same shape: even in the logit, so computed where nothing cancels."""
    size = logits.abs()
    return F.softplus(-size) + size * torch.sigmoid(-size)


def average_code(logits: Tensor) -> Tensor:
    """Bit logits (tokens, bits) -> the average over tokens of the distribution over all codes, (V,) float32.

    The code splits into two halves of bits; with the tables A (tokens, 2^low) and B (tokens, 2^high) of half-code
    probabilities, the average is B^T A / tokens: one matrix product, never a table of tokens x V.
    """
    low = logits.shape[1] // 2
    table_low, table_high = (half_codes(part) for part in (logits[:, :low], logits[:, low:]))
    return (table_high.T @ table_low).flatten() / logits.shape[0]


def half_codes(logits: Tensor) -> Tensor:
    """Bit logits (tokens, b) -> probabilities of all 2^b codes (tokens, 2^b), at least 2e-19; bit j of the column is bit j."""
    log_probabilities = logits.new_zeros(logits.shape[0], 1)
    for bit in range(logits.shape[1]):
        zero, one = F.logsigmoid(-logits[:, bit, None]), F.logsigmoid(logits[:, bit, None])
        log_probabilities = torch.cat([log_probabilities + zero, log_probabilities + one], dim=1)
    return log_probabilities.clamp(min=LEAST_LOG_PROBABILITY).exp()


@config
class FSQConfig:
    """Finite scalar quantization: channel i takes `levels[i]` values in [-1, 1]."""

    kind: Literal["fsq"] = "fsq"
    levels: tuple[Annotated[int, pydantic.Field(ge=2)], ...] = (8, 8, 8, 5, 5, 5)

    @property
    def channels(self) -> int:
        """G, channels of a code."""
        return len(self.levels)

    @property
    def vocabulary(self) -> int:
        """V, the number of codes."""
        return int(torch.tensor(self.levels).prod())

    @property
    def max_entropy(self) -> float:
        """The largest codebook entropy in nats."""
        return float(torch.tensor(float(self.vocabulary)).log())


class FSQ(nn.Module):
    """Finite scalar quantization (Mentzer et al. 2023): bound each channel by tanh and round it to its levels."""

    levels: Tensor
    basis: Tensor

    def __init__(self, config: FSQConfig) -> None:
        super().__init__()
        self.config = config
        levels = torch.tensor(config.levels)
        self.register_buffer("levels", levels, persistent=False)
        self.register_buffer(
            "basis", torch.cat([torch.ones(1, dtype=torch.int64), levels[:-1].cumprod(0)]), persistent=False
        )

    def quantize(self, latents: Tensor) -> Quantized:
        """Latents (B, K, G) -> codes in [-1, 1] on the levels' grid, straight-through, and indices in mixed radix."""
        half = (self.levels - 1) * (1 + 1e-3) / 2
        offset = torch.where(self.levels % 2 == 0, 0.5, 0.0)
        shift = (offset / half).atanh()
        bounded = (latents.float() + shift).tanh() * half - offset
        rounded = bounded + (bounded.round() - bounded).detach()
        codes = rounded / (self.levels // 2)
        return Quantized(codes.to(latents.dtype), self.indices(codes))

    def indices(self, codes: Tensor) -> Tensor:
        """Codes (..., G) -> integers (...) int64; channel 0 is the lowest digit."""
        half = self.levels // 2
        return ((codes * half + half).round().long() * self.basis).sum(-1)

    def codes(self, indices: Tensor) -> Tensor:
        """Integers (...) in [0, V) -> codes (..., G) float32."""
        half = self.levels // 2
        digits = (indices[..., None] // self.basis) % self.levels
        return (digits - half) / half

    def losses(self, latents: Tensor) -> dict[str, Tensor]:
        """FSQ needs no auxiliary loss: zeros under LFQ's names, so that a recipe can exchange the two."""
        zero = latents.new_zeros((), dtype=torch.float32)
        return {"sample_entropy": zero, "codebook_entropy": zero, "commitment": zero}


QuantizerConfig = Annotated[LFQConfig | FSQConfig, pydantic.Field(discriminator="kind")]


def build_quantizer(config: LFQConfig | FSQConfig) -> LFQ | FSQ:
    """The module of a quantizer's configuration."""
    match config:
        case LFQConfig():
            return LFQ(config)
        case FSQConfig():
            return FSQ(config)


class _MeanOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, count: int) -> Tensor:
        packed = torch.cat([value.flatten() * count, value.new_full((1,), count)])
        dist.all_reduce(packed)
        return (packed[:-1] / packed[-1]).view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def average_over_ranks(value: Tensor, count: int) -> Tensor:
    """The mean over all ranks of a float `value` that is itself a mean over `count` things; itself without a process group.

    A rank weighs as much as it has things, so the mean does not depend on how they are dealt. The gradient passes
    unchanged: every rank computes the same function of the mean, and data-parallel training that weighs each rank's
    loss by its count makes the gradient of the global loss.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return value
    return _MeanOverRanks.apply(value, count)
