"""A recipe: the only input of a run. YAML names a preset and says what differs; `resolve` makes it complete.

Recipe files, command-line overrides and a sweep's trials all pass through `resolve`. The tree of the resolved
recipe (`to_tree`) is stored in every checkpoint and in MLflow; resolving it again gives the same recipe.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field

from mergevq.config import Tree, config, flattened, merged, parse, to_tree, with_overrides
from mergevq.errors import InputError
from mergevq.generation import (
    GeneratorConfig,
    GeneratorTrainingConfig,
    GuidanceConfig,
    RasterConfig,
    SamplingConfig,
    generator_preset,
)
from mergevq.keep import KeepDistributionConfig
from mergevq.losses.config import TokenizerTrainingConfig, loss_preset
from mergevq.merge_schedule import merge_schedule
from mergevq.metrics import FeaturesConfig, RandomFeaturesConfig
from mergevq.metrics.lpips import LpipsFilesConfig
from mergevq.presets import preset
from mergevq.schedules import ScheduleConfig
from mergevq.teachers.stand_in import StandInConfig
from mergevq.text_files import read_text
from mergevq.tokenizer import TokenizerConfig
from mergevq.training.finetune import FineTuneConfig
from mergevq.training.probe import ProbeTrainingConfig
from mergevq.training.recovery import RecoveryTrainingConfig
from mergevq_platform.data import BatchPartition, Reading, ViewsConfig
from mergevq_platform.data.reading import Background
from mergevq_platform.storage import naming
from mergevq_platform.storage.credentials import keys_with_credentials
from mergevq_platform.storage.settings import read_settings

Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Scale = Annotated[float, Field(ge=0)]
Seconds = Annotated[float, Field(gt=0)]


@config
class TokenizerTask:
    """Train a MergeVQ tokenizer."""

    kind: Literal["tokenizer"] = "tokenizer"
    preset: str | None = None  # the named preset that `model` starts from
    model: TokenizerConfig
    keep: KeepDistributionConfig  # how the kept-token count of each step is drawn
    loss_preset: Literal["release", "paper"] | None = None  # the named preset that `losses` starts from
    losses: TokenizerTrainingConfig
    initial_weights: str | None = None  # DINOv2 weights file: weight selection (A.1); none: random
    initial_weights_sha256: str | None = None


@config
class ClassifierTask:
    """Train the stand-in teacher: a small classifier on the same pictures. It sees the labels."""

    kind: Literal["classifier"] = "classifier"
    model: StandInConfig


@config
class FineTuneTask:
    """Fine-tune a tokenizer's encoder for classification (paper, A.4)."""

    kind: Literal["finetune"] = "finetune"
    tokenizer: str  # a checkpoint, a run's directory, a URI of either, or an imported tokenizer
    tokenizer_sha256: str | None = None  # of its weights; none: recorded when the run begins
    settings: FineTuneConfig = Field(default_factory=FineTuneConfig)


@config
class ProbeTask:
    """Train linear probes on a frozen tokenizer's features of augmented views (paper, A.4)."""

    kind: Literal["probe"] = "probe"
    tokenizer: str  # a checkpoint, a run's directory, a URI of either, or an imported tokenizer
    tokenizer_sha256: str | None = None  # of its weights; none: recorded when the run begins
    settings: ProbeTrainingConfig = Field(default_factory=ProbeTrainingConfig)


@config
class RecoveryTask:
    """Fine-tune a tokenizer's Source Recovery after stage 2, all else frozen (paper, A.1).

    `stage_1`, the task that the tokenizer was trained by, is recorded when the run begins, as are the hashes: a checkpoint of
    this task is a complete tokenizer, and is evaluated as one.
    """

    kind: Literal["recovery"] = "recovery"
    tokenizer: str  # a checkpoint, a run's directory, a URI of either, or an imported tokenizer
    tokenizer_sha256: str | None = None
    generator: str | None = None  # a random-order one of its codes, as above; none: codes of pictures alone
    generator_sha256: str | None = None
    keep: KeepDistributionConfig | None = (
        None  # none: as the generator or, without one, the tokenizer was trained
    )
    settings: RecoveryTrainingConfig = Field(default_factory=RecoveryTrainingConfig)
    stage_1: TokenizerTask | None = None


