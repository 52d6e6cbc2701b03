"""The tokenizer. Start reading here.

`encode`: image -> N grid tokens, merged to K kept tokens (`merging.py`) -> K codes, and the source, which maps each grid
cell to its kept token. `decode`: codes and source -> codes of all N cells -> image. Where the source is unknown, Source
Recovery predicts it from the codes (`decode_indices`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import pydantic
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mergevq import ragged
from mergevq.config import config
from mergevq.decoder import Decoder, DecoderConfig
from mergevq.encoder import Cells, Encoder, EncoderConfig, EncoderOutput
from mergevq.errors import InputError
from mergevq.image_size import ImageSize, grid_of, size_text
from mergevq.inputs import (
    check_codes,
    check_encoded,
    check_image_values,
    check_images,
    check_index_layout,
    check_source,
    check_source_values,
    kept_counts,
    whole_count,
)
from mergevq.layers import GroupNorm, set_recompute
from mergevq.merging import Source, sizes, unmerge
from mergevq.number_types import Count
from mergevq.quantize import QuantizerConfig, build_quantizer
from mergevq.recovery import RecoveryConfig, SourceRecovery
from mergevq.summary_head import SummaryHead, SummaryHeadConfig


@config
class TokenizerConfig:
    """Sizes and parts of a MergeVQ tokenizer."""

    image_size: ImageSize = 256
    keep: Count  # K of `encode` where it is not given
    encoder: EncoderConfig
    decoder: DecoderConfig
    quantizer: QuantizerConfig
    recovery: RecoveryConfig | None = pydantic.Field(default_factory=RecoveryConfig)
    head: SummaryHeadConfig | None = pydantic.Field(default_factory=SummaryHeadConfig)

    def __post_init__(self) -> None:
        try:
            grid_of(self.image_size, self.encoder.reduction)
        except InputError:
            raise ValueError(
                f"image_size {size_text(self.image_size)} is not a multiple of the encoder's reduction {self.encoder.reduction}"
            ) from None
        if self.encoder.reduction != self.decoder.enlargement:
            raise ValueError(
                f"the encoder reduces by {self.encoder.reduction}, the decoder enlarges by {self.decoder.enlargement}: make them equal"
            )
        if self.keep > self.grid_tokens:
            raise ValueError(f"keep is {self.keep}, more than the {self.grid_tokens} grid tokens")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of cells of an image of `image_size`."""
        return grid_of(self.image_size, self.encoder.reduction)

    @property
    def grid_tokens(self) -> int:
        """N: grid cells of an image of `image_size`."""
        rows, columns = self.grid
        return rows * columns

    @property
    def head_dim(self) -> int | None:
        """Width of the summary head's output; None without a head."""
        return self.head.out if self.head else None


class Encoded(NamedTuple):
    """Images as codes, with all that decoding needs. Kept tokens are ordered by their first raster cell.

    Where images keep different counts, K is the largest, and what is missing at the end of the others is padded: -1 in
    `indices`, 0 in the rest.
    """

    indices: Tensor  # (B, K) int64
    codes: Tensor  # (B, K, G)
    source: Source  # assignment (B, N), size (B, K)
    summary: Tensor  # (B, D), the feature of the summary token [CLS]
    kept_tokens: Tensor  # (B, K, D), before quantization
    latents: Tensor  # (B, K, G), what is quantized

    @property
    def counts(self) -> Tensor:
        """The kept count of each image, (B,) int64."""
        return ragged.token_counts(self.indices)


class ForwardOutput(NamedTuple):
    """The outputs of one training pass."""

    encoded: Encoded
    reconstruction: Tensor  # (B, 3, H, W)
    recovery_logits: Tensor | None  # (B, N, K)
    head: Tensor | None  # (B, out)


