"""The Fréchet distance against its formula, and features that it can be trusted on."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import safetensors.torch
import scipy.linalg
import timm
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from timm.models.vision_transformer import checkpoint_filter_fn

from mergevq.config import parse, to_tree
from mergevq.errors import InputError
from mergevq.metrics import (
    FeatureStatistics,
    RandomFeaturesConfig,
    TimmFeaturesConfig,
    extractor,
    frechet_distance,
    require_same_identity,
)
from mergevq.metrics.extractors import safe_name
from mergevq.metrics.features import distance_name
from mergevq.metrics.random_features import RANDOM_V1_SHA256, random_v1_weights, weights_sha256


def statistics(features):
    result = FeatureStatistics()
    for part in features.split(64):
        result.update(part)
    return result


def by_formula(a, b):
    a, b = a.double().numpy(), b.double().numpy()
    s1, s2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(s1 @ s2)
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s1 + s2 - 2 * root.real))


def features(count, dim, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dim, generator=generator) * torch.logspace(-2, 1, dim) + seed


@pytest.mark.parametrize("count", [400, 30], ids=["full rank", "fewer images than features"])
def test_the_distance_is_that_of_the_formula(count):
    a, b = features(count, 48, 0), features(count, 48, 1) @ torch.linalg.qr(torch.randn(48, 48))[0]
    distance = frechet_distance(statistics(a), statistics(b))
    assert distance == pytest.approx(by_formula(a, b), rel=1e-5)


@pytest.mark.parametrize("count", [400, 30], ids=["full rank", "fewer images than features"])
def test_the_distance_is_symmetric_and_none_to_itself(count):
    a, b = statistics(features(count, 48, 0)), statistics(features(count, 48, 1))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-10)
    assert 0 <= frechet_distance(a, a) < 1e-9


def test_a_shift_alone_costs_its_square_and_a_scale_its_own():
    a = features(500, 6, 0).double()
    assert frechet_distance(statistics(a), statistics(a + 3)) == pytest.approx(6 * 9, rel=1e-9)
    doubled = (a - a.mean(0)) * 2 + a.mean(0)
    spread = float(a.var(0).sum())  # (2 - 1)² tr S
    assert frechet_distance(statistics(a), statistics(doubled)) == pytest.approx(spread, rel=1e-9)


def test_a_large_mean_does_not_cost_digits():
    a, b = features(300, 16, 0), features(300, 16, 1)
    near = frechet_distance(statistics(a), statistics(b))
    far = frechet_distance(statistics(a.double() + 1000), statistics(b.double() + 1000))
    assert far == pytest.approx(near, rel=1e-6)


def test_constant_features_have_a_distance():
    same = statistics(torch.ones(20, 5))
    assert frechet_distance(same, statistics(torch.ones(20, 5) * 3)) == pytest.approx(20)


def test_distances_without_sense_are_refused():
    good = statistics(features(20, 4, 0))
    with pytest.raises(InputError, match="4 and of 5 numbers"):
        frechet_distance(good, statistics(features(20, 5, 0)))
    with pytest.raises(InputError, match="features of 5 numbers do not go"):
        good.merge(statistics(features(20, 5, 0)))
    with pytest.raises(InputError, match="NaN"):
        frechet_distance(good, statistics(torch.full((3, 4), torch.nan)))
    for few in (FeatureStatistics(), statistics(features(1, 4, 0))):
        with pytest.raises(InputError, match="at least 2 images"):
            frechet_distance(good, few)
    with pytest.raises(InputError, match=r"\(B, D\)"):
        FeatureStatistics().update(torch.zeros(2, 3, 4))


def protocol(**changes):
    random = extractor(RandomFeaturesConfig())
    return {"extractor": {"name": random.name, **random.identity}, "images": 64, "step": 5} | changes


def test_only_distances_of_one_identity_and_count_are_compared():
    require_same_identity(protocol(), protocol(step=6))
    other = protocol()["extractor"] | {"weights_sha256": "0" * 64}
    with pytest.raises(InputError, match="weights_sha256 is '94ed"):
        require_same_identity(protocol(), protocol(extractor=other))
    with pytest.raises(InputError, match="images is 64 in one and 65"):
        require_same_identity(protocol(), protocol(images=65))
    with pytest.raises(InputError, match="more is None in one"):
        require_same_identity(protocol(), protocol(extractor=protocol()["extractor"] | {"more": 1}))
    with pytest.raises(InputError, match="without its extractor"):
        require_same_identity(protocol(), {"images": 64})


def shapes(count, size=32):
    """Discs and bars of random place, size and colour (count, 3, size, size) in [-1, 1]."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size]
    images = np.empty((count, 3, size, size), np.float32)
    for i in range(count):
        centre, radius = random.uniform(8, size - 8, 2), random.uniform(3, 9)
        inside = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2
        if i % 2:
            inside = (abs(y - centre[0]) < radius) & (abs(x - centre[1]) < radius / 2)
        images[i] = np.where(inside, *random.uniform(-1, 1, (2, 3, 1, 1)))
    return torch.from_numpy(images)


