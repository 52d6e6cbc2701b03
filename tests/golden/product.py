"""All that the golden files ask of the product: the only file of this folder that imports it.

When modules move or classes are renamed, this file follows and no other. Every function takes and returns plain values, arrays
or tensors. Paths are relative to the working directory, so that no stored file names a place of one machine.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import ray
import torch
import yaml
from torch import Tensor

import mergevq
from mergevq.config import merged, parse, to_tree
from mergevq.generation import (
    GuidanceConfig,
    SamplingConfig,
    build_generator,
    generator_preset,
)
from mergevq.generation import sample as sample_codes
from mergevq.merge_schedule import merge_schedule
from mergevq.rng import step_seed
from mergevq.serialization import load_generator
from mergevq_platform import loop
from mergevq_platform import recipe as recipes
from mergevq_platform.codes import open_codes, tokenize
from mergevq_platform.data import (
    BatchPartition,
    EvalBatches,
    SampleOrder,
    ViewsConfig,
    evaluation_view,
    make_views,
    open_dataset,
    pack,
    write_shapes,
)
from mergevq_platform.distributed import cluster
from mergevq_platform.distributed.local import LocalHost
from mergevq_platform.evaluation.curve import Curve
from mergevq_platform.evaluation.options import EvaluationOptions
from mergevq_platform.sampling.job import SamplingJob, sample_images
from mergevq_platform.sampling.pipeline import class_labels, class_names, open_sampling
from mergevq_platform.storage import checkpoints
from mergevq_platform.storage.tokenizer_ref import find_tokenizer
from mergevq_platform.sweeps import (
    Grid,
    Population,
    Random,
    Sweep,
    choice,
    choosers,
    driver,
    integer,
    log_uniform,
    mean_log_frechet,
    mean_psnr,
    report,
    uniform,
)
from mergevq_platform.sweeps.finished import Finished
from mergevq_platform.sweeps.space import suggested, walked
from mergevq_platform.sweeps.tuning import tpe_sampler
from mergevq_platform.tasks.task import task_of
from mergevq_platform.tracking.recorder import LocalRecorder
from mergevq_platform.tracking.records import RunIdentity, read_identity, read_journal, read_metrics

Tree = dict[str, Any]
SOURCE = Path(mergevq.__file__).resolve().parents[1]  # the tree that is measured


# --- recipes ---------------------------------------------------------------------------------------------------------


def resolved(tree: Tree) -> Tree:
    """The complete recipe tree of a short one, as it is stored with a run: upstream weights with places and hashes."""
    return to_tree(recipes.resolve(tree))


def read_recipe(path: str, overrides: Sequence[str] = ()) -> Tree:
    """The complete tree of a recipe file."""
    return to_tree(recipes.load(path, overrides))


# --- training --------------------------------------------------------------------------------------------------------


def train(
    tree: Tree, directory: str, *, rank: int = 0, world_size: int = 1, stop_at: int | None = None
) -> tuple[list[tuple[int, dict[str, float]]], list[str]]:
    """Train in this process, going on from the newest checkpoint in `directory`: (step, values) of every report, and warnings."""
    Path(directory).mkdir(parents=True, exist_ok=True)
    host = LocalHost(Path(directory), stop_at=stop_at)
    loop.train(recipes.resolve(tree), loop.Worker(rank, world_size), host)
    return host.history, host.warnings


def recipe_yaml(tree: Tree) -> str:
    """The text of recipe.yaml that a run begins with."""
    return checkpoints.recipe_yaml(recipes.resolve(tree))


def fed(tree: Tree, steps: int, *, rank: int = 0, world_size: int = 1, start: int = 0) -> list[list[Tree]]:
    """The micro-batches of a rank as its feed hands them out, for `steps` steps from `start` on."""
    recipe = recipes.resolve(tree)
    task = task_of(recipe)
    feed = task.open_feed(recipe, task.open_data(recipe), loop.Worker(rank, world_size))
    with feed.stream(start) as stream:
        return list(islice(iter(stream), steps))


def drawn_keeps(tree: Tree, steps: int) -> list[int | None]:
    """The kept count of each of the first steps."""
    recipe = recipes.resolve(tree)
    return [recipe.task.draw_keep(recipe.seed, step) for step in range(steps)]


def step_seeds(seed: int, steps: int, ranks: int) -> list[int]:
    """The seeds of PyTorch's generator at every (step, rank)."""
    return [step_seed(seed, step, rank) for step in range(steps) for rank in range(ranks)]