class MergeVQ(nn.Module):
    """MergeVQ: merged token representation and generation in one VQ model (arXiv 2504.00999)."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        width, channels = config.encoder.width, config.quantizer.channels
        self.encoder = Encoder(config.encoder, config.grid)
        self.to_latents = nn.ModuleDict(
            {"norm": GroupNorm(32, width, eps=1e-6), "project": nn.Linear(width, channels)}
        )
        self.quantizer = build_quantizer(config.quantizer)
        self.decoder = Decoder(config.decoder, channels)
        self.recovery = (
            SourceRecovery(config.recovery, channels, config.grid_tokens) if config.recovery else None
        )
        self.head = SummaryHead(config.head, width) if config.head else None

    @property
    def grid_tokens(self) -> int:
        """N at the configured resolution."""
        return self.config.grid_tokens

    def encode(
        self, images: Tensor, keep: int | Sequence[int] | Tensor | None = None, *, check_values: bool = True
    ) -> Encoded:
        """Images (B, 3, H, W) float in [-1, 1], of any size that divides into cells -> `Encoded` with exactly `keep` tokens
        (default: the configured count).

        `keep` may be a count for each image, (B,): each gets the codes and the source that it gets alone (on a GPU to
        rounding, as in a batch of another size). The stem runs once for all; on a GPU the blocks do too, on a CPU once for
        each different count.

        Raises `InputError` for another shape or dtype, a size that does not divide into cells, a count that the layers
        cannot reach and, with `check_values`, for NaN and values beyond ±2, which no resampling of [-1, 1] reaches. The
        check of values waits for the device: leave it out in a training step. CUDA graphs and compiled programs skip it.
        """
        if check_values:
            check_image_values(images, like=self.encoder.summary_token)
        else:
            check_images(images, like=self.encoder.summary_token)
        counts = kept_counts(self.config.keep if keep is None else keep, len(images))
        if isinstance(counts, int):
            return self._quantized(self.encoder(images, counts))
        self.encoder.check(images, counts)
        return self.encode_cells(self.encoder.embed(images), counts)

    def encode_cells(self, cells: Cells, keep: int | Sequence[int] | Tensor) -> Encoded:
        """Grid tokens that `encoder.embed` made of images -> what `encode` makes of these images.

        For whoever looks at the grid tokens before it says `keep`, or encodes the same images several times. Raises
        `InputError` for counts that the layers cannot reach.
        """
        counts = kept_counts(keep, len(cells.tokens))
        if isinstance(counts, int):
            return self._quantized(self.encoder.merge(cells, counts))
        groups = ragged.rows_by_count(counts)
        if len(groups) < 2:
            return self._quantized(self.encoder.merge(cells, *(groups or [self.config.keep])))
        if ragged.in_one_pass(cells.tokens.device):
            order = [row for rows in groups.values() for row in rows]
            features = self.encoder.merge_each(cells.of(order), groups)
            encoded = self._quantized(features, features.source.size > 0)
            return _reordered(encoded, torch.tensor(order, device=cells.tokens.device).argsort())
        parts = [self._quantized(self.encoder.merge(cells.of(rows), count)) for count, rows in groups.items()]

        def join(tensors: list[Tensor], *, dim: int | None = 1, fill: float = 0) -> Tensor:
            return ragged.joined(tensors, list(groups.values()), dim=dim, fill=fill)

        source = parts[0].source._replace(
            assignment=join([part.source.assignment for part in parts], dim=None),
            size=join([part.source.size for part in parts]),
        )
        return Encoded(
            indices=join([part.indices for part in parts], fill=ragged.NO_TOKEN),
            codes=join([part.codes for part in parts]),
            source=source,
            summary=join([part.summary for part in parts], dim=None),
            kept_tokens=join([part.kept_tokens for part in parts]),
            latents=join([part.latents for part in parts]),
        )

    def _quantized(self, features: EncoderOutput, valid: Tensor | None = None) -> Encoded:
        # GroupNorm takes its statistics over the kept tokens, which have no spatial order.
        norm, tokens = self.to_latents["norm"], features.tokens
        assert isinstance(norm, GroupNorm)
        normed = (
            norm(tokens.transpose(1, 2)).transpose(1, 2) if valid is None else norm.of_tokens(tokens, valid)
        )
        latents = self.to_latents["project"](F.silu(normed))
        codes, indices = self.quantizer.quantize(latents)
        if valid is not None:
            indices = indices.where(valid, ragged.NO_TOKEN)
            codes, latents = (x.where(valid[..., None], 0) for x in (codes, latents))
        return Encoded(indices, codes, features.source, features.summary, features.tokens, latents)

    def decode(self, encoded: Encoded) -> Tensor:
        """Images (B, 3, H, W), nominally in [-1, 1], decoded with the true source. Raises as `decode_codes`."""
        check_encoded(encoded, Encoded)
        return self.decode_codes(encoded.codes, encoded.source)

    def decode_codes(self, codes: Tensor, source: Source) -> Tensor:
        """Codes (B, K, G) and their source -> images. Raises `InputError` for other shapes and dtypes."""
        check_codes(codes, self.config.quantizer.channels, like=self.decoder.conv_in.weight)
        check_source(source, codes)
        cells = unmerge(codes, source.assignment)
        return self.decoder(rearrange(cells, "b (h w) g -> b g h w", h=source.rows))

    def decode_indices(self, indices: Tensor, source: Source | None = None) -> Tensor:
        """Indices (B, K) int64 in canonical order -> images. Without a source, Source Recovery predicts it, for images
        of the configured size.

        Images of fewer than K tokens are padded with -1 at the end, as `encode` does.

        Raises `InputError` for other shapes and dtypes, indices outside the codebook, a source of other indices, and for
        no source where the tokenizer has no Source Recovery.
        """
        check_index_layout(indices, like=self.decoder.conv_in.weight)
        counts = ragged.checked_counts(indices, self.config.quantizer.vocabulary)
        present = None if counts is None else indices != ragged.NO_TOKEN
        tokens = indices if present is None else indices.where(present, 0)
        if source is not None:
            check_source(source, indices)
            check_source_values(source, indices.shape[1] if counts is None else counts)
        codes = self.quantizer.codes(tokens).to(self.decoder.conv_in.weight.dtype)
        if present is not None:
            codes = codes.where(present[..., None], 0)
        return self.decode_codes(codes, source or self.recovered_source(codes, counts))

    def recover(self, codes: Tensor, counts: Sequence[int] | Tensor | None = None) -> Tensor:
        """Codes (B, K, G) -> logits (B, N, K) of each cell's kept token (equation 8), on the grid of the configured size.

        `counts`: the tokens of each image, (B,) or one for all, where `codes` are padded; a padded token's logits are -inf.
        Without them every token counts: codes do not say where they are padded, `Encoded.counts` does.

        Raises `InputError` for other shapes and dtypes, counts beyond K, and without a Source Recovery.
        """
        check_codes(codes, self.config.quantizer.channels, like=self.decoder.conv_in.weight)
        if codes.shape[1] > self.grid_tokens:
            raise InputError(
                f"codes of {codes.shape[1]} kept tokens, but the grid has {self.grid_tokens}: give fewer"
            )
        if self.recovery is None:
            raise InputError(
                "this tokenizer has no Source Recovery: give the source, or train it with config.recovery"
            )
        if counts is None:
            return self.recovery(codes)
        given = kept_counts(counts, len(codes), name="counts")
        each = [given] * len(codes) if isinstance(given, int) else given
        if each and not 1 <= min(each) <= max(each) <= codes.shape[1]:
            raise InputError(
                f"counts reach from {min(each)} to {max(each)}, the codes have 1 to {codes.shape[1]} tokens: "
                "give those of `encode`"
            )
        if set(each) <= {codes.shape[1]}:
            return self.recovery(codes)
        groups = ragged.rows_by_count(each)
        parts = [self.recovery(codes[rows, :keep]) for keep, rows in groups.items()]
        logits = ragged.joined(parts, list(groups.values()), dim=2, fill=-torch.inf)
        return F.pad(logits, (0, codes.shape[1] - logits.shape[2]), value=-torch.inf)

    def recovered_source(self, codes: Tensor, counts: Sequence[int] | Tensor | None = None) -> Source:
        """The most likely source of codes (B, K, G), of `counts` as for `recover`; a kept token may get no cell."""
        assignment = self.recover(codes, counts).argmax(-1)
        return Source(assignment, sizes(assignment, codes.shape[1]), self.config.grid)

    def encode_summary(
        self, images: Tensor, keep: int, *, check_values: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """The summary (B, D) and the head's output (B, out) of images of any size that divides into cells.

        `check_values` and errors as for `encode`.
        """
        if check_values:
            check_image_values(images, like=self.encoder.summary_token)
        summary = self.encoder(images, keep).summary
        return summary, None if self.head is None else self.head(summary)

    def forward(
        self, images: Tensor, keep: int | None = None, *, detach_recovery: bool = False
    ) -> ForwardOutput:
        """One training pass, of one count for all images. Gradients of recovery reach the encoder through the straight-through codes.

        Raises as `encode`, and for images of another size where Source Recovery is trained; does not check the values of
        `images` and never waits for the device.
        """
        keep = whole_count(self.config.keep if keep is None else keep)
        encoded = self.encode(images, keep, check_values=False)
        if self.recovery is not None and encoded.source.grid != self.config.grid:
            raise InputError(
                f"Source Recovery is trained on images of {size_text(self.config.image_size)}; these are "
                f"{images.shape[-2]} x {images.shape[-1]}: give images of the configured size, or a tokenizer of theirs"
            )
        codes = encoded.codes.detach() if detach_recovery else encoded.codes
        return ForwardOutput(
            encoded,
            self.decode(encoded),
            self.recovery(codes) if self.recovery is not None else None,
            self.head(encoded.summary) if self.head is not None else None,
        )

    def compile(self, *args: Any, kept_counts: int = 1, **kwargs: Any) -> None:
        """`torch.compile` the transformer blocks in place, the encoder's once per token count and merge.

        Convolutions and quantization stay eager: they are library kernels already. `kept_counts`: the number of different
        kept counts to come; PyTorch's limit of graphs is raised to it, above which a block would stay uncompiled with
        only a warning. Takes the arguments of `torch.compile`; `dynamic=False` unless given.
        """
        kwargs.setdefault("dynamic", False)
        needed = self.config.encoder.depth * (kept_counts + 1)  # and one for each other view's size
        limits = torch._dynamo.config
        limits.recompile_limit = max(limits.recompile_limit, 2 * needed)
        limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, 4 * needed)
        for block in (*self.encoder.blocks, *self.decoder.blocks):
            block.compile(*args, **kwargs)

    def recompute(self, recompute: bool = True) -> None:
        """Set whether the convolution stages recompute norms and activations in the backward pass, see `ResBlock`."""
        set_recompute(self, recompute)

    @property
    def last_layer(self) -> Tensor:
        """The decoder's last weight, at which the adaptive adversarial weight compares gradients."""
        return self.decoder.last_layer


def _reordered(encoded: Encoded, order: Tensor) -> Encoded:
    source = encoded.source._replace(
        assignment=encoded.source.assignment.index_select(0, order),
        size=encoded.source.size.index_select(0, order),
    )
    rest = {
        name: getattr(encoded, name).index_select(0, order) for name in Encoded._fields if name != "source"
    }
    return Encoded(source=source, **rest)
