"""A recipe: everything that decides what a run computes, checked."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic
from pydantic import Field, InstanceOf, PlainSerializer

from mergevq.config import Tree, config, to_tree
from mergevq.errors import InputError
from mergevq.number_types import Count, Positive, ProperFraction, WholeNumber
from mergevq_platform.data import BatchPartition
from mergevq_platform.recipe.sections import (
    ClusterConfig,
    DataConfig,
    EvaluationConfig,
    ForkConfig,
    OptimizerConfig,
)
from mergevq_platform.recipe.task_config import GeneratorTaskConfig, TaskConfig, TokenizerTaskConfig
from mergevq_platform.storage import naming

# Which classes there are is known to `mergevq_platform.tasks` alone: `resolve` makes the task from its tree.
AnyTask = Annotated[InstanceOf[TaskConfig], PlainSerializer(to_tree)]


@config
class Recipe:
    """Everything that decides what a run computes."""

    name: str  # see `naming`
    description: str = ""
    experiment: str = "mergevq"
    seed: WholeNumber = 0
    fork: ForkConfig | None = None  # where another run's training goes on from; none: from the first step
    task: AnyTask
    data: DataConfig
    steps: Count | None = None  # optimizer steps; or
    epochs: Positive | None = None  # passes over the training split
    global_batch: Count
    micro_batch: Count | None = (
        None  # the most images of a worker's forward pass; resolved: its share of the global batch
    )
    optimizer: OptimizerConfig
    discriminator_optimizer: OptimizerConfig | None = None  # none: the same settings
    ema_decay: ProperFraction = 0.999
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    compile: bool = False  # torch.compile the transformer blocks, one graph per kept count
    cuda_graphs: bool = True  # on one GPU: a tokenizer's passes are recorded, one graph per kept count
    channels_last: bool | Literal["auto"] = False
    recompute: bool = False  # a tokenizer's convolution stages: less memory, the same numbers
    on_nan: Literal["stop", "skip"] = "stop"
    log_every: Count = 10
    checkpoint_every: Count = 1000
    keep_checkpoints: Count = 2
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    cluster: ClusterConfig = Field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        if not naming.fits(self.name):
            raise ValueError(
                f"name {self.name!r} will not do: {naming.RULE}, such as '{naming.fitted(self.name)}'"
            )
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give the length of training once: 'steps' or 'epochs'")
        if self.cluster.workers > self.global_batch:
            raise ValueError(
                f"cluster.workers is {self.cluster.workers} but global_batch is {self.global_batch}: "
                "every worker needs at least one image of each batch; lower the workers or raise global_batch"
            )
        if self.cluster.least_workers > self.cluster.workers:
            raise ValueError(
                f"cluster.min_workers is {self.cluster.min_workers}, more than cluster.workers {self.cluster.workers}: lower it"
            )
        if self.micro_batch is not None:
            try:
                self.batch_partition  # noqa: B018 - raises
            except InputError as error:
                raise ValueError(str(error)) from None
        if self.fork is not None and self.steps is not None and self.steps <= self.fork.step:
            raise ValueError(
                f"steps is {self.steps}, and the fork begins after {self.fork.step}: nothing is left to train, raise steps"
            )
        self.task.check(self.evaluation)

    @pydantic.model_serializer(mode="wrap")
    def _stored(self, tree_of: pydantic.SerializerFunctionWrapHandler) -> Tree:
        tree: Tree = tree_of(self)
        if self.fork is None:
            del tree["fork"]  # the tree of before there were forks
        return tree

    @property
    def largest_micro_batch(self) -> int:
        """The most images of a micro-batch; where none is given, that of a worker group shrunk to its minimum."""
        return self.micro_batch or -(-self.global_batch // self.cluster.least_workers)

    @property
    def batch_partition(self) -> BatchPartition:
        """The partition of a step's images into passes and ranks."""
        return BatchPartition.of(
            self.global_batch, self.largest_micro_batch, self.cluster.workers, self.cluster.least_workers
        )

    @property
    def tokenizer(self) -> TokenizerTaskConfig:
        """The task, where only a tokenizer makes sense; of a tuned recovery that of its tokenizer, at the counts it was tuned at.

        Raises `InputError` for other tasks, and for a recovery's that has not begun.
        """
        if self.task.as_tokenizer is None:
            raise InputError(f"recipe '{self.name}' trains a {self.task.kind}; this needs a tokenizer")
        return self.task.as_tokenizer

    @property
    def generator(self) -> GeneratorTaskConfig:
        """The task, where only a generator makes sense. Raises `InputError` for other tasks."""
        if self.task.as_generator is None:
            raise InputError(f"recipe '{self.name}' trains a {self.task.kind}; this needs a generator")
        return self.task.as_generator


@config
class ResolvedRecipe(Recipe):
    """A recipe whose files are named by absolute paths, and whose models and weights by their hashes.

    The driver makes it, once, by `resolve`; workers, trials and evaluators take nothing else, and look for nothing themselves.
    """
