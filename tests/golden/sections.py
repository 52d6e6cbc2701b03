"""What is recorded: a function a file, each a tree of plain values; see `leaves` for what is compared where."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import leaves
import numpy as np
import product
import steps
import torch
import trees
import yaml

Tree = dict[str, Any]
SECTIONS: dict[str, Callable[[], Tree]] = {}


def section(make: Callable[[], Tree]) -> Callable[[], Tree]:
    """Record what the function returns in a file of its name; once in a process, for others may build on it."""
    SECTIONS[make.__name__] = functools.cache(make)
    return SECTIONS[make.__name__]


@functools.cache
def variants() -> dict[str, Tree]:
    """The trainings by name."""
    return trees.variants(product.hashes(trees.TOKENIZER))


@functools.cache
def alone(name: str) -> Tree:
    """A training's record at one worker."""
    return steps.one_worker(name, variants()[name])


@functools.cache
def together() -> dict[str, Tree]:
    """All trainings' records at two workers."""
    return steps.two_workers(variants())


def trained(name: str) -> str:
    """The checkpoint of a training at one worker."""
    alone(name)
    return product.newest(f"runs/{name}").removeprefix(f"{Path.cwd()}/")


def _unplaced(value: Any) -> Any:
    """Without the places of this machine, which some records hold."""
    return json.loads(json.dumps(value).replace(f"{Path.cwd()}/", ""))


# --- a: trainings ----------------------------------------------------------------------------------------------------


@section
def one_worker() -> Tree:
    return {name: alone(name) for name in variants()}


@section
def two_workers() -> Tree:
    return together()


# --- b: tokenizers ---------------------------------------------------------------------------------------------------


