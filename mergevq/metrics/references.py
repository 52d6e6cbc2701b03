"""Statistics of reference images on disk: the npz files of pytorch-fid and of the ADM suite."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mergevq.errors import InputError
from mergevq.metrics.frechet import Moments


@dataclass(frozen=True)
class ReferenceStatistics:
    """Feature statistics of reference images. Files of other tools hold no number of images and no extractor."""

    pool: Moments  # of the features that the Fréchet distance compares
    spatial: Moments | None = None  # of those that sFID compares
    extractor: dict[str, Any] | None = None  # name and identity; none: the file does not say

    def require_extractor(self, identity: Mapping[str, Any]) -> None:
        """Refuse statistics that are known to be another extractor's. Raises `InputError` naming what differs."""
        if self.extractor is None:
            return
        added = [key for key in identity if key not in self.extractor]
        # Files of before identities said how positions were resampled had them resampled in the same way.
        for key in [*self.extractor, *(key for key in added if key != "positions")]:
            if self.extractor.get(key) != identity.get(key):
                raise InputError(
                    f"the reference statistics are of {key} {self.extractor.get(key)!r}, the features of "
                    f"{identity.get(key)!r}: use one extractor for both"
                )


def write_reference(path: str | Path, reference: ReferenceStatistics) -> None:
    """Write `reference` as npz: `mu`, `sigma` as pytorch-fid reads them, `mu_s`, `sigma_s` as the ADM suite reads sFID's.

    The number of images and the extractor, which neither layout has, go beside them under names that both ignore.
    """
    arrays: dict[str, np.ndarray] = {}
    for suffix, moments in (("", reference.pool), ("_s", reference.spatial)):
        if moments is not None:
            arrays |= {f"mu{suffix}": moments.mean.numpy(), f"sigma{suffix}": moments.covariance.numpy()}
    if reference.pool.images is not None:
        arrays["mergevq_images"] = np.array(reference.pool.images)
    if reference.extractor is not None:
        arrays["mergevq_extractor"] = np.array(json.dumps(reference.extractor))
    with Path(path).open("wb") as stream:  # given a name, NumPy would add a suffix of its own
        np.savez(stream, **arrays)  # type: ignore[arg-type]  # NumPy's stub takes the arrays for its own options


def read_reference(path: str | Path, *, key: str = "reference") -> ReferenceStatistics:
    """Read statistics from an npz in pytorch-fid's or the ADM suite's layout (whose sample images are left alone).

    `key` is the option that named the file. Raises `InputError` for a file that is missing or no such npz, and for
    moments that are none: wrong shapes, not finite, not symmetric.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{key}: there is no file '{path}': give the npz with the reference statistics")
    try:
        archive = np.load(file, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise InputError(
                f"{key}: '{path}' holds one array, not mu and sigma: it is no reference statistics"
            )
        with archive as arrays:
            if not {"mu", "sigma"} <= set(arrays.files):
                raise InputError(
                    f"{key}: '{path}' holds {', '.join(arrays.files)}, not mu and sigma: it is no reference statistics"
                )
            count = int(arrays["mergevq_images"]) if "mergevq_images" in arrays.files else None
            extractor = (
                json.loads(str(arrays["mergevq_extractor"])) if "mergevq_extractor" in arrays.files else None
            )
            pool = _moments(arrays["mu"], arrays["sigma"], count, f"{key}: '{path}': mu and sigma")
            spatial = None
            if {"mu_s", "sigma_s"} <= set(arrays.files):
                where = f"{key}: '{path}': mu_s and sigma_s"
                spatial = _moments(arrays["mu_s"], arrays["sigma_s"], count, where)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, InputError):
            raise
        # NumPy says of objects how to run what makes them.
        reason = "it holds objects" if "allow_pickle" in str(error) else str(error)
        raise InputError(
            f"{key}: '{path}' is not an npz file of numbers ({reason}): fetch it again"
        ) from None
    return ReferenceStatistics(pool, spatial, extractor)


def _moments(mean: np.ndarray, covariance: np.ndarray, count: int | None, where: str) -> Moments:
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise InputError(
            f"{where} have shapes {mean.shape} and {covariance.shape}: they must be (D,) and (D, D)"
        )
    for array in (mean, covariance):
        if array.dtype.kind not in "fiu":
            raise InputError(f"{where} are {array.dtype}: they must be real numbers")
    m, s = torch.from_numpy(mean).double(), torch.from_numpy(covariance).double()
    if not (m.isfinite().all() and s.isfinite().all()):
        raise InputError(f"{where} hold NaN or infinity: compute them again")
    if not torch.allclose(s, s.T, rtol=1e-4, atol=1e-6 * float(s.diagonal().abs().amax())):
        raise InputError(f"{where}: the covariance is not symmetric: compute it again")
    deviation = s.diagonal().clamp(min=0).sqrt()
    slack = 1e-6 * float(s.diagonal().abs().amax())
    if (s.abs() > 1.001 * deviation[:, None] * deviation + slack).any():
        raise InputError(
            f"{where}: the covariance is none, it exceeds what its diagonal allows: compute it again"
        )
    return Moments(m, (s + s.T) / 2, count)
