"""Sections of a recipe beside its task: data, optimizer, cluster, evaluation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mergevq.allocation.config import KINDS
from mergevq.config import config
from mergevq.metrics import FeaturesConfig, RandomFeaturesConfig
from mergevq.metrics.lpips import LpipsFilesConfig
from mergevq.number_types import Count, Fraction, NonNegative, Positive, WholeNumber
from mergevq.schedules import ScheduleConfig
from mergevq_platform.data import Reading, ViewsConfig
from mergevq_platform.data.reading import Background
from mergevq_platform.recipe.paths import DataPath, RunPath


@config
class DataConfig:
    """Image set, reading, order and views."""

    path: DataPath  # a directory of Parquet shards: local path, pyarrow URI or hf://datasets/owner/name[@revision][/folder]
    train_split: str = "train"
    evaluation_split: str = "val"
    image_column: str | None = None  # of Parquet files: the column of images; none: the one that holds some
    label_column: str | None = (
        None  # of Parquet files: the column of classes; none: `label`, or the only one called so
    )
    background: Background | None = (
        None  # of transparent pixels; none: what the set was packed with, else white
    )
    views: ViewsConfig
    window_blocks: Count = 16  # row groups that are shuffled together
    loader_workers: WholeNumber = 0  # processes per training worker that decode images; 0: a thread
    bad_image_limit: WholeNumber = 0  # corrupt images replaced before the run is an error

    @property
    def reading(self) -> Reading:
        """Columns and background with which the set's images are read."""
        return Reading(
            image_column=self.image_column, label_column=self.label_column, background=self.background
        )


@config
class OptimizerConfig:
    """AdamW and its schedule (paper, Table A1: betas (0.5, 0.9), no weight decay)."""

    learning_rate: Positive = 1e-4
    betas: tuple[Fraction, Fraction] = (0.5, 0.9)
    weight_decay: NonNegative = 0.0
    clip_norm: Positive | None = None
    schedule: ScheduleConfig


@config
class ForkConfig:
    """The checkpoint of another run, the trunk, that a training goes on from: weights, averages, optimizers, place in the data."""

    run: RunPath  # a run, or a URI of one; resolved: the location of the checkpoint
    step: Count  # optimizer steps of the trunk; the run must have kept the checkpoint after them
    sha256: str | None = None  # of its resume.pt; none: recorded when the run begins


@config
class ClusterConfig:
    """Workers, devices and failure limits of a run on the Ray cluster."""

    workers: Count = 1
    min_workers: Count | None = (
        None  # while nodes are gone, go on with as few as these; none: wait until all can run again
    )
    resize_seconds: Positive = 60.0  # how often a run of fewer workers looks for free devices to grow again
    device: Literal["auto", "cpu", "cuda"] = "auto"
    cpus_per_worker: Count = 1
    max_failures: int = Field(default=3, ge=-1)  # worker-group restarts before the run fails; -1: no limit
    hang_timeout_seconds: Positive = (
        300.0  # without progress of a worker before it is ended and the group restarted
    )
    storage_timeout_seconds: Positive = 600.0  # of trying to save a checkpoint before the run fails
    yields: bool | None = (
        None  # to urgent jobs, at a step and with a checkpoint; none: trials of a sweep do, a training alone does not
    )

    @property
    def least_workers(self) -> int:
        """The fewest workers that the run goes on with."""
        return self.min_workers or self.workers


@config
class EvaluationConfig:
    """Images, extractor, kept counts and probes of an evaluation."""

    keeps: tuple[Count, ...] | None = (
        None  # kept counts of the curve; none: six counts, spread over the trained range
    )
    batch: Count = 64
    images: Count | None = None  # images of the evaluation split; none: all
    shown_images: Count = (
        8  # of them in each figure and on MLflow's page: the first, and those reconstructed worst
    )
    probe_images: Count | None = None  # images of the train split that the probe learns from; none: all
    extractor: FeaturesConfig = Field(default_factory=RandomFeaturesConfig)
    lpips: LpipsFilesConfig | None = None  # weight files of LPIPS; none: it is not measured
    probes: tuple[Literal["mergevq", "mae", "dinov2"], ...] = ()  # published protocols beside the exact probe
    untrained_baseline: bool = True  # also probe the encoder as it was before training
    budgets: tuple[
        Positive, ...
    ] = ()  # mean kept counts at which a trained tokenizer's allocators are compared; none: they are not
    allocators: tuple[str, ...] | None = None  # those compared; none: all that need no run
    every: Count | None = None  # steps between validations during training; none: only at the end
    validation_images: Count = 256  # images of a validation during training

    def __post_init__(self) -> None:
        if self.allocators is not None and not self.budgets:
            raise ValueError(
                "allocators are compared at budgets, and there is none: give evaluation.budgets, such as [16, 25]"
            )
        if unknown := [name for name in self.allocators or () if name not in KINDS]:
            learned = (
                "one that is learned needs this tokenizer trained first"
                if ":" in unknown[0]
                else "there is none of that name"
            )
            raise ValueError(
                f"allocators holds '{unknown[0]}', and {learned}: give some of {', '.join(KINDS)}"
            )
