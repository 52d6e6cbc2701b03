"""Measuring the curve: for every kept count, what the tokenizer reconstructs and what its features know.

The work is cut into jobs of whole evaluation batches (batch b is always samples [bB, (b+1)B)). A job's answer is a set
of accumulators or features; the driver merges them in job order, so that any number of workers gives one result.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

import mergevq
from mergevq.config import flattened, to_tree
from mergevq.errors import InputError
from mergevq.keep import reachable
from mergevq.metrics import (
    CodeUsage,
    FeatureStatistics,
    Psnr,
    RecoveryAccuracy,
    Ssim,
    extractor,
    frechet_distance,
    knn_classify,
    linear_probe,
)
from mergevq.tokenizer import MergeVQ, TokenizerConfig
from mergevq.weights import read_config
from mergevq_platform import checkpoints, cluster, figures, generation, loop, pool
from mergevq_platform.curves import Curve, six_counts
from mergevq_platform.data import Dataset, EvalBatches, decode, evaluation_view, open_dataset, to_unit_range
from mergevq_platform.recipe import Recipe, read, resolve
from mergevq_platform.runs import locate
from mergevq_platform.tracking.curve import open_for_curve
from mergevq_platform.tracking.recorder import LocalRecorder
from mergevq_platform.tracking.records import JOURNAL_NAME
from mergevq_platform.tracking.store import Store
from mergevq_platform.tracking.ui import where_to_look

BATCHES_PER_JOB = 4
PICTURES_SHOWN = 8
DECODED_BYTES = 512 * 1024**2  # decoded pictures that one process keeps
FEATURES = ("cls", "mean")
CAVEATS = {
    "stand_in": "The alignment teacher is a stand-in that saw these labels: the probe measures distillation, not self-supervision.",
    "supervised": "Training used the labels: the probe measures supervised features, not self-supervision.",
}


class Job(NamedTuple):
    """A piece of work: some batches of a split at one kept count."""

    kind: Literal["reference", "reconstruction", "features", "untrained"]
    split: str
    keep: int
    batches: tuple[int, ...]


class ProbeJob(NamedTuple):
    """Features of one kind, (B, D) float32, with labels (B,): learn on the first two, score on the last two."""

    suffix: str  # of the metrics' names
    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray


@dataclass(frozen=True)
class Subject:
    """What is measured, in a form that travels to workers."""

    checkpoint: (
        str | None
    )  # a directory or URI that holds one checkpoint; none: the tokenizer before its first step
    recipe: dict[str, Any]
    data: str
    device: Literal["cpu", "cuda"]


@dataclass
class Reconstruction:
    """Accumulators of one kept count over the evaluation split."""

    true: FeatureStatistics = field(default_factory=FeatureStatistics)
    recovered: FeatureStatistics = field(default_factory=FeatureStatistics)
    psnr: Psnr = field(default_factory=Psnr)
    psnr_recovered: Psnr = field(default_factory=Psnr)
    ssim: Ssim = field(default_factory=Ssim)
    codes: CodeUsage | None = None
    recovery: RecoveryAccuracy = field(default_factory=RecoveryAccuracy)

    def merge(self, other: Reconstruction) -> Reconstruction:
        """The accumulators over both sets of pictures."""
        parts = {}
        for name, mine in vars(self).items():
            theirs = getattr(other, name)
            parts[name] = theirs if mine is None else mine if theirs is None else mine.merge(theirs)
        return Reconstruction(**parts)


class Evaluator:
    """One process's models and data; answers jobs."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.recipe = resolve(subject.recipe)
        self.device = torch.device(subject.device)
        self.extractor = extractor(self.recipe.evaluation.extractor).to(self.device)
        self.decoded: dict[tuple[str, int], dict[str, Tensor]] = {}
        self.room = DECODED_BYTES

    @cached_property
    def tokenizer(self) -> MergeVQ:
        """The trained tokenizer (averaged weights), in evaluation mode."""
        if self.subject.checkpoint is None:
            return self.untrained
        with checkpoints.weights(self.subject.checkpoint) as directory:
            return mergevq.load(directory).to(self.device).eval()

    @cached_property
    def untrained(self) -> MergeVQ:
        """The tokenizer as it was before its first step: same seed, same initialisation."""
        torch.manual_seed(self.recipe.seed)
        dataset = open_dataset(self.subject.data, self.recipe.data.train_split)
        model = loop.build(self.recipe, dataset).model()
        assert isinstance(model, MergeVQ)
        return model.to(self.device).eval()

    def batches(self, split: str) -> EvalBatches:
        """The fixed batches of a split."""
        return split_batches(self.recipe, self.subject.data, split)

    def batch(self, split: str, index: int) -> dict[str, Tensor]:
        """One batch on the device; pictures are decoded once for all kept counts, as far as memory is set aside."""
        if (split, index) not in self.decoded:
            batch = self.batches(split).batch(index)
            size = batch["image"].nbytes
            if size > self.room:
                return to_unit_range(batch, self.device)
            self.room -= size
            self.decoded[split, index] = batch
        return to_unit_range(self.decoded[split, index], self.device)

    @torch.no_grad()
    def answer(self, job: Job | ProbeJob) -> Any:
        """Do one job; see the module's docstring."""
        if isinstance(job, ProbeJob):
            return probe_metrics(job, self.device)
        answers = [self._batch(job, index) for index in job.batches]
        if job.kind in ("features", "untrained"):
            return {name: np.concatenate([part[name] for part in answers]) for name in answers[0]}
        merged = answers[0]
        for part in answers[1:]:
            merged = merged.merge(part)
        return merged

    def _batch(self, job: Job, index: int) -> Any:
        batch = self.batch(job.split, index)
        images, keep = batch["image"], job.keep
        match job.kind:
            case "reference":
                statistics = FeatureStatistics()
                statistics.update(self.extractor(images))
                return statistics
            case "reconstruction":
                return self._reconstruct(images, keep)
            case "features" | "untrained":
                model = self.tokenizer if job.kind == "features" else self.untrained
                return features(model, images, keep) | {"label": batch["label"].cpu().numpy()}

    def _reconstruct(self, images: Tensor, keep: int) -> Reconstruction:
        result = Reconstruction(codes=CodeUsage(self.tokenizer.config.quantizer.vocabulary))
        encoded = self.tokenizer.encode(images, keep)
        painted = self.tokenizer.decode(encoded)
        result.true.update(self.extractor(painted))
        result.psnr.update(images, painted)
        result.ssim.update(images, painted)
        assert result.codes is not None
        result.codes.update(encoded.indices)
        if self.tokenizer.config.recovery is not None:
            slots = self.tokenizer.recover(encoded.codes).argmax(-1)
            result.recovery.update(slots, encoded.source.assignment)
            repainted = self.tokenizer.decode_indices(encoded.indices)
            result.recovered.update(self.extractor(repainted))
            result.psnr_recovered.update(images, repainted)
        return result