def test_the_random_network_puts_blur_and_noise_in_order_of_strength():
    network, true = extractor(RandomFeaturesConfig()), shapes(64)
    reference = statistics(network(true))
    noise = torch.randn(true.shape, generator=torch.Generator().manual_seed(0))

    def distance(changed):
        return frechet_distance(reference, statistics(network(changed)))

    blurred = [
        distance(torch.from_numpy(gaussian_filter(true.numpy(), (0, 0, s, s)))) for s in (0, 0.5, 1, 2, 4)
    ]
    noisy = [distance(true + strength * noise) for strength in (0, 0.02, 0.05, 0.15, 0.4)]
    for distances in (blurred, noisy):
        assert distances[0] < 1e-6
        assert all(1.5 * low < high for low, high in pairwise(distances[1:]))
        assert distances[1] > 100 * distances[0]


def test_the_random_network_is_the_published_one():
    assert weights_sha256(random_v1_weights()) == RANDOM_V1_SHA256
    network = extractor(RandomFeaturesConfig())
    assert weights_sha256([weight.numpy() for weight in network.buffers()]) == RANDOM_V1_SHA256
    assert not list(network.parameters())


def by_numpy(image):
    """What `random_v1` says of an image (3, H, W) of whole levels in [-1, 1], in float64."""
    x, pooled = image, []
    for stage, weight in enumerate(random_v1_weights()):
        framed = np.pad(x, ((0, 0), (1, 1), (1, 1)), mode="edge")
        windows = np.lib.stride_tricks.sliding_window_view(framed, (3, 3), axis=(1, 2))
        x = np.maximum(np.einsum("ihwab,oiab->ohw", windows, weight.astype(np.float64)), 0)
        x = x[:, ::2, ::2] if stage else x
        pooled += [x.mean((1, 2)), x.std((1, 2))]
    return torch.from_numpy(np.concatenate(pooled))


def test_the_features_of_the_random_network_are_those_that_are_described():
    levels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 17, 20)))
    network, images = extractor(RandomFeaturesConfig()), levels / 127.5 - 1
    found = network(images)
    assert found.shape == (2, network.identity["dim"])
    assert found.dtype == torch.float32
    expected = torch.stack([by_numpy(image.double().numpy()) for image in images])
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_the_random_network_has_no_dead_channel_on_images():
    found = extractor(RandomFeaturesConfig())(shapes(64))
    assert (found.std(0) > 1e-3).all()


