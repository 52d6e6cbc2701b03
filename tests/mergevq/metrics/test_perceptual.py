"""MS-SSIM against pytorch-msssim and by hand, LPIPS per image."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from mergevq.errors import InputError
from mergevq.losses.perceptual import Lpips, LpipsPerceptualConfig, _vgg16_features
from mergevq.metrics import Mean, MsSsim, Ssim
from mergevq.metrics.lpips import LpipsDistance, LpipsFilesConfig


def random_images(size: tuple[int, int], strength: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = F.interpolate(torch.rand(2, 3, 9, 9, generator=generator), size, mode="bicubic").clamp(0, 1)
    y = (x + strength * torch.randn(x.shape, generator=generator)).clamp(0, 1)
    return (x * 255).round() / 127.5 - 1, (y * 255).round() / 127.5 - 1


@pytest.mark.parametrize(("size", "scales"), [((192, 176), 5), ((64, 96), 3)])
def test_ms_ssim_is_pytorch_msssims(size: tuple[int, int], scales: int) -> None:
    theirs = pytest.importorskip("pytorch_msssim")
    x, y = random_images(size)
    found = MsSsim(scales)
    found.update(x, y)
    weights = [0.0448, 0.2856, 0.3001, 0.2363, 0.1333][:scales]
    levels = [((image + 1) * 127.5).double() for image in (x, y)]
    # Theirs asks for 161 px whatever the weights: the formula by its parts, where images are smaller.
    if scales == 5:
        expected = theirs.ms_ssim(*levels, data_range=255, weights=weights)
    else:
        parts, (a, b) = [], levels
        window = theirs.ssim.__globals__["_fspecial_gauss_1d"](11, 1.5).double().repeat(3, 1, 1, 1)
        for scale in range(scales):
            whole, contrast = theirs.ssim.__globals__["_ssim"](a, b, 255, window)
            parts.append(whole if scale == scales - 1 else contrast)
            a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
        shares = torch.tensor(weights).double() / sum(weights) * 1.0001  # what the five sum to
        expected = torch.stack([p**w for p, w in zip(parts, shares, strict=True)]).prod(0).mean()
    assert found.compute()[found.key] == pytest.approx(float(expected), rel=1e-5)
    assert found.compute()[found.key] < 0.95


def test_where_sides_are_odd_ms_ssim_differs_from_pytorch_msssims_a_little() -> None:
    theirs = pytest.importorskip("pytorch_msssim")
    generator = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.interpolate(torch.rand(2, 3, 24, 24, generator=generator), (177, 177))
    x = (smooth * 255).round()
    y = (smooth + 0.08 * torch.randn(2, 3, 177, 177, generator=generator)).clamp(0, 1).mul(255).round()
    ours = MsSsim()
    ours.update(x / 127.5 - 1, y / 127.5 - 1)
    off = abs(ours.compute()["ms_ssim"] - float(theirs.ms_ssim(x.double(), y.double(), data_range=255)))
    assert 1e-6 < off < 1e-3


def test_ms_ssim_of_one_scale_is_ssim_and_of_a_copy_is_one() -> None:
    x, y = random_images((32, 48), 0.05)
    one, plain = MsSsim(1), Ssim()
    one.update(x, y)
    plain.update(x, y)
    assert one.compute()["ms_ssim_1_scales"] == pytest.approx(plain.compute()["ssim"], rel=1e-4)
    same = MsSsim()
    same.update(*[random_images((176, 177))[0]] * 2)
    assert same.compute() == pytest.approx({"ms_ssim": 1})


def test_images_that_contradict_each_other_score_nothing_and_not_nan() -> None:
    x, _ = random_images((176, 176))
    opposite = MsSsim()
    opposite.update(x, -x)
    assert 0 <= opposite.compute()["ms_ssim"] < 0.1


def test_too_small_images_say_how_many_scales_they_have() -> None:
    with pytest.raises(
        InputError, match="5 scales needs images of at least 161 px, got 64 x 96: use at most 3"
    ):
        MsSsim().update(*random_images((64, 96)))
    with pytest.raises(InputError, match="use larger images"):
        MsSsim(1).update(*random_images((10, 96)))
    with pytest.raises(InputError, match="1 to 5 scales"):
        MsSsim(6)
    with pytest.raises(InputError, match="do not merge"):
        MsSsim(3).merge(MsSsim(4))
    assert [MsSsim.most_scales(size, 500) for size in (10, 11, 160, 161, 256)] == [0, 1, 4, 5, 5]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> LpipsFilesConfig:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("lpips")
    backbone = {f"features.{name}": value for name, value in _vgg16_features().state_dict().items()}
    heads = {f"lin{i}.model.1.weight": torch.rand(1, w, 1, 1) for i, w in enumerate((64, 128, 256, 512, 512))}
    torch.save(backbone, folder / "vgg.pth")
    torch.save(heads, folder / "heads.pth")
    return LpipsFilesConfig(backbone=str(folder / "vgg.pth"), heads=str(folder / "heads.pth"))


def test_lpips_is_the_loss_per_image_on_what_files_would_hold(files: LpipsFilesConfig) -> None:
    distance = LpipsDistance(files)
    x, y = random_images((32, 32))
    found = distance(x + 1e-3, y - 1e-3)
    assert found.shape == (2,)
    loss = Lpips(LpipsPerceptualConfig(backbone=files.backbone, heads=files.heads))
    for index in range(2):
        one = slice(index, index + 1)
        assert float(found[index]) == pytest.approx(float(loss(y[one], x[one])), rel=1e-4)
    torch.testing.assert_close(distance(x, x), torch.zeros(2))
    mean = Mean(distance.name)
    mean.update(found)
    assert mean.compute()[distance.name] == pytest.approx(float(found.mean()))


def test_other_weights_than_the_published_do_not_have_their_name(
    files: LpipsFilesConfig, tmp_path: Path
) -> None:
    distance = LpipsDistance(files)
    assert distance.name.startswith("lpips_vgg_")
    assert distance.name != "lpips_vgg"
    assert distance.name.split("_")[2] == distance.identity["backbone_sha256"][:8]
    with pytest.raises(InputError, match=r"evaluation\.lpips\.heads: there is no weights file"):
        LpipsDistance(LpipsFilesConfig(backbone=files.backbone, heads=str(tmp_path / "none.pth")))