def features(model: MergeVQ, images: Tensor, keep: int) -> dict[str, np.ndarray]:
    """Features of pictures (B, 3, H, W): `cls`, the summary token, and `mean`, the kept tokens averaged over the
    cells they stand for, before quantization; each (B, D) float32."""
    encoded = model.encode(images, keep)
    share = encoded.source.size / encoded.source.size.sum(1, keepdim=True)
    mean = torch.einsum("bk,bkd->bd", share.to(encoded.kept_tokens.dtype), encoded.kept_tokens)
    return {"cls": encoded.summary.float().cpu().numpy(), "mean": mean.float().cpu().numpy()}


def measure(
    subject: Subject,
    keeps: Sequence[int],
    answers: Any,
    *,
    step: int | None,
    run: str,
    say: Any = lambda text: None,
) -> Curve:
    """The curve of one tokenizer. `answers(jobs)` yields the answers in order (here, or on many workers)."""
    recipe = resolve(subject.recipe)
    settings = recipe.evaluation
    evaluated = split_batches(recipe, subject.data, recipe.data.evaluation_split)
    learned = split_batches(recipe, subject.data, recipe.data.train_split)
    dataset = evaluated.dataset
    probing = dataset.labelled and learned.dataset.labelled
    network = extractor(settings.extractor)
    frechet = f"rfd_{network.name}"
    grid = recipe.tokenizer.model.grid_tokens

    def gather(kind: Any, split: str, keep: int, batches: EvalBatches) -> list[Any]:
        indices = range(batches.num_batches)
        jobs = [
            Job(kind, split, keep, tuple(indices[i : i + BATCHES_PER_JOB]))
            for i in range(0, len(indices), BATCHES_PER_JOB)
        ]
        return list(answers(jobs))

    reference = merge(gather("reference", recipe.data.evaluation_split, 0, evaluated))
    rows: list[dict[str, float]] = []
    majority = float("nan")
    for keep in sorted(keeps):
        say(f"measuring {keep} kept tokens of {grid}")
        part = merge(gather("reconstruction", recipe.data.evaluation_split, keep, evaluated))
        row: dict[str, float] = {"keep": float(keep), "merge_ratio": 1 - keep / grid}
        row[frechet] = frechet_distance(reference, part.true)
        row |= {"psnr": part.psnr.compute()["psnr"], "ssim": part.ssim.compute()["ssim"]}
        row |= part.codes.compute()
        if part.recovery.count:
            row[f"{frechet}_recovered"] = frechet_distance(reference, part.recovered)
            row["psnr_recovered"] = part.psnr_recovered.compute()["psnr"]
            row |= part.recovery.compute()
        if probing:
            kinds = ["features", "untrained"] if settings.untrained_baseline else ["features"]
            probes = []
            for kind in kinds:
                test = stack(gather(kind, recipe.data.evaluation_split, keep, evaluated))
                train = stack(gather(kind, recipe.data.train_split, keep, learned))
                for name in FEATURES:
                    suffix = (
                        name if kind == "features" else "untrained" if name == "cls" else f"untrained_{name}"
                    )
                    probes.append(ProbeJob(suffix, train[name], train["label"], test[name], test["label"]))
            for metrics in answers(probes):
                row |= metrics
            majority = majority_top1(train["label"], test["label"])
            row["majority_top1"] = majority
        rows.append(row)

    protocol: dict[str, Any] = {
        "extractor": {"name": network.name, **network.identity},
        "images": evaluated.images,
        "split": recipe.data.evaluation_split,
        "data": subject.data,
        "data_fingerprint": dataset.fingerprint,
        "preprocessing": f"shorter side to {recipe.data.views.image_size} (bicubic), centre crop; reconstructions rounded to uint8",
        "ema": step is not None,
        "step": step,
        "checkpoint": subject.checkpoint,
        "batch": settings.batch,
        "mergevq": mergevq.__version__,
        "caveat": CAVEATS.get(recipe.tokenizer.losses.alignment.kind, ""),
    }
    if probing:
        protocol["probe"] = {
            "kind": "logistic regression on standardised features, C chosen on held-out training pictures",
            "train_images": learned.images,
            "features": {
                "cls": "summary token",
                "mean": "kept tokens before quantization, averaged over grid cells",
            },
            "tokens": "as many as the row keeps, in training and test pictures alike",
        }
        protocol["majority_top1"] = majority
    return Curve(run=run, rows=rows, protocol=protocol)


