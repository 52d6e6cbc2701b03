"""Passes of an evaluation: jobs of whole batches and of rows of features, done by workers, kept by the cache.

Batch b of a set is always samples [bB, (b+1)B), jobs are whole batches or whole blocks of rows, and results merge in the order
of the jobs: any number of workers gives one result.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from mergevq_platform.distributed.ordered_map import Share
from mergevq_platform.evaluation.cache import Cache
from mergevq_platform.evaluation.results import merge
from mergevq_platform.evaluation.worker import Answers, Job, RowsJob

Result = TypeVar("Result")

JOBS_PER_PASS = 64  # about, of a large set: a result may be 100 MB


@dataclass(frozen=True)
class Passes:
    """Workers and cache of an evaluation: `answers(jobs)` yields the results in the order of the jobs."""

    answers: Answers
    cache: Cache | None = None
    remembered: dict[str, object] = field(
        default_factory=dict
    )  # small results by key, for the length of an evaluation

    def result(self, key: Mapping[str, Any], jobs: Sequence[Job[Result]]) -> Result:
        """The merged result of the jobs that make up the pass `key`: `kind`, and all that decides the result."""
        if self.cache is None:
            return merge(self.answers(jobs))
        return self.cache.through(key, jobs, self.answers)

    def small_result(self, key: Mapping[str, Any], jobs: Sequence[Job[Result]]) -> Result:
        """As `result`, for a small result that is asked for again: with or without a cache its jobs are done once."""
        name = json.dumps(key, sort_keys=True)
        if name not in self.remembered:
            self.remembered[name] = self.result(key, jobs)
        return cast(Result, self.remembered[name])  # the key names the jobs

    def in_shares(
        self, key: Mapping[str, Any], job: RowsJob[Result], rows: int, *, rows_of_share: int
    ) -> Result:
        """The merged, small result of a job that is done in shares of so many rows; what all shares read travels once."""
        shares = max(1, math.ceil(rows / rows_of_share))
        return self.small_result(key, [Share(job, number, shares) for number in range(shares)])


def jobs_of_batches(batches: int, least: int) -> list[tuple[int, ...]]:
    """The batches of each job: `least` of them, or more where that would be more than about `JOBS_PER_PASS` jobs."""
    size = max(least, math.ceil(batches / JOBS_PER_PASS))
    every = range(batches)
    return [tuple(every[start : start + size]) for start in every[::size]]
