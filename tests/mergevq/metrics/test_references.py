"""Reference statistics as files, extrapolation over N, and what they refuse."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mergevq.errors import InputError
from mergevq.metrics import (
    FeatureStatistics,
    Moments,
    ReferenceStatistics,
    extrapolated_distance,
    frechet_distance,
    read_reference,
    write_reference,
)

DIM = 6


def statistics(features: torch.Tensor) -> FeatureStatistics:
    found = FeatureStatistics()
    for part in features.split(50):
        found.update(part)
    return found


def features(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed)) * torch.arange(1, DIM + 1)


def test_moments_are_numpys_whatever_the_pieces() -> None:
    x = features(3000, 0) + 40
    found = FeatureStatistics()
    for part in x.split(701):
        found.update(part)
    mean, covariance, count = found.moments()
    np.testing.assert_allclose(mean, x.double().mean(0), rtol=1e-12)
    np.testing.assert_allclose(covariance, np.cov(x.double().numpy(), rowvar=False), rtol=1e-9)
    assert count == 3000


def test_wide_features_have_numpys_covariance_over_all_blocks() -> None:
    x = torch.randn(64, 600, generator=torch.Generator().manual_seed(0))
    found = statistics(x)
    found.update(x[:10])
    expected = np.cov(torch.cat([x, x[:10]]).double().numpy(), rowvar=False)
    np.testing.assert_allclose(found.moments().covariance, expected, atol=1e-10)


def test_a_reference_comes_back_as_it_was_written(tmp_path: Path) -> None:
    pool, spatial = statistics(features(200, 0)).moments(), statistics(features(200, 1)).moments()
    identity = {"name": "inception", "weights_sha256": "67", "dim": 2048}
    write_reference(tmp_path / "ours", ReferenceStatistics(pool, spatial, identity))
    found = read_reference(tmp_path / "ours")
    assert found.extractor == identity
    assert found.pool.images == 200
    for mine, theirs in ((found.pool, pool), (found.spatial, spatial)):
        assert mine is not None
        assert torch.equal(mine.mean, theirs.mean)
        assert torch.equal(mine.covariance, theirs.covariance)
    found.require_extractor(identity)
    with pytest.raises(InputError, match="weights_sha256 '67', the features of '68'"):
        found.require_extractor(identity | {"weights_sha256": "68"})
    # Files of before say nothing of positions, and had them resampled as now; those that say it must say the same.
    found.require_extractor(identity | {"positions": "resampled"})
    later = ReferenceStatistics(pool, None, identity | {"positions": "resampled"})
    with pytest.raises(InputError, match="of positions 'resampled', the features of None"):
        later.require_extractor(identity)


def test_what_we_write_has_the_names_that_others_read(tmp_path: Path) -> None:
    moments = statistics(features(30, 0)).moments()
    write_reference(tmp_path / "x.npz", ReferenceStatistics(moments, moments))
    with np.load(tmp_path / "x.npz") as arrays:
        assert {"mu", "sigma", "mu_s", "sigma_s"} <= set(arrays.files)
        np.testing.assert_array_equal(arrays["mu"], moments.mean)


def test_files_of_others_do_not_say_how_many_images_and_are_read_all_the_same(tmp_path: Path) -> None:
    x = features(400, 0).double().numpy()
    mu, sigma = x.mean(0).astype(np.float32), np.cov(x, rowvar=False)
    np.savez(tmp_path / "pytorch_fid.npz", mu=mu, sigma=sigma)
    images = np.zeros((2, 4, 4, 3), np.uint8)
    np.savez(tmp_path / "adm.npz", mu=mu, sigma=sigma, mu_s=mu[:3], sigma_s=sigma[:3, :3], arr_0=images)
    other = statistics(features(400, 1))
    expected = frechet_distance(statistics(torch.from_numpy(x)), other)
    for name in ("pytorch_fid", "adm"):
        found = read_reference(tmp_path / f"{name}.npz")
        assert found.pool.images is None
        assert found.extractor is None
        found.require_extractor({"name": "anything"})
        assert frechet_distance(found.pool, other) == pytest.approx(expected, rel=1e-5)
        assert (found.spatial is None) == (name == "pytorch_fid")


def test_files_that_are_no_reference_are_refused(tmp_path: Path) -> None:
    def refuse(match: str, **arrays: np.ndarray) -> None:
        np.savez(tmp_path / "bad.npz", **arrays)  # type: ignore[arg-type]
        with pytest.raises(InputError, match=match):
            read_reference(tmp_path / "bad.npz", key="--reference")

    eye = np.eye(3)
    refuse("--reference: .*holds arr_0, not mu and sigma", arr_0=eye)
    refuse("must be \\(D,\\)", mu=eye, sigma=eye)
    refuse("NaN", mu=np.full(3, np.nan), sigma=eye)
    refuse("not symmetric", mu=np.zeros(3), sigma=np.arange(9.0).reshape(3, 3))
    refuse("mu_s and sigma_s have shapes", mu=np.zeros(3), sigma=eye, mu_s=np.zeros(2), sigma_s=eye)
    refuse("not an npz file of numbers", mu=np.array([object()]), sigma=eye)
    (tmp_path / "text.npz").write_text("no archive")
    np.save(tmp_path / "one.npy", eye)
    for name in ("text.npz", "one.npy"):
        with pytest.raises(InputError, match=r"npz|holds one array"):
            read_reference(tmp_path / name)
    with pytest.raises(InputError, match="there is no file"):
        read_reference(tmp_path / "nowhere.npz")


def test_the_distance_at_infinity_is_nearer_to_the_truth_than_any_that_was_measured() -> None:
    reference = Moments(torch.zeros(DIM).double(), torch.arange(1, DIM + 1).double().square().diag(), None)
    found = extrapolated_distance(features(2000, 5), reference, fewest=100, points=10)
    assert abs(found.distance) < 0.5 * min(found.distances)  # the true distance is 0
    assert found.distances[0] > 3 * found.distances[-1]
    assert found.slope > 0
    assert found.r_squared > 0.8
    assert (found.counts[0], found.counts[-1], found.images) == (100, 2000, 2000)
    assert found == extrapolated_distance(features(2000, 5), reference, fewest=100, points=10)
    assert found != extrapolated_distance(features(2000, 5), reference, fewest=100, points=10, seed=1)
    whole = frechet_distance(statistics(features(2000, 5)), reference)
    assert found.distances[-1] == pytest.approx(whole, rel=1e-9)


def test_too_few_points_show_no_trend() -> None:
    reference = statistics(features(100, 0))
    for arguments in ({"points": 1}, {"fewest": 100}, {"fewest": 1}):
        with pytest.raises(InputError, match="no trend"):
            extrapolated_distance(features(100, 1), reference, **arguments)


def test_what_is_no_covariance_is_refused(tmp_path: Path) -> None:
    good = np.cov(features(200, 0).double().numpy(), rowvar=False)
    for name, mean, covariance, said in (
        ("negative", np.zeros(DIM), -np.eye(DIM), "the covariance is none"),
        ("beyond its diagonal", np.zeros(DIM), np.ones((DIM, DIM)) + np.diag([9.0] + [-0.9] * 5), "is none"),
        ("complex", np.zeros(DIM), good.astype(complex), "complex128: they must be real numbers"),
        ("objects", np.array([None]), good, "is not an npz file of numbers .it holds objects"),
    ):
        np.savez(tmp_path / f"{name}.npz", mu=mean, sigma=covariance)
        with pytest.raises(InputError, match=said) as caught:
            read_reference(tmp_path / f"{name}.npz")
        assert "pickle" not in str(caught.value)
    np.savez(tmp_path / "half.npz", mu=np.zeros(DIM), sigma=good.astype(np.float32))
    assert torch.allclose(
        read_reference(tmp_path / "half.npz").pool.covariance, torch.from_numpy(good), rtol=1e-6
    )
