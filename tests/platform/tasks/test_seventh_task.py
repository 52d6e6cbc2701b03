"""A seventh task: what is below and one line in the list are all that it needs. The rest of the platform has never heard of it."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor, nn

from mergevq.config import config, flattened, to_tree
from mergevq.errors import InputError
from mergevq.metrics import Mean
from mergevq.training.protocol import Output, Training
from mergevq_platform import loop, tasks
from mergevq_platform.data import Batch, Dataset
from mergevq_platform.distributed import cluster
from mergevq_platform.distributed.local import LocalHost
from mergevq_platform.evaluation import api
from mergevq_platform.evaluation.options import EvaluationOptions
from mergevq_platform.operations import planning
from mergevq_platform.recipe import Recipe, ResolvedRecipe, complete, parse_resolved, resolve
from mergevq_platform.storage import checkpoints, runs
from mergevq_platform.storage.runs import Run
from mergevq_platform.tasks.image_feed import ImageFeed, open_images
from mergevq_platform.tasks.preflight import preflight
from mergevq_platform.tasks.task import Task, Worker
from raynodes import same

PLATFORM = Path(loop.__file__).parent


# --- mergevq/training/rotation.py ----------------------------------------------------------------------------------------


class RotationPhase(nn.Module):
    """A network that says by how many quarter turns an image was rotated, with its loss."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Conv2d(3, width, 4, stride=4),
            nn.GELU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(16 * width, 4),
        )

    def forward(
        self, batch: dict[str, Tensor], carry: dict[str, Tensor], *, keep: int | None, step: int
    ) -> Output:
        del carry, keep, step
        turns = torch.randint(4, (len(batch["image"]),))
        images = torch.stack(
            [torch.rot90(image, int(turn), (1, 2)) for image, turn in zip(batch["image"], turns, strict=True)]
        )
        loss = F.cross_entropy(self.network(images), turns)
        return Output(total=loss, losses={"total": loss.detach()})


