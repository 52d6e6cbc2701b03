"""Generators of a budget: the count of an image is by (seed, sample) whoever makes it, and reports say how counts came about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mergevq.errors import InputError
from mergevq.generation.counts import draw_counts
from mergevq.serialization import load_generator
from mergevq_platform import cli
from mergevq_platform.codes import open_codes
from mergevq_platform.evaluation.generator_worker import GeneratorWorker, RealJob
from mergevq_platform.evaluation.options import EvaluationOptions
from mergevq_platform.recipe import resolve
from mergevq_platform.sampling.job import SamplingJob, sample_images
from mergevq_platform.sampling.pipeline import class_labels, class_names, open_sampling
from mergevq_platform.storage import checkpoints
from mergevq_platform.storage.runs import Run
from mergevq_platform.tasks.task import task_of
from trained_runs import trained_run


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ragged-generating")


def trained(kind: str, tree: dict[str, Any], codes: Path, home: Path) -> Run:
    task = tree["task"] | {"preset": f"test_{kind}", "codes": str(codes)}
    return trained_run(f"ragged-{kind}", home, lambda: resolve(tree | {"steps": 4, "task": task}))


@pytest.fixture
def mergear(small_generator: dict[str, Any], ragged_codes: Path, home: Path) -> Run:
    return trained("mergear", small_generator, ragged_codes, home)


@pytest.fixture
def random_order(small_generator: dict[str, Any], ragged_codes: Path, home: Path) -> Run:
    return trained("random_order", small_generator, ragged_codes, home)


def made(
    run: Run, out: Path, *, batch: int = 6, workers: int = 0, **options: Any
) -> list[tuple[int, int, list[int]]]:
    """(sample, kept count, codes) of 14 images."""
    spec = open_sampling(run.location, **options)
    names = class_names(spec.recipe)
    job = SamplingJob(spec, str(out), class_labels((), names), names, 14, batch)
    sample_images(job, workers=workers, progress=False)
    found = []
    for path in sorted((out / "codes").glob("*.npz")):
        part = np.load(path)
        for sample, keep, indices in zip(part["sample"], part["keep"], part["indices"], strict=True):
            found.append((int(sample), int(keep), [code for code in indices.tolist() if code >= 0]))
    return found


@pytest.mark.parametrize("kind", ["mergear", "random_order"])
def test_counts_and_codes_are_the_same_for_any_batch_size(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    run = request.getfixturevalue(kind)
    one, other = made(run, tmp_path / "6", seed=2), made(run, tmp_path / "5", batch=5, seed=2)
    assert one == other
    generator = load_generator(Path(run.newest_checkpoint()))
    ids = torch.arange(14)
    counts = draw_counts(generator.count_histogram, (4, 9, 16), ids % 12, sample_ids=ids, seed=2)
    assert [keep for _, keep, _ in one] == counts.tolist()
    assert len(set(counts.tolist())) > 1
    assert [len(codes) for *_, codes in one] == (counts.tolist() if kind == "random_order" else [16] * 14)
    manifest = json.loads((tmp_path / "6" / "generation.json").read_text())
    assert (manifest["kept_tokens"], manifest["allocator"]) == (None, "compressed_size")
    assert manifest["budget"] == pytest.approx(open_codes(str(manifest_codes(run)), "train").histogram().mean)


def manifest_codes(run: Run) -> str | None:
    return checkpoints.recipe_of(Path(run.newest_checkpoint())).generator.codes


@pytest.mark.ray
def test_counts_and_codes_are_the_same_for_any_number_of_workers(
    random_order: Run, tmp_path: Path, ray_home: Path
) -> None:
    assert made(random_order, tmp_path / "0") == made(random_order, tmp_path / "2", workers=2)


def test_the_budget_of_the_codes_is_no_other_mean(mergear: Run) -> None:
    assert open_sampling(mergear.location, budget=10.0) == open_sampling(mergear.location)


def test_another_budget_draws_more_or_fewer_tokens(random_order: Run) -> None:
    means = []
    for budget in (6.0, None, 14.0):
        spec = open_sampling(random_order.location, budget=budget)
        counts = GeneratorWorker(spec).pipeline.counts(torch.full((500,), -1), torch.arange(500))
        assert isinstance(counts, torch.Tensor)
        means.append(float(counts.double().mean()))
    assert means == sorted(means)
    assert (means[0], means[2]) == pytest.approx((6, 14), abs=0.5)


@pytest.mark.parametrize("kind", ["mergear", "random_order"])
def test_the_report_has_ceiling_and_baselines_at_the_counts_of_the_codes(
    kind: str, request: pytest.FixtureRequest
) -> None:
    run = request.getfixturevalue(kind)
    recipe = checkpoints.recipe_of(Path(run.newest_checkpoint()))
    evaluator = task_of(recipe).evaluator(
        recipe, run.newest_checkpoint(), EvaluationOptions(device="cpu", scales=(1.0,), images=24)
    )
    report = evaluator.report(run.name)
    assert {"real", "reconstructed", "by_position", "untrained"} <= report.references.keys()
    assert "each its own kept count (mean" in report.kept()
    assert report.protocol["kept_tokens"] is None
    assert report.protocol["budget"] > 9
    assert "Reconstructions keep 9" in report.caption() or "Reconstructions keep 10" in report.caption()


def test_evaluate_takes_another_mean_on_the_command_line(
    mergear: Run,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MERGEVQ_HOME", str(home))
    words = [
        "evaluate",
        mergear.name,
        "--no-tracking",
        "--num",
        "12",
        "--cfg",
        "1",
        "--out",
        str(tmp_path / "out"),
    ]
    assert cli.run([*words, "--budget", "12"]) == 0, capsys.readouterr().err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["protocol"]["budget"] == 12.0
    capsys.readouterr()
    assert cli.run([*words, "--budget", "12", "--keep", "9"]) == 2
    assert "one --keep or one --budget" in capsys.readouterr().err
    assert cli.run([*words, "--budget", "12", "--allocator", "oracle"]) == 2
    assert "whose codes say the allocator" in capsys.readouterr().err


def test_the_ceiling_is_decoded_from_the_stored_codes_of_the_images(mergear: Run, ragged_codes: Path) -> None:
    worker = GeneratorWorker(open_sampling(mergear.location))
    group = open_codes(ragged_codes, "val").group(0)
    assert worker.stored_counts.tolist() == group.keep.tolist()
    result = worker.answer(RealJob("reconstructed", (0,), "val"))
    tokenizer = worker.pipeline.tokenizer
    stored = torch.from_numpy(group.indices[:16].clip(0)).gather(1, torch.from_numpy(group.assignment[:16]))
    from mergevq.merging import every_cell

    wanted = tokenizer.decode_indices(stored, every_cell(stored, tokenizer.config.grid))
    shown = torch.from_numpy(result.first[:16]).permute(0, 3, 1, 2).float() / 127.5 - 1
    assert (shown - wanted.clamp(-1, 1)).abs().max() < 2 / 127.5


def test_codes_by_position_are_those_of_images_that_keep_as_many(
    random_order: Run, ragged_codes: Path
) -> None:
    worker = GeneratorWorker(open_sampling(random_order.location))
    drawn = worker.position_baseline.codes(torch.arange(60), 0, torch.tensor([4, 9, 16] * 20)).numpy()
    training = open_codes(ragged_codes, "train")
    groups = [training.group(number) for number in range(len(training.places))]
    for keep, rows in ((4, drawn[::3]), (16, drawn[2::3])):
        assert set(rows[:, keep:].flatten().tolist()) <= {-1}
        of_count = np.concatenate([group.indices[group.keep == keep][:, :keep] for group in groups])
        for position in range(keep):
            assert set(rows[:, position]) <= set(of_count[:, position])


def test_one_count_for_all_is_made_and_measured_too(mergear: Run, tmp_path: Path) -> None:
    spec = open_sampling(mergear.location, keep=9)
    assert (spec.keep, spec.budget) == (9, None)
    assert "budget" not in spec.protocol()
    for run_keep in (5, 12):
        with pytest.raises(InputError, match=f"--keep {run_keep}: this generator was trained at 4, 9, 16"):
            open_sampling(mergear.location, keep=run_keep)


MISTAKES = {
    "both": (
        ["--keep", "9", "--budget", "8"],
        "--keep 9 is one count for all and --budget 8 a mean of many: give one",
    ),
    "a mean beyond": (
        ["--budget", "20"],
        "budget is 20: the images that this generator learnt from keep 4 to 16 tokens",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_before_anything_is_made(
    mistake: str,
    mergear: Run,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MERGEVQ_HOME", str(home))
    words, message = MISTAKES[mistake]
    assert cli.run(["generate", mergear.name, "--out", str(tmp_path / "out"), *words]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert message in lines[-1]
    assert not (tmp_path / "out").exists()


def test_a_generator_of_one_count_a_batch_has_no_budget(
    small_generator: dict[str, Any], codes: Path, home: Path
) -> None:
    fixed = trained("raster", small_generator, codes, home)
    with pytest.raises(InputError, match="--budget 8: this generator learnt batches of one kept count"):
        open_sampling(fixed.location, budget=8.0)