# --- data ------------------------------------------------------------------------------------------------------------


def write_images(directory: str, scratch: str) -> None:
    """A packed image set of procedural shapes: 96 and 48 images of 16 px in row groups of 16."""
    write_shapes(scratch, images=96, val_images=48, size=16, seed=3)
    pack(scratch, directory, seed=1, shard_rows=48, row_group_rows=16, progress=False)


def image_set(path: str, split: str) -> Tree:
    """What a set says of itself, and its pixels (R, H, W, 3) uint8."""
    dataset = open_dataset(path, split)
    rows = dataset.read(range(dataset.rows))
    return {
        "rows": dataset.rows,
        "fingerprint": dataset.fingerprint,
        "classes": list(dataset.classes),
        "row_groups": np.asarray(dataset.row_group_sizes).tolist(),
        "labels": [row.label for row in rows],
        "pixels": np.stack([np.asarray(dataset.image(row)) for row in rows]),
    }


def evaluation_batches(path: str, split: str, size: int, batch: int) -> list[dict[str, Tensor]]:
    """The fixed batches of an evaluation."""
    batches = EvalBatches(open_dataset(path, split), size, batch)
    return [batches.batch(index) for index in range(batches.num_batches)]


def views(image: np.ndarray, tree: Tree, *, seed: int, epoch: int, sample: int) -> dict[str, np.ndarray]:
    """The views of a training image, uint8."""
    return make_views(image, parse(ViewsConfig, tree), seed=seed, epoch=epoch, sample=sample)


def view_for_evaluation(image: np.ndarray, size: int) -> np.ndarray:
    """The one view of an evaluation, uint8."""
    return evaluation_view(image, size)


def order(sizes: Sequence[int], global_batch: int, seed: int, window: int, epochs: int) -> list[list[int]]:
    """The rows of every step of the first epochs."""
    made = SampleOrder(sizes, global_batch, seed, window)
    return [
        made.batch(epoch, step).tolist() for epoch in range(epochs) for step in range(made.steps_per_epoch)
    ]


def deal(global_batch: int, micro_batch: int, workers: int, present: int) -> list[list[Any]]:
    """Of every pass and rank, the positions of the global batch, where `present` of `workers` are there."""
    cut = BatchPartition.of(global_batch, micro_batch, workers, present)
    return [
        [list(map(list, cut.positions(index, rank, present))) for rank in range(present)]
        for index in range(cut.passes)
    ]


def schedule(grid: int, keep: int, depth: int) -> list[int]:
    """Tokens that each layer merges."""
    return list(merge_schedule(grid, keep, depth))


# --- tokenizers ------------------------------------------------------------------------------------------------------


def open_tokenizer(place: str) -> Any:
    """The tokenizer of a checkpoint, in evaluation mode."""
    return mergevq.load(place)


def new_tokenizer(preset: str, seed: int, overrides: Tree | None = None) -> Any:
    """An untrained tokenizer in evaluation mode."""
    torch.manual_seed(seed)
    return mergevq.create(preset, overrides or {}).eval()


@torch.no_grad()
def encode(tokenizer: Any, images: Tensor, keep: int) -> dict[str, Tensor]:
    """Codes, source and features of images (B, 3, H, W) in [-1, 1], and what is decoded from them."""
    encoded = tokenizer.encode(images, keep)
    found = {
        "indices": encoded.indices,
        "assignment": encoded.source.assignment,
        "size": encoded.source.size,
        "codes": encoded.codes,
        "summary": encoded.summary,
        "kept_tokens": encoded.kept_tokens,
        "latents": encoded.latents,
        "decoded": tokenizer.decode(encoded),
    }
    if tokenizer.recovery is not None:
        found["decoded_recovered"] = tokenizer.decode_indices(encoded.indices)
        found["recovery"] = tokenizer.recover(encoded.codes)
    return found


