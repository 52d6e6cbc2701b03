"""The Inception of the Fréchet inception distance (TensorFlow's of 2015-12-05) and its resizing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# `pt_inception-2015-12-05-6726825d.pth` (pytorch-fid) and `weights-inception-2015-12-05-6726825d.pth` (torch-fidelity)
# are two names of one file. Only what it measures is called FID.
STANDARD_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
SIZE = 299  # pixels a side, whatever the images' own
SPATIAL_CHANNELS = 7  # of the inner map that sFID compares

Resize = Literal["torch_fidelity", "pytorch_fid", "clean"]
RESIZES: dict[Resize, str] = {
    "torch_fidelity": f"bilinear without antialiasing as TensorFlow 1 does it, to {SIZE} x {SIZE}",
    "pytorch_fid": f"bilinear without antialiasing, half-pixel centres, to {SIZE} x {SIZE}",
    "clean": f"bicubic, antialiased, in float as clean-fid, to {SIZE} x {SIZE}",
}


class InceptionOutputs(NamedTuple):
    """Features and logits of one pass, float32."""

    pool: Tensor  # (B, 2048), what FID, precision and recall compare
    spatial: Tensor  # (B, 2023), 7 channels of a 17 x 17 map: what sFID compares (Nash et al. 2021)
    logits: Tensor  # (B, 1008), without bias: what the Inception score reads


class Inception(nn.Module):
    """The network, with the names that its weight files use (torchvision's); always in evaluation mode.

    It is not torchvision's `inception_v3`: average pools leave the border out, one of the last two blocks pools
    maxima, and the head knows 1008 classes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, stride=2, pad=False)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3, pad=False)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3)
        self.Conv2d_3b_1x1 = Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3, pad=False)
        self.Mixed_5b = BlockA(192, pooled=32)
        self.Mixed_5c = BlockA(256, pooled=64)
        self.Mixed_5d = BlockA(288, pooled=64)
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b = BlockC(768, inner=128)
        self.Mixed_6c = BlockC(768, inner=160)
        self.Mixed_6d = BlockC(768, inner=160)
        self.Mixed_6e = BlockC(768, inner=192)
        self.Mixed_7a = BlockD(768)
        self.Mixed_7b = BlockE(1280, pool=average_pool)
        self.Mixed_7c = BlockE(2048, pool=max_pool)
        self.fc = nn.Linear(2048, 1008)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Inception:
        del mode
        return super().train(False)

    def forward(self, x: Tensor) -> InceptionOutputs:
        """Images (B, 3, 299, 299) float32 in [-1, 1], as one of the `RESIZES` leaves them."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, 3, stride=2)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = F.max_pool2d(x, 3, stride=2)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))
        x = self.Mixed_6d(x)
        # The ADM suite's `mixed_6/conv` is the first branch of this block, and so its first channels.
        spatial = x[:, :SPATIAL_CHANNELS]
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(self.Mixed_6e(x))))
        pool = x.mean((2, 3))
        return InceptionOutputs(pool, spatial.flatten(1), pool @ self.fc.weight.T)


class Conv(nn.Module):
    """Convolution, batch norm, ReLU; keeps the resolution unless told otherwise."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int | tuple[int, int],
        *,
        stride: int = 1,
        pad: bool = True,
    ) -> None:
        super().__init__()
        kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (kernel[0] // 2, kernel[1] // 2) if pad else 0
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(channels_out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


def average_pool(x: Tensor) -> Tensor:
    """Means of 3 x 3 neighbourhoods, cut off at the border."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def max_pool(x: Tensor) -> Tensor:
    """Maxima of 3 x 3 neighbourhoods."""
    return F.max_pool2d(x, 3, stride=1, padding=1)


class BlockA(nn.Module):
    """35 x 35 cells."""

    def __init__(self, channels: int, *, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = Conv(channels, 64, 1)
        self.branch5x5_1 = Conv(channels, 48, 1)
        self.branch5x5_2 = Conv(48, 64, 5)
        self.branch3x3dbl_1 = Conv(channels, 64, 1)
        self.branch3x3dbl_2 = Conv(64, 96, 3)
        self.branch3x3dbl_3 = Conv(96, 96, 3)
        self.branch_pool = Conv(channels, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        five = self.branch5x5_2(self.branch5x5_1(x))
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, double, self.branch_pool(average_pool(x))], 1)


class BlockB(nn.Module):
    """From 35 x 35 cells to 17 x 17."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch3x3 = Conv(channels, 384, 3, stride=2, pad=False)
        self.branch3x3dbl_1 = Conv(channels, 64, 1)
        self.branch3x3dbl_2 = Conv(64, 96, 3)
        self.branch3x3dbl_3 = Conv(96, 96, 3, stride=2, pad=False)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, stride=2)], 1)