@config
class GenerationConfig:
    """How a generator's pictures are made where it is measured; the settings of Table 3's rows."""

    keep: Count | None = None  # kept count; none: the most often trained
    steps: Count | None = None  # random order: decoding steps; none: one for every token
    sampling: SamplingConfig = Field(default_factory=SamplingConfig)
    guidance: GuidanceConfig = Field(default_factory=GuidanceConfig)  # its scale is one of `scales`, in turn
    scales: tuple[Scale, ...] = (
        1.0,
        1.5,
        2.0,
        3.0,
    )  # the curve; the point without guidance (1) is always in it
    images: Count = 1000  # pictures of each point, classes in turn
    batch: Count = 50  # pictures made together, whatever the number of workers
    baselines: bool = True  # also measure codes drawn by position, and the untrained generator


@config
class GeneratorTask:
    """Train a generator on the codes of a frozen tokenizer (stage 2).

    `codes` is a code set (`mergevq tokenize`); without one, pictures of `data.path` are encoded inside each step.
    """

    kind: Literal["generator"] = "generator"
    preset: str | None = None  # the named preset that `model` starts from
    model: GeneratorConfig
    losses: GeneratorTrainingConfig = Field(default_factory=GeneratorTrainingConfig)
    keep: KeepDistributionConfig  # how the kept-token count of each step is drawn; left out: all that the model knows, in turn
    codes: str | None = None  # a directory or URI
    tokenizer: str | None = None  # a run directory, a checkpoint or a URI; none: the one that made the codes
    tokenizer_sha256: str | None = None  # of its weights; none: recorded when the run begins
    tokenizer_codes_sha256: str | None = None  # the same without Source Recovery's, which may change
    generation: GenerationConfig = Field(default_factory=GenerationConfig)

    def __post_init__(self) -> None:
        if self.codes is None and self.tokenizer is None:
            raise ValueError(
                "give codes (a code set made by `mergevq tokenize`), or a tokenizer to encode pictures with"
            )
        known = known_keeps(self.model)
        candidates = self.keep.candidates(self.model.grid_tokens)
        for key, wanted in (("keep", candidates), ("generation.keep", (self.generation.keep,))):
            for count in wanted:
                if count is not None and count not in known:
                    raise ValueError(
                        f"{key}: {count} kept tokens are not among those that the model knows ({_listed(known)}): "
                        f"add {count} to model.keeps, or change {key}"
                    )
        steps, tokens = self.generation.steps, self.generation.keep or min(candidates)
        if steps is not None and self.model.kind != "random_order":
            raise ValueError(
                f"generation.steps: a {self.model.kind} generator makes one token after the other: leave it out"
            )
        if steps is not None and steps > tokens:
            raise ValueError(f"generation.steps is {steps}, more than the {tokens} tokens to make: lower it")


Task = Annotated[
    TokenizerTask | ClassifierTask | GeneratorTask | FineTuneTask | ProbeTask | RecoveryTask,
    Field(discriminator="kind"),
]


@config
class DataConfig:
    """Which pictures, and what happens to them on the way."""

    path: str  # a directory of Parquet shards: local path or pyarrow URI
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
    loader_workers: Annotated[int, Field(ge=0)] = (
        0  # processes per training worker that decode pictures; 0: a thread
    )
    bad_picture_limit: Annotated[int, Field(ge=0)] = 0  # corrupt pictures replaced before the run is an error

    @property
    def reading(self) -> Reading:
        """How the set's images are read, where its files leave a choice."""
        return Reading(
            image_column=self.image_column, label_column=self.label_column, background=self.background
        )


