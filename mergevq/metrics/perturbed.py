"""pFID: the Fréchet distance of reconstructions from perturbed codes, averaged over a grid of perturbations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from mergevq.errors import InputError
from mergevq.metrics.features import Extractor
from mergevq.metrics.frechet import FeatureStatistics, Moments, frechet_distance
from mergevq.perturbation import Perturbation, decode_perturbed, decode_perturbed_source
from mergevq.tokenizer import Encoded, MergeVQ


def perturbed_statistics(
    tokenizer: MergeVQ,
    network: Extractor,
    encoded: Encoded,
    image_ids: Sequence[int] | Tensor,
    grid: Iterable[Perturbation],
    *,
    seed: int = 0,
    recovered: bool = False,
) -> dict[str, FeatureStatistics]:
    """Feature statistics of a batch's perturbed reconstructions, by cell of the grid (`cell_name`).

    Those of batches merge cell by cell. One decode and one pass of the network for each cell. Arguments and errors as for
    `mergevq.perturbation.decode_perturbed`.
    """
    found = {}
    for cell in grid:
        images = decode_perturbed(tokenizer, encoded, image_ids, cell, seed=seed, recovered=recovered)
        found[cell_name(cell)] = _statistics(network, images)
    return found


def perturbed_source_statistics(
    tokenizer: MergeVQ,
    network: Extractor,
    encoded: Encoded,
    image_ids: Sequence[int] | Tensor,
    rates: Iterable[float],
    *,
    seed: int = 0,
) -> dict[str, FeatureStatistics]:
    """Feature statistics of a batch's reconstructions with a perturbed source, by the share of cells (`rate 0.5`).

    See `mergevq.perturbation.decode_perturbed_source`, whose arguments and errors these are.
    """
    found = {}
    for rate in rates:
        images = decode_perturbed_source(tokenizer, encoded, image_ids, rate, seed=seed)
        found[f"rate {rate:g}"] = _statistics(network, images)
    return found


def merged_cells(parts: Iterable[Mapping[str, FeatureStatistics]]) -> dict[str, FeatureStatistics]:
    """The statistics of all parts of a set of images, cell by cell. Raises `InputError` for parts of different cells."""
    total: dict[str, FeatureStatistics] = {}
    for part in parts:
        if total and total.keys() != part.keys():
            raise InputError(
                f"perturbed reconstructions of {', '.join(part)} do not merge with {', '.join(total)}: use one grid"
            )
        total = {name: total[name].merge(more) if name in total else more for name, more in part.items()}
    return total


def perturbed_distances(
    reference: FeatureStatistics | Moments, cells: Mapping[str, FeatureStatistics]
) -> dict[str, float]:
    """The Fréchet distance of every cell from the images themselves, in the order of the cells. Errors as `frechet_distance`."""
    moments = reference.moments() if isinstance(reference, FeatureStatistics) else reference
    return {name: frechet_distance(moments, statistics) for name, statistics in cells.items()}


def mean_distance(distances: Mapping[str, float]) -> float:
    """pFID: the plain mean of the cells' distances. Raises `InputError` for none."""
    if not distances:
        raise InputError("pFID is a mean over perturbations: give at least one")
    return sum(distances.values()) / len(distances)


def cell_name(cell: Perturbation) -> str:
    """A cell of the grid in words: `rate 0.5, of 200`."""
    return f"rate {cell.rate:g}, of {cell.neighbours}"


def _statistics(network: Extractor, images: Tensor) -> FeatureStatistics:
    statistics = FeatureStatistics()
    statistics.update(network(images))
    return statistics