def probe_metrics(job: ProbeJob, device: torch.device) -> dict[str, float]:
    """Linear-probe and k-NN top-1 (percent), with the probe's 95% interval."""
    arrays = [torch.from_numpy(array).to(device) for array in job[1:]]
    probe = linear_probe(*arrays)
    return {
        f"probe_top1_{job.suffix}": probe.top1,
        f"probe_top1_{job.suffix}_low": probe.interval[0],
        f"probe_top1_{job.suffix}_high": probe.interval[1],
        f"knn_top1_{job.suffix}": knn_classify(*arrays).top1,
    }


def majority_top1(train_labels: np.ndarray, test_labels: np.ndarray) -> float:
    """Top-1 (percent) of always answering the training split's most frequent class."""
    return 100 * float(np.mean(test_labels == np.bincount(train_labels).argmax()))


@lru_cache(maxsize=8)
def _opened(data: str, split: str) -> Dataset:
    return open_dataset(data, split)


def split_batches(recipe: Recipe, data: str, split: str) -> EvalBatches:
    """The fixed evaluation batches of a split, up to the recipe's limits."""
    settings = recipe.evaluation
    limit = settings.probe_images if split == recipe.data.train_split else settings.images
    return EvalBatches(_opened(data, split), recipe.data.views.image_size, settings.batch, limit=limit)


def merge(parts: Iterable[Any]) -> Any:
    """Merge accumulators in order."""
    parts = iter(parts)
    merged = next(parts)
    for part in parts:
        merged = merged.merge(part)
    return merged