@section
def tokenizers() -> Tree:
    images = product.evaluation_batches("images", "val", 16, 6)[0]["image"].float() / 127.5 - 1
    small = product.evaluation_batches("images", "val", 8, 6)[0]["image"].float() / 127.5 - 1
    found: Tree = {"committed": _encoded(product.open_tokenizer(trees.TOKENIZER), small, trees.KEEPS)}
    for preset in ("test_g", "test_gr", "test_r"):
        found[preset] = _encoded(product.new_tokenizer(preset, 5, trees.LIVELY), images, [4, 9, 16])
    summary, head = product.new_tokenizer("test_gr", 5, trees.LIVELY).encode_summary(images, 9)
    found["summary_head"] = [leaves.floats(summary), leaves.floats(head)]
    found["schedules"] = {
        f"{grid} to {keep} in {depth}": product.schedule(grid, keep, depth)
        for grid, depth in ((16, 2), (256, 12), (1024, 12))
        for keep in (grid // 4, grid // 2 + 1, grid - 1, grid)
    }
    return found


def _encoded(tokenizer: Any, images: torch.Tensor, keeps: list[int]) -> Tree:
    integers = ("indices", "assignment", "size")
    return {
        str(keep): {
            name: leaves.codes(value.long()) if name in integers else leaves.floats(value)
            for name, value in product.encode(tokenizer, images, keep).items()
        }
        for keep in keeps
    }


# --- c: evaluations --------------------------------------------------------------------------------------------------


@section
def evaluations() -> Tree:
    settings = {"batch": 20, "probe_images": 72, "probes": ["mae"]}
    curve, verdict = product.curve(trees.TOKENIZER, trees.KEEPS, settings, "curve.json")
    hybrid, _ = product.curve(trained("tokenizer_gr_self"), [4, 16], {"batch": 16}, "hybrid.json")
    found: Tree = {
        "curve": _unplaced(curve) | {"verdict": verdict},
        "trained_here": {
            "hybrid": _unplaced(hybrid),
            "finetune": product.top1_fine_tuned(trained("finetune")),
            "probe": product.top1_probed(trained("probe")),
        },
    }
    for name in ("committed", "generator_codes_mergear", "generator_images_raster"):
        place = trees.GENERATOR if name == "committed" else trained(name)
        report, said = product.generator_report(place, [2.0], "report.json")
        for row in (*report["rows"], *report["references"].values()):
            for key in [key for key in row if key.endswith("_per_second")]:
                row[key] = "a speed"
        said_here = {"here": leaves.text_digest("\n".join(said))}
        (found if name == "committed" else found["trained_here"])[name] = _unplaced(report) | {
            "verdict": said_here
        }
    found["curve"]["verdict"] = {"here": leaves.text_digest("\n".join(verdict))}
    return _of_this_code(found)


def _of_this_code(value: Any) -> Any:
    """Hashes of weights that were trained here count on this machine alone."""
    if isinstance(value, dict):
        return {
            key: {"here": inner}
            if key in ("sha256", "weights_sha256", "codes_sha256", "initialisation")
            and isinstance(inner, str)
            else _of_this_code(inner)
            for key, inner in value.items()
        }
    return [_of_this_code(inner) for inner in value] if isinstance(value, list) else value


# --- d: generated codes ----------------------------------------------------------------------------------------------


@section
def generated_codes() -> Tree:
    labels, ids = [0, 3, 11, 5, -1] * 5, list(range(30, 55))
    found: Tree = {}
    plain: dict[str, Tree] = {
        "plain": {},
        "guided": {"guidance": {"scale": 2.5}},
        "guided_on_a_schedule": {
            "guidance": {"scale": 3.0, "schedule": "power_cosine", "interval": [0.2, 0.9]}
        },
        "cut": {"sampling": {"temperature": 0.8, "top_k": 3, "top_p": 0.9}},
        "another_seed": {"seed": 9},
    }
    of_kind: dict[str, dict[str, Tree]] = {
        "raster": {},
        "mergear": {
            "masked": {"compress": False},
            "few_distinct": {"limit_distinct": True},
            "guided_nine": {"keep": 9, "guidance": {"scale": 2.0}},
        },
        "random_order": {
            "five_steps": {"steps": 5},
            "five_steps_guided": {"steps": 5, "guidance": {"scale": 2.0, "schedule": "linear"}},
            "one_step": {"steps": 1},
            "given_order": {"order": torch.arange(11, -1, -1).expand(25, 12)},
            "some_fixed": {
                "fixed": torch.arange(300).view(25, 12) % 64,
                "fixed_mask": torch.arange(300).view(25, 12) % 3 == 0,
                "steps": 4,
            },
        },
    }
    batch = product.fed(variants()["generator_codes_mergear"], 1)[0][0]
    kept = batch["indices"].shape[1]
    for kind, ways in of_kind.items():
        fields = {"classes": 12} | ({} if kind == "raster" else {"keeps": trees.KEEPS})
        generator = product.new_generator(f"test_{kind}", 5, fields)
        keep = {} if kind == "raster" else {"keep": 12}
        found[kind] = {
            name: leaves.codes(product.sample(generator, labels, ids, **({"seed": 4} | keep | options)))
            for name, options in (plain | ways).items()
        }
        order = torch.arange(kept).flip(0).expand_as(batch["indices"]) if kind == "random_order" else None
        logits = product.teacher_forced(generator, batch, kept, order)
        found[kind]["teacher_forced"] = [leaves.floats(part) for part in logits]
    found["guidance_scales"] = {
        name: [product.guidance_scales(options["guidance"], step / 7, 2) for step in range(7)]
        for name, options in plain.items()
        if "guidance" in options
    }
    committed = product.open_generator(trees.GENERATOR)
    found["committed"] = {
        f"{keep} in {count} steps": leaves.codes(
            product.sample(committed, labels, ids, seed=4, keep=keep, steps=count, guidance={"scale": 2.0})
        )
        for keep in trees.KEEPS
        for count in (3, None)
    }
    manifest = product.generate_files(trees.GENERATOR, "generated", num=10, batch=4, seed=2, scale=1.5)
    manifest["last_run"] = sorted(manifest["last_run"])
    parts = [dict(np.load(path)) for path in sorted(Path("generated", "codes").glob("*.npz"))]
    found["files"] = {
        "manifest": _unplaced(manifest),
        "names": sorted(str(path) for path in Path("generated").rglob("*.*")),
        "sample": [part["sample"].tolist() for part in parts],
        "label": [part["label"].tolist() for part in parts],
        "indices": [leaves.codes(part["indices"]) for part in parts],
        "images": {
            "here": leaves.digest(
                *(
                    torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
                    for path in sorted(Path("generated", "pictures").glob("*.png"))
                )
            )
        },
    }
    return found


# --- e: sweeps -------------------------------------------------------------------------------------------------------


@section
def sweeps() -> Tree:
    found = product.trials("recipe.yaml")
    params = [choices for choices, seed in found["grid"] if seed == found["grid"][0][1]]
    results = []
    for number, choices in enumerate(params):
        for seed in (11, 12):
            rows = [
                {
                    "keep": float(keep),
                    "psnr": 12.0 + (number * 7 + seed) % 5 + keep / 16,
                    "rfd_random_v1": 3.0 + (number * 3 + seed) % 4 - keep / 16,
                    "probe_top1_cls": 20.0 + (number * 5 + seed) % 7,
                }
                for keep in (9, 16)
            ]
            results.append((choices, seed, rows))
    diverged = [row | {"psnr": float("nan")} for row in results[-1][2]]
    results[-1] = (*results[-1][:2], diverged)
    found["explored"] = product.explored(8)
    found["proposed"] = {
        "one objective": product.proposed(24, seed=3, objectives=1, side_by_side=1),
        "one objective, three side by side": product.proposed(24, seed=3, objectives=1, side_by_side=3),
        "two objectives": product.proposed(24, seed=3, objectives=2, side_by_side=1),
    }
    found["ranked"] = product.ranked("recipe.yaml", results)
    return _unplaced(found)


# --- g: what was written before --------------------------------------------------------------------------------------


@section
def committed() -> Tree:
    """The committed run and generator go on, and code set, images, journal and recipe say what they said."""
    found: Tree = {"before": {name: leaves.checkpoint(place) for name, place in _committed_checkpoints()}}
    for name in ("run", "generator"):
        shutil.copytree(name, f"again/{name}")
        tree = yaml.safe_load(Path(f"again/{name}/recipe.yaml").read_text())
        with steps.gradients() as seen:
            history, warnings = product.train(tree, f"again/{name}")
        found[f"{name}_goes_on"] = {
            "steps": [step for step, _ in history],
            "total": [values["train/total"] for _, values in history if "train/total" in values],
            "warnings": warnings,
            "gradients": seen,
            "state": leaves.checkpoint(product.newest(f"again/{name}")),
        }
        found[f"{name}_recipe"] = product.resolved(tree)
    product.append_journal("again/run", 11, {"train/total": 1.0})
    found["journal"] = product.journal("run")
    found["journal_goes_on"] = product.journal("again/run")["records"][-3:]
    found["recipe"] = product.read_recipe("recipe.yaml", ["steps=7", "task.keep={kind: list, counts: [16]}"])
    for split in ("train", "val"):
        images = product.image_set("images", split)
        found[f"images_{split}"] = images | {"pixels": leaves.exact(images["pixels"])}
        codes = product.code_set("codes", split)
        codes["codes"] = {
            str(keep): {name: leaves.exact(value) for name, value in rows.items()}
            for keep, rows in codes["codes"].items()
        }
        found[f"codes_{split}"] = codes
    found["hashes"] = product.hashes(trees.TOKENIZER)
    # Today's tree makes the same code set of the same images again.
    product.write_codes(trees.TOKENIZER, "codes_again", "images", trees.KEEPS, crops=2)
    again = product.code_set("codes_again", "train")["codes"]
    found["codes_again"] = {
        str(keep): {name: leaves.codes(value) for name, value in rows.items()} for keep, rows in again.items()
    }
    return _unplaced(found)


def _committed_checkpoints() -> tuple[tuple[str, str], ...]:
    return (("run", trees.TOKENIZER), ("generator", trees.GENERATOR))


@section
def resolved_recipes() -> Tree:
    """The complete recipe of every task, with every default, as it is stored."""
    return _of_this_code(_unplaced({name: product.resolved(tree) for name, tree in variants().items()}))


@section
def stored_keys() -> Tree:
    """The keys of what is stored."""
    checkpoints = {name: trained(name) for name in variants()} | dict(_committed_checkpoints())
    product.curve(trees.TOKENIZER, [9], {}, "keys_curve.json")
    product.generator_report(trees.GENERATOR, [1.0], "keys_report.json")
    files = {
        "curve.json": "keys_curve.json",
        "report.json": "keys_report.json",
        "images/manifest.json": "images/manifest.json",
        "codes/manifest.json": "codes/manifest.json",
        "teacher/config.json": "teacher/config.json",
    }
    found: Tree = {name: leaves.keys(json.loads(Path(file).read_text())) for name, file in files.items()}
    for name in ("curve.json", "report.json"):
        tree = json.loads(Path(files[name]).read_text())
        found[f"{name} rows"] = list(tree["rows"][0])
    for name, place in checkpoints.items():
        found[name] = {
            "files": sorted(path.name for path in Path(place).iterdir()),
            "config.json": leaves.keys(json.loads(Path(place, "config.json").read_text())),
            "recipe.yaml": leaves.keys(yaml.safe_load(Path(place, "recipe.yaml").read_text())),
            "checkpoint.json": leaves.keys(json.loads(Path(place, "checkpoint.json").read_text())),
            "resume.pt": leaves.keys(
                {
                    key: sorted(part)[:3] if isinstance(part, dict) else None
                    for key, part in torch.load(Path(place, "resume.pt"), weights_only=True).items()
                }
            ),
        }
    return found


# --- h: numbers by address -------------------------------------------------------------------------------------------


@section
def numbers() -> Tree:
    named = variants()
    drawing = [name for name in named if product.drawn_keeps(named[name], 1)[0] is not None]
    found: Tree = {"kept_counts": {}, "orders": {}, "deals": {}, "fed": {}, "views": {}}
    for name in drawing:
        drawn = product.drawn_keeps(named[name], 2000)
        found["kept_counts"][name] = {"first": drawn[:24], "all": leaves.exact(drawn)}
    found["step_seeds"] = {
        "first": [str(seed) for seed in product.step_seeds(11, 2, 2)],
        "all": leaves.exact(product.step_seeds(11, 100, 3)),
    }
    for label, (sizes, batch, window) in {
        "committed": ([16] * 6, 8, 16),
        "uneven": ([7, 1, 20, 0, 13, 5, 9, 30], 6, 2),
        "many": ([32] * 50, 24, 3),
    }.items():
        rows = product.order(sizes, batch, 11, window, 3)
        found["orders"][label] = {"first": rows[:3], "all": leaves.exact(rows)}
    for cut in ((8, 4, 1, 1), (8, 4, 2, 2), (8, 4, 2, 1), (24, 3, 4, 3)):
        found["deals"][" ".join(map(str, cut))] = product.deal(*cut)
    for name, start in (("tokenizer_gr_self", 10), ("generator_codes_mergear", 21)):
        for rank in range(2):
            steps_ = product.fed(trees.of_workers(named[name], 2), 4, rank=rank, world_size=2, start=start)
            found["fed"][f"{name} rank {rank}"] = [
                [{key: _leaf(key, value) for key, value in batch.items()} for batch in batches]
                for batches in steps_
            ]
    pixels = product.image_set("images", "train")["pixels"]
    for label, tree in {
        "reconstruction": {"image_size": 16},
        "smaller": {"image_size": 8, "student_size": 12, "teacher_size": 16},
        "classifier": {
            "image_size": 8,
            "image_flip": 0.5,
            "image_scale": [0.3, 1.0],
            "image_augment": {"operations": 3},
            "image_erase": 0.5,
        },
    }.items():
        made = [
            product.views(pixels[sample], tree, seed=11, epoch=epoch, sample=sample)
            for epoch in range(2)
            for sample in range(24)
        ]
        stacked = {name: np.stack([one[name] for one in made]) for name in made[0]}
        same_size = label == "reconstruction"
        found["views"][label] = {
            name: leaves.exact(value) if same_size else leaves.images(value)
            for name, value in stacked.items()
        }
    found["views"]["evaluation"] = leaves.images(
        np.stack([product.view_for_evaluation(image[:, :13], 8) for image in pixels[:24]])
    )
    return found


def _leaf(key: str, value: torch.Tensor) -> Any:
    return leaves.images(value) if key in ("image", "student", "teacher") else value.tolist()
