"""Inception features, FID, Inception score, precision and recall against torch-fidelity, on one weight file."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from mergevq.metrics import (
    FeatureStatistics,
    InceptionExtractor,
    InceptionFeaturesConfig,
    InceptionScore,
    extractor,
    frechet_distance,
    kernel_distance,
    precision_recall,
)
from mergevq.metrics.inception import Inception, InceptionOutputs, tf1_bilinear

IMAGES, BATCH = 12, 6

pytestmark = pytest.mark.filterwarnings("ignore:.*images for .* features")


def save_random_inception(path: Path) -> None:
    """Weights that no file in circulation has, under the names that both files in circulation use."""
    torch.manual_seed(0)
    network = Inception()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)  # type: ignore[operator]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[operator]
    # What all images share says nothing of the class: otherwise one class would take them all.
    common = nn.functional.normalize(network(torch.zeros(1, 3, 299, 299)).pool)
    weight = torch.randn(1008, 2048)
    network.fc.weight.copy_(weight - weight @ common.T @ common)
    network.fc.bias.normal_()
    torch.save(network.state_dict(), path)


class Seen(NamedTuple):
    """What ours and theirs say of the same images, generated and real."""

    images: list[Tensor]  # uint8
    ours: list[InceptionOutputs]
    theirs: list[dict[str, Tensor]]


@pytest.fixture(scope="module")
def fidelity() -> Any:
    return pytest.importorskip(
        "torch_fidelity", reason="torch-fidelity does not import here", exc_type=ImportError
    )


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "random.pth"
    save_random_inception(path)
    return path


@pytest.fixture(scope="module")
def seen(fidelity: Any, weights: Path) -> Seen:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    names = ["2048", "logits_unbiased"]
    theirs = FeatureExtractorInceptionV3("test", names, feature_extractor_weights_path=str(weights))
    ours = extractor(InceptionFeaturesConfig(weights=str(weights)))
    assert isinstance(ours, InceptionExtractor)
    generator = torch.Generator().manual_seed(0)
    found = Seen([], [], [])
    for smoothness in (2, 5):
        coarse = torch.rand(IMAGES, 3, smoothness, smoothness, generator=generator) * 255
        images = nn.functional.interpolate(coarse, (40, 28), mode="bilinear").round().to(torch.uint8)
        found.images.append(images)
        parts = [ours.outputs(part.float() / 127.5 - 1) for part in images.split(BATCH)]
        found.ours.append(InceptionOutputs(*map(torch.cat, zip(*parts, strict=True))))
        answers = [theirs(part) for part in images.split(BATCH)]
        found.theirs.append(dict(zip(names, map(torch.cat, zip(*answers, strict=True)), strict=True)))
    return found


def test_the_features_are_torch_fidelitys(seen: Seen) -> None:
    for ours, theirs in zip(seen.ours, seen.theirs, strict=True):
        torch.testing.assert_close(ours.pool, theirs["2048"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.logits, theirs["logits_unbiased"], rtol=1e-5, atol=1e-4)
        assert ours.pool.std(0).mean() > 1e-3  # images are told apart, or the rest compares constants


def statistics(features: Tensor) -> FeatureStatistics:
    result = FeatureStatistics()
    for part in features.split(7):
        result.update(part)
    return result


def test_the_frechet_distance_is_torch_fidelitys(seen: Seen) -> None:
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    # Theirs takes minutes at 2048 features on two cores; the distance of a part of them is as good a witness.
    generated, real = (found["2048"][:, :256] for found in seen.theirs)
    theirs = fid_statistics_to_metric(
        fid_features_to_statistics(generated), fid_features_to_statistics(real), verbose=False
    )["frechet_inception_distance"]
    ours = frechet_distance(*(statistics(found.pool[:, :256]) for found in seen.ours))
    assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize("splits", [1, 3, 10])
def test_the_inception_score_is_torch_fidelitys(seen: Seen, splits: int) -> None:
    from torch_fidelity.metric_isc import isc_features_to_metric

    for shuffled in (True, False):
        theirs = isc_features_to_metric(seen.theirs[0]["logits_unbiased"], splits=splits, shuffle=shuffled)
        score = InceptionScore(IMAGES, splits=splits, order="shuffled" if shuffled else "sequential")
        for positions in torch.arange(IMAGES).split(BATCH):
            score.update(seen.ours[0].logits[positions], positions)
        found = score.compute()
        assert found.mean == pytest.approx(theirs["inception_score_mean"], rel=1e-4)
        assert found.std == pytest.approx(theirs["inception_score_std"], rel=1e-3, abs=1e-6)
        assert found.mean > 1.05


def test_precision_and_recall_are_torch_fidelitys(seen: Seen) -> None:
    from torch_fidelity.metric_prc import calculate_precision_recall_full

    (generated, real), (their_generated, their_real) = (
        [x.pool for x in seen.ours],
        [x["2048"] for x in seen.theirs],
    )
    for k in (1, 3):
        ours = precision_recall(generated, real, k=k, chunk=5)
        theirs = calculate_precision_recall_full(their_generated, their_real, neighborhood=k)
        assert (ours.precision, ours.recall) == pytest.approx(theirs)
    assert 0 < ours.precision < 1  # or the comparison says little


@pytest.mark.parametrize(("subsets", "subset_images"), [(7, 5), (3, 12)])
def test_the_kernel_distance_is_torch_fidelitys_kid(seen: Seen, subsets: int, subset_images: int) -> None:
    from torch_fidelity.metric_kid import kid_features_to_metric

    theirs = kid_features_to_metric(
        *(found["2048"].double() for found in seen.theirs),
        kid_subsets=subsets,
        kid_subset_size=subset_images,
        verbose=False,
    )
    images, reference = (found.pool for found in seen.ours)
    ours = kernel_distance(images, reference, subsets=subsets, subset_images=subset_images)
    assert ours.mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4)
    assert ours.std == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-3, abs=1e-7)
    assert abs(ours.mean) > 1e-3  # or zeros would be compared
    assert ours.subsets == (1 if subset_images == IMAGES else subsets)


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (299, 299), (640, 7)])
def test_the_resizing_is_torch_fidelitys(fidelity: Any, size: tuple[int, int]) -> None:
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    x = torch.randint(0, 256, (1, 3, *size), generator=torch.Generator().manual_seed(0)).float()
    theirs = interpolate_bilinear_2d_like_tensorflow1x(x, size=(299, 299), align_corners=False)
    torch.testing.assert_close(tf1_bilinear(x), theirs, rtol=0, atol=1e-4)