def stack(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Concatenate the arrays of feature jobs in order."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def local_answers(subject: Subject) -> Any:
    """A function that does jobs in this process."""
    return pool.answers(Evaluator, subject)


def ray_answers(subject: Subject, workers: int) -> Any:
    """A function that does jobs on `workers` Ray actors, and yields the answers in the order of the jobs."""
    return pool.answers(Evaluator, subject, workers=workers, device=subject.device)


def chosen_keeps(recipe: Recipe, keeps: Sequence[int] | None) -> tuple[int, ...]:
    """The kept counts to measure. Raises `InputError` for one that the encoder's layers cannot reach."""
    task = recipe.tokenizer
    trained = task.keep.candidates(task.model.grid_tokens)
    return reachable_keeps(task.model, keeps or recipe.evaluation.keeps, trained)


def reachable_keeps(
    model: TokenizerConfig, keeps: Sequence[int] | None, candidates: Sequence[int]
) -> tuple[int, ...]:
    """The wanted kept counts, or six spread over the candidates; `InputError` for one that is out of reach."""
    within = reachable(model.grid_tokens, model.encoder.depth)
    chosen = tuple(keeps or six_counts(candidates, model.grid_tokens, within))
    for keep in chosen:
        if keep not in within:
            raise InputError(
                f"cannot keep {keep} tokens: this encoder reaches {within.start} to {within.stop - 1} of {model.grid_tokens}"
            )
    return chosen


def evaluate(
    name: str,
    *,
    home: Path,
    keeps: Sequence[int] | None = None,
    data: str | None = None,
    recipe: str | None = None,
    workers: int = 1,
    out: Path | None = None,
    storage: str | None = None,
    address: str | None = None,
    tracking_uri: str | None = None,
    track: bool = True,
) -> Curve:
    """Measure the curve of a run or checkpoint, write tables and figures to `out`, and record it in MLflow.

    The run's own MLflow run takes its first curve; measuring again makes a linked run. A tokenizer alone (imported,
    or saved by `mergevq.save`) has no recipe: `recipe` then names one for data and protocol, whose model is replaced.
    Raises `InputError` for a name that is none of these, and for kept counts or data that do not fit.
    """
    run, location = locate(name, home=home, storage=storage)
    checkpoint, step = location, None
    if checkpoints.is_bare(location):
        settings = _around(location, recipe)
    elif recipe is not None:
        raise InputError(f"{name} has its own recipe: leave --recipe out")
    else:
        with checkpoints.newest(location) as directory:
            settings, step = checkpoints.recipe_of(directory), checkpoints.about(directory)["step"]
        checkpoint = next(
            place for place in checkpoints.listed(location) if checkpoints.directory_name(step) in place
        )
    device: Literal["cpu", "cuda"] = "cpu"
    if workers > 1:
        cluster.connect(home, address=address)
        device = cluster.choose_device("auto", workers)
    elif torch.cuda.is_available():
        device = "cuda"
    subject = Subject(checkpoint, to_tree(settings), data or settings.data.path, device)
    answers = ray_answers(subject, workers) if workers > 1 else local_answers(subject)
    label = run.name if run else Path(checkpoint).name
    curve = measure(subject, chosen_keeps(settings, keeps), answers, step=step, run=label, say=note)
    folder = out or (run.directory if run else Path.cwd()) / f"curve-{time.strftime('%Y%m%d-%H%M%S')}"
    files = write(curve, subject, folder)
    show(curve, files)
    if track and run is not None and (run.directory / JOURNAL_NAME).is_file():
        recorder = LocalRecorder.around(open_for_curve(run.directory), Store.at(home, tracking_uri))
        with contextlib.closing(recorder):
            record(curve, files, recorder)
        print(where_to_look(Store.at(home, tracking_uri), settings.experiment))
    return curve


def _around(directory: str, recipe: str | None) -> Recipe:
    """The recipe named `recipe` with the model of a tokenizer's directory in place of its own."""
    if recipe is None:
        raise InputError(
            f"{directory} is a tokenizer without a recipe: name one for data and protocol, such as --recipe gr_256_d64"
        )
    tree, config = read(recipe), read_config(directory)
    data = tree.get("data") or {}
    # Nothing of how that recipe trains is true of this tokenizer.
    task = {
        "kind": "tokenizer",
        "model": to_tree(config),
        "keep": {"kind": "list", "merge_ratios": [0.0]},
        "losses": {"alignment": {"kind": "none"}, "recovery": {"weight": 0.0}},
    }
    views = {**(data.get("views") or {}), "image_size": config.image_size}
    evaluation = {**(tree.get("evaluation") or {}), "keeps": None}
    return resolve({**tree, "task": task, "data": {**data, "views": views}, "evaluation": evaluation})


def after_training(outcome: Any, recorder: Any) -> None:
    """Measure the curve of a finished training and record it in the training's own MLflow run."""
    location = outcome.run.newest_checkpoint()
    with checkpoints.newest(location) as directory:
        recipe = checkpoints.recipe_of(directory)
    if recipe.task.kind == "generator":
        generation.after_training(outcome, recorder, recipe)
    if recipe.task.kind != "tokenizer":
        return
    device = cluster.choose_device(recipe.cluster.device, recipe.cluster.workers)
    subject = Subject(location, to_tree(recipe), recipe.data.path, device)
    answers = ray_answers(subject, recipe.cluster.workers)
    curve = measure(
        subject, chosen_keeps(recipe, None), answers, step=outcome.step, run=outcome.run.name, say=note
    )
    files = write(curve, subject, outcome.run.directory / "curve")
    show(curve, files)
    record(curve, files, recorder)
    recorder.flush()


def write(curve: Curve, subject: Subject, folder: Path) -> dict[str, Path]:
    """Write JSON, CSV, Markdown, the trade-off figure (PNG, HTML) and the picture grids; returns the files by name."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        name: folder / name
        for name in ("curve.json", "table.md", "table.csv", "tradeoff.png", "tradeoff.html")
    }
    curve.save(files["curve.json"])
    files["table.md"].write_text(
        curve.markdown() + "\n\n" + "\n".join(f"- {line}" for line in curve.verdict()) + "\n"
    )
    files["table.csv"].write_text(curve.csv())
    figures.save_png(figures.tradeoff_figure(curve), files["tradeoff.png"])
    files["tradeoff.html"].write_text(figures.tradeoff_html(curve))
    evaluator = Evaluator(subject)
    batch = evaluator.batches(evaluator.recipe.data.evaluation_split).batch(0)
    originals = to_unit_range(batch, evaluator.device)["image"][:PICTURES_SHOWN]
    return files | picture_grids(
        evaluator.tokenizer, originals, [int(keep) for keep in curve.column("keep")], folder
    )


@torch.inference_mode()
def picture_grids(
    tokenizer: MergeVQ, originals: Tensor, keeps: Sequence[int], folder: Path
) -> dict[str, Path]:
    """Reconstructions and cluster maps of pictures (B, 3, H, W) in [-1, 1] over kept counts, as PNG files in `folder`."""
    encoded = {keep: tokenizer.encode(originals, keep) for keep in keeps}
    painted = {keep: tokenizer.decode(code).cpu() for keep, code in encoded.items()}
    assigned = {keep: code.source.assignment.cpu() for keep, code in encoded.items()}
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / name for name in ("reconstructions.png", "clusters.png")}
    figures.save_png(figures.reconstruction_grid(originals.cpu(), painted), files["reconstructions.png"])
    figures.save_png(figures.cluster_grid(originals.cpu(), assigned), files["clusters.png"])
    return files


def record(curve: Curve, files: dict[str, Path], recorder: Any) -> None:
    """Record a curve and its files: `curve/<metric>` at step = kept tokens, artifacts under curve/."""
    rows = {
        int(row["keep"]): {key: value for key, value in row.items() if key != "keep"} for row in curve.rows
    }
    recorder.curve(rows)
    for file in files.values():
        recorder.artifact(file, "curve")
    protocol = {f"protocol.{key}": str(value) for key, value in flattened(curve.protocol).items()}
    recorder.tags(protocol)


def show(curve: Curve, files: dict[str, Path]) -> None:
    """Print the table, the verdict and where the picture is."""
    console = Console()
    console.print(curve.table(console.width))
    for sentence in curve.verdict():
        console.print(f"  {sentence}", highlight=False)
    console.print(f"picture: {files['tradeoff.png']}", highlight=False, soft_wrap=True)


def note(text: str) -> None:
    """A line of progress on stderr."""
    print(text, file=sys.stderr, flush=True)


def reconstruct(
    name: str, pictures: Sequence[Path], *, home: Path, keeps: Sequence[int] | None, out: Path
) -> list[Path]:
    """Originals, reconstructions and cluster maps of picture files, side by side; returns the files written."""
    _, location = locate(name, home=home)
    with checkpoints.weights(location) as directory:
        tokenizer = mergevq.load(directory)
        if keeps is None and not checkpoints.is_bare(location):
            keeps = chosen_keeps(checkpoints.recipe_of(directory), None)
    model = tokenizer.config
    size = model.image_size
    views = [evaluation_view(decode(path.read_bytes()), size) for path in pictures]
    originals = torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return list(
        picture_grids(
            tokenizer, originals, reachable_keeps(model, keeps, range(1, model.grid_tokens + 1)), out
        ).values()
    )