def test_extractors_see_the_image_that_a_file_would_hold():
    network, true = extractor(RandomFeaturesConfig()), shapes(4)
    bytes_ = ((true + 1) * 127.5).round() / 127.5 - 1
    torch.testing.assert_close(network(true * 1.0), network(bytes_), rtol=0, atol=0)
    torch.testing.assert_close(network(bytes_ * 9), network((bytes_ * 9).clamp(-1, 1)), rtol=0, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(network(true), network(bytes_), rtol=0, atol=0)
        assert network(true.bfloat16()).dtype == torch.float32


@pytest.fixture(scope="module")
def timm_features(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    safetensors.torch.save_file(timm.create_model("test_vit", num_classes=0).state_dict(), path)
    return TimmFeaturesConfig(name="test_vit", weights=str(path), image_size=64)


def test_a_timm_network_gives_its_pooled_feature_of_resized_images(timm_features):
    network, true = extractor(timm_features), shapes(3)
    found = network(true)
    assert found.shape == (3, network.identity["dim"])
    assert not network.train().network.training
    model = timm.create_model("test_vit", num_classes=0, img_size=64).eval()
    model.load_state_dict(network.network.state_dict())
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    zero_one = ((true + 1) * 127.5).round() / 255
    resized = F.interpolate(zero_one, (64, 64), mode="bicubic", antialias=True).clamp(0, 1)
    torch.testing.assert_close(found, model((resized - mean) / std).detach(), rtol=1e-3, atol=1e-4)


def test_a_timm_network_is_identified_by_its_file(timm_features):
    network = extractor(timm_features)
    digest = network.identity["weights_sha256"]
    assert len(digest) == 64
    assert "64 x 64" in network.identity["resize"]
    assert network.name == "test_vit"
    extractor(replace(timm_features, sha256=digest))
    with pytest.raises(InputError, match="SHA-256"):
        extractor(replace(timm_features, sha256="0" * 64))
    with pytest.raises(InputError, match="no weights file"):
        extractor(replace(timm_features, weights="nowhere.safetensors"))
    with pytest.raises(InputError, match="no model 'test_vitt'"):
        extractor(replace(timm_features, name="test_vitt"))


def test_an_identity_says_how_positions_were_resampled_and_only_then(timm_features, tmp_path):
    # The file is of 160 px in patches of 16.
    assert extractor(timm_features).identity["positions"] == (
        "resampled from 10 x 10 to 4 x 4: bicubic, antialiased, no offset (timm)"
    )
    assert "positions" not in extractor(replace(timm_features, image_size=160)).identity
    torch.save(timm.create_model("test_resnet", num_classes=0).state_dict(), tmp_path / "r.pth")
    resnet = TimmFeaturesConfig(name="test_resnet", weights=str(tmp_path / "r.pth"), image_size=64)
    assert "positions" not in extractor(resnet).identity
    assert "positions" not in extractor(RandomFeaturesConfig()).identity


def test_extractors_survive_the_trip_through_a_recipe(timm_features):
    assert parse(TimmFeaturesConfig, to_tree(timm_features)) == timm_features


def test_names_of_extractors_are_fit_for_metric_names():
    assert safe_name("vit_base_patch14_dinov2.lvd142m") == "dinov2_vitb14"
    assert safe_name("vit_large_patch14_dinov2.lvd142m") == "dinov2_vitl14"
    assert safe_name("vit_small_patch14_reg4_dinov2.lvd142m") == "dinov2_vits14_reg4"
    assert safe_name("convnext_tiny.fb_in22k") == "convnext_tiny_fb_in22k"


def test_a_dinov2s_feature_is_the_normalised_class_token_that_fd_dinov2_compares(tmp_path):
    torch.manual_seed(0)
    name, weights = "vit_small_patch14_dinov2", str(tmp_path / "dinov2.pth")
    torch.save(timm.create_model(name, num_classes=0).state_dict(), weights)
    ours = extractor(TimmFeaturesConfig(name=name, weights=weights, image_size=28))
    pixels = torch.randint(0, 256, (2, 3, 28, 28), generator=torch.Generator().manual_seed(1))
    mean, std = (
        255 * torch.tensor(value).view(3, 1, 1) for value in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    reference = timm.create_model(name, num_classes=0, img_size=28).eval()
    reference.load_state_dict(checkpoint_filter_fn(torch.load(weights), reference))
    with torch.no_grad():
        theirs = reference.forward_features((pixels - mean) / std)[:, 0]
    torch.testing.assert_close(ours(pixels / 127.5 - 1), theirs, rtol=1e-4, atol=1e-4)
    assert distance_name(ours, "reconstruction") == "rfd_dinov2_vits14"
    assert "resampled from 37 x 37 to 2 x 2" in ours.identity["positions"]


def test_features_do_not_mind_in_which_way_tf32_was_chosen() -> None:
    from mergevq.metrics import RandomFeaturesConfig, extractor

    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    network = extractor(RandomFeaturesConfig())
    expected = network(images)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        torch.backends.cuda.matmul.allow_tf32 = False  # PyTorch refuses to say its precision after both
        assert torch.equal(network(images), expected)
    finally:
        torch.set_float32_matmul_precision(before)


def test_statistics_in_a_cache_of_before_are_read():
    statistics = FeatureStatistics()
    statistics.update(torch.rand(9, 3, generator=torch.Generator().manual_seed(0)))
    state = statistics.__getstate__()
    del state["buffer"]
    old = FeatureStatistics.__new__(FeatureStatistics)
    old.__setstate__({**state, "waiting": None})
    assert torch.equal(old.moments().covariance, statistics.moments().covariance)
    old.update(torch.rand(9, 3, generator=torch.Generator().manual_seed(1)))
    assert old.moments().images == 18