@config
class OptimizerConfig:
    """AdamW and its schedule (paper, Table A1: betas (0.5, 0.9), no weight decay)."""

    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    betas: tuple[Fraction, Fraction] = (0.5, 0.9)
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    schedule: ScheduleConfig


@config
class ClusterConfig:
    """What the run asks of the Ray cluster."""

    workers: Count = 1
    min_workers: Count | None = (
        None  # while nodes are gone, go on with as few as these; none: wait until all can run again
    )
    resize_seconds: Seconds = 60.0  # how often a run of fewer workers looks for room to grow again
    device: Literal["auto", "cpu", "cuda"] = "auto"
    cpus_per_worker: Count = 1
    max_failures: int = Field(default=3, ge=-1)  # worker-group restarts before the run fails; -1: no limit
    hang_timeout_seconds: Seconds = (
        300.0  # without progress of a worker before it is ended and the group restarted
    )
    storage_timeout_seconds: Seconds = 600.0  # of trying to save a checkpoint before the run fails

    @property
    def least_workers(self) -> int:
        """The fewest workers that the run goes on with."""
        return self.min_workers or self.workers


@config
class EvaluationConfig:
    """What the curve measures."""

    keeps: tuple[Count, ...] | None = (
        None  # kept counts of the curve; none: six counts, spread over the trained range
    )
    batch: Count = 64
    images: Count | None = None  # pictures of the evaluation split; none: all
    probe_images: Count | None = None  # pictures of the train split that the probe learns from; none: all
    extractor: FeaturesConfig = Field(default_factory=RandomFeaturesConfig)
    lpips: LpipsFilesConfig | None = None  # weight files of LPIPS; none: it is not measured
    probes: tuple[Literal["mergevq", "mae", "dinov2"], ...] = ()  # published protocols beside the exact probe
    untrained_baseline: bool = True  # also probe the encoder as it was before training
    every: Count | None = None  # steps between validations during training; none: only at the end
    validation_images: Count = 256  # pictures of a validation during training


