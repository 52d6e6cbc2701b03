"""The recipes that the golden files train: every task and every kind, tiny, on the committed image set."""

from __future__ import annotations

from typing import Any

Tree = dict[str, Any]
KEEPS = [9, 12, 16]  # what one merging layer reaches of 16 grid tokens, twelve among them
TOKENIZER = "run/checkpoint_000000010"
GENERATOR = "generator/checkpoint_000000010"


def _recipe(name: str, task: Tree, views: Tree, **changes: Any) -> Tree:
    tree: Tree = {
        "name": name,
        "experiment": "golden",
        "seed": 11,
        "task": task,
        "data": {"path": "images", "views": views},
        "steps": 20,
        "global_batch": 8,
        "micro_batch": 4,
        "log_every": 1,
        "checkpoint_every": 20,
        "ema_decay": 0.9,
        "optimizer": {"learning_rate": 1e-3, "schedule": {"kind": "constant"}},
        "evaluation": {"batch": 16, "every": 10, "validation_images": 24},
        "cluster": {"device": "cpu"},
    }
    return tree | changes


# The smallest tokenizer there is, so that its checkpoint with all that is needed to go on can be committed.
SMALLEST: Tree = {
    "image_size": 8,
    "encoder": {"patch": 2, "depth": 1, "layer_scale": 0.5, "initial_std": 0.1},
    "decoder": {"multipliers": [1], "depth": 1, "layer_scale": 0.5, "initial_std": 0.1},
    "recovery": {"width": 8, "hidden": 16, "initial_std": 0.1},
    "head": None,
}
LIVELY: Tree = {  # larger weights than published: with those a new encoder's tokens are nearly alike
    "encoder": {"layer_scale": 0.5, "initial_std": 0.1},
    "decoder": {"layer_scale": 0.5, "initial_std": 0.1},
    "recovery": {"initial_std": 0.1},
}


def smallest_tokenizer() -> Tree:
    """The recipe of the committed run."""
    task = {
        "kind": "tokenizer",
        "preset": "test_r",
        "model": SMALLEST,
        "keep": {"kind": "list", "counts": KEEPS},
        "losses": {"adversarial": {"kind": "none"}, "entropy": {"weight": 0.05}},
    }
    return _recipe(
        "run", task, {"image_size": 8}, checkpoint_every=10, evaluation={"keeps": KEEPS, "batch": 16}
    )


def teacher() -> Tree:
    """The recipe of the committed stand-in teacher."""
    task = {"kind": "classifier", "model": {"classes": 12, "width": 8, "num_stages": 2, "image_size": 16}}
    return _recipe("teacher", task, {"image_size": 16})


def _generator(kind: str, hashes: Tree, **changes: Any) -> Tree:
    task = {
        "kind": "generator",
        "preset": f"test_{kind}",
        "model": {"classes": 12} | ({} if kind == "raster" else {"keeps": KEEPS}),
        "tokenizer": TOKENIZER,
        "generation": {"images": 24, "batch": 8, "scales": [1.0, 2.0]},
        **hashes,
    }
    if kind == "raster":
        task["keep"] = {"kind": "list", "counts": KEEPS}
    return _recipe(f"generator-{kind}".replace("_", "-"), task | changes, {"image_size": 8})


def committed_generator(hashes: Tree) -> Tree:
    """The recipe of the committed generator, of random order on the committed codes."""
    tree = _generator("random_order", hashes, codes="codes")
    tree["task"]["generation"] |= {"keep": 12, "steps": 5, "guidance": {"schedule": "linear"}}
    return tree | {"name": "generator", "checkpoint_every": 10}