class BlockC(nn.Module):
    """17 x 17 cells, with kernels of 7 in one direction at a time."""

    def __init__(self, channels: int, *, inner: int) -> None:
        super().__init__()
        self.branch1x1 = Conv(channels, 192, 1)
        self.branch7x7_1 = Conv(channels, inner, 1)
        self.branch7x7_2 = Conv(inner, inner, (1, 7))
        self.branch7x7_3 = Conv(inner, 192, (7, 1))
        self.branch7x7dbl_1 = Conv(channels, inner, 1)
        self.branch7x7dbl_2 = Conv(inner, inner, (7, 1))
        self.branch7x7dbl_3 = Conv(inner, inner, (1, 7))
        self.branch7x7dbl_4 = Conv(inner, inner, (7, 1))
        self.branch7x7dbl_5 = Conv(inner, 192, (1, 7))
        self.branch_pool = Conv(channels, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(average_pool(x))], 1)


class BlockD(nn.Module):
    """From 17 x 17 cells to 8 x 8."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch3x3_1 = Conv(channels, 192, 1)
        self.branch3x3_2 = Conv(192, 320, 3, stride=2, pad=False)
        self.branch7x7x3_1 = Conv(channels, 192, 1)
        self.branch7x7x3_2 = Conv(192, 192, (1, 7))
        self.branch7x7x3_3 = Conv(192, 192, (7, 1))
        self.branch7x7x3_4 = Conv(192, 192, 3, stride=2, pad=False)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        three = self.branch3x3_2(self.branch3x3_1(x))
        return torch.cat([three, self.branch7x7x3_4(seven), F.max_pool2d(x, 3, stride=2)], 1)


class BlockE(nn.Module):
    """8 x 8 cells; the first of two pools means, the last maxima (a slip of the network of 2015 that FID keeps)."""

    def __init__(self, channels: int, *, pool: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.pool = pool
        self.branch1x1 = Conv(channels, 320, 1)
        self.branch3x3_1 = Conv(channels, 384, 1)
        self.branch3x3_2a = Conv(384, 384, (1, 3))
        self.branch3x3_2b = Conv(384, 384, (3, 1))
        self.branch3x3dbl_1 = Conv(channels, 448, 1)
        self.branch3x3dbl_2 = Conv(448, 384, 3)
        self.branch3x3dbl_3a = Conv(384, 384, (1, 3))
        self.branch3x3dbl_3b = Conv(384, 384, (3, 1))
        self.branch_pool = Conv(channels, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        return torch.cat(
            [
                self.branch1x1(x),
                self.branch3x3_2a(three),
                self.branch3x3_2b(three),
                self.branch3x3dbl_3a(double),
                self.branch3x3dbl_3b(double),
                self.branch_pool(self.pool(x)),
            ],
            1,
        )


def resized(images: Tensor, how: Resize) -> Tensor:
    """Images (B, 3, H, W) uint8 as the network takes them: (B, 3, 299, 299) float32 in about [-1, 1]."""
    levels = images.float()
    match how:
        case "torch_fidelity":
            return (tf1_bilinear(levels) - 128) / 128
        case "pytorch_fid":
            zero_one = F.interpolate(levels / 255, (SIZE, SIZE), mode="bilinear", align_corners=False)
            return 2 * zero_one - 1
        case "clean":
            levels = F.interpolate(levels, (SIZE, SIZE), mode="bicubic", antialias=True, align_corners=False)
            return (levels.clamp(0, 255) - 128) / 128


def tf1_bilinear(x: Tensor) -> Tensor:
    """(B, C, H, W) float32 -> (B, C, 299, 299): every cell samples at its corner times the scale, as TensorFlow 1."""

    def neighbours(length: int) -> tuple[Tensor, Tensor, Tensor]:
        position = torch.arange(SIZE, device=x.device, dtype=x.dtype) * torch.tensor(
            length / SIZE, dtype=x.dtype
        )
        low = position.long()
        return low, (low + 1).clamp(max=length - 1), position - low

    top, bottom, down = neighbours(x.shape[2])
    left, right, across = neighbours(x.shape[3])
    # Of the rows both neighbours are needed, so columns come first, on rows that are few where images are small.
    columns = x[..., left] + (x[..., right] - x[..., left]) * across
    rows = columns[:, :, top]
    return rows + (columns[:, :, bottom] - rows) * down[:, None]