class RotationTraining(Training):
    """Rotation prediction in one phase."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.phases = nn.ModuleDict({"rotation": RotationPhase(width)})

    def model(self) -> nn.Module:
        phase = self.phases["rotation"]
        assert isinstance(phase, RotationPhase)
        return phase.network

    def export(self, model: nn.Module, directory: str | Path) -> None:
        Path(directory, "config.json").write_text("{}")
        safetensors.torch.save_file(model.state_dict(), Path(directory, "model.safetensors"))


# --- mergevq_platform/tasks/rotation.py ----------------------------------------------------------------------------------


@config
class RotationTask(Task):
    """Learn by how much images were rotated."""

    kind: Literal["rotation"] = "rotation"
    preset: Literal["narrow"] | None = None
    width: int

    @classmethod
    def complete(cls, tree: dict[str, Any]) -> dict[str, Any]:
        return {"width": 4, **tree} if tree.get("preset") == "narrow" else tree

    def open_data(self, recipe: Recipe) -> Dataset:
        return open_images(recipe)

    def build(self, recipe: Recipe, samples: Dataset) -> Training:
        return RotationTraining(self.width)

    def open_feed(self, recipe: Recipe, samples: Dataset, worker: Worker) -> ImageFeed:
        return ImageFeed(recipe, samples, worker, measure_upright)

    @property
    def evaluated(self) -> bool:
        return True

    def evaluator(
        self, recipe: ResolvedRecipe, checkpoint: str | None, options: EvaluationOptions
    ) -> RotationEvaluator:
        return RotationEvaluator(self.width)

    def tags(self) -> dict[str, str]:
        return {"mergevq.variant": f"rotation-{self.width}"}


class RotationReport:
    """One number."""

    file_name, folder, shown_files = "rotation.json", "rotation", ("table.md",)

    def __init__(self, width: int) -> None:
        self.width, self.protocol = width, {"task": "rotation"}

    def save(self, path: Path) -> None:
        path.write_text(str(self.width))

    def table(self, width: int = 120) -> Table:
        return Table("width")

    def markdown(self) -> str:
        return f"width {self.width}"

    def verdict(self) -> list[str]:
        return ["It turns."]

    def note(self, description: str, figures: Any) -> str | None:
        return None

    def record_rows(self, recorder: Any) -> None:
        recorder.metrics(8, {"test/width": float(self.width)})


class RotationEvaluator:
    """Of a width."""

    def __init__(self, width: int) -> None:
        self.width = width

    def report(self, run: str) -> RotationReport:
        return RotationReport(self.width)

    def write_figures(self, report: RotationReport, folder: Path) -> dict[str, Path]:
        return {}


def measure_upright(model: Any, batch: Batch, meters: dict[str, Any]) -> None:
    meters.setdefault("upright", Mean("upright")).update(model(batch["image"]).argmax(-1) == 0)


# --- one line in mergevq_platform/tasks/__init__.py, and a recipe --------------------------------------------------------


@pytest.fixture
def tree(small_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setitem(tasks.KINDS, "rotation", f"{__name__}:RotationTask")
    small_recipe["evaluation"] = {"batch": 16, "validation_images": 32, "every": 4}
    return small_recipe | {"name": "rotation", "task": {"kind": "rotation", "preset": "narrow"}}


# -------------------------------------------------------------------------------------------------------------------------


def train(recipe: ResolvedRecipe, directory: Path, **options: Any) -> LocalHost:
    directory.mkdir(parents=True, exist_ok=True)
    host = LocalHost(directory, **options)
    loop.train(recipe, Worker(), host)
    return host


def test_its_recipe_is_completed_checked_and_resolved(tree: dict[str, Any]) -> None:
    recipe = resolve(tree)
    assert flattened(to_tree(recipe))["task.width"] == 4
    assert parse_resolved(to_tree(recipe)) == recipe
    with pytest.raises(InputError, match=r"unknown key 'task\.widht': did you mean 'width'\?"):
        complete(tree | {"task": {"kind": "rotation", "widht": 3}})
    with pytest.raises(InputError, match=r"trains a rotation; this needs a tokenizer"):
        _ = recipe.tokenizer


def test_it_trains_validates_and_resumes_bit_for_bit(tree: dict[str, Any], tmp_path: Path) -> None:
    recipe = resolve(tree)
    preflight(recipe)
    host = train(recipe, tmp_path / "whole")
    losses = [values["train/total"] for _, values in host.history if "train/total" in values]
    assert len(losses) == 8
    assert [step for step, values in host.history if "val/upright" in values] == [4, 8]
    train(recipe, tmp_path / "parts", stop_at=3)
    train(recipe, tmp_path / "parts")
    whole, parts = (
        torch.load(Path(checkpoints.listed(str(tmp_path / name))[0]) / "resume.pt", weights_only=True)
        for name in ("whole", "parts")
    )
    assert same(whole, parts)


def test_its_run_is_found_by_its_tags_and_evaluated_by_its_own_measure(
    tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, run = resolve(tree), Run("rotation", tmp_path, str(tmp_path / "ray"))
    train(recipe, run.directory)
    found = runs.tags(recipe, run)
    assert found["mergevq.kind"] == "rotation"
    assert found["mergevq.variant"] == "rotation-4"
    recorded: list[tuple[int, dict[str, float]]] = []
    recorder: Any = SimpleNamespace(
        metrics=lambda step, values: recorded.append((step, values)),
        tags=lambda values: None,
        artifact=lambda file, directory="": None,
        flush=lambda: None,
    )
    monkeypatch.setattr(cluster, "evaluators", lambda config: (0, "cpu", ""))
    api.after_training(SimpleNamespace(run=run, step=8), recorder)
    assert recorded == [(8, {"test/width": 4.0})]
    assert (run.directory / "rotation" / "rotation.json").read_text() == "4"


def test_it_is_planned(tree: dict[str, Any]) -> None:
    sizes = planning.measure(resolve(tree), device=torch.device("cpu"), repeats=1)
    assert sizes.gradient_bytes == 4 * sum(p.numel() for p in RotationPhase(4).network.parameters())


def test_no_file_outside_the_tasks_asks_for_the_type_of_a_task() -> None:
    asks = re.compile(r"isinstance\([^)]*Task|case \w+Task|\.task\.kind (==|in|not in) ")
    names = [kind.partition(":")[2] for kind in tasks.KINDS.values()]
    assert len(names) == 7
    for path in PLATFORM.rglob("*.py"):
        if path.parent == PLATFORM / "tasks":
            continue
        text = path.read_text()
        assert not asks.search(text), path
        assert not [name for name in names if re.search(rf"\b{name}\b", text)], path