def variants(hashes: Tree) -> dict[str, Tree]:
    """Every training whose steps are recorded; `hashes` are those of the committed tokenizer."""
    views = {"image_size": 16, "student_scale": [0.5, 1.0]}
    classes_views = {"image_size": 8, "image_flip": 0.5, "image_scale": [0.5, 1.0]}
    own_tokenizer = {"tokenizer": TOKENIZER, "tokenizer_sha256": hashes["tokenizer_sha256"]}
    found = {
        "tokenizer_gr_self": _recipe(
            "tokenizer-gr-self",
            {
                "preset": "test_gr",
                "model": LIVELY,
                "keep": {"kind": "list", "counts": [4, 9, 16]},
                "losses": {
                    "adversarial": {"kind": "patch", "discriminator": {"channels": 8, "num_layers": 1}},
                    "alignment": {"kind": "self", "prototypes": 16},
                },
            },
            views,
        ),
        "tokenizer_gr_stand_in": _recipe(
            "tokenizer-gr-stand-in",
            {
                "preset": "test_gr",
                "model": LIVELY,
                "keep": {
                    "kind": "gaussian",
                    "merge_ratio": [0.0, 0.75],
                    "peak_merge_ratio": 0.4,
                    "sigma": 1.0,
                },
                "losses": {
                    "reconstruction": {"kind": "l1_l2"},
                    "perceptual": {"kind": "stand_in", "directory": "teacher", "weight": 0.5},
                    "adversarial": {
                        "kind": "patch",
                        "weight": 0.8,
                        "adaptive": True,
                        "start_step": 6,
                        "lecam_weight": 0.5,
                        "lecam_decay": 0.9,
                        "discriminator": {"channels": 8, "num_layers": 2, "norm": "group"},
                    },
                    "entropy": {"weight": 0.1, "annealing": {"start_factor": 3.0, "steps": 8}},
                    "alignment": {"kind": "stand_in", "directory": "teacher"},
                },
            },
            views,
            discriminator_optimizer={
                "learning_rate": 2e-3,
                "weight_decay": 0.05,
                "schedule": {"kind": "constant"},
            },
        ),
        "tokenizer_r_supervised": _recipe(
            "tokenizer-r-supervised",
            {
                "preset": "test_r",
                "model": LIVELY,
                "keep": {"kind": "exponential", "keep": [4, 16], "rate": 1.0},
                "losses": {
                    "adversarial": {"kind": "none"},
                    "alignment": {"kind": "supervised", "classes": 12},
                    "recovery": {"weight": 1.0, "loss": "binary"},
                },
            },
            views,
            optimizer={
                "learning_rate": 2e-3,
                "betas": [0.9, 0.95],
                "weight_decay": 0.05,
                "clip_norm": 0.5,
                "schedule": {"kind": "cosine", "warmup_steps": 4, "final_fraction": 0.1},
            },
            on_nan="skip",
        ),
        "tokenizer_g_bfloat16": _recipe(
            "tokenizer-g-bfloat16",
            {
                "preset": "test_g",
                "model": LIVELY,
                "keep": {"kind": "uniform", "merge_ratio": [0.0, 0.75], "square": False},
                "losses": {"adversarial": {"kind": "none"}, "recovery": {"weight": 0.0}},
            },
            {"image_size": 16},
            precision="bfloat16",
            channels_last=True,
            recompute=True,
        ),
        "classifier": teacher(),
        "finetune": _recipe(
            "finetune",
            {"kind": "finetune", "settings": {"layer_decay": 0.8}, **own_tokenizer},
            classes_views | {"image_augment": {"operations": 2}, "image_erase": 0.25},
            optimizer={
                "learning_rate": 2e-3,
                "weight_decay": 0.05,
                "schedule": {"kind": "step", "milestones": [0.5], "warmup_steps": 2},
            },
        ),
        "probe": _recipe(
            "probe",
            {
                "kind": "probe",
                "settings": {"feature": "mean", "keep": 12, "rate_factors": [0.01, 1.0]},
                **own_tokenizer,
            },
            classes_views,
            optimizer={"learning_rate": 0.05, "schedule": {"kind": "cosine"}},
        ),
    }
    for name, settings in (
        ("recovery", {}),
        ("recovery_generated", {"generator": GENERATOR, "settings": {"generated_fraction": 0.5}}),
    ):
        found[name] = _recipe(
            name.replace("_", "-"),
            {"kind": "recovery", **own_tokenizer, **settings},
            {"image_size": 8},
            optimizer={"learning_rate": 1e-2, "betas": [0.9, 0.95], "schedule": {"kind": "constant"}},
        )
    for kind in ("raster", "mergear", "random_order"):
        found[f"generator_codes_{kind}"] = _generator(kind, hashes, codes="codes")
        found[f"generator_images_{kind}"] = _generator(kind, hashes)
    return found


def of_workers(tree: Tree, workers: int) -> Tree:
    """The same for so many workers, in the same two passes a step: a pass decides what a batch's averages are of."""
    cluster = tree["cluster"] | {"workers": workers}
    return tree | {"cluster": cluster, "micro_batch": tree["micro_batch"] // workers}