def hashes(place: str) -> dict[str, str]:
    """By which a tokenizer is known again: of its weights file, and of its weights without Source Recovery."""
    found = find_tokenizer(place)
    assert found.codes_sha256 is not None
    return {"tokenizer_sha256": found.sha256, "tokenizer_codes_sha256": found.codes_sha256}


# --- code sets -------------------------------------------------------------------------------------------------------


def write_codes(place: str, directory: str, data: str, keeps: Sequence[int], crops: int) -> None:
    """A code set of a checkpoint's tokenizer; its manifest names both places as they were given."""
    made_by = replace(find_tokenizer(place), location=place)
    tokenize(made_by, directory, data=data, keep=tuple(keeps), crops=crops, progress=False)
    manifest = Path(directory, "manifest.json")
    absolute = str(Path(data).absolute())
    manifest.write_text(manifest.read_text().replace(json.dumps(absolute), json.dumps(data)))


def code_set(path: str, split: str) -> Tree:
    """What a code set holds, kept count by kept count."""
    codes = open_codes(path, split)
    codes.verify()
    groups: dict[int, dict[str, np.ndarray]] = {}
    for keep in codes.manifest.keeps:
        rows = [codes.group(number) for number in codes.groups_of(keep)]
        groups[keep] = {
            name: np.concatenate([getattr(row, name) for row in rows])
            for name in ("indices", "assignment", "label", "sample", "crop")
        }
    return {
        "fingerprint": codes.fingerprint,
        "views": dict(codes.manifest.views),
        "classes": list(codes.manifest.classes),
        "tokenizer": asdict(codes.manifest.tokenizer),
        "codes": groups,
    }


# --- generators ------------------------------------------------------------------------------------------------------


def new_generator(preset: str, seed: int, fields: Tree) -> Any:
    """An untrained generator whose heads are not zero, in evaluation mode."""
    torch.manual_seed(seed)
    config = generator_preset(preset)
    made = build_generator(parse(type(config), merged(to_tree(config), fields)))
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.normal_(0, 0.5)
    return made.eval()


def open_generator(place: str) -> Any:
    """The generator of a checkpoint, in evaluation mode."""
    return load_generator(place).eval()


def sample(
    generator: Any,
    labels: Sequence[int],
    ids: Sequence[int],
    *,
    seed: int,
    keep: int | None = None,
    steps: int | None = None,
    sampling: Tree | None = None,
    guidance: Tree | None = None,
    **options: Any,
) -> Tensor:
    """Codes (B, N or K) int64."""
    return sample_codes(
        generator,
        torch.tensor(labels),
        keep=keep,
        sample_ids=torch.tensor(ids),
        seed=seed,
        sampling=parse(SamplingConfig, sampling or {}),
        guidance=parse(GuidanceConfig, guidance or {}),
        steps=steps,
        **options,
    ).indices


def guidance_scales(guidance: Tree, fraction: float, count: int) -> list[float]:
    """The scale of every sub-token where that fraction of the tokens is decoded."""
    return list(parse(GuidanceConfig, guidance).scales(fraction, count))


def teacher_forced(generator: Any, batch: dict[str, Tensor], keep: int, order: Tensor | None) -> list[Tensor]:
    """The logits of known codes, one tensor for each sub-token."""
    with torch.no_grad():
        return generator(batch["indices"], batch["assignment"], batch["label"], keep, order).logits


def generate_files(place: str, directory: str, *, num: int, batch: int, seed: int, scale: float) -> Tree:
    """Codes and image files of a checkpoint's generator, as `mergevq generate` makes them; returns the manifest."""
    spec = open_sampling(place, seed=seed).at_scale(scale)
    names = class_names(spec.recipe)
    job = SamplingJob(spec, directory, class_labels((), names), names, num, batch)
    return sample_images(job, progress=False)


# --- evaluation ------------------------------------------------------------------------------------------------------


def _evaluator(place: str, settings: Tree | None, **options: Any) -> Any:
    recipe = checkpoints.recipe_of(Path(place))
    if settings:
        recipe = recipes.resolve(merged(to_tree(recipe), {"evaluation": settings}))
    step = checkpoints.about(Path(place))["step"]
    return task_of(recipe).evaluator(recipe, place, EvaluationOptions(device="cpu", step=step, **options))


