import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from mergevq.config import config, parse
from mergevq.errors import InputError
from mergevq.losses.perceptual import (
    LpipsPerceptualConfig,
    NoPerceptualConfig,
    PerceptualConfig,
    StandInPerceptualConfig,
    TimmPerceptualConfig,
    perceptual_distance,
)
from mergevq.teachers.stand_in import StandInClassifier, StandInConfig, save_classifier

WIDTHS = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
TORCHVISION_INDICES = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
BLOCKS = [2, 2, 3, 3, 3]


@pytest.fixture(scope="module")
def vgg_files(tmp_path_factory):
    """Random weights in the layouts of torchvision's vgg16 and of the lpips package."""
    directory = tmp_path_factory.mktemp("vgg")
    generator = torch.Generator().manual_seed(0)
    backbone, before = {}, 3
    for index, width in zip(TORCHVISION_INDICES, WIDTHS, strict=True):
        weight = torch.randn(width, before, 3, 3, generator=generator) * (2 / (9 * before)) ** 0.5
        backbone[f"features.{index}.weight"] = weight
        backbone[f"features.{index}.bias"] = 0.1 * torch.randn(width, generator=generator)
        before = width
    backbone["classifier.0.weight"] = torch.zeros(2, 2)
    heads = {
        f"lin{i}.model.1.weight": torch.rand(1, width, 1, 1, generator=generator)
        for i, width in enumerate([64, 128, 256, 512, 512])
    }
    torch.save(backbone, directory / "vgg16.pth")
    torch.save(heads, directory / "heads.pth")
    return directory / "vgg16.pth", directory / "heads.pth", backbone, heads


def straightforward_lpips(backbone, heads, a, b):
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)
    a, b = (a - shift) / scale, (b - shift) / scale
    total, convolutions = 0.0, iter(TORCHVISION_INDICES)
    for block, num_convolutions in enumerate(BLOCKS):
        if block:
            a, b = F.max_pool2d(a, 2), F.max_pool2d(b, 2)
        for _ in range(num_convolutions):
            i = next(convolutions)
            weight, bias = backbone[f"features.{i}.weight"], backbone[f"features.{i}.bias"]
            a, b = (F.relu(F.conv2d(x, weight, bias, padding=1)) for x in (a, b))
        unit = [x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10) for x in (a, b)]
        difference = (unit[0] - unit[1]) ** 2
        total = total + F.conv2d(difference, heads[f"lin{block}.model.1.weight"]).mean((2, 3))
    return total.mean()


def test_lpips_equals_the_straightforward_computation(vgg_files):
    backbone_file, heads_file, backbone, heads = vgg_files
    distance = perceptual_distance(
        LpipsPerceptualConfig(backbone=str(backbone_file), heads=str(heads_file)), image_size=32
    )
    a, b = torch.rand(2, 2, 3, 32, 32).mul(2).sub(1).unbind()
    torch.testing.assert_close(
        distance(a, b), straightforward_lpips(backbone, heads, a, b), rtol=1e-5, atol=1e-6
    )
    assert distance(a, a) == 0
    a.requires_grad_()
    distance(a, b).backward()
    assert a.grad.isfinite().all()
    assert a.grad.abs().sum() > 0


def test_lpips_stays_finite_where_all_features_are_dead(vgg_files):
    backbone_file, heads_file, *_ = vgg_files
    distance = perceptual_distance(
        LpipsPerceptualConfig(backbone=str(backbone_file), heads=str(heads_file)), image_size=16
    )
    with torch.no_grad():
        distance.features[0].bias.fill_(-1e4)
    a = torch.rand(1, 3, 16, 16, requires_grad=True)
    distance(a, torch.rand(1, 3, 16, 16)).backward()
    assert a.grad.isfinite().all()


def test_a_missing_file_and_a_wrong_checksum_name_the_key_and_the_fix(vgg_files):
    backbone_file, heads_file, *_ = vgg_files
    with pytest.raises(InputError, match=r"perceptual\.backbone: there is no weights file 'nowhere\.pth'"):
        perceptual_distance(
            LpipsPerceptualConfig(backbone="nowhere.pth", heads=str(heads_file)), image_size=32
        )
    term = LpipsPerceptualConfig(backbone=str(backbone_file), heads=str(heads_file), heads_sha256="00")
    with pytest.raises(InputError, match=r"perceptual\.heads: .*SHA-256.*expected 00"):
        perceptual_distance(term, image_size=32)


def test_exchanged_files_are_refused_by_the_names_that_do_not_fit(vgg_files):
    backbone_file, heads_file, *_ = vgg_files
    with pytest.raises(
        InputError, match=r"it lacks features\.0\.weight.* \(26 in all\); it has lin0\.model\.1\.weight"
    ):
        perceptual_distance(
            LpipsPerceptualConfig(backbone=str(heads_file), heads=str(backbone_file)), image_size=32
        )


def test_features_of_a_timm_network_measure_a_distance(tmp_path):
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit").state_dict(), tmp_path / "vit.safetensors")
    term = TimmPerceptualConfig(
        model="test_vit", weights=str(tmp_path / "vit.safetensors"), layers=(1, 3), size=32
    )
    distance = perceptual_distance(term, image_size=24)
    assert [f.shape[2:] for f in distance.feature_maps(torch.zeros(1, 3, 24, 24))] == [(2, 2), (2, 2)]
    a = torch.randn(2, 3, 24, 24, requires_grad=True)
    assert distance(a, a.detach()) == 0
    distance(a, torch.randn(2, 3, 24, 24)).backward()
    assert a.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in distance.parameters())


def test_stages_of_a_stand_in_measure_a_distance(tmp_path):
    save_classifier(StandInClassifier(StandInConfig(classes=3, width=8, num_stages=2)), tmp_path)
    distance = perceptual_distance(StandInPerceptualConfig(directory=str(tmp_path)), image_size=32)
    a, b = torch.randn(2, 2, 3, 32, 32).unbind()
    assert distance(a, a) == 0
    near, far = distance(a + 0.1 * b, a), distance(b, a)
    assert 0 < near < far


def test_frozen_networks_stay_in_eval_mode(tmp_path):
    save_classifier(StandInClassifier(StandInConfig(classes=3, width=8, num_stages=2)), tmp_path)
    distance = perceptual_distance(StandInPerceptualConfig(directory=str(tmp_path)), image_size=32)
    holder = torch.nn.ModuleList([distance]).train()
    assert holder.training
    assert not any(module.training for module in distance.modules())


@config
class _Holder:
    perceptual: PerceptualConfig = NoPerceptualConfig()


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"kind": "lpips"}, "missing key 'perceptual.backbone'"),
        ({"kind": "timm", "model": "test_vit"}, "needs weights: give a weights file, or set hub: true"),
        (
            {"kind": "timm", "model": "test_vitt", "hub": True},
            "no model 'test_vitt': did you mean .*test_vit",
        ),
    ],
)
def test_an_incomplete_term_is_refused_with_the_fix(tree, words):
    with pytest.raises(InputError, match=words):
        parse(_Holder, {"perceptual": tree})
