"""The metrics, each against the implementation that others use, in one run."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from benchmarks.timing import MEBIBYTE, device, in_fresh_process, interleaved, peak_bytes
from mergevq.metrics import CodeUsage, FeatureStatistics, Moments, frechet_distance
from mergevq.metrics.logistic import fit_logistic
from mergevq.metrics.probe import C_GRID, standardised, uncorrelated

DIM = 2048  # the standard Inception's features


def frechet() -> list[str]:
    """The Fréchet distance of two sets' moments at 2,048 features, against torch-fidelity's."""
    from torch_fidelity.metric_fid import fid_statistics_to_metric

    moments = [_moments(_features(3 * DIM, DIM, seed)) for seed in (0, 1)]
    theirs = [{"mu": m.mean.numpy(), "sigma": m.covariance.numpy()} for m in moments]
    values: dict[str, float] = {}

    def ours() -> None:
        values["ours"] = frechet_distance(*moments)

    def fidelity() -> None:
        values["theirs"] = fid_statistics_to_metric(*theirs, verbose=False)["frechet_inception_distance"]

    times = interleaved({"ours": ours, "theirs": fidelity}, rounds=2)
    return [
        f"Fréchet distance, d = {DIM}: {times['ours']:.1f} s, torch-fidelity {times['theirs']:.1f} s: "
        f"{times['theirs'] / times['ours']:.1f} x (target: 2); relative difference {abs(values['ours'] / values['theirs'] - 1):.0e}"
    ]


def statistics() -> list[str]:
    """Mean and covariance of 10,000 x 2,048 features that come in batches, against np.cov of all at once."""
    x = _features(10_000, DIM, 0)

    def ours() -> None:
        found = FeatureStatistics()
        for part in x.split(64):
            found.update(part)
        found.moments()

    def numpy() -> None:
        np.cov(x.numpy(), rowvar=False)

    times = interleaved({"ours": ours, "numpy": numpy}, rounds=3)
    small, large = (in_fresh_process(_statistics_memory, count) for count in (4_096, 32_768))
    return [
        f"feature statistics, 10,000 x {DIM} in batches of 64: {times['ours']:.2f} s, np.cov {times['numpy']:.2f} s: "
        f"{times['numpy'] / times['ours']:.2f} x (target: 1)",
        f"feature statistics, d = {DIM}: {small / MEBIBYTE:.0f} MiB extra at the peak for 4,096 images, "
        f"{(large - small) / MEBIBYTE:.0f} MiB more for 32,768",
    ]


def probe() -> list[str]:
    """The exact probe's grid of C at 10,000 x 768, against scikit-learn solved to the same objective within 1e-3."""
    from sklearn.linear_model import LogisticRegression

    classes = 100
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, classes, (10_000,), generator=generator)
    x = _features(10_000, 768, 0) + 0.12 * _features(classes, 768, 1)[y]
    plain, _ = standardised(x, x[:1])
    ours: dict[float, float] = {}
    theirs: dict[float, float] = {}

    def objective(weights: Tensor, C: float) -> float:
        log_odds = (plain.double() @ weights[:-1].double() + weights[-1].double()).log_softmax(1)
        return float(-C * log_odds.gather(1, y[:, None]).sum() + 0.5 * weights[:-1].double().square().sum())

    def grid() -> None:
        turned, _ = uncorrelated(plain, plain[:1])
        solution = None
        for C in C_GRID:
            solution = fit_logistic(turned, y, classes, C, start=solution)
            log_odds = (turned @ solution.weights[:-1] + solution.weights[-1]).log_softmax(1).double()
            penalty = 0.5 * float(solution.weights[:-1].double().square().sum())
            ours[C] = float(-C * log_odds.gather(1, y[:, None]).sum()) + penalty

    def sklearn() -> None:
        for C in C_GRID:
            # Its default tolerance of 1e-4 ends far from the optimum where the regularisation is weak.
            model = LogisticRegression(C=C, tol=1e-4 if C <= 0.1 else 1e-5, max_iter=5000)
            model.fit(plain.numpy(), y.numpy())
            theirs[C] = objective(torch.from_numpy(np.vstack([model.coef_.T, model.intercept_])), C)

    times = interleaved({"ours": grid, "sklearn": sklearn}, rounds=1)
    excess = max(ours[C] / theirs[C] - 1 for C in C_GRID)
    return [
        f"probe, 10,000 x 768, {classes} classes, {len(C_GRID)} values of C: {times['ours']:.1f} s, scikit-learn "
        f"{times['sklearn']:.1f} s: {times['sklearn'] / times['ours']:.1f} x (target: 3); "
        f"our objective at most {excess:+.1e} of theirs"
    ]


def code_usage() -> list[str]:
    """Counting 2^18 codes: what an update makes the device wait for, and its time against one that reads the range."""
    indices = torch.randint(0, 2**18, (64, 256), device=device())

    def ours() -> None:
        usage = CodeUsage(2**18)
        for _ in range(20):
            usage.update(indices)

    def waiting() -> None:
        counts = torch.zeros(2**18, dtype=torch.int64, device=device())
        for _ in range(20):
            assert 0 <= int(indices.amin()) <= int(indices.amax()) < 2**18
            counts = counts + torch.bincount(indices.flatten(), minlength=2**18)

    times = interleaved({"ours": ours, "waiting": waiting}, rounds=9)
    line = (
        f"code usage, 16,384 tokens of 2^18 codes: {times['ours'] / 20 * 1e3:.2f} ms an update, with a range check "
        f"on the host and bincount {times['waiting'] / 20 * 1e3:.2f} ms"
    )
    if torch.cuda.is_available():
        usage = CodeUsage(2**18)
        torch.cuda.set_sync_debug_mode("error")
        usage.update(indices)
        torch.cuda.set_sync_debug_mode("default")
        line += "; no update waits for the device (checked)"
    return [line]


def _features(images: int, dim: int, seed: int) -> Tensor:
    # Correlated, of very different variance, with an offset: as encoders give them.
    generator = torch.Generator().manual_seed(seed)
    mix = torch.linalg.qr(torch.randn(dim, dim, generator=generator))[0]
    return (torch.randn(images, dim, generator=generator) * torch.logspace(-2, 0.5, dim)) @ mix + 0.5


def _moments(features: Tensor) -> Moments:
    found = FeatureStatistics()
    for part in features.split(64):
        found.update(part)
    return found.moments()


def _statistics_memory(images: int) -> int:
    part = torch.randn(64, DIM)

    def work() -> None:
        found = FeatureStatistics()
        for _ in range(images // 64):
            found.update(part)
        found.moments()

    return peak_bytes(work)


MEASUREMENTS: dict[str, Callable[[], list[str]]] = {
    f.__name__: f for f in (frechet, statistics, probe, code_usage)
}