def _saved(report: Any, file: str) -> tuple[Tree, list[str]]:
    report.save(Path(file))
    return json.loads(Path(file).read_text()), report.verdict()


def curve(place: str, keeps: Sequence[int], settings: Tree, file: str) -> tuple[Tree, list[str]]:
    """The curve of a tokenizer's checkpoint as it is written to `file`, and its verdict."""
    return _saved(_evaluator(place, settings, keeps=tuple(keeps)).report("golden"), file)


def top1_fine_tuned(place: str) -> dict[str, float]:
    """The top-1 of a fine-tuned classifier on the evaluation split."""
    return _evaluator(place, None).report("golden").rows[0]


def top1_probed(place: str) -> dict[str, float]:
    """The top-1 of a trained probe on the evaluation split."""
    return _evaluator(place, None).report("golden").rows[0]


def generator_report(place: str, scales: Sequence[float], file: str) -> tuple[Tree, list[str]]:
    """The whole evaluation of a generator's checkpoint as it is written to `file`, and its verdict."""
    return _saved(_evaluator(place, None, scales=tuple(scales)).report("golden"), file)


# --- sweeps ----------------------------------------------------------------------------------------------------------


def _space() -> Any:
    return {
        "task.keep": choice(
            {
                "kind": "gaussian",
                "merge_ratio": [0.0, 0.4375],
                "peak_merge_ratio": 0.4,
                "sigma": uniform(0.5, 2.0),
            },
            {"kind": "uniform", "merge_ratio": [0.0, 0.4375]},
            {"kind": "list", "merge_ratios": choice([0.0], [0.0, 0.4375])},
        ),
        "steps": integer(5, 9),
        "optimizer.learning_rate": log_uniform(1e-4, 1e-2),
    }


def _listed_space() -> Any:
    return {"task.keep": _space()["task.keep"].options[2], "steps": choice(2, 4)}


def _sweep(recipe: str, space: Any, search: Any) -> Sweep:
    return Sweep(
        name="golden",
        question="Which?",
        recipe=recipe,
        space=space,
        search=search,
        objectives=(mean_psnr(), mean_log_frechet()),
    )


def trials(recipe: str) -> dict[str, Any]:
    """(parameters, seed) of every trial that each search lists beforehand, with the recipe of the first."""
    grid = _sweep(recipe, _listed_space(), Grid(seeds=2))
    drawn = _sweep(recipe, _space(), Random(trials=12, seeds=2, seed=5))
    population = _sweep(recipe, _space(), Population(size=6, every_steps=2, seed=7))
    found = {
        name: [[params, seed] for params, seed in sweep.listed() or ()]
        for name, sweep in (("grid", grid), ("random", drawn), ("population", population))
    }
    first = found["random"][0]
    return found | {
        "corners": choosers.corners(_space()),
        "first_recipe": to_tree(drawn.recipe_of(first[0], seed=first[1], name="golden-000")),
    }


def explored(turns: int) -> list[Tree]:
    """The choices of a population's member after each of `turns` explorations."""
    params = choosers.draw(_space(), seed=7, number=0)
    found = []
    for turn in range(turns):
        params = choosers.perturbed(_space(), params, seed=7 + turn)
        found.append(params)
    return found


