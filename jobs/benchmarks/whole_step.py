"""A recipe's whole training step on images that lie on the device: LPIPS, teacher, all views, both updates, moving average.

The frozen networks have random weights of the right shapes: what they compute means nothing, what it costs is the same.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from einops import rearrange
from torch import Tensor

from benchmarks.timing import device
from mergevq.image_size import height_width

RECIPE, BATCH, KEEP = "gr_256_d64", 16, 144
SMALL = (
    "task.preset=test_gr",
    "task.model.head.out=64",
    "task.keep={kind: list, counts: [9]}",
    "data.views.image_size=16",
    "evaluation.keeps=[9]",
    "evaluation.every=null",
    "task.losses.adversarial.discriminator.num_layers=1",
)
LATE = 10**6  # a step at which adversarial terms have begun


class WholeStep:
    """Calling it takes one optimizer step exactly as the training loop takes it."""

    def __init__(self, full: bool, *overrides: str) -> None:
        from mergevq.ema import Ema
        from mergevq_platform import loop, optim
        from mergevq_platform.data import open_dataset, write_shapes
        from mergevq_platform.recorded_passes import RecordedPasses
        from mergevq_platform.storage import checkpoints

        optim.prefer_speed(device())
        self.batch_size = BATCH if full else 2
        self.keep = KEEP if full else 9
        with tempfile.TemporaryDirectory() as text:
            folder = Path(text)
            made = recipe_of(folder, full, *overrides)
            self.recipe = replace(made, global_batch=self.batch_size, micro_batch=self.batch_size)
            size = max(height_width(self.recipe.data.views.image_size))
            write_shapes(folder / "data", images=64, val_images=16, size=size, seed=0)
            samples = open_dataset(self.recipe.data.path, self.recipe.data.train_split)
            training = loop.build(self.recipe, samples).to(device())
        self.training = training.to(memory_format=torch.channels_last)
        self.state = checkpoints.TrainingState(
            training,
            Ema(training.model(), self.recipe.ema_decay),
            optim.make_optimizers(self.recipe, training),
            None,
        )
        self.batch = self._batch()
        passes = loop.passes_of(
            dict(training.phases.items()), lambda: torch.autocast(device().type, torch.bfloat16), None
        )
        self.launched = passes
        self.recorded = RecordedPasses(
            self.recipe, training, passes, loop.Worker(device=device()), self._warn
        )
        self.warnings: list[str] = []

    def _batch(self) -> dict[str, Tensor]:
        views = self.recipe.data.views
        sizes = {"image": views.image_size, "student": views.student_size, "teacher": views.teacher_size}
        batch = {
            name: torch.rand(self.batch_size, 3, *height_width(size), device=device()) * 2 - 1
            for name, size in sizes.items()
            if size
        }
        return batch | {"label": torch.zeros(self.batch_size, dtype=torch.int64, device=device())}

    def _warn(self, message: str) -> None:
        self.warnings.append(message)

    def __call__(self, *, launched: bool = False) -> None:
        """The step as the loop takes it; `launched`: every kernel by itself, where the loop would have them recorded."""
        from mergevq_platform import optim

        passes = self.launched if launched else self.recorded
        passes(self.batch, self.keep, LATE, 1.0, True)
        optim.update(self.recipe, self.training, self.state, keep_gradients=self.recorded.enabled)
        self.training.after_step(LATE)
        self.state.ema.update()

    def count_flops(self) -> int:
        """The FLOPs of a step, which is taken for it."""
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            self(launched=True)
        return counter.get_total_flops()

    def compile(self) -> None:
        """Compile the transformer blocks, as the recipe does."""
        from mergevq_platform.tasks.task import task_of

        task_of(self.recipe).compile(self.training)


@contextmanager
def without_kernels() -> Iterator[None]:
    """As it was before there were kernels and graphs: PyTorch's operations, launched one by one, its heuristics' convolutions."""
    with ExitStack() as stack:
        stack.enter_context(mock.patch("mergevq.fused.has_kernel", new=_no_kernel))
        stack.enter_context(mock.patch("mergevq.decoder.depth_to_space", _depth_to_rows))
        stack.enter_context(mock.patch("mergevq_platform.optim.prefer_speed", _prefer_heuristics))
        yield


def _no_kernel(x: Tensor) -> bool:  # no Mock, which would keep every map that it is asked about
    del x
    return False


def _depth_to_rows(x: Tensor, factor: int) -> Tensor:
    return rearrange(x, "b (i j c) h w -> b c (h i) (w j)", i=factor, j=factor) if factor > 1 else x


def _prefer_heuristics(of: torch.device) -> None:
    if of.type == "cuda":
        torch.set_float32_matmul_precision("high")


def recipe_of(folder: Path, full: bool, *overrides: str) -> Any:
    from mergevq_platform import recipe

    backbone, heads, teacher = _frozen_weights(folder, full)
    name = "vit_base_patch14_dinov2" if full else "test_vit"
    losses = [
        f"task.losses.perceptual.backbone={backbone}",
        f"task.losses.perceptual.heads={heads}",
        f"task.losses.alignment.model={name}",
        f"task.losses.alignment.weights={teacher[name]}",
    ]
    small = (
        ()
        if full
        else (*SMALL, "task.losses.alignment.teacher_size=160", "task.losses.alignment.student_size=16")
    )
    overrides = (*losses, *small, f"data.path={folder / 'data'}", "cluster.workers=1", *overrides)
    return recipe.resolve(recipe.load(RECIPE, overrides))


def _frozen_weights(folder: Path, full: bool) -> tuple[Path, Path, dict[str, Path]]:
    """Files of VGG16, LPIPS's heads and the teachers, random, in their releases' layouts."""
    import safetensors.torch
    import timm

    from mergevq.losses.perceptual import _VGG16_WIDTHS, _vgg16_features

    torch.manual_seed(0)
    backbone, heads = folder / "vgg16.safetensors", folder / "heads.safetensors"
    features = {f"features.{name}": value for name, value in _vgg16_features().state_dict().items()}
    safetensors.torch.save_file(features, backbone)
    weights = {f"lin{i}.model.1.weight": torch.rand(1, width, 1, 1) for i, width in enumerate(_VGG16_WIDTHS)}
    safetensors.torch.save_file(weights, heads)
    teachers = {}
    for name in ("vit_base_patch14_dinov2",) if full else ("test_vit",):
        teachers[name] = folder / f"{name}.safetensors"
        safetensors.torch.save_file(timm.create_model(name, num_classes=0).state_dict(), teachers[name])
    return backbone, heads, teachers