@config
class Recipe:
    """Everything that decides what a run computes."""

    name: str  # see `naming`
    description: str = ""
    experiment: str = "mergevq"
    seed: Annotated[int, Field(ge=0)] = 0
    task: Task
    data: DataConfig
    steps: Count | None = None  # optimizer steps; or
    epochs: Annotated[float, Field(gt=0)] | None = None  # passes over the training split
    global_batch: Count
    micro_batch: Count | None = (
        None  # the most pictures of a worker's forward pass; resolved: its share of the global batch
    )
    optimizer: OptimizerConfig
    discriminator_optimizer: OptimizerConfig | None = None  # none: the same settings
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    compile: bool = False  # torch.compile the transformer blocks, one graph per kept count
    channels_last: bool = False
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
                "every worker needs at least one picture of each batch; lower the workers or raise global_batch"
            )
        if self.cluster.least_workers > self.cluster.workers:
            raise ValueError(
                f"cluster.min_workers is {self.cluster.min_workers}, more than cluster.workers {self.cluster.workers}: lower it"
            )
        if self.micro_batch is not None:
            try:
                self.deal  # noqa: B018 - raises
            except InputError as error:
                raise ValueError(str(error)) from None
        if isinstance(self.task, TokenizerTask) or (
            isinstance(self.task, RecoveryTask) and self.task.stage_1
        ):
            self._check_kept_counts(self.tokenizer)

    def _check_kept_counts(self, task: TokenizerTask) -> None:
        grid, depth = task.model.grid_tokens, task.model.encoder.depth
        for key, keeps in (
            ("task.keep", task.keep.candidates(grid)),
            ("evaluation.keeps", self.evaluation.keeps or ()),
        ):
            for keep in keeps:
                try:
                    merge_schedule(grid, keep, depth)
                except InputError as error:
                    raise ValueError(f"{key}: {error}") from None

    @property
    def largest_micro_batch(self) -> int:
        """Pictures of a micro-batch, at the most: of a group that has shrunk as far as it may, where none is given."""
        return self.micro_batch or -(-self.global_batch // self.cluster.least_workers)

    @property
    def deal(self) -> BatchPartition:
        """How the pictures of a step are dealt to passes and ranks."""
        return BatchPartition.of(
            self.global_batch, self.largest_micro_batch, self.cluster.workers, self.cluster.least_workers
        )

    @property
    def tokenizer(self) -> TokenizerTask:
        """The task, where only a tokenizer makes sense; of a tuned recovery that of its tokenizer, at the counts it was tuned at.

        Raises `InputError` for other tasks, and for a recovery's that has not begun.
        """
        match self.task:
            case TokenizerTask() as task:
                return task
            case RecoveryTask(stage_1=TokenizerTask() as task, keep=keep):
                return replace(task, keep=keep or task.keep)
        raise InputError(f"recipe '{self.name}' trains a {self.task.kind}; this needs a tokenizer")

    @property
    def generator(self) -> GeneratorTask:
        """The task, where only a generator makes sense. Raises `InputError` for other tasks."""
        if not isinstance(self.task, GeneratorTask):
            raise InputError(f"recipe '{self.name}' trains a {self.task.kind}; this needs a generator")
        return self.task


def load(name_or_path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """The resolved recipe of a file, or of a packaged recipe by name, with `a.b=c` overrides laid over it."""
    return resolve(with_overrides(read(name_or_path), overrides))


def read(name_or_path: str | Path) -> Tree:
    """The unresolved tree of a recipe file or packaged recipe. Raises `InputError` if there is none or it is not YAML."""
    path = find(name_or_path)
    try:
        tree = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        raise InputError(f"{path} is not YAML{line}: {getattr(error, 'problem', error)}") from None
    if not isinstance(tree, dict):
        raise InputError(f"{path} holds no recipe: it must be a mapping of keys to values")
    tree.setdefault("name", naming.fitted(path.stem))
    return tree


def resolve(tree: Mapping[str, Any]) -> Recipe:
    """Complete and check a recipe tree: presets are written out under what the tree says, defaults are filled in."""
    task = dict(tree.get("task") or {})
    if task.get("kind", "tokenizer") == "tokenizer":
        task["kind"] = "tokenizer"
        if task.get("preset"):
            task["model"] = merged(to_tree(preset(task["preset"])), task.get("model") or {})
        if task.get("loss_preset"):
            task["losses"] = merged(
                loss_preset(task["loss_preset"], _variant(task)), task.get("losses") or {}
            )
    elif task["kind"] == "generator":
        if task.get("preset"):
            task["model"] = merged(to_tree(generator_preset(task["preset"])), task.get("model") or {})
        if not task.get("keep"):
            task["keep"] = {"kind": "list", "counts": _known_counts(task)}
    recipe = parse(Recipe, {**tree, "task": task})
    for key, cleaned in keys_with_credentials(to_tree(recipe)):
        raise InputError(
            f"{key}: '{cleaned}' was given with credentials, and a recipe is stored with every run: leave them out and set them in "
            "the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for s3://)"
        )
    settled: Tree = {}
    if recipe.micro_batch is None:
        settled["micro_batch"] = -(-recipe.global_batch // recipe.cluster.least_workers)
    if isinstance(recipe.task, TokenizerTask):
        views = recipe.data.views
        size = recipe.task.model.image_size
        if views.image_size != size:
            raise InputError(
                f"data.views.image_size is {views.image_size} but the tokenizer works at {size}: make them equal"
            )
        student, teacher = recipe.task.losses.views_needed(size)
        if (views.student_size or student) != student or (views.teacher_size or teacher) != teacher:
            student, teacher = views.student_size or student, views.teacher_size or teacher
        settled["data"] = {"views": {"student_size": student, "teacher_size": teacher}}
    return parse(Recipe, merged(to_tree(recipe), settled)) if settled else recipe


def untold_task(model: TokenizerConfig) -> Tree:
    """The task of a tokenizer of which nothing but the model is known: nothing of another's training is true of it."""
    return {
        "kind": "tokenizer",
        "model": to_tree(model),
        "keep": {"kind": "list", "merge_ratios": [0.0]},
        "losses": {"alignment": {"kind": "none"}, "recovery": {"weight": 0.0}},
    }


def known_keeps(model: GeneratorConfig) -> tuple[int, ...] | range:
    """The kept counts that a generator can be trained at; a raster generator is not told, so it takes any."""
    return range(1, model.grid_tokens + 1) if isinstance(model, RasterConfig) else model.keeps


def _known_counts(task: Tree) -> list[int]:
    model: Any = task.get("model") or {}
    return list(model.get("keeps") or [model.get("grid_tokens", 1)])


def _listed(counts: tuple[int, ...] | range) -> str:
    return f"1 to {counts[-1]}" if isinstance(counts, range) else ", ".join(map(str, counts))


WEIGHTS_KEYS = ("weights", "backbone", "heads", "initial_weights")  # keys that name a file of weights
PLACES = ("path", "codes", "tokenizer", "generator", "directory", *WEIGHTS_KEYS)


def located(recipe: Recipe, folder: str | Path | None = None) -> Recipe:
    """The same with absolute paths for the files and folders that it names relative to `folder` (none: where we are).

    Workers and trials run in directories of their own. Files of weights are looked for in the folder `MERGEVQ_WEIGHTS` too.
    Names of what is not there stay: a URI, or a mistake, which is reported under the name that was given.
    """
    start = Path.cwd() if folder is None else Path(folder)
    weights = read_settings().weights

    def placed(key: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {inner: placed(inner, part) for inner, part in value.items()}
        named = key in PLACES and isinstance(value, str) and "://" not in value
        if not named:
            return value
        path = os.path.expanduser(value)
        # An absolute path stays what it is when it is joined to another.
        known = [start / path]
        if weights and key in WEIGHTS_KEYS:  # the path of another machine is a name here
            known += [weights / path, weights / Path(path).name]
        return next((str(place) for place in known if place.exists()), path)

    return parse(Recipe, placed("", to_tree(recipe)))


def weights_files(recipe: Recipe) -> dict[str, str]:
    """The weights that a recipe names, key path → file (of a directory: its model.safetensors)."""
    found = {}
    for key, value in flattened(to_tree(recipe)).items():
        last = key.rpartition(".")[2]
        if isinstance(value, str) and last in WEIGHTS_KEYS:
            found[key] = value
        elif isinstance(value, str) and last == "directory":
            found[key] = str(Path(value) / "model.safetensors")
    return found


def _variant(task: Tree) -> Literal["g", "gr", "r"]:
    # Table A1 weighs recovery and alignment by variant: R is the pure ViT, G the hybrid that reduces by 8, G+R by 16.
    model = parse(TokenizerConfig, task.get("model") or {}, where="task.model.")
    if model.encoder.kind == "vit":
        return "r"
    return "g" if model.image_size**2 == 64 * model.grid_tokens else "gr"


def find(name_or_path: str | Path) -> Path:
    """The file of a recipe given by path or by name. Raises `InputError` that lists the packaged names."""
    path = Path(name_or_path)
    if path.is_file():
        return path
    packaged = packaged_recipes()
    if str(name_or_path) in packaged:
        return packaged[str(name_or_path)]
    raise InputError(f"no recipe '{name_or_path}': give a YAML file or one of {', '.join(sorted(packaged))}")


def packaged_recipes() -> dict[str, Path]:
    """Recipes that come with the distribution, by name: from the wheel, or from jobs/recipes of a checkout."""
    installed = Path(str(resources.files("mergevq_platform"))) / "recipes"
    checkout = Path(__file__).resolve().parents[2] / "jobs" / "recipes"
    folder = installed if installed.is_dir() else checkout
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