def proposed(count: int, *, seed: int, objectives: int, side_by_side: int) -> list[Tree]:
    """The parameters that Optuna's sampler proposes one after the other, for made-up results."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    directions = ["minimize", "maximize"][:objectives]
    study = optuna.create_study(sampler=tpe_sampler(seed), directions=directions)
    found, running = [], []
    for _ in range(count):
        trial = study.ask()
        values, _ = walked(_space(), suggested(trial))
        found.append(dict(trial.params))
        worth = [abs(values["steps"] - 7) + 100 * values["optimizer.learning_rate"]]
        worth.append(values["task.keep"].get("sigma", 1.0))
        running.append((trial, worth[:objectives]))
        if len(running) == side_by_side:
            study.tell(*running.pop(0))
    return found


def ranked(recipe: str, results: Sequence[tuple[Tree, int, list[dict[str, float]]]]) -> Tree:
    """Table, winner, hypervolumes and Pareto points of trials with (parameters, seed, curve rows)."""
    sweep = _sweep(recipe, _listed_space(), Grid(seeds=2))
    protocol = {"frechet_key": "rfd_random_v1", "suites": ["reconstruction", "representation"]}
    finished = []
    for number, (params, seed, rows) in enumerate(results):
        made = Curve(run=f"golden-{number:03d}", rows=rows, protocol={**protocol, "keys": {}})
        finished.append(
            Finished(
                name=made.run,
                params=params,
                seed=seed,
                steps=4,
                objectives={objective.name: objective.of(made, None) for objective in sweep.objectives},
                curve=asdict(made),
                drawn={"16": 4},
                seconds=60.0,
                recipe={},
            )
        )
    winner = report.best(sweep, finished)
    return {
        "table": report.table(sweep, finished),
        "winner": winner.name if winner else None,
        "hypervolumes": report.hypervolumes(finished),
        "pareto": report.pareto_rows(sweep, finished),
    }


@contextmanager
def ray_cluster(home: Path) -> Iterator[None]:
    """A Ray cluster on this machine."""
    cluster.connect(home)
    try:
        yield
    finally:
        ray.shutdown()


def sweep_on_ray(tree: Tree, home: Path, name: str) -> Tree:
    """A small real sweep on the Ray cluster of `home`: its trials, and which won."""
    recipe = home / "golden.yaml"
    recipe.write_text(yaml.safe_dump(tree))
    sweep = Sweep(
        name="golden",
        question="Which?",
        recipe=str(recipe),
        space={"task.keep": _listed_space()["task.keep"]},
        search=Grid(),
        objectives=(mean_psnr(), mean_log_frechet()),
    )
    outcome = driver.sweep(sweep, home=home, name=name)
    assert outcome.complete, outcome.failed
    winner = report.best(sweep, outcome.finished)
    return {
        # The trials differ by 0.004 dB: another machine may rank them otherwise.
        "here": {"winner": (winner.name if winner else "").removeprefix(name)},
        "trials": [
            {
                "name": trial.name.removeprefix(name),
                "params": trial.params,
                "seed": trial.seed,
                "steps": trial.steps,
                "drawn": trial.drawn,
                "objectives": trial.objectives,
                "rows": trial.curve["rows"],
            }
            for trial in outcome.finished
        ],
    }


# --- journals --------------------------------------------------------------------------------------------------------


def write_journal(directory: str, tree: Tree, history: Sequence[tuple[int, dict[str, float]]]) -> None:
    """A run's journal with parameters, tags and what was reported."""
    identity = RunIdentity(uid="0" * 32, name="run", experiment="golden", user="somebody", created_ms=0)
    recorder = LocalRecorder(Path(directory), None, identity)
    recorder.running()
    recorder.params({"name": tree["name"], "steps": tree["steps"]})
    recorder.tags({"mergevq.kind": "tokenizer", "mergevq.run": "run"})
    for step, values in history:
        recorder.metrics(step, values)
    recorder.artifact(Path(directory, "recipe.yaml"))
    recorder.close("KILLED")


def append_journal(directory: str, step: int, values: dict[str, float]) -> None:
    """Go on with a run's journal."""
    recorder = LocalRecorder(Path(directory), None)
    recorder.running()
    recorder.metrics(step, values)
    recorder.close("FINISHED")


def journal(directory: str) -> Tree:
    """What a run's journal says."""
    path = Path(directory, "journal.jsonl")
    return {
        "identity": asdict(read_identity(path)),
        "metrics": {
            key: [[step, value] for step, value in steps.items()]
            for key, steps in sorted(read_metrics(path).items())
        },
        "records": [[record.seq, record.kind, sorted(record.data)] for record in read_journal(path)],
    }


def newest(directory: str) -> str:
    """The newest whole checkpoint of a run's directory, checked against its checksums."""
    with checkpoints.newest(directory) as found:
        return str(found)
